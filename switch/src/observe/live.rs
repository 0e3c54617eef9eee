//! A live trace: what the stages decide about real frames, as they pass.
//!
//! A frame that is wanted goes through the same stages as every other one, but they write their reasons down meanwhile. What
//! they wrote waits for the reader in a bounded list, under a lock that a worker only tries to take. While the list is full no frame is
//! wanted, so a trace of a busy port costs a bounded share of a worker's time; what passed unexplained is counted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ctl::filter::Filter;
use nat::Time;
use tokio::sync::Notify;

use super::matcher;
use crate::frame::OFFLOAD_HEADER;
use crate::router::resolve::Ingress;
use crate::trace::Traced;

/// Frames that wait for the reader: with a reader that looks every 20 ms some 12,000 are explained a second, by 10 us each.
pub const MAX_WALKS: usize = 256;

/// A frame that passed, and what the stages decided about it.
#[derive(Clone, Debug)]
pub struct Walk {
    /// When: in the workers' time.
    pub at: Time,
    /// The frame as it came, from the destination address on.
    pub bytes: Vec<u8>,
    /// What became of it. Without what was sent besides: that is not known by frame.
    pub traced: Traced,
}

/// A live trace that runs.
#[derive(Debug)]
pub struct LiveTrace {
    /// Whose frames.
    pub from: Ingress,
    filter: Option<Filter>,
    walks: Mutex<Vec<Walk>>,
    missed: AtomicU64,
    full: AtomicBool,
    closed: AtomicBool,
    news: Notify,
}

impl LiveTrace {
    /// A trace of frames from `from` that pass `filter`.
    pub fn new(from: Ingress, filter: Option<Filter>) -> Self {
        Self {
            from,
            filter,
            walks: Mutex::default(),
            missed: AtomicU64::new(0),
            full: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            news: Notify::new(),
        }
    }

    /// Whether the frame is to be explained; `wire` begins with its offload header. One that there is no room for is counted.
    pub(crate) fn wants(&self, from: Ingress, wire: &[u8]) -> bool {
        if !self.is_of(from, wire) {
            return false;
        }
        if self.full.load(Ordering::Relaxed) {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Takes a frame that was wanted, if there is room. Never waits.
    pub(crate) fn offer(&self, from: Ingress, wire: &[u8], walk: impl FnOnce() -> Walk) {
        if !self.is_of(from, wire) {
            return;
        }
        match self.walks.try_lock() {
            Ok(mut walks) if walks.len() < MAX_WALKS => {
                walks.push(walk());
                self.full.store(walks.len() == MAX_WALKS, Ordering::Relaxed);
                drop(walks);
                self.news.notify_one();
            }
            _ => {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn is_of(&self, from: Ingress, wire: &[u8]) -> bool {
        let bytes = wire.get(OFFLOAD_HEADER..).unwrap_or_default();
        self.from == from && self.filter.as_ref().is_none_or(|filter| matcher::matches(filter, bytes))
    }

    /// Takes what there is, and how many frames passed unexplained since the last call.
    pub fn take(&self) -> (Vec<Walk>, u64) {
        let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut *walks);
        self.full.store(false, Ordering::Relaxed);
        (taken, self.missed.swap(0, Ordering::Relaxed))
    }

    /// Returns when there is something to take, or when the trace was closed.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// The port or uplink is gone: nothing comes any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.news.notify_one();
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::PortId;
    use crate::trace::Outcome;

    fn walk() -> Walk {
        let traced = Traced {
            steps: Vec::new(),
            outcome: Outcome::Forwarded,
            sent: Vec::new(),
            besides: Vec::new(),
            told: Vec::new(),
        };
        Walk { at: Time::ZERO, bytes: Vec::new(), traced }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_not_explained() {
        let (from, other) = (Ingress::Port(PortId(1)), Ingress::Port(PortId(2)));
        let trace = LiveTrace::new(from, Some("less 100".parse().unwrap()));
        let wire = [0; OFFLOAD_HEADER + 60];
        assert!(trace.wants(from, &wire) && !trace.wants(other, &wire));
        assert!(!trace.wants(from, &[0; OFFLOAD_HEADER + 101]), "the filter does not want it");
        for _ in 0..MAX_WALKS {
            trace.offer(from, &wire, walk);
        }
        assert!(!trace.wants(from, &wire));
        trace.offer(from, &wire, || panic!("nothing is made that there is no room for"));
        let (walks, missed) = trace.take();
        assert_eq!((walks.len(), missed), (MAX_WALKS, 2));
        assert!(trace.wants(from, &wire), "there is room again");
        let held = trace.walks.lock().unwrap();
        trace.offer(from, &wire, walk);
        drop(held);
        assert_eq!(trace.take().1, 1, "a reader that stands on the lock holds nobody up");
    }
}
