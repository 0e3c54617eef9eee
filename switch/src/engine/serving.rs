//! The engine's part in the gateway's services: see [`crate::services`].

use std::sync::atomic::Ordering;

use nat::Time;

use super::Engine;
use crate::batch::Batch;
use crate::frame::{Offload, OwnedFrame};
use crate::router::Extra;
use crate::router::resolve::Ingress;
use crate::services::{Answer, Service};
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// Answers sent together.
const AT_ONCE: usize = 64;

impl Engine {
    /// Hands a frame to a service, or drops it for want of room.
    pub(super) fn serve(
        &mut self,
        snapshot: &Snapshot,
        from: Option<Ingress>,
        (batch, frame): (&Batch, usize),
        service: Service,
    ) {
        let port = match from {
            Some(Ingress::Port(id)) => snapshot.port(id),
            _ => None,
        };
        match port {
            Some(port) if self.shared.desk.ask(service, port, batch.wire(frame)) => {
                self.shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            _ => self.drop(snapshot, frame, from, DropReason::ServiceBusy),
        }
    }

    /// Takes answers off the desk into an empty batch; tells whether there were any. They are to be sent, and
    /// [`Engine::settle`] called.
    pub fn answers(&mut self, now: Time, snapshot: &Snapshot, batch: &mut Batch) -> bool {
        let answers = self.shared.desk.take_answers(AT_ONCE);
        if answers.is_empty() {
            return false;
        }
        // Whoever has the port's number by now is not the one who asked.
        let port = |answer: &Answer| snapshot.port(answer.to.port).filter(|port| answer.to.is(port));
        let frames = answers.iter().filter_map(|answer| {
            let (verdict, network) = port(answer).map(|port| (Verdict::Forward(port.id), port.network))?;
            let frame = OwnedFrame::new(&answer.bytes, Offload::default());
            Some(Extra { frame, from: None, verdict, network })
        });
        self.say(now, snapshot, batch, frames);
        true
    }
}
