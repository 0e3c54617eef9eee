//! The timer wheel: which connections to look at when.
//!
//! A wheel of seconds with a doubly linked list through the entries at each. A packet does not move its connection: when
//! the time comes the connection is looked at, and moved to where its deadline is by then. Only a deadline that comes
//! *closer* (a FIN, a RST) moves an entry at once. A deadline beyond the wheel's span is looked at after one turn.

use super::Entry;
use crate::slab::{NONE, Slab};
use crate::time::Time;

/// Seconds of a turn.
const SPAN: u64 = 4096;
const _: () = assert!(SPAN <= 1 << u16::BITS);

#[derive(Clone, Debug)]
pub(super) struct Wheel {
    heads: Vec<u32>,
    /// The second that is looked at next; everything before is done.
    cursor: u64,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self { heads: vec![NONE; usize::try_from(SPAN).unwrap_or_default()], cursor: 0 }
    }

    /// Passes over the time until `now`, while no entry is in any list.
    pub(super) fn skip_to(&mut self, now: Time) {
        self.cursor = self.cursor.max(now.as_secs());
    }

    /// Puts an entry that is in no list where its deadline is.
    pub(super) fn insert(&mut self, slab: &mut Slab<Entry>, index: u32) {
        let Some(entry) = slab.get(index) else { return };
        // An entry is due in the first second that begins after its deadline.
        let due = entry.connection.deadline.as_secs().saturating_add(1);
        let due = due.clamp(self.cursor, self.cursor.saturating_add(SPAN - 1));
        let place = (due % SPAN) as u16;
        let Some(head) = self.heads.get_mut(usize::from(place)) else { return };
        let next = std::mem::replace(head, index);
        if let Some(next) = slab.get_mut(next) {
            next.timer.previous = index;
        }
        if let Some(entry) = slab.get_mut(index) {
            entry.timer = Timer { previous: NONE, next, place };
        }
    }

    pub(super) fn remove(&mut self, slab: &mut Slab<Entry>, index: u32) {
        let Some(Timer { previous, next, place }) = slab.get(index).map(|entry| entry.timer) else { return };
        match slab.get_mut(previous) {
            Some(previous) => previous.timer.next = next,
            None => {
                if let Some(head) = self.heads.get_mut(usize::from(place)) {
                    *head = next;
                }
            }
        }
        if let Some(next) = slab.get_mut(next) {
            next.timer.previous = previous;
        }
    }

    /// True if the entry would be looked at later than its deadline asks for.
    pub(super) fn is_late(&self, entry: &Entry) -> bool {
        let due = entry.connection.deadline.as_secs().saturating_add(1);
        let ahead = (u64::from(entry.timer.place) + SPAN - self.cursor % SPAN) % SPAN;
        self.cursor + ahead > due
    }

    /// Some entry whose second has come. It stays in its list: the caller removes it or puts it elsewhere.
    pub(super) fn due(&mut self, now: Time) -> Option<u32> {
        let end = now.as_secs();
        // After a jump over more than a turn every place is due once.
        self.cursor = self.cursor.max(end.saturating_sub(SPAN - 1));
        while self.cursor <= end {
            let place = usize::try_from(self.cursor % SPAN).unwrap_or_default();
            match self.heads.get(place) {
                Some(&index) if index != NONE => return Some(index),
                _ => self.cursor += 1,
            }
        }
        None
    }

    /// When [`Self::due`] may next have something.
    pub(super) fn poll_at(&self) -> Time {
        Time::from_secs(self.cursor)
    }
}

/// An entry's place in the wheel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    previous: u32,
    next: u32,
    place: u16,
}

impl Timer {
    pub(super) const UNSET: Self = Self { previous: NONE, next: NONE, place: 0 };
}
