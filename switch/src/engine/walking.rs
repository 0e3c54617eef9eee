//! What the engine does for live traces: frames that are wanted are explained as they go through the stages.

use super::{Counted, Engine, Fate};
use crate::batch::Batch;
use crate::frame::OFFLOAD_HEADER;
use crate::observe::Observers;
use crate::observe::live::Walk;
use crate::router::resolve::Ingress;
use crate::snapshot::Snapshot;
use crate::trace::{self, Sent, Step, Traced, Trail};
use crate::verdict::{DropReason, Verdict};

/// A frame of the batch that is being explained.
#[derive(Debug)]
pub(super) struct Walking {
    frame: usize,
    from: Ingress,
    /// As it came, its offload header first.
    came: Vec<u8>,
    steps: Vec<Step>,
}

impl Engine {
    /// Has the stages write down why, if somebody wants to know. Then [`Engine::end_walk`] or [`Engine::drop_walk`] is to be called.
    ///
    /// What a limit has held back is explained as it comes, not as it goes on.
    pub(super) fn begin_walk(&mut self, observers: Option<&Observers>, from: Ingress, wire: &[u8]) -> bool {
        let wanted = observers.is_some_and(|observers| observers.want_walk(from, wire));
        if wanted {
            self.pipeline.router.explain();
            self.trail = Some(Trail::default());
            // Its number is not needed before it has ended.
            let walking = Walking { frame: usize::MAX, from, came: wire.to_vec(), steps: Vec::new() };
            self.watching.walks.push(walking);
        }
        wanted
    }

    /// The stages have decided about the frame.
    pub(super) fn end_walk(&mut self, frame: usize) {
        let steps = self.steps();
        if let Some(walking) = self.watching.walks.last_mut() {
            (walking.frame, walking.steps) = (frame, steps);
        }
        self.pipeline.router.stop_explaining();
        self.trail = None;
    }

    /// The frame is not ours to show.
    pub(super) fn drop_walk(&mut self) {
        self.end_walk(usize::MAX);
        self.watching.walks.pop();
    }

    /// Shows what was decided, and what became of it.
    pub(super) fn show_walks(&mut self, snapshot: &Snapshot, observers: &Observers, batch: &Batch) {
        let now = self.watching.now;
        for Walking { frame, from, came, steps } in self.watching.walks.drain(..) {
            let of_frame = self.pending.iter().filter(|p| p.frame == frame && p.counted != Counted::Own);
            let outgoing = of_frame.flat_map(|p| &self.outgoing[p.first..p.first + p.count]);
            let sent: Vec<_> = outgoing
                .map(|out| {
                    let lost = match out.fate {
                        Fate::Sent => None,
                        Fate::Lost(reason) => Some(reason),
                        Fate::Waiting => Some(DropReason::TxFailed),
                    };
                    Sent::of(snapshot, out, batch.wire(frame), lost)
                })
                .collect();
            let verdict: Option<Verdict> = steps.last().map(|step| step.verdict);
            let outcome = trace::outcome(verdict, &sent);
            let (besides, told) = (Vec::new(), Vec::new());
            let walk = Walk {
                at: now,
                bytes: came[OFFLOAD_HEADER..].to_vec(),
                traced: Traced { steps, outcome, sent, besides, told },
            };
            for trace in &observers.traces {
                trace.offer(from, &came, || walk.clone());
            }
        }
    }
}
