//! A capture: frames from a worker to whoever reads them, by a buffer that is bounded.
//!
//! **Between worker and reader** is a pair of buffers that change places: the worker writes into one under a lock that it
//! only tries to take, a bounded number of times; the reader takes it to swap the full buffer for an empty one, some
//! nanoseconds. A frame that finds the lock taken, or the buffer at [`MAX_BYTES`] or [`MAX_FRAMES`], is lost and counted.
//! The reader looks every few milliseconds, and is woken when the buffer is half full.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use ctl::filter::Filter;
use nat::Time;
use tokio::sync::Notify;

use super::{Point, matcher};
use crate::frame::{OFFLOAD_HEADER, Offload};
use crate::router::resolve::Ingress;
use crate::verdict::DropReason;

/// Bytes that wait for the reader.
pub const MAX_BYTES: usize = 8 << 20;
/// Frames that wait for the reader.
pub const MAX_FRAMES: usize = 1 << 16;
/// Looks at a lock that somebody holds before the frame is lost: some microseconds.
const TRIES: usize = 256;

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the switch.
    In,
    /// Out of it.
    Out,
    /// No further.
    Dropped(DropReason),
}

/// What is known of a captured frame beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// When: in the workers' time.
    pub at: Time,
    /// Which way.
    pub way: Way,
    /// The port or uplink where it was seen; none for a frame that the switch made.
    pub point: Option<Ingress>,
    /// What is left for hardware to do.
    pub offload: Offload,
    /// Its length.
    pub len: usize,
    /// How much of it was kept.
    pub kept: usize,
}

impl Record {
    pub(super) fn new(at: Time, way: Way, point: Option<Ingress>) -> Self {
        Self { at, way, point, offload: Offload::default(), len: 0, kept: 0 }
    }
}

/// Frames in the order in which they came.
#[derive(Debug, Default)]
pub struct Frames {
    records: Vec<Record>,
    bytes: Vec<u8>,
}

impl Frames {
    /// Each frame with its bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&Record, &[u8])> {
        let mut rest = &self.bytes[..];
        self.records.iter().map(move |record| {
            let (bytes, more) = rest.split_at(record.kept);
            rest = more;
            (record, bytes)
        })
    }

    /// Forgets them; the memory stays.
    pub fn clear(&mut self) {
        self.records.clear();
        self.bytes.clear();
    }
}

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    /// Where.
    pub point: Point,
    filter: Option<Filter>,
    /// Bytes kept of each frame.
    snaplen: usize,
    frames: Mutex<Frames>,
    matched: AtomicU64,
    lost: AtomicU64,
    closed: AtomicBool,
    half_full: Notify,
}

impl Capture {
    /// A capture of what passes `filter`, cut at `snaplen` bytes.
    pub fn new(point: Point, filter: Option<Filter>, snaplen: usize) -> Self {
        Self {
            point,
            filter,
            snaplen,
            frames: Mutex::default(),
            matched: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            half_full: Notify::new(),
        }
    }

    /// Takes a frame, offload header first, if the filter wants it and there is room. Never waits.
    pub(super) fn offer(&self, record: Record, wire: &[u8]) {
        let Some((header, bytes)) = wire.split_first_chunk::<OFFLOAD_HEADER>() else { return };
        if self.filter.as_ref().is_some_and(|filter| !matcher::matches(filter, bytes)) {
            return;
        }
        self.matched.fetch_add(1, Ordering::Relaxed);
        let kept = bytes.len().min(self.snaplen);
        for _ in 0..TRIES {
            let mut frames = match self.frames.try_lock() {
                Ok(frames) => frames,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    std::hint::spin_loop();
                    continue;
                }
            };
            if frames.records.len() >= MAX_FRAMES || frames.bytes.len() + kept > MAX_BYTES {
                break;
            }
            let half = |frames: &Frames| {
                frames.records.len() >= MAX_FRAMES / 2 || frames.bytes.len() >= MAX_BYTES / 2
            };
            let before = half(&frames);
            frames.bytes.extend_from_slice(&bytes[..kept]);
            frames.records.push(Record { offload: Offload::parse(header), len: bytes.len(), kept, ..record });
            let wake = !before && half(&frames);
            drop(frames);
            if wake {
                self.half_full.notify_one();
            }
            return;
        }
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes what there is in exchange for `empty`.
    pub fn take(&self, empty: Frames) -> Frames {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut frames, empty)
    }

    /// Returns when the buffer is half full.
    pub async fn half_full(&self) {
        self.half_full.notified().await;
    }

    /// Frames that the filter let through, and those of them that were lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.matched.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
    }

    /// What is watched is gone: nothing comes any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.half_full.notify_one();
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

    fn offer(capture: &Capture, len: usize) {
        let record = Record::new(Time::ZERO, Way::In, Some(Ingress::Port(PortId(1))));
        capture.offer(record, &vec![7; OFFLOAD_HEADER + len]);
    }

    #[test]
    fn frames_come_back_cut_and_in_order() {
        let capture = Capture::new(Point::Drops, None, 100);
        for len in [60, 1500, 61] {
            offer(&capture, len);
        }
        let mut frames = capture.take(Frames::default());
        let got: Vec<_> = frames.iter().map(|(r, bytes)| (r.len, bytes.len())).collect();
        assert_eq!(got, [(60, 60), (1500, 100), (61, 61)]);
        frames.clear();
        assert_eq!((frames.iter().count(), capture.counts()), (0, (3, 0)));
    }

    #[test]
    fn what_finds_no_room_is_lost_and_counted() {
        let capture = Capture::new(Point::Drops, None, usize::MAX);
        let fits = MAX_BYTES / 65_000;
        for _ in 0..fits + 5 {
            offer(&capture, 65_000);
        }
        assert_eq!(capture.counts(), (fits as u64 + 5, 5));
        assert_eq!(capture.take(Frames::default()).iter().count(), fits);
        offer(&capture, 60);
        assert_eq!(capture.counts().1, 5, "there is room again");
        // A reader that stands on the lock holds nobody up.
        let held = capture.frames.lock().unwrap();
        offer(&capture, 60);
        drop(held);
        assert_eq!(capture.counts().1, 6);
        let short = Capture::new(Point::Drops, None, 14);
        for _ in 0..=MAX_FRAMES {
            offer(&short, 60);
        }
        assert_eq!(short.counts().1, 1);
    }

    #[test]
    fn what_the_filter_does_not_want_costs_no_room() {
        let capture = Capture::new(Point::Drops, Some("tcp".parse().unwrap()), 100);
        offer(&capture, 60);
        assert_eq!((capture.counts(), capture.take(Frames::default()).iter().count()), ((0, 0), 0));
    }
}
