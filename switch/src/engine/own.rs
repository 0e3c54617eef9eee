//! Frames of the switch's own that nobody's frame is the cause of.

use nat::Time;

use super::Engine;
use crate::batch::Batch;
use crate::router::Extra;
use crate::snapshot::Snapshot;

impl Engine {
    /// Sends these. As [`Engine::run`], with an empty batch.
    pub fn say(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        batch: &mut Batch,
        frames: impl IntoIterator<Item = Extra>,
    ) {
        self.pending.clear();
        self.outgoing.clear();
        self.watching.now = now;
        self.extras.extend(frames);
        self.add_extras(now, snapshot, batch);
        if let Some(observers) = &snapshot.observers {
            self.mirror_sent(snapshot, observers);
        }
    }
}
