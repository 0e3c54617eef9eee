//! Connections that the host opens to containers by a port of its own that is published, or of the pool: a wide published
//! range has ports that the kernel takes for the host's clients, those of the relay included.
//!
//! Their packets are tracked, and nothing else is done to them. Without that, an answer would look like a packet to the
//! published port, and be led to its container.

use std::cell::Cell;

use nat::{Packet, Party, Verdict};

use super::forward::{Ways, checksum_of, nat_network, port_of, resolve};
use super::may_be_ours;
use crate::frame::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame};
use crate::policy::{Peer, Service};
use crate::snapshot::{Network, Snapshot};

/// Whether a frame of the host's may be of such a connection.
pub(super) fn may_be(frame: &Frame<'_>, snapshot: &Snapshot) -> bool {
    let is_ip = matches!(frame.ethertype(), ETHERTYPE_IPV4 | ETHERTYPE_IPV6);
    is_ip && may_be_ours(frame, snapshot, super::End::Source)
}

impl Ways<'_> {
    /// A packet from the host to a container.
    pub(super) fn track_host(&mut self, frame: &mut Frame<'_>, network: &Network) {
        let offload = frame.offload();
        let Ok(mut packet) = Packet::parse(frame.payload_mut(), checksum_of(offload)) else { return };
        let (inside, unknown) = (nat_network(network.id), Cell::new(None));
        let target = packet.destination();
        // One whose MAC nobody knows does not answer.
        let owner = resolve(self.snapshot, self.neighbors, self.now, inside, target, &unknown);
        let Some(owner) = owner else { return };
        // What it may not open is not tracked: then it does not pass, either.
        if let Some((port, tuple)) = port_of(owner).zip(packet.tuple(nat::NetworkId::OUTSIDE)) {
            let (called, service) =
                (Peer::Port(port, network.id), Service::new(tuple.protocol, tuple.destination.port));
            if !self.snapshot.policy.allows(Peer::Host, called, service, network.isolate_ports) {
                return;
            }
        }
        let to = Party { network: inside, owner };
        if let Verdict::New(pending) = self.state.nat.routed(self.now, &mut packet, Party::OUTSIDE, to) {
            // Refused where the container has too many: then it goes untracked.
            let _ = self.state.nat.commit(self.now, &mut packet, pending);
        }
    }
}
