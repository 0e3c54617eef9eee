//! The two labs that the tests of this package run in, one file per capability in `tests/`.
//!
//! [`lab`] is in memory and in virtual time: smoltcp hosts on the stages and the MAC table of production.
//! [`netns`], [`site`] and [`guarded`] are real: namespaces, `swd`, `swctl`, and the programs that people use; [`outside`]
//! watches what leaves the host.

pub mod captured;
pub mod carried;
pub mod containers;
pub mod crowd;
pub mod dhcp;
pub mod docker;
pub mod enclosure;
pub mod fuzz;
pub mod guarded;
pub mod http;
pub mod lab;
pub mod names;
pub mod netns;
pub mod noise;
pub mod outside;
pub mod podman;
pub mod process;
pub mod raw;
pub mod resolved;
pub mod runc;
pub mod site;
pub mod soak;
pub mod ssh;
pub mod stream;
pub mod world;
