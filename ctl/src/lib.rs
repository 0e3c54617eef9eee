//! API types and client of swd. The binaries `swctl` and `swd-cni` are made of nothing else.
#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod cni;
pub mod config;
pub mod filter;
pub mod mapping;
pub mod packet;
pub mod rate;
pub mod spec;
