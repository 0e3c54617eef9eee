//! The epoch: what was decided in one is worth nothing in the next.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::bpf::Map;
use crate::sys::words::Words;

/// Words in all: the epoch, and the count of gaps.
pub(super) const WORDS: usize = 2;

/// Counts the changes after which a decision about frames may be another: of ports, networks, leases, the host's addresses, of the MAC table.
///
/// A new MAC, or one that ages out, is no such change: no frame goes elsewhere by it. Nor is what a container says of its address, by which
/// few do: see [`FastPath::readdress`](super::FastPath::readdress). When there is a fast path, the kernel's
/// programs read the same word, so that a change is in force there with the next frame.
#[derive(Debug, Default)]
pub struct Epoch {
    own: AtomicU32,
    shared: Option<Words>,
}

impl Epoch {
    /// An epoch that the kernel reads, too.
    pub(super) fn shared(words: Words) -> Self {
        Self { own: AtomicU32::new(0), shared: Some(words) }
    }

    /// The words that the kernel reads, if it does.
    pub(super) fn words(&self) -> Option<&Map> {
        self.shared.as_ref().map(Words::map)
    }

    fn word(&self) -> &AtomicU32 {
        self.shared.as_ref().map_or(&self.own, |words| &words.get()[0])
    }

    /// Which one it is. Read it before what a decision depends on.
    pub fn current(&self) -> u32 {
        self.word().load(Ordering::Acquire)
    }

    /// Begins another. Call it after the change.
    pub fn end(&self) {
        self.word().fetch_add(1, Ordering::Release);
    }

    /// How often the kernel's programs found that one of them is missing.
    pub(super) fn gaps(&self) -> u32 {
        self.shared.as_ref().map_or(0, |words| words.get()[1].load(Ordering::Relaxed))
    }
}
