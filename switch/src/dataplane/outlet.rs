//! The way of what the gateway's services answer.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use nix::sys::eventfd::EventFd;

use crate::engine::Shared;
use crate::router::neighbor::Neighbors;
use crate::services::{Answer, Counts};
use crate::snapshot::Snapshot;
use crate::worker::Message;

/// Where answers of the gateway's services go: to the first worker, which sends them.
#[derive(Clone, Debug)]
pub struct Outlet {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Sender<Message>,
    pub(super) wake: Arc<EventFd>,
}

impl Outlet {
    /// The world as the workers see it.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Who was seen with which address.
    pub fn neighbors(&self) -> &Neighbors {
        &self.shared.neighbors
    }

    /// What the services count.
    pub fn counts(&self) -> &Counts {
        &self.shared.desk.counts
    }

    /// Has an answer sent, or, if too many wait, dropped; tells which.
    pub fn send(&self, answer: Answer) -> bool {
        match self.shared.desk.answer(answer) {
            Ok(true) => {
                // A worker that has ended sends nothing any more.
                if self.inbox.send(Message::Answers).is_ok() {
                    let _ = self.wake.write(1);
                }
                true
            }
            Ok(false) => true,
            Err(_) => false,
        }
    }
}
