//! The packet socket of a worker: receives for every netdev of the switch namespace and sends to any.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::{Rx, Tx, fate_of};
use crate::batch::{BATCH, Batch};
use crate::engine::{Fate, Outgoing};
use crate::snapshot::Link;
use crate::sys::mmsg::Sender;
use crate::sys::packet::{OpenError, PacketSocket};
use crate::sys::ring::Ring;

/// One unbound socket for all ports of kind packet.
#[derive(Debug)]
pub struct PacketPorts {
    socket: Arc<PacketSocket>,
    ring: Ring,
    sender: Sender,
    /// Which entries of `outgoing` are in the call, in order. Kept for its memory.
    chosen: Vec<(usize, usize, u32)>,
}

impl PacketPorts {
    /// Receives from and sends by `socket`.
    pub fn new(socket: Arc<PacketSocket>) -> Result<Self, OpenError> {
        let ring = Ring::new(Arc::clone(&socket))?;
        Ok(Self { socket, ring, sender: Sender::new(), chosen: Vec::with_capacity(BATCH) })
    }

    /// Whether a frame waits to be received. Costs a look into memory.
    pub fn is_ready(&self) -> bool {
        self.ring.is_ready()
    }
}

impl AsFd for PacketPorts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Rx for PacketPorts {
    fn receive(&mut self, batch: &mut Batch) -> io::Result<()> {
        self.ring.receive(batch).map(drop)
    }
}

impl Tx for PacketPorts {
    fn send(&mut self, batch: &Batch, outgoing: &mut [Outgoing]) {
        self.chosen.clear();
        self.chosen.extend(outgoing.iter().enumerate().filter_map(|(i, out)| match (out.fate, out.link) {
            (Fate::Waiting, Link::Packet(ifindex)) => Some((i, out.frame, ifindex)),
            _ => None,
        }));
        let frames = self.chosen.iter().map(|(_, frame, ifindex)| (batch.wire(*frame), *ifindex));
        self.sender.send(&*self.socket, frames, |i, result| {
            outgoing[self.chosen[i].0].fate = result.map_or_else(|e| fate_of(&e), |()| Fate::Sent);
        });
    }
}
