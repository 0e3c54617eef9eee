//! Errands of the way: questions for MACs, frames that wait and go on, and what senders are told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nat::packet::Transport;
use nat::{Checksum, Packet};

use super::ask;
use super::complain::{self, Complaint};
use super::forward::{Extra, Ways, checksum_of};
use super::resolve::{Hop, Ingress, Park, Parked, Question, Resume};
use crate::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame, Offload, OwnedFrame};
use crate::mac::Mac;
use crate::snapshot::{NetworkId, PortId};
use crate::verdict::{DropReason, Verdict};

impl Ways<'_> {
    pub(super) fn park(&mut self, frame: &Frame<'_>, hop: Hop, from: Ingress, resume: Resume) -> Verdict {
        self.notes.add(|| {
            let (Hop::Outside(_, address) | Hop::Inside(_, address)) = hop;
            format!(
                "nobody is known at {address}: the packet waits for an answer to ARP or neighbor discovery"
            )
        });
        match self.state.resolver.park(self.now, hop, from, resume, || frame.into()) {
            Park::Waits(question) => {
                if let Some(question) = question {
                    self.ask(question);
                }
                Verdict::Absorbed
            }
            Park::Full => Verdict::Drop(DropReason::ParkedFull),
        }
    }

    /// Begins with a packet. Fragments that were to follow the one before are dropped: it was not sent.
    pub(super) fn begin(&mut self, held_are_copies: bool) {
        self.state.nat.discard_released();
        self.held_are_copies = held_are_copies;
    }

    /// Sends the fragments that had waited for the packet that is being routed, the same way.
    pub(super) fn send_released(&mut self, ethernet: &[u8], mtu: u32, verdict: Verdict, from: Ingress) {
        self.send_waiting(ethernet, (mtu, 1), verdict, from);
    }

    /// Sends the fragments that had waited for the packet that is being bridged, the same way.
    pub(super) fn send_held(&mut self, ethernet: &[u8], mtu: u32, verdict: Verdict, from: Ingress) {
        self.send_waiting(ethernet, (mtu, 0), verdict, from);
    }

    fn send_waiting(&mut self, ethernet: &[u8], (mtu, hops): (u32, u8), verdict: Verdict, from: Ingress) {
        while let Some((_, mut packet)) = self.state.nat.next_released() {
            let fits = packet.len() <= mtu as usize;
            if hops > 0
                && let Ok(mut packet) = Packet::parse(&mut packet, Checksum::Complete)
            {
                packet.decrement_hop_limit();
            }
            let frame = OwnedFrame::new(&[ethernet, &packet].concat(), Offload::default());
            let verdict = if fits { verdict } else { Verdict::Drop(DropReason::TooBig) };
            let from = (!self.held_are_copies).then_some(from);
            self.extras.push(Extra { frame, from, verdict, network: NetworkId(0) });
        }
    }

    /// Asks for a MAC.
    pub(super) fn ask(&mut self, question: Question) {
        let (frame, verdict, network) = match question.hop {
            Hop::Outside(ifindex, target) => {
                let Some(uplink) = self.snapshot.uplink(ifindex) else { return };
                let link_local = || {
                    uplink.addresses.iter().map(ipnet::IpNet::addr).find(|a| a.is_ipv4() == target.is_ipv4())
                };
                let Some(address) = uplink.address_for(target).or_else(link_local) else { return };
                let frame = ask::question(uplink.mac, address, target, question.known);
                (frame, Verdict::Uplink(ifindex), NetworkId(0))
            }
            Hop::Inside(network, target) => {
                let Some(network) = self.snapshot.network(network) else { return };
                let Some(gateway) = network.gateway(target.is_ipv4()) else { return };
                let frame = ask::question(network.gateway_mac, gateway, target, None);
                let lease = self.snapshot.leases.get(&(network.id, target));
                (frame, lease.map_or(Verdict::Flood, |port| Verdict::Forward(*port)), network.id)
            }
        };
        self.extras.extend(frame.map(|frame| Extra { frame, from: None, verdict, network }));
    }

    /// A next hop says its MAC: what waited for it goes on.
    pub(super) fn heard(&mut self, hop: Hop, mac: Mac) {
        let parked = self.state.resolver.answered(self.now, hop, mac);
        self.resume(hop, parked);
    }

    /// Lets frames that waited go on.
    pub(super) fn resume(&mut self, hop: Hop, parked: Vec<Parked>) {
        if parked.is_empty() {
            return;
        }
        self.notes.add(|| format!("{} frames that waited for this answer go on", parked.len()));
        // Their reasons are not those of the frame in work.
        let reasons = std::mem::take(self.notes);
        for Parked { mut frame, from, resume } in parked {
            let verdict = match (resume, from) {
                (Resume::Send, _) => self.send_on(&mut frame, hop),
                (Resume::Again, Ingress::Uplink(ifindex)) => {
                    self.inbound(&mut frame.frame(PortId(u32::MAX)), ifindex)
                }
                (Resume::Again, Ingress::Port(id)) => self.again(&mut frame, id),
            };
            let verdict = match verdict {
                Verdict::Absorbed => continue,
                // It was ours when it came, and is not any more.
                Verdict::Ignore => Verdict::Drop(DropReason::NoTarget),
                verdict => verdict,
            };
            self.extras.push(Extra { frame, from: Some(from), verdict, network: NetworkId(0) });
        }
        *self.notes = reasons;
    }

    fn again(&mut self, frame: &mut OwnedFrame, id: PortId) -> Verdict {
        let Some(port) = self.snapshot.port(id) else { return Verdict::Drop(DropReason::PortDown) };
        let Some(network) = self.snapshot.network(port.network) else {
            return Verdict::Drop(DropReason::PortDown);
        };
        let mut frame = frame.frame(id);
        if destination(&frame).is_some_and(|d| self.snapshot.host_addresses.contains(&d)) {
            match self.hairpin(&mut frame, port, network) {
                Verdict::Next => {
                    network.host_port.map_or(Verdict::Drop(DropReason::NoHostAccess), Verdict::Forward)
                }
                verdict => verdict,
            }
        } else {
            self.outbound(&mut frame, port, network)
        }
    }

    /// Sends a translated packet to the container that has just said its MAC.
    fn send_on(&self, frame: &mut OwnedFrame, hop: Hop) -> Verdict {
        let Hop::Inside(network, address) = hop else { return Verdict::Drop(DropReason::NoNeighbor) };
        let Some(network) = self.snapshot.network(network) else {
            return Verdict::Drop(DropReason::NoTarget);
        };
        let Some((port, mac)) = self.mac_inside(network, address) else {
            return Verdict::Drop(DropReason::NoNeighbor);
        };
        frame.frame(port).set_addresses(mac, network.gateway_mac);
        Verdict::Forward(port)
    }

    /// Asks again, gives up, and clears away what has expired.
    pub(super) fn tick(&mut self) {
        let (questions, given_up) = self.state.resolver.tick(self.now);
        for question in questions {
            self.ask(question);
        }
        for (_, Parked { mut frame, from, resume }) in given_up {
            let mut reason = DropReason::NoNeighbor;
            if resume == Resume::Again {
                let mut view = frame.frame(PortId(u32::MAX));
                let (sender, offload) = (view.src(), view.offload());
                if let Ok(packet) = Packet::parse(view.payload_mut(), checksum_of(offload)) {
                    if self.snapshot.host_addresses.contains(&packet.destination().to_ip()) {
                        reason = DropReason::NoTarget;
                        self.refuse(&packet, from, sender);
                    } else {
                        self.complain(&packet, Complaint::HostUnreachable, from, sender);
                    }
                }
            }
            let verdict = Verdict::Drop(reason);
            self.extras.push(Extra { frame, from: Some(from), verdict, network: NetworkId(0) });
        }
    }

    /// Tells a sender that nobody listens, in its protocol's way.
    fn refuse(&mut self, packet: &Packet<'_>, to: Ingress, mac: Mac) {
        if packet.transport() != Transport::Tcp {
            self.complain(packet, Complaint::PortUnreachable, to, mac);
        } else if self.state.limiter.may(self.now, to)
            && let Some(reset) = complain::reset(packet)
        {
            self.send_own(&reset, to, mac);
        }
    }

    /// Tells the sender of a packet, as it came, what is wrong with it.
    pub(super) fn complain(&mut self, packet: &Packet<'_>, complaint: Complaint, to: Ingress, mac: Mac) {
        let source = match to {
            Ingress::Port(id) => {
                let network = self.snapshot.port(id).and_then(|p| self.snapshot.network(p.network));
                match network {
                    // The host would not believe its own address.
                    Some(n) if n.host_port == Some(id) => Some(packet.destination().to_ip()),
                    network => network.and_then(|n| n.gateway(packet.is_v4())),
                }
            }
            Ingress::Uplink(_) => Some(packet.destination().to_ip()),
        };
        let Some(source) = source else { return };
        if !self.state.limiter.may(self.now, to) {
            self.notes.add(|| "the sender has been told as much as it may be lately".to_owned());
            return;
        }
        if let Some(error) = complain::icmp(packet, complaint, source) {
            self.send_own(&error, to, mac);
        }
    }

    /// Sends a packet of the switch's own back to where another came from.
    fn send_own(&mut self, packet: &[u8], to: Ingress, mac: Mac) {
        let (by, verdict) = match to {
            Ingress::Port(id) => {
                let network = self.snapshot.port(id).and_then(|p| self.snapshot.network(p.network));
                let Some(network) = network else { return };
                (network.gateway_mac, Verdict::Forward(id))
            }
            Ingress::Uplink(ifindex) => {
                let Some(uplink) = self.snapshot.uplink(ifindex) else { return };
                (uplink.mac, Verdict::Uplink(ifindex))
            }
        };
        let v4 = packet.first().is_some_and(|b| b >> 4 == 4);
        let ethertype = if v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let bytes = [&mac.0[..], &by.0, &ethertype.to_be_bytes(), packet].concat();
        let frame = OwnedFrame::new(&bytes, Offload::default());
        self.extras.push(Extra { frame, from: None, verdict, network: NetworkId(0) });
    }
}

/// A packet that was cut, its length fields set to what is there.
pub(super) fn parse_cut(bytes: &mut [u8]) -> Result<Packet<'_>, nat::packet::ParseError> {
    let len = bytes.len();
    let (at, value) = match bytes.first().map(|b| b >> 4) {
        Some(4) => (2, len),
        _ => (4, len.saturating_sub(40)),
    };
    if let (Some(field), Ok(value)) = (bytes.get_mut(at..at + 2), u16::try_from(value)) {
        field.copy_from_slice(&value.to_be_bytes());
    }
    Packet::parse(bytes, Checksum::Complete)
}

/// Destination of an untagged IP frame.
pub(super) fn destination(frame: &Frame<'_>) -> Option<IpAddr> {
    let payload = frame.bytes().get(ETHERNET_HEADER..)?;
    match (frame.ethertype(), payload.first()? >> 4) {
        (ETHERTYPE_IPV4, 4) => {
            let octets: [u8; 4] = payload.get(16..20)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        }
        (ETHERTYPE_IPV6, 6) => {
            let octets: [u8; 16] = payload.get(24..40)?.try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}
