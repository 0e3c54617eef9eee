//! Connection tracking and NAT over IP packets: packet in, verdict out.
//!
//! The crate does no I/O and reads no clock: every decision is a function of (packet, state, now). [`Nat`] is the
//! translator, [`Packet`] the view of a packet that it edits in place. A packet of a known connection is translated at
//! once; one that would open a connection is left alone until the caller commits to it:
//!
//! ```
//! use nat::{Checksum, Config, External, Nat, NetworkId, OwnerId, Packet, Party, Time, Verdict};
//!
//! # let mut frame = vec![
//! #     0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 172, 18, 0, 10, 198, 51, 100, 7,
//! #     0x9c, 0x40, 0, 53, 0, 8, 0, 0,
//! # ];
//! let mut nat = Nat::new(Config::default());
//! let now = Time::from_secs(1);
//! let container = Party { network: NetworkId(1), owner: OwnerId(7) };
//! let external = External { v4: Some("192.0.2.1".parse()?), v6: None };
//!
//! let mut packet = Packet::parse(&mut frame, Checksum::Complete)?;
//! let verdict = match nat.outbound(now, &mut packet, container, external) {
//!     // Routes and policy agree: from here on there is state.
//!     Verdict::New(pending) => nat.commit(now, &mut packet, pending),
//!     verdict => verdict,
//! };
//! assert!(matches!(verdict, Verdict::Forward(_)));
//! assert_eq!(packet.source().to_string(), "192.0.2.1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every table is bounded, and the connection table never stops to rehash. IPv4 and IPv6 share the tables.
//! `docs/nat.md` says how the library thinks and which requirements of the RFCs it meets.
#![forbid(unsafe_code)]

pub mod checksum;
mod conntrack;
mod fragment;
mod heads;
mod icmp;
mod masquerade;
mod nat;
mod owners;
pub mod packet;
mod ports;
mod publish;
mod record;
mod slab;
pub mod time;
pub mod tuple;
mod verdict;

pub use checksum::Checksum;
pub use conntrack::{Connection, ConnectionId, Counters, Filter, RuleId, State, Timeouts};
pub use fragment::FragmentLimits;
pub use nat::elsewhere::{LastSegment, Passed};
pub use nat::{Config, External, Filtering, InboundRefresh, Mapping, Nat, NetworkConfig};
pub use owners::OwnerLimits;
pub use packet::{Packet, TcpSegment};
pub use ports::HoldDown;
pub use publish::{Prefix, PublishError, Rule};
pub use record::{Record, Shared, Unrestored};
pub use time::Time;
pub use tuple::{Address, Direction, Endpoint, NetworkId, OwnerId, Protocol, Tuple};
pub use verdict::{DropReason, Forward, Party, Pending, Refusal, Verdict};

// The integration tests' packets serve the unit tests too.
#[cfg(test)]
#[path = "../tests/common/packets.rs"]
mod testutil;
