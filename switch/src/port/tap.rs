//! A TAP port: the container's interface is a TAP device, and its queue is held here.
//!
//! No veth pair, no second device: what is read was sent by the container, what is written it receives. One `read` or
//! `write` moves one frame (the kernel has no batch call for TAP queues), super-frames included.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Rx, Tx, fate_of};
use crate::batch::{Batch, Source};
use crate::engine::{Fate, Outgoing};
use crate::frame::{HEADROOM, OFFLOAD_HEADER};
use crate::snapshot::{Link, PortId};

/// A TAP device as the data plane knows it. What is told of one is told late: by then its port's number may be another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapId {
    /// The port whose device it is.
    pub port: PortId,
    /// Drawn once, never again.
    pub serial: u64,
}

/// A queue of a TAP port.
#[derive(Debug)]
pub struct TapPort {
    id: TapId,
    queue: Arc<OwnedFd>,
}

impl TapPort {
    /// The port's queue: a TAP descriptor with `IFF_VNET_HDR`, non-blocking.
    pub fn new(id: TapId, queue: Arc<OwnedFd>) -> Self {
        Self { id, queue }
    }

    /// The device it belongs to.
    pub fn id(&self) -> TapId {
        self.id
    }
}

impl AsFd for TapPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl Rx for TapPort {
    fn receive(&mut self, batch: &mut Batch) -> io::Result<()> {
        while !batch.is_full() {
            let Some(buffer) = batch.next_buffer() else { break };
            match nix::unistd::read(&self.queue, &mut buffer[HEADROOM - OFFLOAD_HEADER..]) {
                Ok(len) => {
                    let len = len.saturating_sub(OFFLOAD_HEADER);
                    batch.push(len, Source::Port(self.id.port), None);
                }
                Err(nix::Error::EAGAIN) => break,
                Err(nix::Error::EINTR) => {}
                // EBADFD: the device is gone. What was read before it counts.
                Err(_) if !batch.is_empty() => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Tx for TapPort {
    fn send(&mut self, batch: &Batch, outgoing: &mut [Outgoing]) {
        for out in outgoing {
            if out.link != Link::Tap || out.port != self.id.port || out.fate != Fate::Waiting {
                continue;
            }
            out.fate = loop {
                match nix::unistd::write(&self.queue, batch.wire(out.frame)) {
                    Ok(_) => break Fate::Sent,
                    Err(nix::Error::EINTR) => {}
                    Err(e) => break fate_of(&e.into()),
                }
            };
        }
    }
}
