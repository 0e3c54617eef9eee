//! Forwarding: the way of a packet from a container to the outside, back, and to other containers, through [`nat`].
//!
//! Each way has the same steps: is it allowed to be here, where does it go, does it fit, who is the next hop; only then is
//! it translated, so that what is dropped or waits leaves no state. What is sent besides the packet itself (questions for
//! MACs, ICMP errors, frames that had waited) is added to a list of [`Extra`] frames.

mod inbound;

use std::cell::Cell;
use std::net::IpAddr;

use nat::{Address, Checksum, External, Nat, OwnerId, Packet, Party, Refusal, Time};

use super::complain::{Complaint, Limiter, is_unicast};
use super::errands::parse_cut;
use super::fit::{self, Fit};
use super::neighbor::Neighbors;
use super::notes::Notes;
use super::resolve::{Found, Hop, Ingress, Resolver, Resume};
use super::route::Action;
use crate::fastpath::carry::Routed;
use crate::frame::{ETHERNET_HEADER, Frame, Offload, OwnedFrame};
use crate::journal::Journal;
use crate::mac::Mac;
use crate::policy::{Peer, Service, by_default};
use crate::snapshot::{Network, NetworkId, Port, PortId, Snapshot, Uplink};
use crate::verdict::{DropReason, Verdict};

/// What connections and next hops are known: shared by all workers, behind one lock.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// Connections.
    pub nat: Nat,
    /// Next hops, and frames that wait for them.
    pub resolver: Resolver,
    pub(super) limiter: Limiter,
    /// Where connections are written down.
    pub journal: Journal,
}

impl Forwarding {
    /// Without connections.
    pub fn new(config: nat::Config) -> Self {
        Self {
            nat: Nat::new(config),
            resolver: Resolver::default(),
            limiter: Limiter::default(),
            journal: Journal::default(),
        }
    }

    /// Writes down what has changed.
    pub fn write_down(&mut self, snapshot: &Snapshot) {
        self.journal.follow(&mut self.nat, snapshot);
    }

    /// A port is gone: its connections, and its frames that wait.
    pub fn remove_port(&mut self, now: Time, port: PortId) {
        self.nat.remove_owner(now, owner(port));
        self.resolver.forget_sender(Ingress::Port(port));
    }

    /// A network is gone.
    pub fn remove_network(&mut self, now: Time, network: NetworkId) {
        self.nat.remove_network(now, nat_network(network));
        self.resolver.forget(|hop| matches!(hop, Hop::Inside(n, _) if *n == network));
    }
}

/// A port as `nat` names it.
pub const fn owner(port: PortId) -> OwnerId {
    OwnerId(port.0.saturating_add(1))
}

/// The port behind an owner.
pub fn port_of(owner: OwnerId) -> Option<PortId> {
    owner.0.checked_sub(1).map(PortId)
}

/// A network as `nat` names it: 0 is the outside.
pub const fn nat_network(network: NetworkId) -> nat::NetworkId {
    nat::NetworkId(network.0.saturating_add(1))
}

/// The network behind a number of `nat`'s.
pub fn network_of(network: nat::NetworkId) -> Option<NetworkId> {
    network.0.checked_sub(1).map(NetworkId)
}

pub(super) const fn party(network: &Network, port: PortId) -> Party {
    Party { network: nat_network(network.id), owner: owner(port) }
}

/// A frame to send that is not the one in work.
#[derive(Debug)]
pub struct Extra {
    /// The frame.
    pub frame: OwnedFrame,
    /// Where it came from, and is counted for; none for one that the switch made.
    pub from: Option<Ingress>,
    /// Where it goes.
    pub verdict: Verdict,
    /// The network that a flood is for.
    pub network: NetworkId,
}

/// The way to a destination outside.
struct Way<'a> {
    uplink: &'a Uplink,
    next_hop: IpAddr,
    external: Option<IpAddr>,
    mtu: u32,
}

/// What is needed on the way.
pub(super) struct Ways<'a> {
    pub(super) now: Time,
    pub(super) snapshot: &'a Snapshot,
    pub(super) neighbors: &'a Neighbors,
    pub(super) state: &'a mut Forwarding,
    pub(super) extras: &'a mut Vec<Extra>,
    /// What the kernel has to know to do the same with what is alike.
    pub(super) routed: &'a mut Option<Routed>,
    pub(super) notes: &'a mut Notes,
    /// Fragments that are held are copies: the frames themselves are the host's, or were ignored.
    pub(super) held_are_copies: bool,
}

impl<'a> Ways<'a> {
    /// A packet from a container, to the gateway's MAC and to none of the host's addresses.
    pub(super) fn outbound(&mut self, frame: &mut Frame<'_>, port: &Port, network: &Network) -> Verdict {
        let (from, sender, offload) = (Ingress::Port(port.id), frame.src(), frame.offload());
        let arrived = [frame.dst(), sender];
        self.begin(false);
        let Ok(mut packet) = Packet::parse(frame.payload_mut(), checksum_of(offload)) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        let (source, destination) = (packet.source().to_ip(), packet.destination().to_ip());
        if !is_unicast(destination) || network.contains(destination) {
            return Verdict::Drop(DropReason::NotRouted);
        }
        if !self.may_send(port, network, source) {
            self.notes.add(|| format!("{source} is not an address that port {} may use", port.name));
            return Verdict::Drop(DropReason::SpoofedSource);
        }
        if packet.hop_limit() <= 1 {
            self.complain(&packet, Complaint::TimeExceeded, from, sender);
            return Verdict::Drop(DropReason::TtlExpired);
        }
        if let Some(other) = self.snapshot.network_of(destination) {
            return self.between(frame, port, network, other);
        }
        if self.snapshot.internal.contains(&network.id) {
            self.notes.add(|| format!("network {} is internal: it has no way out", network.name));
            self.complain(&packet, Complaint::Prohibited, from, sender);
            return Verdict::Drop(DropReason::Prohibited);
        }
        let way = match self.way_out(destination) {
            Ok(way) => way,
            Err(complaint) => {
                if let Some(complaint) = complaint {
                    self.complain(&packet, complaint, from, sender);
                }
                return Verdict::Drop(DropReason::NoRoute);
            }
        };
        let fit = fit::fit(&packet, offload, way.mtu);
        if fit == Fit::TooBig {
            self.complain(&packet, Complaint::TooBig(way.mtu), from, sender);
            return Verdict::Drop(DropReason::TooBig);
        }
        let hop = Hop::Outside(way.uplink.ifindex, way.next_hop);
        self.notes.add(|| format!("the host's route leads by {} to {}", way.uplink.name, way.next_hop));
        let Some(mac) = self.mac_outside(hop) else { return self.park(frame, hop, from, Resume::Again) };
        let party = party(network, port.id);
        let verdict = if network.masquerade {
            self.state.nat.outbound(self.now, &mut packet, party, external(way.external))
        } else {
            self.state.nat.routed(self.now, &mut packet, party, Party::OUTSIDE)
        };
        self.notes.of_nat(&self.state.nat, &verdict);
        let peer = Peer::Port(port.id, network.id);
        let verdict = match verdict {
            nat::Verdict::New(pending)
                if !self.may_begin(&packet, peer, Peer::Outside, service_of(&pending), true) =>
            {
                self.complain(&packet, Complaint::Prohibited, from, sender);
                return Verdict::Drop(DropReason::Prohibited);
            }
            nat::Verdict::New(pending) => self.state.nat.commit(self.now, &mut packet, pending),
            known => known,
        };
        match verdict {
            nat::Verdict::Forward(forward) => self.note_routed(&forward, arrived, offload, way.mtu),
            nat::Verdict::Drop(reason) => return Verdict::Drop(dropped(reason)),
            nat::Verdict::Refuse(refusal) => {
                self.complain(&packet, Complaint::Prohibited, from, sender);
                return Verdict::Drop(refused(refusal));
            }
            nat::Verdict::Held => return Verdict::Absorbed,
            nat::Verdict::NotOurs | nat::Verdict::New(_) => return Verdict::Drop(DropReason::Untranslatable),
        }
        // The last gate: whatever was decided before, an inside address does not leave.
        if network.masquerade && self.snapshot.network_of(packet.source().to_ip()).is_some() {
            return Verdict::Drop(DropReason::Untranslatable);
        }
        if packet.decrement_hop_limit().is_none() {
            return Verdict::Drop(DropReason::TtlExpired);
        }
        clamp_mss(&mut packet, way.mtu.min(network.mtu));
        let verdict = Verdict::Uplink(way.uplink.ifindex);
        self.dispatch(frame, fit, way.mtu, mac, way.uplink.mac, verdict, from)
    }

    /// A packet between two networks.
    fn between(&mut self, frame: &mut Frame<'_>, port: &Port, network: &Network, other: &Network) -> Verdict {
        let (from, sender, offload) = (Ingress::Port(port.id), frame.src(), frame.offload());
        let Ok(mut packet) = Packet::parse(frame.payload_mut(), checksum_of(offload)) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        let policy = &self.snapshot.policy;
        if !policy.opens(network.id, other.id) && !policy.opens(other.id, network.id) {
            self.notes.add(|| {
                let (from, to) = (&network.name, &other.name);
                format!("network {from} may not open connections to {to} ('swctl policy')")
            });
            self.complain(&packet, Complaint::Prohibited, from, sender);
            return Verdict::Drop(DropReason::Prohibited);
        }
        let destination = packet.destination().to_ip();
        let Some((to, _)) = self.mac_inside(other, destination) else {
            return self.park(frame, Hop::Inside(other.id, destination), from, Resume::Again);
        };
        let verdict = self.state.nat.routed(self.now, &mut packet, party(network, port.id), party(other, to));
        self.notes.of_nat(&self.state.nat, &verdict);
        let verdict = match verdict {
            nat::Verdict::New(pending)
                if !self.may_begin(
                    &packet,
                    Peer::Port(port.id, network.id),
                    Peer::Port(to, other.id),
                    service_of(&pending),
                    false,
                ) =>
            {
                self.complain(&packet, Complaint::Prohibited, from, sender);
                return Verdict::Drop(DropReason::Prohibited);
            }
            nat::Verdict::New(pending) => self.state.nat.commit(self.now, &mut packet, pending),
            known => known,
        };
        match verdict {
            nat::Verdict::Forward(forward) => self.deliver(frame, forward.to, from, None),
            nat::Verdict::Drop(reason) => Verdict::Drop(dropped(reason)),
            nat::Verdict::Refuse(refusal) => {
                self.complain(&packet, Complaint::Prohibited, from, sender);
                Verdict::Drop(refused(refusal))
            }
            nat::Verdict::Held => Verdict::Absorbed,
            nat::Verdict::NotOurs | nat::Verdict::New(_) => Verdict::Drop(DropReason::Untranslatable),
        }
    }

    /// A packet from a container to one of the host's addresses, which may be for a published port or for another
    /// container's mapping. [`Verdict::Next`]: it is the host's.
    pub(super) fn hairpin(&mut self, frame: &mut Frame<'_>, port: &Port, network: &Network) -> Verdict {
        let (from, sender, offload) = (Ingress::Port(port.id), frame.src(), frame.offload());
        self.begin(true);
        let Ok(mut packet) = Packet::parse(frame.payload_mut(), checksum_of(offload)) else {
            return Verdict::Next;
        };
        let destination = packet.destination().to_ip();
        if !self.may_send(port, network, packet.source().to_ip()) {
            return Verdict::Next;
        }
        // The address by which the outside knows the sender; without an outside, the one it has called.
        let default = self.snapshot.routes.default(destination.is_ipv4()).map(|r| r.action);
        let outside = default.and_then(|action| self.way_by(action, destination).ok()?.external);
        let outside = external(Some(outside.unwrap_or(destination)));
        let party = party(network, port.id);
        let unknown = Cell::new(None);
        let (snapshot, neighbors, now) = (self.snapshot, self.neighbors, self.now);
        let verdict = self.state.nat.hairpin(now, &mut packet, party, outside, |network, address| {
            resolve(snapshot, neighbors, now, network, address, &unknown)
        });
        self.notes.of_nat(&self.state.nat, &verdict);
        let verdict = match verdict {
            nat::Verdict::New(pending) => {
                let (to, target) = (pending.to(), pending.destination().address.to_ip());
                let Some(other) = network_of(to.network).and_then(|n| self.snapshot.network(n)) else {
                    return Verdict::Drop(DropReason::NoTarget);
                };
                // What is published is for everybody who is not forbidden it.
                let is_published = pending.rule().is_some();
                let (caller, called) = (Peer::Port(port.id, network.id), peer(to.owner, other));
                let default = is_published || by_default(caller, called, network.isolate_ports);
                if !self.may_begin(&packet, caller, called, service_of(&pending), default) {
                    self.complain(&packet, Complaint::Prohibited, from, sender);
                    let isolated = other.id == network.id && !default;
                    let reason = if isolated { DropReason::Isolated } else { DropReason::Prohibited };
                    return Verdict::Drop(reason);
                }
                if self.mac_inside(other, target).is_none() {
                    return self.park(frame, Hop::Inside(other.id, target), from, Resume::Again);
                }
                self.state.nat.commit(self.now, &mut packet, pending)
            }
            known => known,
        };
        match verdict {
            // It answers a connection of the host's.
            nat::Verdict::Forward(forward) if forward.to == Party::OUTSIDE => Verdict::Next,
            nat::Verdict::Forward(forward) => self.deliver(frame, forward.to, from, None),
            // A fragment may be the host's: then the copy that is held is forgotten in time.
            nat::Verdict::NotOurs | nat::Verdict::Held => Verdict::Next,
            nat::Verdict::Drop(reason) => Verdict::Drop(dropped(reason)),
            nat::Verdict::Refuse(Refusal::NoTarget) => match unknown.take() {
                Some(hop) => self.park(frame, hop, from, Resume::Again),
                None => Verdict::Drop(DropReason::NoTarget),
            },
            nat::Verdict::Refuse(refusal) => {
                self.complain(&packet, Complaint::Prohibited, from, sender);
                Verdict::Drop(refused(refusal))
            }
            nat::Verdict::New(_) => Verdict::Drop(DropReason::Untranslatable),
        }
    }

    /// Notes how a packet was translated, for [`crate::fastpath`].
    fn note_routed(&mut self, forward: &nat::Forward, arrived: [Mac; 2], offload: Offload, mtu: u32) {
        let (connection, direction) = (forward.connection, forward.direction);
        let routed = Routed { connection, direction, arrived, mtu };
        *self.routed = Routed::is_plain(offload).then_some(routed);
    }

    /// Takes a translated packet to the container that it is for.
    fn deliver(
        &mut self,
        frame: &mut Frame<'_>,
        to: Party,
        from: Ingress,
        original: Option<(Vec<u8>, Mac)>,
    ) -> Verdict {
        let found = network_of(to.network).and_then(|n| self.snapshot.network(n));
        let (Some(network), Some(port)) = (found, port_of(to.owner).and_then(|p| self.snapshot.port(p)))
        else {
            return Verdict::Drop(DropReason::NoTarget);
        };
        if port.network != network.id {
            return Verdict::Drop(DropReason::NoTarget);
        }
        let offload = frame.offload();
        let Ok(mut packet) = Packet::parse(frame.payload_mut(), checksum_of(offload)) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        let complain = |ways: &mut Self, complaint| {
            let Some((mut bytes, sender)) = original else { return };
            // A quote that was cut does not parse as a whole packet: it is patched to say its own length.
            if let Ok(packet) = parse_cut(&mut bytes) {
                ways.complain(&packet, complaint, from, sender);
            }
        };
        if packet.decrement_hop_limit().is_none() {
            complain(self, Complaint::TimeExceeded);
            return Verdict::Drop(DropReason::TtlExpired);
        }
        clamp_mss(&mut packet, network.mtu);
        let fit = fit::fit(&packet, offload, network.mtu);
        if fit == Fit::TooBig {
            complain(self, Complaint::TooBig(network.mtu));
            return Verdict::Drop(DropReason::TooBig);
        }
        let destination = packet.destination().to_ip();
        match self.mac_inside(network, destination).filter(|(at, _)| *at == port.id) {
            Some((_, mac)) => {
                self.notes.add(|| {
                    format!("{destination} is {mac} at port {} of network {}", port.name, network.name)
                });
                let verdict = Verdict::Forward(port.id);
                self.dispatch(frame, fit, network.mtu, mac, network.gateway_mac, verdict, from)
            }
            None => self.park(frame, Hop::Inside(network.id, destination), from, Resume::Send),
        }
    }

    /// The last step: makes a translated packet fit, addresses it, and sends along what had waited for it.
    #[expect(clippy::too_many_arguments, reason = "one place for all ways")]
    fn dispatch(
        &mut self,
        frame: &mut Frame<'_>,
        fit: Fit,
        mtu: u32,
        to: Mac,
        by: Mac,
        verdict: Verdict,
        from: Ingress,
    ) -> Verdict {
        frame.set_addresses(to, by);
        match fit {
            Fit::Fits | Fit::TooBig => {}
            Fit::Segments(offload) => frame.set_offload(offload),
            Fit::Fragments => {
                let checksum = checksum_of(frame.offload());
                if let Ok(mut packet) = Packet::parse(frame.payload_mut(), checksum) {
                    packet.complete_checksum();
                }
                frame.set_offload(Offload::default());
                let mut parts = fit::fragments(frame.bytes(), mtu).into_iter();
                let Some(first) = parts.next().filter(|f| frame.resize(f.len())) else {
                    return Verdict::Drop(DropReason::TooBig);
                };
                frame.bytes_mut().copy_from_slice(&first);
                for part in parts {
                    let frame = OwnedFrame::new(&part, Offload::default());
                    self.extras.push(Extra { frame, from: None, verdict, network: NetworkId(0) });
                }
            }
        }
        self.send_released(&frame.bytes()[..ETHERNET_HEADER], mtu, verdict, from);
        verdict
    }

    /// Whether a container may send from an address: one of its network's, not the gateway's, not leased to another.
    fn may_send(&self, port: &Port, network: &Network, source: IpAddr) -> bool {
        network.contains(source)
            && !network.gateways.iter().any(|g| g.address == source)
            && self.snapshot.leases.get(&(network.id, source)).is_none_or(|owner| *owner == port.id)
    }

    /// The way to a destination outside; the error is what to tell the sender, if anything.
    fn way_out(&self, destination: IpAddr) -> Result<Way<'a>, Option<Complaint>> {
        let route = self.snapshot.routes.lookup(destination).ok_or(Some(Complaint::NoRoute))?;
        self.way_by(route.action, destination)
    }

    fn way_by(&self, action: Action, destination: IpAddr) -> Result<Way<'a>, Option<Complaint>> {
        let (ifindex, gateway, source, mtu) = match action {
            Action::Forward { ifindex, gateway, source, mtu } => (ifindex, gateway, source, mtu),
            Action::Blackhole => return Err(None),
            Action::Unreachable => return Err(Some(Complaint::HostUnreachable)),
            Action::Prohibit => return Err(Some(Complaint::Prohibited)),
        };
        let uplink = self.snapshot.uplink(ifindex).ok_or(Some(Complaint::NoRoute))?;
        let broadcast = |a: &ipnet::IpNet| {
            a.addr().is_ipv4()
                && a.prefix_len() < 31
                && (a.broadcast() == destination || a.network() == destination)
        };
        if uplink.addresses.iter().any(broadcast) {
            return Err(None);
        }
        let next_hop = gateway.unwrap_or(destination);
        let near = if next_hop.is_ipv4() == destination.is_ipv4() { next_hop } else { destination };
        let source = source.filter(|s| self.snapshot.host_addresses.contains(s));
        let external = source.or_else(|| uplink.address_for(near));
        Ok(Way { uplink, next_hop, external, mtu: mtu.unwrap_or(u32::MAX).min(uplink.mtu) })
    }

    /// The MAC of a next hop outside; asks for it again when it is old.
    fn mac_outside(&mut self, hop: Hop) -> Option<Mac> {
        match self.state.resolver.find(self.now, hop) {
            Found::Known(mac, question) => {
                if let Some(question) = question {
                    self.ask(question);
                }
                Some(mac)
            }
            Found::Unknown => None,
        }
    }

    /// The port and the MAC of a container. What was leased is believed at its own port only.
    pub(super) fn mac_inside(&self, network: &Network, address: IpAddr) -> Option<(PortId, Mac)> {
        let neighbor = self.neighbors.get(network.id, address, self.now)?;
        let lease = self.snapshot.leases.get(&(network.id, address));
        let at_home = lease.is_none_or(|port| *port == neighbor.port);
        (at_home && network.host_port != Some(neighbor.port)).then_some((neighbor.port, neighbor.mac))
    }
}

/// Who has the other end of a connection, to the policy.
fn peer(owner: OwnerId, network: &Network) -> Peer {
    port_of(owner).map_or(Peer::Outside, |port| Peer::Port(port, network.id))
}

/// What a connection is for: the port is that of who is called in the end.
fn service_of(pending: &nat::Pending) -> Service {
    Service::new(pending.tuple().protocol, pending.destination().port)
}

/// Whose an address is that a published port leads to; notes the next hop to ask for where that is not known.
pub(super) fn resolve(
    snapshot: &Snapshot,
    neighbors: &Neighbors,
    now: Time,
    network: nat::NetworkId,
    address: Address,
    unknown: &Cell<Option<Hop>>,
) -> Option<OwnerId> {
    let (network, address) = (network_of(network)?, address.to_ip());
    if let Some(port) = snapshot.leases.get(&(network, address)) {
        return Some(owner(*port));
    }
    let host = snapshot.network(network)?.host_port;
    match neighbors.get(network, address, now).filter(|n| Some(n.port) != host) {
        Some(neighbor) => Some(owner(neighbor.port)),
        None => {
            unknown.set(Some(Hop::Inside(network, address)));
            None
        }
    }
}

pub(super) const fn checksum_of(offload: Offload) -> Checksum {
    if offload.needs_csum() { Checksum::Partial } else { Checksum::Complete }
}

fn external(address: Option<IpAddr>) -> External {
    match address {
        Some(IpAddr::V4(v4)) => External { v4: Some(v4), v6: None },
        Some(IpAddr::V6(v6)) => External { v4: None, v6: Some(v6) },
        None => External::default(),
    }
}

/// Lowers the segment size that a SYN offers to what fits `mtu`.
fn clamp_mss(packet: &mut Packet<'_>, mtu: u32) {
    let headers = if packet.is_v4() { 40 } else { 60 };
    packet.clamp_mss(u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX));
}

pub(super) const fn dropped(reason: nat::DropReason) -> DropReason {
    match reason {
        nat::DropReason::Clash => DropReason::Clash,
        nat::DropReason::Filtered => DropReason::Filtered,
        nat::DropReason::FragmentLimit | nat::DropReason::FragmentMismatch => DropReason::FragmentLimit,
        nat::DropReason::IcmpChecksum | nat::DropReason::IcmpQuote | nat::DropReason::IcmpUnrelated => {
            DropReason::IcmpUnrelated
        }
        nat::DropReason::NoConnection => DropReason::NoConnection,
        nat::DropReason::SourceDenied => DropReason::SourceDenied,
        nat::DropReason::Unsupported => DropReason::Untranslatable,
    }
}

pub(super) const fn refused(refusal: Refusal) -> DropReason {
    match refusal {
        Refusal::NoExternalAddress => DropReason::NoExternalAddress,
        Refusal::NoTarget => DropReason::NoTarget,
        Refusal::OwnerLimit | Refusal::TableFull => DropReason::ConnectionLimit,
        Refusal::PortsExhausted => DropReason::PortsExhausted,
        Refusal::RateLimit => DropReason::ConnectionRate,
        Refusal::Stale => DropReason::NoConnection,
    }
}
