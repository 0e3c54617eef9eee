//! Everything that needs `unsafe`: packet sockets, multi-message calls, TAP devices, namespaces, BPF.
//!
//! Each file is one kernel interface. Nothing above this folder is unsafe.
#![expect(clippy::cast_possible_truncation, reason = "constants and sizes of C structs, all small")]

pub mod activation;
pub mod assembler;
pub mod bpf;
pub mod classic;
pub mod fds;
pub mod filter;
pub mod heap;
pub mod mapped;
pub mod mmsg;
pub mod netns;
pub mod packet;
pub mod reports;
pub mod ring;
pub mod sched;
pub mod tun;
pub mod words;
