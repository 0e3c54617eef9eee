//! Limits of a port: token buckets, as pure functions of (what a frame costs, now).
//!
//! **One word.** A bucket is a single number: the moment at which all that was let through so far would have passed at the
//! set rate (the *virtual clock*; ITU-T I.371 calls it theoretical arrival time). Full, it lies in the past; each frame moves it on by what
//! the frame costs. So one compare-and-swap is the whole update, several workers share a bucket without a lock, and what they let
//! through together is exactly the rate.
//!
//! **Debt.** A frame passes while any token is left, whatever its size, and the bucket may go below zero by it. A super-frame of 64 KiB
//! is not split nor starved by a bucket smaller than it, and since all of it is charged, the rate holds in the long run.
//!
//! **Shaping.** A policer that drops what is above the rate costs TCP most of it: between containers a round trip takes 0.1 ms, so even one
//! segment per round trip is more than 100 Mbit/s, and the sender ends up waiting for its retransmission timer (200 ms) again and
//! again. So [`Bucket::book`] gives a frame the moment at which it may leave, the engine keeps it until then
//! (`engine/shaping.rs`), and the sender's window sees a longer round trip instead of losses. Only what would wait longer
//! than the queue is drops. Storms are not shaped: nobody waits for an acknowledgement of a broadcast.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nat::Time;

use crate::frame::{ETHERTYPE_QINQ, ETHERTYPE_VLAN, Frame, Offload};

/// Parts of a nanosecond: a frame of 64 bytes at 100 Gbit/s costs 5.12 ns.
const TICKS: u64 = 64;
const NANOS: u128 = 1_000_000_000;

/// Bytes that may pass at once unless told otherwise, at least: two super-frames.
const BURST_BYTES: u64 = 128 << 10;
/// Bytes that wait for their moment, at least and at most: between them 25 ms.
const QUEUE_BYTES: (u64, u64) = (256 << 10, 4 << 20);
/// The same for frames.
const QUEUE_FRAMES: (u64, u64) = (128, 8192);

/// What a rate counts, per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Bits of frames from the destination address on, without FCS; each segment of a super-frame with its headers.
    Bits(u64),
    /// Frames; each segment of a super-frame is one.
    Frames(u64),
}

/// What a frame counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes on the wire.
    pub bytes: u64,
    /// Frames on the wire.
    pub frames: u64,
}

/// When a frame may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// At once.
    Now,
    /// Then.
    At(Time),
    /// It would wait too long.
    Never,
}

/// A rate with a burst, and how much of it is used up.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    burst: u64,
    /// The burst in ticks.
    depth: u64,
    /// How long a frame may wait, in ticks.
    patience: u64,
    /// The virtual clock, in ticks.
    clock: AtomicU64,
}

impl Bucket {
    /// A full bucket. `burst` is in bytes or frames, as the rate is; none for one that suits the rate.
    pub fn new(rate: Rate, burst: Option<u64>) -> Self {
        let burst = burst.unwrap_or_else(|| default_burst(rate)).max(1);
        let (per_second, (least, most)) = match rate {
            Rate::Bits(bits) => (bits / 8, QUEUE_BYTES),
            Rate::Frames(frames) => (frames, QUEUE_FRAMES),
        };
        let queue = (per_second / 40).clamp(least, most);
        let ticks = |n| match rate {
            Rate::Bits(_) => cost(rate, Size { bytes: n, frames: 0 }),
            Rate::Frames(_) => cost(rate, Size { bytes: 0, frames: n }),
        };
        Self { rate, burst, depth: ticks(burst), patience: ticks(queue), clock: AtomicU64::new(0) }
    }

    /// A copy that goes its own way.
    pub fn fork(&self) -> Self {
        let clock = AtomicU64::new(self.clock.load(Ordering::Relaxed));
        Self { clock, ..*self }
    }

    /// The rate.
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// What may pass at once, in bytes or frames.
    pub const fn burst(&self) -> u64 {
        self.burst
    }

    /// Whether a frame passes now; if so, it is charged.
    pub fn admits(&self, size: Size, now: Time) -> bool {
        self.charge(size, now, 0) == Slot::Now
    }

    /// When a frame may leave; unless that is never, it is charged. Moments never go back, so frames that wait stay in order.
    pub fn book(&self, size: Size, now: Time) -> Slot {
        self.charge(size, now, self.patience)
    }

    fn charge(&self, size: Size, now: Time, patience: u64) -> Slot {
        let cost = cost(self.rate, size);
        let now = now.as_nanos().saturating_mul(TICKS);
        let mut slot = Slot::Never;
        // Nothing else is handed over with the clock, so no order with other memory is needed.
        let _ = self.clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |clock| {
            let clock = clock.max(now);
            let used = clock - now;
            slot = match used.checked_sub(self.depth) {
                None => Slot::Now,
                Some(wait) if wait < patience => {
                    Slot::At(Time::from_nanos((clock - self.depth).div_ceil(TICKS)))
                }
                Some(_) => Slot::Never,
            };
            (slot != Slot::Never).then(|| clock.saturating_add(cost))
        });
        slot
    }
}

/// A burst that suits a rate: a few milliseconds of it, and never less than some frames of the largest kind.
fn default_burst(rate: Rate) -> u64 {
    match rate {
        Rate::Bits(bits) => (bits / 8 / 400).max(BURST_BYTES),
        Rate::Frames(frames) => (frames / 20).max(32),
    }
}

/// What a size costs at a rate, in ticks.
fn cost(rate: Rate, size: Size) -> u64 {
    let (amount, per_second) = match rate {
        Rate::Bits(bits) => (u128::from(size.bytes) * 8, bits),
        Rate::Frames(frames) => (u128::from(size.frames), frames),
    };
    let ticks = amount * NANOS * u128::from(TICKS) / u128::from(per_second.max(1));
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// What a port may do.
#[derive(Debug, Default)]
pub struct Limits {
    /// What comes from it.
    pub rate_in: Option<Arc<Bucket>>,
    /// What is sent to it.
    pub rate_out: Option<Arc<Bucket>>,
    /// Broadcasts, multicasts and unknown unicasts that come from it, together.
    pub storm: Option<Arc<Bucket>>,
}

impl Limits {
    /// A copy that goes its own way.
    pub fn fork(&self) -> Self {
        let fork = |bucket: &Option<Arc<Bucket>>| bucket.as_ref().map(|b| Arc::new(b.fork()));
        Self { rate_in: fork(&self.rate_in), rate_out: fork(&self.rate_out), storm: fork(&self.storm) }
    }

    /// Whether every frame that passes the port has to be seen.
    pub const fn sees_all(&self) -> bool {
        self.rate_in.is_some() || self.rate_out.is_some()
    }
}

/// What a frame counts for: a super-frame as the segments that it stands for, each with all headers.
pub fn size_of(bytes: &[u8], offload: Offload) -> Size {
    let len = bytes.len() as u64;
    let one = Size { bytes: len, frames: 1 };
    if !offload.is_gso() || offload.gso_size == 0 {
        return one;
    }
    let Some(headers) = headers_of(bytes, offload) else { return one };
    let payload = len.saturating_sub(headers);
    let frames = payload.div_ceil(offload.gso_size.into()).max(1);
    Size { bytes: len + (frames - 1) * headers, frames }
}

/// The same of a frame in work.
pub fn size(frame: &Frame<'_>) -> Size {
    size_of(frame.bytes(), frame.offload())
}

/// Length of the headers that each segment repeats. The offload header's own word for it is a hint, and may be the whole frame.
fn headers_of(bytes: &[u8], offload: Offload) -> Option<u64> {
    let transport = if offload.needs_csum() { usize::from(offload.csum_start) } else { network_end(bytes)? };
    let own = match offload.gso_type & !Offload::GSO_ECN {
        Offload::GSO_TCPV4 | Offload::GSO_TCPV6 => usize::from(*bytes.get(transport + 12)? >> 4) * 4,
        _ => 8,
    };
    Some((transport + own) as u64)
}

/// Where the network header of an IPv4 frame ends: what is to be fragmented (`GSO_UDP`) repeats no more.
fn network_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        let ethertype = u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]);
        at += 2;
        match ethertype {
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => at += 2,
            _ => return Some(at + usize::from(*bytes.get(at)? & 0x0f) * 4),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::frame::ETHERNET_HEADER;

    const fn bytes(bytes: u64) -> Size {
        Size { bytes, frames: 1 }
    }

    /// Offers frames of a size every `gap` for ten seconds; gives how many passed, at once or later.
    fn offered(bucket: &Bucket, size: Size, gap: Duration) -> u64 {
        let (start, end) = (Time::from_secs(1000), Time::from_secs(1010));
        let (mut now, mut passed) = (start, 0);
        while now < end {
            passed += u64::from(bucket.book(size, now) != Slot::Never);
            now = now + gap;
        }
        passed
    }

    #[test]
    fn the_rate_holds_for_every_size_of_frame() {
        for (rate, size) in [
            (1_000_000, 60),
            (100_000_000, 60),
            (100_000_000, 1514),
            (1_000_000_000, 68_000),
            (40_000_000_000, 68_000),
        ] {
            let bucket = Bucket::new(Rate::Bits(rate), None);
            // Three times as much as may pass.
            let gap = Duration::from_nanos(size * 8 * 1_000_000_000 / rate / 3);
            let bits = offered(&bucket, bytes(size), gap) * size * 8;
            // Burst, queue and a frame's debt are of the moment, and the rest is the rate.
            let extra = (bucket.burst() + (rate / 320).clamp(QUEUE_BYTES.0, QUEUE_BYTES.1) + size) * 8;
            let wanted = rate * 10;
            assert!(bits >= wanted / 1000 * 999, "{bits} of {wanted}");
            assert!(bits <= wanted / 1000 * 1001 + extra, "{bits} of {wanted} and {extra}");
        }
    }

    #[test]
    fn frames_are_counted_as_frames() {
        let bucket = Bucket::new(Rate::Frames(1000), Some(10));
        let now = Time::from_secs(5);
        assert_eq!((0..100).filter(|_| bucket.admits(bytes(60), now)).count(), 10);
        let later = now + Duration::from_millis(3);
        assert_eq!((0..100).filter(|_| bucket.admits(bytes(1514), later)).count(), 3);
        assert!(bucket.admits(Size { bytes: 0, frames: 45 }, now + Duration::from_millis(4)), "debt");
        assert!(!bucket.admits(bytes(60), now + Duration::from_millis(30)));
        assert!(bucket.admits(bytes(60), now + Duration::from_millis(60)));
    }

    #[test]
    fn a_super_frame_passes_a_bucket_that_is_smaller_and_is_paid_for() {
        let bucket = Bucket::new(Rate::Bits(8_000_000), Some(1500));
        let now = Time::from_secs(9);
        assert_eq!(bucket.book(bytes(64_000), now), Slot::Now);
        // 64,000 bytes are 64 ms at this rate; 1.5 ms of them were there.
        assert_eq!(bucket.book(bytes(1000), now), Slot::At(now + Duration::from_micros(62_500)));
        assert_eq!(bucket.book(bytes(1000), now), Slot::At(now + Duration::from_micros(63_500)));
        assert!(!bucket.admits(bytes(60), now));
    }

    #[test]
    fn what_would_wait_too_long_is_refused_and_not_charged() {
        let bucket = Bucket::new(Rate::Bits(8_000_000), Some(1000));
        let now = Time::from_secs(9);
        let waits = (0..10_000).filter(|_| bucket.book(bytes(1000), now) != Slot::Never).count();
        // The burst, and a queue of 256 KiB.
        assert_eq!(waits, 1 + 263);
        let later = now + Duration::from_secs(1);
        assert_eq!(bucket.book(bytes(1000), later), Slot::Now);
    }

    #[test]
    fn several_share_a_bucket_and_get_the_rate_together() {
        let bucket = Arc::new(Bucket::new(Rate::Frames(1_000_000), Some(1000)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let bucket = Arc::clone(&bucket);
                std::thread::spawn(move || {
                    let at = |n: u64| Time::from_nanos(1_000_000_000 + n * 1000);
                    (0..10_000).filter(|n| bucket.admits(bytes(60), at(*n))).count()
                })
            })
            .collect();
        let passed: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
        // Ten milliseconds of a million a second, and the burst.
        assert_eq!(passed, 10_999);
    }

    #[test]
    fn a_super_frame_counts_as_its_segments() {
        let mut frame = vec![0; ETHERNET_HEADER + 20 + 32 + 64_000];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[34 + 12] = 8 << 4;
        let offload = Offload {
            flags: 1,
            gso_type: 1,
            hdr_len: 60_000,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        assert_eq!(size_of(&frame, offload), Size { bytes: 64_066 + 44 * 66, frames: 45 });
        let datagrams = Offload { gso_type: Offload::GSO_UDP_L4, csum_offset: 6, ..offload };
        let size = size_of(&frame, datagrams);
        assert_eq!(size, Size { bytes: 64_066 + 44 * 42, frames: 45 });
        assert_eq!(size_of(&frame, Offload::default()), Size { bytes: 64_066, frames: 1 });
        // Headers that are not there are not believed.
        assert_eq!(size_of(&frame[..20], offload).frames, 1);
    }
}
