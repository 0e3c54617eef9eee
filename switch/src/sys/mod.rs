//! Everything that needs `unsafe`: packet sockets, multi-message calls, TAP devices, namespaces.
//!
//! Each file is one kernel interface. Nothing above this folder is unsafe.
#![allow(unsafe_code)]

pub mod fds;
pub mod netns;
pub mod tun;
