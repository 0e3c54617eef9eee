//! What would become of a frame: the stages of production on a copy of the live state.
//!
//! A [`Tracer`] forks what the workers share ([`Shared::fork`]) and runs an [`Engine`] over the copy that writes down
//! what each stage decides and why. Nothing is sent, learned, counted or committed outside the copy, so there is nothing to take
//! back. Frames that are traced one after another see what the ones before them did: a recorded conversation runs as it
//! would have. Stages of the user's are instances of their own, with state of their own.

pub mod build;

use std::net::IpAddr;
use std::sync::Arc;

use nat::Time;
use tokio::sync::mpsc;

use crate::batch::{BATCH, Batch, Source};
use crate::dataplane::DataEvent;
use crate::engine::{Engine, Fate, Outgoing, Shared};
use crate::frame::{Frame, HEADROOM, MAX_FRAME, OFFLOAD_HEADER, Offload};
use crate::mac::Mac;
use crate::router::Router;
use crate::show::describe;
use crate::snapshot::{Link, NetworkId, PortId, Snapshot};
use crate::stage::{Cx, Stage};
use crate::verdict::{DropReason, Verdict};

/// What a stage decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub stage: &'static str,
    /// What it decided.
    pub verdict: Verdict,
    /// By what.
    pub why: Vec<String>,
    /// The headers as it made them, if it changed the frame.
    pub after: Option<String>,
}

/// Steps of the frame in work.
#[derive(Debug, Default)]
pub struct Trail(Vec<Step>);

impl Trail {
    /// Lets a stage decide.
    pub(crate) fn stage(&mut self, stage: &mut dyn Stage, frame: &mut Frame<'_>, cx: &mut Cx<'_>) -> Verdict {
        let why = stage.explain(frame, cx).into_iter().collect();
        let before = frame.bytes().to_vec();
        let verdict = stage.process(frame, cx);
        self.note(stage.name(), verdict, why, &before, frame);
        verdict
    }

    /// Lets the router decide.
    pub(crate) fn router(
        &mut self,
        name: &'static str,
        router: &mut Router,
        frame: &mut Frame<'_>,
        decide: impl FnOnce(&mut Router, &mut Frame<'_>) -> Verdict,
    ) -> Verdict {
        let before = frame.bytes().to_vec();
        let verdict = decide(router, frame);
        let why = router.notes();
        self.note(name, verdict, why, &before, frame);
        verdict
    }

    fn note(
        &mut self,
        stage: &'static str,
        verdict: Verdict,
        mut why: Vec<String>,
        before: &[u8],
        frame: &Frame<'_>,
    ) {
        if let Verdict::Drop(reason) = verdict {
            why.push(reason.help().to_owned());
        }
        let after = (frame.bytes() != before).then(|| describe(frame.bytes()));
        self.0.push(Step { stage, verdict, why, after });
    }

    /// What the engine decides besides the stages.
    pub(crate) fn engine(&mut self, stage: &'static str, verdict: Verdict, why: String) {
        self.0.push(Step { stage, verdict, why: vec![why], after: None });
    }

    pub(crate) fn take(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.0)
    }
}

/// As what a frame would be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Sent on, to one port or several.
    Forwarded,
    /// Answered by the switch.
    Answered,
    /// Dropped.
    Dropped(DropReason),
    /// It waits for a next hop's MAC or for its first fragment.
    Waits,
    /// From outside and none of ours: the host has it.
    Host,
}

/// A frame that would be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The port's or the uplink's name.
    pub to: Arc<str>,
    /// The port; none for an uplink.
    pub port: Option<PortId>,
    /// From the destination address on.
    pub bytes: Vec<u8>,
    /// Why it could not be sent, as far as the switch knows.
    pub lost: Option<DropReason>,
}

impl Sent {
    /// A frame on its way out; `wire` begins with its offload header.
    pub(crate) fn of(snapshot: &Snapshot, out: &Outgoing, wire: &[u8], lost: Option<DropReason>) -> Self {
        let (to, port) = match out.link {
            Link::Uplink(ifindex) => (snapshot.uplink(ifindex).map(|u| &u.name), None),
            _ => (snapshot.port(out.port).map(|p| &p.name), Some(out.port)),
        };
        let to = to.map_or_else(|| "-".into(), Arc::clone);
        Self { to, port, bytes: wire[OFFLOAD_HEADER..].to_vec(), lost }
    }
}

/// What would become of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// What each stage decided.
    pub steps: Vec<Step>,
    /// The end of it.
    pub outcome: Outcome,
    /// What would be sent of it.
    pub sent: Vec<Sent>,
    /// What would be sent besides: questions for MACs, ICMP errors, frames that had waited.
    pub besides: Vec<Sent>,
    /// What the control plane would be told.
    pub told: Vec<DataEvent>,
}

/// Traces frames on a copy of the state as it was when the tracer was made.
#[derive(Debug)]
pub struct Tracer {
    shared: Arc<Shared>,
    engine: Engine,
    events: mpsc::Receiver<DataEvent>,
    batch: Batch,
}

impl Tracer {
    /// Copies the state. `yours` are the user's stages: given back by [`Tracer::into_stages`].
    pub fn new(live: &Shared, yours: Vec<Box<dyn Stage>>) -> Self {
        let (shared, events) = live.fork();
        Self { engine: Engine::traced(Arc::clone(&shared), yours), shared, events, batch: Batch::new() }
    }

    /// The user's stages, back.
    pub fn into_stages(self) -> Vec<Box<dyn Stage>> {
        self.engine.into_stages()
    }

    /// The world as it was.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// The MAC that a station in a network uses for an address: the user's, as far as it was seen.
    pub fn mac_of(&self, network: NetworkId, address: IpAddr, now: Time) -> Option<(PortId, Mac)> {
        self.shared.neighbors.get(network, address, now).map(|n| (n.port, n.mac))
    }

    /// A MAC that was learned at a port, if there is exactly one.
    pub fn mac_at(&self, port: PortId, now: Time) -> Option<Mac> {
        let mut learned = self.shared.fdb.entries(now).into_iter().filter(|e| e.port == port);
        let first = learned.next()?;
        learned.next().is_none().then_some(first.mac)
    }

    /// Walks a frame through the switch. `bytes` begin with the destination address; what is longer than a frame can be
    /// is cut and told so, as a socket would.
    pub fn trace(&mut self, now: Time, source: Source, bytes: &[u8], offload: Offload) -> Traced {
        let snapshot = self.snapshot();
        self.batch.clear();
        if let Some(buffer) = self.batch.next_buffer() {
            let kept = bytes.len().min(MAX_FRAME);
            buffer[HEADROOM..HEADROOM + kept].copy_from_slice(&bytes[..kept]);
            if let Some(header) = buffer[HEADROOM - OFFLOAD_HEADER..].first_chunk_mut() {
                offload.emit(header);
            }
            self.batch.push(bytes.len(), source, None);
        }
        self.engine.run(now, &snapshot, &mut self.batch);
        let (mut sent, mut besides) = (Vec::new(), Vec::new());
        for out in self.engine.outgoing() {
            let lost = match out.fate {
                Fate::Lost(reason) => Some(reason),
                Fate::Waiting | Fate::Sent => None,
            };
            if lost.is_none() {
                out.fate = Fate::Sent;
            }
            let list = if out.frame < BATCH { &mut sent } else { &mut besides };
            list.push(Sent::of(&snapshot, out, self.batch.wire(out.frame), lost));
        }
        self.engine.settle(&snapshot, &self.batch);
        let steps = self.engine.steps();
        let outcome = outcome(steps.last().map(|step| step.verdict), &sent);
        let told = std::iter::from_fn(|| self.events.try_recv().ok()).collect();
        Traced { steps, outcome, sent, besides, told }
    }
}

/// The end of a frame, as the engine counts it, by the last verdict and what was sent.
pub(crate) fn outcome(verdict: Option<Verdict>, sent: &[Sent]) -> Outcome {
    let gone = match verdict {
        // No stage saw it: a socket had to cut it.
        None => return Outcome::Dropped(DropReason::Oversized),
        Some(Verdict::Ignore) => return Outcome::Host,
        Some(Verdict::Absorbed) => return Outcome::Waits,
        // What it says is not known here: it may ask others.
        Some(Verdict::Serve(_)) => return Outcome::Answered,
        Some(Verdict::Drop(reason)) => return Outcome::Dropped(reason),
        Some(Verdict::Flood | Verdict::Next) => DropReason::NoEgress,
        Some(Verdict::Forward(_) | Verdict::Reply | Verdict::Uplink(_)) => DropReason::PortDown,
    };
    match sent.iter().map(|sent| sent.lost).reduce(|a, b| a.and(b)) {
        None => Outcome::Dropped(gone),
        Some(Some(reason)) => Outcome::Dropped(reason),
        Some(None) if verdict == Some(Verdict::Reply) => Outcome::Answered,
        Some(None) => Outcome::Forwarded,
    }
}
