//! Connection tracking and NAT over IP packets: packet in, verdict out.
//!
//! The crate does no I/O and reads no clock: every decision is a function of (packet, state, now).
#![forbid(unsafe_code)]

pub mod checksum;
pub mod packet;
pub mod time;
pub mod tuple;

pub use checksum::Checksum;
pub use packet::Packet;
pub use time::Time;
pub use tuple::{Address, Direction, Endpoint, NetworkId, OwnerId, Protocol, Tuple};

#[cfg(test)]
#[path = "../tests/common/packets.rs"]
mod testutil;
