//! API types and client of swd. The binary `swctl` is made of nothing else.
#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod config;
pub mod filter;
pub mod packet;
pub mod rate;
pub mod spec;
