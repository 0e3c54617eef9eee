//! What the fuzzer feeds (`make fuzz`, crate `tests/fuzz`): functions of arbitrary bytes that must neither panic nor hang,
//! and that check what holds for any input. `tests/corpus.rs` feeds them the kept corpus in every test run.

mod api;
mod cni;
mod dns;
mod files;
mod frame;
mod journal;
mod nat_packet;
mod nat_sequence;
mod words;

pub use api::api;
pub use cni::cni;
pub use dns::dns;
pub use files::{config, state_file};
pub use frame::frame;
pub use journal::journal;
pub use nat_packet::nat_packet;
pub use nat_sequence::{Step, nat_sequence, nat_steps};
pub use words::words;

/// A fuzz target: its name, which is that of its corpus, and what it feeds.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 10] = [
    ("frame", frame),
    ("nat_packet", nat_packet),
    ("nat_sequence", nat_sequence),
    ("state_file", state_file),
    ("config", config),
    ("journal", journal),
    ("api", api),
    ("words", words),
    ("dns", dns),
    ("cni", cni),
];

/// Takes bytes from the front of an input.
#[derive(Debug)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn u8(&mut self) -> Option<u8> {
        self.take(1).first().copied()
    }

    /// At most so many.
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
