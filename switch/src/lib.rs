//! A virtual Ethernet switch and NAT router that is an ordinary process.
//!
//! ```text
//! rx -> Guard -> Learn -> [your stages] -> Router -> Bridge -> tx
//! ```
//!
//! Decisions are functions of (frame, state, now): [`stage`] and what it runs. Effects are at the rim: [`worker`] moves
//! frames, [`daemon`] talks to the kernel and to people. `docs/architecture.md` has the whole picture.

pub mod mac;
pub mod snapshot;
pub mod sys;
pub mod verdict;
pub mod daemon;
pub mod dataplane;
pub mod fdb;
pub mod stage;
