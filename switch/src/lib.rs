//! A virtual Ethernet switch and NAT router that is an ordinary process.
//!
//! ```text
//! rx -> Guard -> Learn -> [your stages] -> Router -> Bridge -> tx
//! ```
//!
//! Decisions are functions of (frame, state, now): [`stage`] and what it runs, up to [`engine`]. Effects are at the rim:
//! [`worker`] moves frames, the daemon talks to the kernel and to people. `docs/architecture.md` has the whole picture.

pub mod addressing;
pub mod batch;
pub mod bridge;
pub mod daemon;
pub mod dataplane;
pub mod engine;
pub mod fastpath;
pub mod fdb;
pub mod frame;
pub mod guard;
pub mod journal;
pub mod learn;
pub mod limit;
pub mod mac;
pub mod names;
pub mod observe;
pub mod policy;
pub mod port;
pub mod router;
pub mod services;
pub mod show;
pub mod snapshot;
pub mod sources;
pub mod stage;
pub mod sys;
pub mod trace;
pub mod verdict;
pub mod worker;
