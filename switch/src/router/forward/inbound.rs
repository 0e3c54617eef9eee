//! The way in: what comes from an uplink, and is an answer, a call of a published port, or nothing to us.

use std::cell::Cell;

use nat::{Packet, Party, Refusal};

use super::super::ask;
use super::super::complain::{Complaint, is_unicast};
use super::super::resolve::{Hop, Ingress, Resume};
use super::{Ways, checksum_of, dropped, network_of, party, peer, refused, resolve, service_of};
use crate::frame::{ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame};
use crate::mac::Mac;
use crate::policy::Peer;
use crate::verdict::{DropReason, Verdict};

impl Ways<'_> {
    /// A frame from an uplink. [`Verdict::Ignore`]: it is the host's.
    pub(in crate::router) fn inbound(&mut self, frame: &mut Frame<'_>, ifindex: u32) -> Verdict {
        let offload = frame.offload();
        if frame.len() < ETHERNET_HEADER || !offload.fits(frame.len()) {
            return Verdict::Ignore;
        }
        let (from, sender) = (Ingress::Uplink(ifindex), frame.src());
        let arrived = [frame.dst(), sender];
        self.begin(true);
        let answer = match frame.ethertype() {
            ETHERTYPE_ARP => ask::arp_answer(frame.payload_mut()),
            ETHERTYPE_IPV6 => ask::advertisement(frame.payload_mut(), sender),
            ETHERTYPE_IPV4 => None,
            _ => return Verdict::Ignore,
        };
        if let Some((address, mac)) = answer {
            self.heard(Hop::Outside(ifindex, address), mac);
            return Verdict::Ignore;
        }
        let Ok(mut packet) = Packet::parse(frame.payload_mut(), checksum_of(offload)) else {
            return Verdict::Ignore;
        };
        let (source, destination) = (packet.source().to_ip(), packet.destination().to_ip());
        if !is_unicast(source) || self.snapshot.network_of(source).is_some() {
            self.notes.add(|| format!("{source} is no address that may come from outside"));
            return Verdict::Ignore;
        }
        // A complaint quotes the packet as it came.
        let longest = self.snapshot.networks().map(|n| n.mtu).min().unwrap_or(u32::MAX);
        let original = (packet.len() > longest as usize || packet.hop_limit() <= 1)
            .then(|| (packet.bytes()[..packet.len().min(1280)].to_vec(), sender));
        if !self.snapshot.host_addresses.contains(&destination) {
            self.notes.add(|| format!("{destination} is no address of the host"));
            return self.inbound_routed(frame, ifindex, original);
        }
        let unknown = Cell::new(None);
        let (snapshot, neighbors, now) = (self.snapshot, self.neighbors, self.now);
        let verdict = self.state.nat.inbound(now, &mut packet, |network, address| {
            resolve(snapshot, neighbors, now, network, address, &unknown)
        });
        self.notes.of_nat(&self.state.nat, &verdict);
        let verdict = match verdict {
            nat::Verdict::New(pending) => {
                let (to, target) = (pending.to(), pending.destination().address.to_ip());
                let Some(network) = network_of(to.network).and_then(|n| self.snapshot.network(n)) else {
                    return Verdict::Drop(DropReason::NoTarget);
                };
                if !self.may_begin(
                    &packet,
                    Peer::Outside,
                    peer(to.owner, network),
                    service_of(&pending),
                    true,
                ) {
                    self.complain(&packet, Complaint::Prohibited, from, sender);
                    return Verdict::Drop(DropReason::Prohibited);
                }
                if self.mac_inside(network, target).is_none() {
                    return self.park(frame, Hop::Inside(network.id, target), from, Resume::Again);
                }
                self.state.nat.commit(self.now, &mut packet, pending)
            }
            known => known,
        };
        match verdict {
            nat::Verdict::Forward(forward) => {
                let network = network_of(forward.to.network).and_then(|n| self.snapshot.network(n));
                self.note_routed(&forward, arrived, offload, network.map_or(0, |n| n.mtu));
                self.deliver(frame, forward.to, from, original)
            }
            // As in a hairpin: what is held is a copy.
            nat::Verdict::NotOurs | nat::Verdict::Held => Verdict::Ignore,
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

    /// A packet from outside to an address that is not the host's: an answer to a container of a network that does not
    /// masquerade, a call that a rule lets in, or nothing to us.
    fn inbound_routed(
        &mut self,
        frame: &mut Frame<'_>,
        ifindex: u32,
        original: Option<(Vec<u8>, Mac)>,
    ) -> Verdict {
        let (arrived, offload) = ([frame.dst(), frame.src()], frame.offload());
        let Ok(mut packet) = Packet::parse(frame.payload_mut(), checksum_of(offload)) else {
            return Verdict::Ignore;
        };
        let destination = packet.destination().to_ip();
        let Some(network) = self.snapshot.network_of(destination).filter(|n| !n.masquerade) else {
            return Verdict::Ignore;
        };
        self.begin(false);
        let lets_in = self.snapshot.policy.lets_in(network.id);
        let Some((port, _)) = self.mac_inside(network, destination) else {
            let hop = Hop::Inside(network.id, destination);
            return match lets_in {
                true => self.park(frame, hop, Ingress::Uplink(ifindex), Resume::Again),
                false => Verdict::Drop(DropReason::NoNeighbor),
            };
        };
        let verdict = self.state.nat.routed(self.now, &mut packet, Party::OUTSIDE, party(network, port));
        self.notes.of_nat(&self.state.nat, &verdict);
        let called = Peer::Port(port, network.id);
        let verdict = match verdict {
            nat::Verdict::New(pending)
                if lets_in && self.may_begin(&packet, Peer::Outside, called, service_of(&pending), false) =>
            {
                self.state.nat.commit(self.now, &mut packet, pending)
            }
            known => known,
        };
        match verdict {
            nat::Verdict::Forward(forward) => {
                self.note_routed(&forward, arrived, offload, network.mtu);
                self.deliver(frame, forward.to, Ingress::Uplink(ifindex), original)
            }
            nat::Verdict::Held => Verdict::Absorbed,
            nat::Verdict::Drop(reason) => Verdict::Drop(dropped(reason)),
            // Networks are closed to who calls from outside, but for published ports and what rules let in.
            nat::Verdict::New(_) | nat::Verdict::Refuse(_) | nat::Verdict::NotOurs => {
                Verdict::Drop(DropReason::Filtered)
            }
        }
    }
}
