//! Where frames come from and go to.
//!
//! [`packet`]: every netdev of the switch namespace, by one socket. [`tap`]: a TAP device in a container, whose queue is
//! held here. [`memory`]: queues in memory, for tests.

pub mod memory;
pub mod packet;
pub mod sniffer;
pub mod tap;

use std::io;

use crate::batch::Batch;
use crate::engine::{Fate, Outgoing};
use crate::verdict::DropReason;

/// A source of frames.
pub trait Rx {
    /// Takes what is there into an empty batch, without waiting; the batch may stay empty.
    ///
    /// # Errors
    /// The source is at its end: it will never give a frame again.
    fn receive(&mut self, batch: &mut Batch) -> io::Result<()>;
}

/// A way out for frames.
pub trait Tx {
    /// Sends those frames of `outgoing` that go its way, and sets their fate.
    fn send(&mut self, batch: &Batch, outgoing: &mut [Outgoing]);
}

/// What an error of sending means for the frame.
fn fate_of(error: &io::Error) -> Fate {
    Fate::Lost(match error.raw_os_error() {
        // Back-pressure: the next frame may go through.
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropReason::TxFull,
        // The interface is down, detached or gone; netlink tells the control plane, if it has not already. EIO is a TAP
        // device that is down.
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV | libc::EBADFD | libc::EIO) => DropReason::PortDown,
        _ => DropReason::TxFailed,
    })
}
