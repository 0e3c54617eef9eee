//! The engine: runs the stages over a batch and turns verdicts into frames to send.
//!
//! It is all that a worker does between receiving and sending, and all that tests run: no sockets, no clock.
//! Accounting is here, so that it is the same everywhere: a frame that was received is forwarded, answered or dropped,
//! and counted as exactly one of them.

mod books;
mod offering;
mod own;
mod serving;
mod shaping;
mod shared;
mod walking;
mod watching;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nat::Time;

use crate::batch::{BATCH, Batch, Source};
use crate::fastpath::offer::Offers;
use crate::frame::Frame;
use crate::router::resolve::Ingress;
use crate::router::{Extra, Forwarding, Lock, Router, inside};
use crate::snapshot::{Link, NetworkId, Port, PortCounters, PortId, Snapshot};
use crate::stage::{Cx, Pipeline, Stage};
use crate::trace::{Step, Trail};
use crate::verdict::{DropReason, Verdict};
pub use books::Balance;
use shaping::Shaper;
pub use shared::Shared;
use watching::Watching;

/// Steps of clearing away expired connections for each batch that needs connections at all.
const STEPS_PER_BATCH: usize = 32;
/// Steps at once while no frames come.
const STEPS_PER_TICK: usize = 1024;
/// Connections expire to this precision while no frames come.
const COARSE: Duration = Duration::from_secs(1);

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

impl Outgoing {
    /// The port or uplink that it goes to.
    const fn to(&self) -> Ingress {
        match self.link {
            Link::Uplink(ifindex) => Ingress::Uplink(ifindex),
            _ => Ingress::Port(self.port),
        }
    }
}

/// As what a frame is counted once it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Answered,
    Forwarded,
    /// The switch made it.
    Own,
}

/// What is known of a frame until all it became has been sent.
#[derive(Clone, Copy, Debug)]
struct Pending {
    frame: usize,
    from: Option<Ingress>,
    counted: Counted,
    first: usize,
    count: usize,
}

/// Runs the stages over batches.
pub struct Engine {
    shared: Arc<Shared>,
    pipeline: Pipeline,
    pending: Vec<Pending>,
    outgoing: Vec<Outgoing>,
    extras: Vec<Extra>,
    timer: Option<Time>,
    shaper: Shaper,
    watching: Watching,
    /// What the stages decide and why: while a frame is traced.
    trail: Option<Trail>,
    offers: Option<Offers>,
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
        Self {
            shared,
            pipeline,
            pending: Vec::with_capacity(BATCH),
            outgoing: Vec::with_capacity(BATCH),
            extras: Vec::new(),
            timer: None,
            shaper: Shaper::default(),
            watching: Watching::default(),
            trail: None,
            offers: None,
        }
    }

    /// One that writes down what its stages decide and why.
    pub(crate) fn traced(shared: Arc<Shared>, yours: Vec<Box<dyn Stage>>) -> Self {
        let mut new = Self::new(shared, yours);
        new.pipeline.router.explain();
        new.trail = Some(Trail::default());
        new
    }

    /// What was written down since the last call.
    pub(crate) fn steps(&mut self) -> Vec<Step> {
        self.trail.as_mut().map(Trail::take).unwrap_or_default()
    }

    /// The stages of the user's, back.
    pub(crate) fn into_stages(self) -> Vec<Box<dyn Stage>> {
        self.pipeline.into_stages()
    }

    /// Flows that the kernel may take over are counted from now on, unless a user's stage wants to see every frame.
    pub fn offer_flows(&mut self) {
        self.offers = self.pipeline.is_plain().then(Offers::default);
    }

    /// Flows that the kernel may take over.
    pub fn offers(&mut self) -> Option<&mut Offers> {
        self.offers.as_mut()
    }

    /// What the engine shares with others.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// When [`Engine::tick`] has something to do; none while nothing is due by itself.
    pub fn timer(&self) -> Option<Time> {
        [self.timer, self.shaper.next()].into_iter().flatten().min()
    }

    /// Says that [`Engine::tick`] has something to do.
    pub const fn set_timer(&mut self, at: Time) {
        self.timer = Some(at);
    }

    /// Decides about every frame of the batch. Afterwards the frames of [`Engine::outgoing`] are to be sent, and
    /// [`Engine::settle`] called.
    pub fn run(&mut self, now: Time, snapshot: &Snapshot, batch: &mut Batch) {
        self.pending.clear();
        self.outgoing.clear();
        let shared = Arc::clone(&self.shared);
        let mut lock = Lock::new(&shared.forwarding);
        let mut ignored = 0;
        let observers = snapshot.observers.as_deref();
        if let Some(observers) = observers {
            self.watch(now, snapshot, observers, batch);
        }
        // First what came before.
        self.release(now, snapshot, batch, &mut lock);
        for frame in 0..batch.len() {
            let slot = batch.slot(frame);
            if let Source::Uplink(ifindex) = slot.source {
                ignored += self.outside(now, snapshot, batch, frame, ifindex, &mut lock);
                continue;
            }
            let Some(port) = slot.source.port(snapshot) else {
                shared.drops.count(DropReason::NotAPort);
                if observers.is_some() {
                    self.watching.dropped.push((frame, None, DropReason::NotAPort));
                }
                continue;
            };
            port.counters.rx.add(1, slot.at.len() as u64);
            let walks = self.begin_walk(observers, Ingress::Port(port.id), batch.wire(frame));
            let verdict = if slot.truncated {
                Verdict::Drop(DropReason::Oversized)
            } else if let Some(held) = self.limit_in(now, port, &batch.frame(frame, port.id)) {
                held
            } else {
                let mut view = batch.frame(frame, port.id);
                let verdict = self.decide(now, snapshot, port, &mut view, &mut lock);
                self.offer(snapshot, port, verdict, &view);
                self.offer_routed(snapshot, Ingress::Port(port.id), verdict, batch, frame, &mut lock);
                verdict
            };
            let from = Some(Ingress::Port(port.id));
            self.plan(now, snapshot, from, port.network, (batch, frame), verdict);
            if walks {
                self.end_walk(frame);
            }
        }
        shared.received.fetch_add((batch.len() - ignored) as u64, Ordering::Relaxed);
        if let Some(state) = lock.taken() {
            let more = state.nat.expire(now, STEPS_PER_BATCH);
            state.write_down(snapshot);
            self.note_timers(now, state, more);
        }
        self.add_extras(now, snapshot, batch);
        if let Some(observers) = observers {
            self.mirror_sent(snapshot, observers);
        }
    }

    /// Does what is due without a frame. As [`Engine::run`], with an empty batch.
    pub fn tick(&mut self, now: Time, snapshot: &Snapshot, batch: &mut Batch) {
        self.pending.clear();
        self.outgoing.clear();
        let shared = Arc::clone(&self.shared);
        let mut lock = Lock::new(&shared.forwarding);
        self.watching.now = now;
        self.release(now, snapshot, batch, &mut lock);
        // Limits let frames go every millisecond; the rest is seldom due.
        if self.timer.is_some_and(|at| at <= now) {
            self.pipeline.router.tick(now, snapshot, &shared.neighbors, &mut lock);
            let state = lock.get();
            let more = state.nat.expire(now, STEPS_PER_TICK);
            state.write_down(snapshot);
            self.note_timers(now, state, more);
        } else if let Some(state) = lock.taken() {
            state.write_down(snapshot);
            self.note_timers(now, state, false);
        }
        self.add_extras(now, snapshot, batch);
        if let Some(observers) = &snapshot.observers {
            self.mirror_sent(snapshot, observers);
        }
    }

    fn note_timers(&mut self, now: Time, state: &mut Forwarding, more: bool) {
        if state.resolver.take_changed() {
            self.shared.epoch.end();
        }
        self.shared.waiting.store(state.resolver.waiting_inside(), Ordering::Relaxed);
        self.shared.count_lost(state);
        let pause = if more { Duration::from_millis(1) } else { COARSE };
        let connections = state.nat.poll_at().map(|at| at.max(now + pause));
        self.timer = [connections, state.resolver.poll_at()].into_iter().flatten().min();
    }

    /// A frame from an uplink; tells how many were ignored.
    fn outside(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        batch: &mut Batch,
        frame: usize,
        ifindex: u32,
        lock: &mut Lock<'_>,
    ) -> usize {
        let slot = batch.slot(frame);
        let observers = snapshot.observers.as_deref();
        let walks = self.begin_walk(observers, Ingress::Uplink(ifindex), batch.wire(frame));
        let world = (now, snapshot, &self.shared.neighbors);
        let mut view = batch.frame(frame, PortId(u32::MAX));
        let verdict = match slot.truncated {
            true => Verdict::Ignore,
            false => match &mut self.trail {
                None => self.pipeline.router.outside(&mut view, ifindex, world, lock),
                Some(trail) => {
                    trail.router(Router::NAME, &mut self.pipeline.router, &mut view, |router, view| {
                        router.outside(view, ifindex, world, lock)
                    })
                }
            },
        };
        if verdict == Verdict::Ignore {
            if walks {
                self.drop_walk();
            }
            return 1;
        }
        self.offer_routed(snapshot, Ingress::Uplink(ifindex), verdict, batch, frame, lock);
        if let Some(uplink) = snapshot.uplink(ifindex) {
            uplink.counters.rx.add(1, slot.at.len() as u64);
        }
        if let Some(observers) = observers
            && let Some(original) = self.watching.originals.get(frame)
        {
            observers.received(now, snapshot, Ingress::Uplink(ifindex), original, &mut self.extras);
        }
        let from = Some(Ingress::Uplink(ifindex));
        self.plan(now, snapshot, from, NetworkId(0), (batch, frame), verdict);
        if walks {
            self.end_walk(frame);
        }
        0
    }

    /// Takes what the router wants sent besides into the batch.
    fn add_extras(&mut self, now: Time, snapshot: &Snapshot, batch: &mut Batch) {
        let mut extras = std::mem::take(&mut self.extras);
        extras.extend(self.pipeline.router.extras());
        for extra in extras.drain(..) {
            let frame = batch.add_extra(extra.frame);
            self.plan(now, snapshot, extra.from, extra.network, (batch, frame), extra.verdict);
        }
        self.extras = extras;
    }

    fn decide(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        port: &Port,
        view: &mut Frame<'_>,
        lock: &mut Lock<'_>,
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
            waiting: shared.waiting.load(Ordering::Relaxed),
            tell: &mut |event| shared.tell(event),
        };
        match &mut self.trail {
            None => self.pipeline.run(view, &mut cx, lock),
            Some(trail) => self.pipeline.run_traced(view, &mut cx, lock, trail),
        }
    }

    /// Turns a verdict into what is to be sent.
    fn plan(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        from: Option<Ingress>,
        network: NetworkId,
        (batch, frame): (&Batch, usize),
        verdict: Verdict,
    ) {
        let first = self.outgoing.len();
        let send = |port: &Port| {
            let fate = if port.up { Fate::Waiting } else { Fate::Lost(DropReason::PortDown) };
            Outgoing { frame, port: port.id, link: port.link, fate }
        };
        let from_port = match from {
            Some(Ingress::Port(port)) => Some(port),
            _ => None,
        };
        match verdict {
            Verdict::Forward(to) => match snapshot.port(to) {
                Some(to) => self.outgoing.push(send(to)),
                // The port went away; its entries in the MAC table are about to.
                None => return self.drop(snapshot, frame, from, DropReason::PortDown),
            },
            Verdict::Reply => {
                self.outgoing.extend(from_port.and_then(|port| snapshot.port(port)).map(send));
            }
            Verdict::Flood => {
                let network = snapshot.network(network);
                // What the switch asks itself is for the containers; the host knows.
                let except = from_port.or_else(|| network?.host_port);
                let flood = network.map_or(&[][..], |n| &n.flood);
                let others =
                    flood.iter().filter(|id| Some(**id) != except).filter_map(|id| snapshot.port(*id));
                let from_port = from_port.and_then(|id| snapshot.port(id));
                let governed = from_port.zip(network).filter(|(_, network)| snapshot.is_governed(network));
                match governed {
                    None => self.outgoing.extend(others.map(send)),
                    Some((from, network)) => {
                        let kind = self.pipeline.router.heard();
                        let hear = |to: &&Port| inside::hears(snapshot, network, from, to, kind);
                        self.outgoing.extend(others.filter(hear).map(send));
                    }
                }
                if self.outgoing.len() == first {
                    let alone = flood.iter().all(|id| Some(*id) == except);
                    let reason = match governed {
                        Some((_, network)) if !alone && network.isolate_ports => DropReason::Isolated,
                        Some(_) if !alone => DropReason::Prohibited,
                        _ => DropReason::NoEgress,
                    };
                    if let (Some(trail), false) = (&mut self.trail, reason == DropReason::NoEgress) {
                        let why = "none of the others may hear it ('swctl policy')".to_owned();
                        trail.engine(Router::POLICY, Verdict::Drop(reason), why);
                    }
                    return self.drop(snapshot, frame, from, reason);
                }
            }
            Verdict::Uplink(ifindex) => {
                let up = snapshot.uplink(ifindex).is_some_and(|u| u.up);
                let fate = if up { Fate::Waiting } else { Fate::Lost(DropReason::PortDown) };
                let (port, link) = (PortId(u32::MAX), Link::Uplink(ifindex));
                self.outgoing.push(Outgoing { frame, port, link, fate });
            }
            Verdict::Serve(service) => return self.serve(snapshot, from, (batch, frame), service),
            Verdict::Drop(reason) => return self.drop(snapshot, frame, from, reason),
            // The bridge always decides; a pipeline without it is a mistake that drops.
            Verdict::Next => return self.drop(snapshot, frame, from, DropReason::NoEgress),
            Verdict::Absorbed | Verdict::Ignore => return,
        }
        let counted = match (from, verdict) {
            (None, _) => Counted::Own,
            (_, Verdict::Reply) => Counted::Answered,
            _ => Counted::Forwarded,
        };
        self.pend(now, snapshot, batch, Pending { frame, from, counted, first, count: 0 });
    }

    /// Notes what is to become of a frame whose outgoing ones were just added. What a limit holds back is kept.
    fn pend(&mut self, now: Time, snapshot: &Snapshot, batch: &Batch, mut pending: Pending) {
        let limited = |out: &Outgoing| {
            let port = snapshot.port(out.port).and_then(|port| port.limits.as_ref());
            port.is_some_and(|limits| limits.rate_out.is_some())
        };
        let some = self.outgoing[pending.first..].iter().any(limited);
        let kept = some && self.limit_out(now, snapshot, batch, &pending);
        pending.count = self.outgoing.len() - pending.first;
        if pending.count > 0 || !kept {
            self.pending.push(pending);
        }
    }

    fn drop(&mut self, snapshot: &Snapshot, frame: usize, from: Option<Ingress>, reason: DropReason) {
        let Some(from) = from else { return };
        if snapshot.observers.is_some() {
            self.watching.dropped.push((frame, Some(from), reason));
        }
        if let Some(counters) = counters(snapshot, from) {
            counters.rx.drop_one();
        }
        self.shared.drops.count(reason);
    }

    /// What is to be sent, in order.
    pub fn outgoing(&mut self) -> &mut [Outgoing] {
        &mut self.outgoing
    }

    /// Counts what became of every frame of the batch.
    pub fn settle(&mut self, snapshot: &Snapshot, batch: &Batch) {
        let (mut forwarded, mut answered) = (0, 0);
        let observers = snapshot.observers.as_deref();
        let pending = std::mem::take(&mut self.pending);
        for done in &pending {
            let mut sent = false;
            let mut why = DropReason::TxFailed;
            for out in &self.outgoing[done.first..done.first + done.count] {
                let to = out.to();
                let Some(counters) = counters(snapshot, to) else { continue };
                match out.fate {
                    Fate::Sent => {
                        sent = true;
                        counters.tx.add(1, batch.len_of(done.frame) as u64);
                        if let Some(observers) = observers {
                            let wire = batch.wire(done.frame);
                            observers.sent(self.watching.now, snapshot, done.from, to, wire);
                        }
                    }
                    Fate::Lost(reason) => {
                        why = reason;
                        counters.tx.drop_one();
                    }
                    Fate::Waiting => counters.tx.drop_one(),
                }
            }
            match (sent, done.counted) {
                (_, Counted::Own) => {}
                (true, Counted::Answered) => answered += 1,
                (true, Counted::Forwarded) => forwarded += 1,
                (false, _) => self.drop(snapshot, done.frame, done.from, why),
            }
        }
        self.pending = pending;
        if let Some(observers) = observers {
            self.show_walks(snapshot, observers, batch);
            self.show_drops(observers, batch);
        }
        self.shared.forwarded.fetch_add(forwarded, Ordering::Relaxed);
        self.shared.answered.fetch_add(answered, Ordering::Relaxed);
    }
}

/// What is counted for a port or an uplink.
fn counters(snapshot: &Snapshot, of: Ingress) -> Option<&PortCounters> {
    match of {
        Ingress::Port(port) => snapshot.port(port).map(|p| &*p.counters),
        Ingress::Uplink(ifindex) => snapshot.uplink(ifindex).map(|u| &*u.counters),
    }
}
