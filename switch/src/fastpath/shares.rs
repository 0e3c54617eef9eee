//! Shares of the ring that all veth ports have in common: how many frames of one port may wait in it.
//!
//! A port that floods would fill it, and what others send would find no room. So the filter of the packet socket counts what it lets
//! in, by port, and a worker counts down what it takes. A port of which a quarter of the ring waits gets no more in.
//!
//! A frame that was let in and found no room after all is never taken, so a count may be too high. One that has let nothing in
//! for [`PERIOD_NS`], in which a ring is emptied several times over, begins anew.
//!
//! Beside it is counted what the kernel carries of the port, or the uplink: the filters look for nothing where that is nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::bpf::Map;
use crate::sys::ring::SLOTS;
use crate::sys::words::Words;

/// Counts, a power of two. Ports whose indices are the same modulo this have one in common.
pub(super) const PLACES: u32 = 1024;
/// Frames of a port that may wait, of all workers together.
pub(super) const MOST: u32 = 512;
const _: () = assert!(MOST as usize * 4 == SLOTS);
/// A count that has let nothing in for so many nanoseconds begins anew.
pub(super) const PERIOD_NS: i32 = 100_000_000;

/// Words of a count, and where they are.
const WORDS: usize = 6;
pub(super) mod offset {
    /// Frames that wait.
    pub(in crate::fastpath) const WAITING: i16 = 0;
    /// Frames that were refused, since somebody asked.
    pub(in crate::fastpath) const REFUSED: i16 = 4;
    /// When the last was let in, by `CLOCK_MONOTONIC_COARSE`: nanoseconds.
    pub(in crate::fastpath) const LAST: i16 = 8;
    /// What the kernel carries of what comes in: nothing is looked for where that is nothing.
    pub(in crate::fastpath) const CARRIED: i16 = 16;
}

/// Something that the kernel carries of what comes in by an interface, until this is dropped.
#[derive(Debug)]
pub(super) struct Carried {
    shares: Arc<Shares>,
    ifindex: u32,
}

impl Carried {
    /// One more.
    pub(super) fn by(ifindex: u32, shares: &Arc<Shares>) -> Self {
        if let Some(carried) = shares.word(ifindex, offset::CARRIED) {
            carried.fetch_add(1, Ordering::Relaxed);
        }
        Self { shares: Arc::clone(shares), ifindex }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        if let Some(carried) = self.shares.word(self.ifindex, offset::CARRIED) {
            carried.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The counts.
#[derive(Debug)]
pub struct Shares(Words);

impl Shares {
    /// As [`Words::create`].
    pub(super) fn create() -> io::Result<Self> {
        Words::create("swd_shares", PLACES, WORDS).map(Self)
    }

    pub(super) fn map(&self) -> &Map {
        self.0.map()
    }

    fn word(&self, ifindex: u32, offset: i16) -> Option<&AtomicU32> {
        let word = usize::from(offset.unsigned_abs()) / size_of::<u32>();
        self.0.get().get((ifindex % PLACES) as usize * WORDS + word)
    }

    /// Frames of an interface wait no more.
    pub fn give_back(&self, ifindex: u32, frames: u32) {
        if frames == 0 {
            return;
        }
        let Some(waiting) = self.word(ifindex, offset::WAITING) else { return };
        let before = waiting.fetch_sub(frames, Ordering::Relaxed);
        if before < frames {
            // It has begun anew meanwhile.
            waiting.fetch_add(frames - before, Ordering::Relaxed);
        }
    }

    /// Frames of an interface that wait, or more than that.
    pub fn waiting(&self, ifindex: u32) -> u32 {
        self.word(ifindex, offset::WAITING).map_or(u32::MAX, |waiting| waiting.load(Ordering::Relaxed))
    }

    /// Frames that were refused since the last call.
    pub fn take_refused(&self) -> u64 {
        let refused = self.0.get().iter().skip(1).step_by(WORDS);
        refused.map(|refused| u64::from(refused.swap(0, Ordering::Relaxed))).sum()
    }
}
