//! The engine: runs the stages over a batch and turns verdicts into frames to send.
//!
//! It is all that a worker does between receiving and sending, and all that tests run: no sockets, no clock.
//! Accounting is here, so that it is the same everywhere: a frame that was received is forwarded, answered or dropped,
//! and counted as exactly one of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use nat::Time;
use tokio::sync::mpsc;

use crate::batch::{BATCH, Batch};
use crate::dataplane::DataEvent;
use crate::fdb::{Fdb, FdbConfig};
use crate::router::neighbor::Neighbors;
use crate::snapshot::{Link, Port, PortId, Snapshot};
use crate::stage::{Cx, Pipeline, Stage};
use crate::verdict::{DropCounters, DropReason, Verdict};

/// Events that may wait for the control plane. More are lost: they are news, not state.
const EVENTS: usize = 1024;

/// What all workers and the control plane share.
#[derive(Debug)]
pub struct Shared {
    /// The world.
    pub snapshot: ArcSwap<Snapshot>,
    /// The MAC table.
    pub fdb: Fdb,
    /// Addresses in use.
    pub neighbors: Neighbors,
    /// Drops by reason.
    pub drops: DropCounters,
    received: AtomicU64,
    forwarded: AtomicU64,
    answered: AtomicU64,
    events: mpsc::Sender<DataEvent>,
}

impl Shared {
    /// An empty world, and where the workers' news come out.
    pub fn new(fdb: FdbConfig) -> (Arc<Self>, mpsc::Receiver<DataEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let shared = Self {
            snapshot: ArcSwap::default(),
            fdb: Fdb::new(fdb),
            neighbors: Neighbors::default(),
            drops: DropCounters::default(),
            received: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            events,
        };
        (Arc::new(shared), receiver)
    }

    /// Tells the control plane something, unless it is behind with listening.
    pub fn tell(&self, event: DataEvent) {
        // Both errors mean that nobody listens now, which is no reason to hold up frames.
        let _ = self.events.try_send(event);
    }

    /// Frames received, forwarded and answered so far.
    pub fn passed(&self) -> (u64, u64, u64) {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (get(&self.received), get(&self.forwarded), get(&self.answered))
    }
}

/// What became of a frame that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Not tried yet.
    Waiting,
    /// The kernel took it.
    Sent,
    /// It was not sent, for this reason.
    Lost(DropReason),
}

/// A frame of the batch, to be sent to one port.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// Which frame of the batch.
    pub frame: usize,
    /// To which port.
    pub port: PortId,
    /// By which way.
    pub link: Link,
    /// What became of it: set by who sends it.
    pub fate: Fate,
}

/// What is known of a received frame until all it became has been sent.
#[derive(Clone, Copy, Debug)]
struct Pending {
    frame: usize,
    from: PortId,
    verdict: Verdict,
    first: usize,
    count: usize,
}

/// Runs the stages over batches.
pub struct Engine {
    shared: Arc<Shared>,
    pipeline: Pipeline,
    pending: Vec<Pending>,
    outgoing: Vec<Outgoing>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine with these stages of the user's.
    pub fn new(shared: Arc<Shared>, yours: Vec<Box<dyn Stage>>) -> Self {
        let pipeline = Pipeline::new(yours);
        Self { shared, pipeline, pending: Vec::with_capacity(BATCH), outgoing: Vec::with_capacity(BATCH) }
    }

    /// What the engine shares with others.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Decides about every frame of the batch. Afterwards the frames of [`Engine::outgoing`] are to be sent, and
    /// [`Engine::settle`] called.
    pub fn run(&mut self, now: Time, snapshot: &Snapshot, batch: &mut Batch) {
        self.pending.clear();
        self.outgoing.clear();
        self.shared.received.fetch_add(batch.len() as u64, Ordering::Relaxed);
        for frame in 0..batch.len() {
            let slot = batch.slot(frame);
            let Some(port) = slot.source.port(snapshot) else {
                self.shared.drops.count(DropReason::NotAPort);
                continue;
            };
            port.counters.rx.add(1, slot.at.len() as u64);
            let verdict = if slot.truncated {
                Verdict::Drop(DropReason::Oversized)
            } else {
                self.decide(now, snapshot, port, batch, frame)
            };
            self.plan(snapshot, port, frame, verdict);
        }
    }

    fn decide(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        port: &Port,
        batch: &mut Batch,
        frame: usize,
    ) -> Verdict {
        // A snapshot is made with the networks of all its ports.
        let Some(network) = snapshot.network(port.network) else {
            return Verdict::Drop(DropReason::NotAPort);
        };
        let shared = &*self.shared;
        let mut cx = Cx {
            now,
            snapshot,
            port,
            network,
            fdb: &shared.fdb,
            neighbors: &shared.neighbors,
            tell: &mut |event| shared.tell(event),
        };
        self.pipeline.run(&mut batch.frame(frame, port.id), &mut cx)
    }

    /// Turns a verdict into what is to be sent.
    fn plan(&mut self, snapshot: &Snapshot, from: &Port, frame: usize, verdict: Verdict) {
        let first = self.outgoing.len();
        let send = |port: &Port| {
            let fate = if port.up { Fate::Waiting } else { Fate::Lost(DropReason::PortDown) };
            Outgoing { frame, port: port.id, link: port.link, fate }
        };
        match verdict {
            Verdict::Forward(to) => match snapshot.port(to) {
                Some(to) => self.outgoing.push(send(to)),
                // The port went away; its entries in the MAC table are about to.
                None => return self.drop(from, DropReason::PortDown),
            },
            Verdict::Reply => self.outgoing.push(send(from)),
            Verdict::Flood => {
                let flood = snapshot.network(from.network).map_or(&[][..], |n| &n.flood);
                let others = flood.iter().filter(|id| **id != from.id).filter_map(|id| snapshot.port(*id));
                self.outgoing.extend(others.map(send));
                if self.outgoing.len() == first {
                    return self.drop(from, DropReason::NoEgress);
                }
            }
            Verdict::Drop(reason) => return self.drop(from, reason),
            // The bridge always decides; a pipeline without it is a mistake that drops.
            Verdict::Next => return self.drop(from, DropReason::NoEgress),
        }
        let count = self.outgoing.len() - first;
        self.pending.push(Pending { frame, from: from.id, verdict, first, count });
    }

    fn drop(&self, from: &Port, reason: DropReason) {
        from.counters.rx.drop_one();
        self.shared.drops.count(reason);
    }

    /// What is to be sent, in order.
    pub fn outgoing(&mut self) -> &mut [Outgoing] {
        &mut self.outgoing
    }

    /// Counts what became of every frame of the batch.
    pub fn settle(&mut self, snapshot: &Snapshot, batch: &Batch) {
        let (mut forwarded, mut answered) = (0, 0);
        for done in &self.pending {
            let mut sent = false;
            let mut why = DropReason::TxFailed;
            for out in &self.outgoing[done.first..done.first + done.count] {
                let Some(port) = snapshot.port(out.port) else { continue };
                match out.fate {
                    Fate::Sent => {
                        sent = true;
                        port.counters.tx.add(1, batch.slot(done.frame).at.len() as u64);
                    }
                    Fate::Lost(reason) => {
                        why = reason;
                        port.counters.tx.drop_one();
                    }
                    Fate::Waiting => port.counters.tx.drop_one(),
                }
            }
            match (sent, done.verdict) {
                (true, Verdict::Reply) => answered += 1,
                (true, _) => forwarded += 1,
                (false, _) => {
                    self.shared.drops.count(why);
                    if let Some(from) = snapshot.port(done.from) {
                        from.counters.rx.drop_one();
                    }
                }
            }
        }
        self.shared.forwarded.fetch_add(forwarded, Ordering::Relaxed);
        self.shared.answered.fetch_add(answered, Ordering::Relaxed);
    }
}
