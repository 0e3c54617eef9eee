//! Connection tracking and NAT over IP packets: packet in, verdict out.
//!
//! The crate does no I/O and reads no clock: every decision is a function of (packet, state, now).
#![forbid(unsafe_code)]

pub mod time;

pub use time::Time;
