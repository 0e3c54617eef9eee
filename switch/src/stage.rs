//! Stages: what decides about a frame. This is the one place where users plug in.
//!
//! ```text
//! rx -> Guard -> Learn -> [your stages] -> Router -> (policy) -> Bridge -> tx
//! ```
//!
//! A stage gets a frame and a [`Cx`] and returns a [`Verdict`]. It does not send, wait, log, allocate per frame or read a
//! clock: the worker does what the verdict says, and `now` is in the context. The first verdict that is not
//! [`Verdict::Next`] ends the walk; the last stage, the bridge, always has one.
//!
//! `switch/examples/custom_stage.rs` is a whole switch with a stage of its own.

use std::fmt;

use nat::Time;

use crate::bridge::Bridge;
use crate::dataplane::DataEvent;
use crate::fdb::Fdb;
use crate::frame::Frame;
use crate::guard::Guard;
use crate::learn::Learn;
use crate::router::neighbor::Neighbors;
use crate::router::{Lock, Router};
use crate::snapshot::{Network, Port, Snapshot};
use crate::trace::Trail;
use crate::verdict::Verdict;

/// Decides about frames, one at a time.
pub trait Stage: Send {
    /// Its name in traces.
    fn name(&self) -> &'static str;

    /// Looks at a frame, may edit it in place, and decides.
    fn process(&mut self, frame: &mut Frame<'_>, cx: &mut Cx<'_>) -> Verdict;

    /// What it is about to decide by, in words, for `swctl trace`: asked before [`Stage::process`], of traced frames only.
    fn explain(&self, _frame: &Frame<'_>, _cx: &Cx<'_>) -> Option<String> {
        None
    }
}

/// What a stage may look at and tell.
pub struct Cx<'a> {
    /// The moment at which the frame's batch was received.
    pub now: Time,
    /// The world.
    pub snapshot: &'a Snapshot,
    /// The port that the frame came from.
    pub port: &'a Port,
    /// Its network.
    pub network: &'a Network,
    /// The MAC table.
    pub fdb: &'a Fdb,
    /// Addresses and who was seen to use them.
    pub neighbors: &'a Neighbors,
    /// Frames that wait for a container to say its MAC.
    pub waiting: usize,
    /// Takes what the control plane should hear of. Must not block.
    pub tell: &'a mut dyn FnMut(DataEvent),
}

impl fmt::Debug for Cx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").field("now", &self.now).field("port", &self.port.name).finish_non_exhaustive()
    }
}

/// The stages in their order.
pub struct Pipeline {
    guard: Guard,
    learn: Learn,
    yours: Vec<Box<dyn Stage>>,
    /// Layer 3; also what comes from outside, past the other stages.
    pub(crate) router: Router,
    bridge: Bridge,
    bridged: bool,
}

impl Pipeline {
    /// The switch with these stages of the user's between Learn and Router.
    pub fn new(yours: Vec<Box<dyn Stage>>) -> Self {
        Self { guard: Guard, learn: Learn, yours, router: Router::default(), bridge: Bridge, bridged: false }
    }

    /// There are no stages but the switch's own.
    pub(crate) fn is_plain(&self) -> bool {
        self.yours.is_empty()
    }

    /// Whether it was the bridge that decided about the last frame.
    pub(crate) const fn ended_at_bridge(&self) -> bool {
        self.bridged
    }

    /// The stages of the user's, back.
    pub(crate) fn into_stages(self) -> Vec<Box<dyn Stage>> {
        self.yours
    }

    /// Walks a frame through the stages as [`Pipeline::run`] does, and writes down what each decides and why. Kept beside
    /// it so that the two are changed together; `tests/tests/trace.rs` holds them to the same verdicts.
    pub fn run_traced(
        &mut self,
        frame: &mut Frame<'_>,
        cx: &mut Cx<'_>,
        lock: &mut Lock<'_>,
        trail: &mut Trail,
    ) -> Verdict {
        let Self { guard, learn, yours, router, bridge, .. } = self;
        let above: [&mut dyn Stage; 2] = [guard, learn];
        let yours = yours.iter_mut().map(|stage| &mut **stage as &mut dyn Stage);
        for stage in above.into_iter().chain(yours) {
            match trail.stage(stage, frame, cx) {
                Verdict::Next => {}
                verdict => return verdict,
            }
        }
        let decided = |router: &mut Router, frame: &mut Frame<'_>| router.process(frame, cx, lock);
        let mut verdict = trail.router(Router::NAME, router, frame, decided);
        if verdict == Verdict::Next && cx.snapshot.is_governed(cx.network) {
            let admitted = |router: &mut Router, frame: &mut Frame<'_>| router.admit(frame, cx, lock);
            verdict = trail.router(Router::POLICY, router, frame, admitted);
        }
        match verdict {
            Verdict::Next => trail.stage(bridge, frame, cx),
            verdict => verdict,
        }
    }

    /// Walks a frame through the stages. The result is never [`Verdict::Next`].
    pub fn run(&mut self, frame: &mut Frame<'_>, cx: &mut Cx<'_>, lock: &mut Lock<'_>) -> Verdict {
        let mut verdict = self.guard.process(frame, cx);
        if verdict == Verdict::Next {
            verdict = self.learn.process(frame, cx);
        }
        for stage in &mut self.yours {
            if verdict == Verdict::Next {
                verdict = stage.process(frame, cx);
            }
        }
        if verdict == Verdict::Next {
            verdict = self.router.process(frame, cx, lock);
        }
        if verdict == Verdict::Next && cx.snapshot.is_governed(cx.network) {
            verdict = self.router.admit(frame, cx, lock);
        }
        self.bridged = verdict == Verdict::Next;
        if self.bridged { self.bridge.process(frame, cx) } else { verdict }
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.yours.iter().map(|s| s.name()).collect();
        f.debug_struct("Pipeline").field("yours", &names).finish_non_exhaustive()
    }
}
