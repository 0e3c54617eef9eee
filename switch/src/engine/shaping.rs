//! Frames that a limit holds back until their moment comes.
//!
//! Each worker keeps its own; the buckets, which give out the moments, are shared, so that all workers together keep to the rate. A
//! frame from a limited port waits before any stage sees it, one for a limited port after the last of them. What is due goes
//! ahead of what has just come in: with every batch, and by the engine's timer.
//!
//! How long a frame may wait is the bucket's to say (`limit.rs`); [`HELD`] bounds what all of them together take.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use nat::Time;

use super::{Counted, Engine, Fate, Lock, Outgoing, Pending};
use crate::batch::Batch;
use crate::frame::{Frame, OFFLOAD_HEADER, Offload, OwnedFrame};
use crate::limit::{self, Slot};
use crate::router::resolve::Ingress;
use crate::snapshot::{Port, PortCounters, PortId, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// What limits are called in traces.
const LIMIT: &str = "limit";
/// Bytes that a worker keeps, the cost of keeping them included.
const HELD: usize = 64 << 20;
/// What a frame costs besides its bytes.
const OVERHEAD: usize = 128;
/// Frames that are let go at once, so that a backlog does not hold up what comes in.
const AT_ONCE: usize = 128;

/// A frame that waits.
#[derive(Debug)]
struct Held {
    at: Time,
    /// Frames of one moment leave in the order in which they came.
    number: u64,
    port: PortId,
    /// Of the port as it was: its number may be another's by now.
    counters: Arc<PortCounters>,
    frame: OwnedFrame,
    way: Way,
}

/// Which way a frame goes on.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Into the stages.
    In,
    /// Out of the port.
    Out { from: Option<Ingress>, counted: Counted },
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl Held {
    fn bytes(&self) -> usize {
        self.frame.wire().len() + OVERHEAD
    }

    /// Whether the switch received the frame and has not said yet what became of it.
    fn is_owed(&self) -> bool {
        !matches!(self.way, Way::Out { counted: Counted::Own, .. })
    }
}

/// All frames that wait.
#[derive(Debug, Default)]
pub(super) struct Shaper {
    held: BinaryHeap<Reverse<Held>>,
    bytes: usize,
    count: u64,
}

impl Shaper {
    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Time> {
        self.held.peek().map(|Reverse(held)| held.at)
    }

    fn is_full(&self) -> bool {
        self.bytes >= HELD
    }

    fn push(&mut self, at: Time, port: &Port, frame: OwnedFrame, way: Way) {
        self.count += 1;
        let counters = Arc::clone(&port.counters);
        let held = Held { at, number: self.count, port: port.id, counters, frame, way };
        self.bytes += held.bytes();
        self.held.push(Reverse(held));
    }

    fn pop(&mut self, now: Time) -> Option<Held> {
        if self.next()? > now {
            return None;
        }
        let Reverse(held) = self.held.pop()?;
        self.bytes -= held.bytes();
        Some(held)
    }
}

impl Engine {
    /// What becomes of a frame from a port with a limit, unless it may pass at once.
    pub(super) fn limit_in(&mut self, now: Time, port: &Port, frame: &Frame<'_>) -> Option<Verdict> {
        let bucket = port.limits.as_ref()?.rate_in.as_ref()?;
        let slot = if self.shaper.is_full() { Slot::Never } else { bucket.book(limit::size(frame), now) };
        let (verdict, why) = match slot {
            Slot::Now => return None,
            Slot::At(at) => {
                self.shaper.push(at, port, frame.into(), Way::In);
                self.shared.shaped.fetch_add(1, Relaxed);
                let wait = at.since(now).as_micros();
                (Verdict::Absorbed, format!("above what port {} may send: it waits {wait} us", port.name))
            }
            Slot::Never => {
                let why = format!("above what port {} may send, and its queue is full", port.name);
                (Verdict::Drop(DropReason::RateLimited), why)
            }
        };
        if let Some(trail) = &mut self.trail {
            trail.engine(LIMIT, verdict, why);
        }
        Some(verdict)
    }

    /// Keeps what a port with a limit must not be sent yet: takes it out of what is outgoing for a frame. Tells whether there was
    /// anything.
    pub(super) fn limit_out(&mut self, now: Time, snapshot: &Snapshot, batch: &Batch, of: &Pending) -> bool {
        let wire = batch.wire(of.frame);
        let offload = wire.first_chunk().map_or_else(Offload::default, Offload::parse);
        let bytes = &wire[OFFLOAD_HEADER..];
        let size = limit::size_of(bytes, offload);
        let mut kept = Vec::new();
        let full = self.shaper.is_full();
        let mut at = of.first;
        while at < self.outgoing.len() {
            let out = &mut self.outgoing[at];
            let port = snapshot.port(out.port).filter(|_| out.fate == Fate::Waiting);
            let bucket = port.and_then(|port| Some((port, port.limits.as_ref()?.rate_out.as_ref()?)));
            let slot = match bucket {
                Some(_) if full => Slot::Never,
                Some((_, bucket)) => bucket.book(size, now),
                None => Slot::Now,
            };
            match (slot, bucket) {
                (Slot::At(then), Some((port, _))) => {
                    kept.push((then, port));
                    self.outgoing.remove(at);
                    continue;
                }
                (Slot::Never, _) => out.fate = Fate::Lost(DropReason::RateLimited),
                _ => {}
            }
            at += 1;
        }
        // A frame for several is counted once: with those that go now, else with the first that waits.
        let mut owed = of.first == self.outgoing.len() && of.counted != Counted::Own;
        let any = !kept.is_empty();
        for (then, port) in kept {
            let way = match owed {
                true => Way::Out { from: of.from, counted: of.counted },
                false => Way::Out { from: None, counted: Counted::Own },
            };
            if owed {
                self.shared.shaped.fetch_add(1, Relaxed);
                if let Some(trail) = &mut self.trail {
                    let wait = then.since(now).as_micros();
                    let why = format!("above what port {} may be sent: it waits {wait} us", port.name);
                    trail.engine(LIMIT, Verdict::Absorbed, why);
                }
            }
            owed = false;
            self.shaper.push(then, port, OwnedFrame::new(bytes, offload), way);
        }
        any
    }

    /// Lets frames go whose moment has come.
    pub(super) fn release(&mut self, now: Time, snapshot: &Snapshot, batch: &mut Batch, lock: &mut Lock<'_>) {
        for _ in 0..AT_ONCE {
            let Some(mut held) = self.shaper.pop(now) else { return };
            if held.is_owed() {
                self.shared.shaped.fetch_sub(1, Relaxed);
            }
            let port = snapshot.port(held.port).filter(|p| Arc::ptr_eq(&p.counters, &held.counters));
            match (held.way, port) {
                (Way::In, Some(port)) => {
                    let verdict = self.decide(now, snapshot, port, &mut held.frame.frame(port.id), lock);
                    let frame = batch.add_extra(held.frame);
                    let from = Some(Ingress::Port(port.id));
                    self.plan(now, snapshot, from, port.network, (batch, frame), verdict);
                }
                (Way::Out { from, counted }, Some(port)) => {
                    let frame = batch.add_extra(held.frame);
                    let fate = if port.up { Fate::Waiting } else { Fate::Lost(DropReason::PortDown) };
                    let (first, count) = (self.outgoing.len(), 1);
                    self.outgoing.push(Outgoing { frame, port: port.id, link: port.link, fate });
                    self.pending.push(Pending { frame, from, counted, first, count });
                }
                // The port is gone, and nobody else gets its frames.
                (Way::In, None) => self.shared.drops.count(DropReason::PortDown),
                (Way::Out { from, counted }, None) => {
                    if counted != Counted::Own {
                        let frame = batch.add_extra(held.frame);
                        self.drop(snapshot, frame, from, DropReason::PortDown);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Link;

    fn port() -> Port {
        Port {
            id: PortId(3),
            name: "p".into(),
            network: crate::snapshot::NetworkId(0),
            link: Link::Memory,
            up: true,
            veth_mtu: None,
            limits: None,
            sources: None,
            counters: Arc::default(),
        }
    }

    #[test]
    fn frames_leave_in_the_order_of_their_moments_and_then_as_they_came() {
        let mut shaper = Shaper::default();
        let frame = |n: u8| OwnedFrame::new(&[n; 60], Offload::default());
        for (n, at) in [(1, 7), (2, 5), (3, 7), (4, 5), (5, 6)] {
            shaper.push(Time::from_secs(at), &port(), frame(n), Way::In);
        }
        assert_eq!((shaper.next(), shaper.bytes), (Some(Time::from_secs(5)), 5 * (60 + 10 + OVERHEAD)));
        assert!(shaper.pop(Time::from_secs(4)).is_none());
        let order: Vec<u8> = std::iter::from_fn(|| shaper.pop(Time::from_secs(6)))
            .map(|held| held.frame.wire()[OFFLOAD_HEADER])
            .collect();
        assert_eq!(order, [2, 4, 5]);
        let rest = std::iter::from_fn(|| shaper.pop(Time::from_secs(9))).count();
        assert_eq!((rest, shaper.bytes, shaper.next()), (2, 0, None));
    }
}
