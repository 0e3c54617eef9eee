//! Reasons, in words: what the router writes down about a packet that is traced.
//!
//! Off, as it always is in a worker, it costs a branch where a reason could be told.

use nat::{Nat, Verdict};

/// What was written down.
#[derive(Debug, Default)]
pub(super) struct Notes(Option<Vec<String>>);

impl Notes {
    pub(super) fn begin(&mut self) {
        self.0 = Some(Vec::new());
    }

    pub(super) fn end(&mut self) {
        self.0 = None;
    }

    /// Adds a reason, if somebody wants to know.
    pub(super) fn add(&mut self, reason: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.0 {
            notes.push(reason());
        }
    }

    /// What `nat` found, before anything is committed.
    pub(super) fn of_nat(&mut self, nat: &Nat, verdict: &Verdict) {
        self.add(|| match verdict {
            Verdict::Drop(reason) => reason.sentence().to_owned(),
            Verdict::Refuse(refusal) => refusal.sentence().to_owned(),
            Verdict::Held => "a fragment whose first one has not come yet".to_owned(),
            Verdict::NotOurs => "neither a published port nor of a connection: it is the host's".to_owned(),
            Verdict::Forward(forward) => match nat.connection(forward.connection) {
                Some(connection) => {
                    let direction = match forward.direction {
                        nat::Direction::Original => "the way of its opener",
                        nat::Direction::Reply => "an answer",
                    };
                    let state = connection.state();
                    format!("belongs to a connection that is {state}, {direction}")
                }
                None => "belongs to a connection".to_owned(),
            },
            Verdict::New(pending) => {
                let (tuple, to) = (pending.tuple(), pending.destination());
                let by = if pending.rule().is_some() { ", by a published port" } else { "" };
                format!(
                    "begins a connection: {} {} > {}, to {to}{by}",
                    tuple.protocol, tuple.source, tuple.destination
                )
            }
        });
    }

    pub(super) fn take(&mut self) -> Vec<String> {
        self.0.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
