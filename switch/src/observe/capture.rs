//! A capture: frames from a worker to whoever reads them, by a buffer that is bounded.
//!
//! **Between worker and reader** is a pair of buffers that change places: the worker writes into one under a lock that it
//! only tries to take, a bounded number of times; the reader takes it to swap the full buffer for an empty one, some
//! nanoseconds. A frame that finds the lock taken, or the buffer at [`MAX_BYTES`] or [`MAX_FRAMES`], is lost and counted.
//! The reader looks every few milliseconds, and is woken when the buffer is half full.
//!
//! **What the kernel forwards** comes to the reader by another way: see [`Capture::with_copies`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use ctl::filter::Filter;
use nat::Time;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Point, matcher};
use crate::frame::{MAX_FRAME, OFFLOAD_HEADER, Offload};
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
    /// Of a frame that [`Capture`] takes, which knows the rest.
    pub(crate) fn new(at: Time, way: Way, point: Option<Ingress>) -> Self {
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

    /// Adds a frame, offload header apart, cut at `snaplen` bytes, if there is room.
    fn add(&mut self, record: Record, header: &[u8; OFFLOAD_HEADER], bytes: &[u8], snaplen: usize) -> Room {
        let kept = bytes.len().min(snaplen);
        if self.records.len() >= MAX_FRAMES || self.bytes.len() + kept > MAX_BYTES {
            return Room::None;
        }
        let before = self.is_half_full();
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.records.push(Record { offload: Offload::parse(header), len: bytes.len(), kept, ..record });
        if !before && self.is_half_full() { Room::HalfFull } else { Room::Enough }
    }

    /// Another frame may find no room.
    pub fn is_full(&self) -> bool {
        self.records.len() >= MAX_FRAMES || self.bytes.len() + MAX_FRAME > MAX_BYTES
    }

    fn is_half_full(&self) -> bool {
        self.records.len() >= MAX_FRAMES / 2 || self.bytes.len() >= MAX_BYTES / 2
    }

    /// Forgets them; the memory stays.
    pub fn clear(&mut self) {
        self.records.clear();
        self.bytes.clear();
    }
}

/// Whether there was room for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Enough,
    /// With it the buffer is half full.
    HalfFull,
    None,
}

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    /// Where.
    pub point: Point,
    copies_of: Option<u32>,
    filter: Option<Filter>,
    /// Bytes kept of each frame.
    snaplen: usize,
    frames: Mutex<Frames>,
    matched: AtomicU64,
    lost: AtomicU64,
    closed: AtomicBool,
    wake: EventFd,
}

impl Capture {
    /// A capture of what passes `filter`, cut at `snaplen` bytes.
    ///
    /// # Errors
    /// As eventfd(2): `EMFILE`.
    pub fn new(point: Point, filter: Option<Filter>, snaplen: usize) -> io::Result<Self> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            point,
            copies_of: None,
            filter,
            snaplen,
            frames: Mutex::default(),
            matched: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            wake,
        })
    }

    /// The same, with a reader who gets copies of what the kernel forwards from an interface by itself: such frames need not
    /// pass a worker for its sake.
    #[must_use]
    pub fn with_copies(self, ifindex: u32) -> Self {
        Self { copies_of: Some(ifindex), ..self }
    }

    /// Whether its reader gets copies of what the kernel forwards from an interface.
    pub fn has_copies_of(&self, ifindex: u32) -> bool {
        self.copies_of == Some(ifindex)
    }

    /// Takes a frame, offload header first, if the filter wants it and there is room. Never waits.
    pub(super) fn offer(&self, record: Record, wire: &[u8]) {
        let Some((header, bytes)) = self.want(wire) else { return };
        for _ in 0..TRIES {
            let mut frames = match self.frames.try_lock() {
                Ok(frames) => frames,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    std::hint::spin_loop();
                    continue;
                }
            };
            let room = frames.add(record, header, bytes, self.snaplen);
            drop(frames);
            match room {
                Room::Enough => {}
                // Full, it refuses, and was written to before.
                Room::HalfFull => _ = self.wake.write(1),
                Room::None => break,
            }
            return;
        }
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a frame, as [`Capture::offer`], that its reader got by another way, into what the reader has already.
    pub fn add(&self, frames: &mut Frames, record: Record, wire: &[u8]) {
        if let Some((header, bytes)) = self.want(wire)
            && frames.add(record, header, bytes, self.snaplen) == Room::None
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts frames that its reader should have got and did not. Whether the filter wanted them, nobody knows.
    pub fn lose(&self, frames: u64) {
        self.matched.fetch_add(frames, Ordering::Relaxed);
        self.lost.fetch_add(frames, Ordering::Relaxed);
    }

    /// Offload header and bytes of a frame that the filter wants, which is counted.
    fn want<'a>(&self, wire: &'a [u8]) -> Option<(&'a [u8; OFFLOAD_HEADER], &'a [u8])> {
        let (header, bytes) = wire.split_first_chunk()?;
        let wanted = self.filter.as_ref().is_none_or(|filter| matcher::matches(filter, bytes));
        wanted.then(|| {
            self.matched.fetch_add(1, Ordering::Relaxed);
            (header, bytes)
        })
    }

    /// Takes what there is in exchange for `empty`.
    pub fn take(&self, empty: Frames) -> Frames {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut frames, empty)
    }

    /// Forgets that the reader was woken: to be called before it looks.
    pub fn awake(&self) {
        // An error means that it was not woken.
        let _ = self.wake.read();
    }

    /// Frames that the filter let through, and those of them that were lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.matched.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
    }

    /// What is watched is gone: nothing comes any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _ = self.wake.write(1);
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// Readable when there is a reason for the reader to look: the buffer is half full, or the capture was closed.
impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
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
        let capture = Capture::new(Point::Drops, None, 100).unwrap();
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
        let capture = Capture::new(Point::Drops, None, usize::MAX).unwrap();
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
        let short = Capture::new(Point::Drops, None, 14).unwrap();
        for _ in 0..=MAX_FRAMES {
            offer(&short, 60);
        }
        assert_eq!(short.counts().1, 1);
    }

    #[test]
    fn what_the_reader_gets_by_itself_is_filtered_cut_and_counted_alike() {
        let capture = Capture::new(Point::Drops, Some("greater 60".parse().unwrap()), 100).unwrap();
        let mut frames = Frames::default();
        for len in [59, 60, 1500] {
            let record = Record::new(Time::ZERO, Way::In, None);
            capture.add(&mut frames, record, &vec![7; OFFLOAD_HEADER + len]);
        }
        let got: Vec<_> = frames.iter().map(|(r, bytes)| (r.len, bytes.len())).collect();
        assert_eq!((got, capture.counts()), (vec![(60, 60), (1500, 100)], (2, 0)));
        capture.lose(3);
        assert_eq!(capture.counts(), (5, 3));
        assert!(capture.take(Frames::default()).iter().next().is_none());
    }

    #[test]
    fn what_the_filter_does_not_want_costs_no_room() {
        let capture = Capture::new(Point::Drops, Some("tcp".parse().unwrap()), 100).unwrap();
        offer(&capture, 60);
        assert_eq!((capture.counts(), capture.take(Frames::default()).iter().count()), ((0, 0), 0));
    }
}
