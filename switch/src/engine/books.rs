//! The books at one moment: received = forwarded + answered + dropped + parked, whatever the workers are doing.
//!
//! A batch is counted in several places between its receipt and its end. So a worker holds the books open from before it takes a
//! batch until all of it was counted, and whoever adds them up waits for that: for one batch of each worker at most. Workers
//! share the lock among themselves and wait for nobody but a reader that is adding up, which is some hundred loads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLockReadGuard};

use super::Shared;
use crate::router::Forwarding;
use crate::verdict::DropReason;

/// Frames by their end, at one moment: `received` = `forwarded` + `answered` + [`Balance::dropped`] + `parked`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Taken from a port or an uplink, those of the kernel's fast path included.
    pub received: u64,
    /// Sent to one or more ports.
    pub forwarded: u64,
    /// Answered by the switch itself.
    pub answered: u64,
    /// Kept: they wait for a next hop's MAC, for the first fragment of their datagram, or for a limit.
    pub parked: u64,
    /// Dropped, by the number of the reason. [`DropReason::NotReceived`] is beside the others: those were never received.
    pub drops: [u64; DropReason::ALL.len()],
}

impl Balance {
    /// Frames received and dropped, all reasons.
    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum::<u64>() - self.not_received()
    }

    /// Frames lost before they were received.
    pub const fn not_received(&self) -> u64 {
        self.drops[DropReason::NotReceived as usize]
    }
}

impl Shared {
    /// Opens the books for a batch: to be held until it is settled.
    pub fn open_books(&self) -> RwLockReadGuard<'_, ()> {
        self.books.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds up. Waits until no worker has a batch in work.
    pub fn balance(&self) -> Balance {
        let _closed = self.books.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.forwarding.lock().unwrap_or_else(PoisonError::into_inner);
        self.count_lost(&mut state);
        let waiting = state.resolver.waiting() + state.nat.held_fragments();
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Balance {
            received: get(&self.received),
            forwarded: get(&self.forwarded),
            answered: get(&self.answered),
            parked: waiting as u64 + self.shaped.load(Ordering::Relaxed) as u64,
            drops: self.drops.all(),
        }
    }

    /// Counts the frames that were given up without a stage deciding so.
    pub(super) fn count_lost(&self, state: &mut Forwarding) {
        self.drops.add(DropReason::FragmentLimit, state.nat.take_lost_fragments());
        self.drops.add(DropReason::NoNeighbor, state.resolver.take_lost());
    }
}
