//! What the engine does for those who watch frames, while somebody does.

use nat::Time;

use super::walking::Walking;
use super::{Counted, Engine, Fate, Outgoing, Pending};
use crate::batch::{Batch, Source};
use crate::observe::Observers;
use crate::router::resolve::Ingress;
use crate::snapshot::Snapshot;
use crate::verdict::DropReason;

/// What is kept for them.
#[derive(Debug, Default)]
pub(super) struct Watching {
    /// When the batch was received.
    pub(super) now: Time,
    /// Frames of the batch as they came, for those who want to see what is dropped.
    pub(super) originals: Vec<Vec<u8>>,
    /// Frames dropped since they were told of.
    pub(super) dropped: Vec<(usize, Option<Ingress>, DropReason)>,
    /// Frames of the batch that live traces want explained.
    pub(super) walks: Vec<Walking>,
}

impl Watching {
    fn keep(&mut self, frame: usize, wire: &[u8]) {
        if self.originals.len() <= frame {
            self.originals.resize_with(frame + 1, Vec::new);
        }
        self.originals[frame].clear();
        self.originals[frame].extend_from_slice(wire);
    }
}

impl Engine {
    /// Shows what came in to those who watch, before anything is done with it.
    pub(super) fn watch(&mut self, now: Time, snapshot: &Snapshot, observers: &Observers, batch: &Batch) {
        self.watching.now = now;
        self.watching.dropped.clear();
        self.watching.walks.clear();
        let drops = observers.wants_drops();
        for frame in 0..batch.len() {
            let (source, wire) = (batch.slot(frame).source, batch.wire(frame));
            if drops || matches!(source, Source::Uplink(_)) {
                self.watching.keep(frame, wire);
            }
            // What comes from outside may be the host's alone: it is shown once that is known.
            if let Some(port) = source.port(snapshot) {
                observers.received(now, snapshot, Ingress::Port(port.id), wire, &mut self.extras);
            }
        }
    }

    /// Has copies of what is to be sent to mirrored ports sent to their mirrors, too.
    pub(super) fn mirror_sent(&mut self, snapshot: &Snapshot, observers: &Observers) {
        for at in 0..self.pending.len() {
            let Pending { frame, from, first, count, .. } = self.pending[at];
            for out in first..first + count {
                let to = self.outgoing[out].to();
                for mirror in observers.mirrors_of_sent(snapshot, from, to) {
                    let Some(port) = snapshot.port(mirror).filter(|port| port.up) else { continue };
                    let first = self.outgoing.len();
                    let (link, fate) = (port.link, Fate::Waiting);
                    self.outgoing.push(Outgoing { frame, port: mirror, link, fate });
                    self.pending.push(Pending { frame, from: None, counted: Counted::Own, first, count: 1 });
                }
            }
        }
    }

    /// Shows what was dropped to those who watch.
    pub(super) fn show_drops(&mut self, observers: &Observers, batch: &Batch) {
        let Watching { now, originals, dropped, .. } = &mut self.watching;
        let wanted = observers.wants_drops();
        for (frame, from, reason) in dropped.drain(..).filter(|_| wanted) {
            let original = originals.get(frame).filter(|_| frame < batch.len());
            observers.dropped(*now, from, reason, original.map_or_else(|| batch.wire(frame), Vec::as_slice));
        }
    }
}
