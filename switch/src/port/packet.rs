//! The packet sockets of a worker: one receives for every netdev of the switch namespace and sends to any, and each
//! uplink has one of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::{Rx, Tx, fate_of};
use crate::batch::{BATCH, Batch, Source};
use crate::engine::{Fate, Outgoing};
use crate::fastpath::shares::Shares;
use crate::snapshot::Link;
use crate::sys::mmsg::Sender;
use crate::sys::packet::{OpenError, PacketSocket};
use crate::sys::ring::{Ring, SLOTS};

/// One unbound socket for all ports of kind packet, or one bound socket for an uplink.
#[derive(Debug)]
pub struct PacketPorts {
    socket: Arc<PacketSocket>,
    ring: Ring,
    sender: Sender,
    uplink: Option<u32>,
    shares: Option<Arc<Shares>>,
    /// Which entries of `outgoing` are in the call, in order. Kept for its memory.
    chosen: Vec<(usize, usize, u32)>,
}

impl PacketPorts {
    /// Receives from and sends by `socket`.
    pub fn new(socket: Arc<PacketSocket>) -> Result<Self, OpenError> {
        let ring = Ring::new(Arc::clone(&socket), SLOTS)?;
        let (sender, chosen) = (Sender::new(), Vec::with_capacity(BATCH));
        Ok(Self { socket, ring, sender, uplink: None, shares: None, chosen })
    }

    /// The same, of a socket whose filter gives each port a share of the ring.
    #[must_use]
    pub fn shared_out(self, shares: &Arc<Shares>) -> Self {
        Self { shares: Some(Arc::clone(shares)), ..self }
    }

    /// Receives from and sends to one interface of the host.
    pub fn uplink(socket: Arc<PacketSocket>, ifindex: u32) -> Result<Self, OpenError> {
        Ok(Self { uplink: Some(ifindex), ..Self::new(socket)? })
    }

    /// The uplink that it is for.
    pub const fn ifindex(&self) -> Option<u32> {
        self.uplink
    }

    /// Whether a frame waits to be received. Costs a look into memory.
    pub fn is_ready(&self) -> bool {
        self.ring.is_ready()
    }

    /// Whether a frame that came from this interface may wait to be received.
    pub fn holds_of(&self, ifindex: u32) -> bool {
        self.is_ready() && self.shares.as_ref().is_none_or(|shares| shares.waiting(ifindex) > 0)
    }
}

impl AsFd for PacketPorts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Rx for PacketPorts {
    fn receive(&mut self, batch: &mut Batch) -> io::Result<()> {
        let source = if self.uplink.is_some() { Source::Uplink } else { Source::Ifindex };
        let Some(shares) = &self.shares else { return self.ring.receive(batch, source) };
        // Frames in a row are given back together: filter and worker share the memory, and mostly run on two CPUs.
        let (mut of, mut frames) = (0, 0);
        let received = self.ring.receive(batch, |ifindex| {
            if ifindex != of {
                shares.give_back(of, frames);
                (of, frames) = (ifindex, 0);
            }
            frames += 1;
            source(ifindex)
        });
        shares.give_back(of, frames);
        received
    }
}

impl Tx for PacketPorts {
    fn send(&mut self, batch: &Batch, outgoing: &mut [Outgoing]) {
        self.chosen.clear();
        let uplink = self.uplink;
        self.chosen.extend(outgoing.iter().enumerate().filter_map(|(i, out)| match (out.fate, out.link) {
            (Fate::Waiting, Link::Packet(ifindex)) if uplink.is_none() => Some((i, out.frame, ifindex)),
            (Fate::Waiting, Link::Uplink(ifindex)) if uplink == Some(ifindex) => {
                Some((i, out.frame, ifindex))
            }
            _ => None,
        }));
        let frames = self.chosen.iter().map(|(_, frame, ifindex)| (batch.wire(*frame), *ifindex));
        self.sender.send(&*self.socket, frames, |i, result| {
            outgoing[self.chosen[i].0].fate = result.map_or_else(|e| fate_of(&e), |()| Fate::Sent);
        });
    }
}
