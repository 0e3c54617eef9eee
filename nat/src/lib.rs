//! Connection tracking and NAT over IP packets: packet in, verdict out.
//!
//! The crate does no I/O and reads no clock: every decision is a function of (packet, state, now).
#![forbid(unsafe_code)]

pub mod checksum;
pub mod conntrack;
pub mod fragment;
mod icmp;
mod masquerade;
pub mod nat;
pub mod owners;
pub mod packet;
pub mod ports;
pub mod publish;
mod slab;
pub mod time;
pub mod tuple;
pub mod verdict;

pub use checksum::Checksum;
pub use conntrack::{Connection, ConnectionId, Filter, RuleId, State, Timeouts};
pub use nat::{Config, External, Filtering, InboundRefresh, Mapping, Nat, NetworkConfig};
pub use owners::OwnerLimits;
pub use packet::Packet;
pub use publish::{Prefix, PublishError, Rule};
pub use time::Time;
pub use tuple::{Address, Direction, Endpoint, NetworkId, OwnerId, Protocol, Tuple};
pub use verdict::{DropReason, Forward, Party, Pending, Refusal, Verdict};

// The integration tests' packets serve the unit tests too.
#[cfg(test)]
#[path = "../tests/common/packets.rs"]
mod testutil;
