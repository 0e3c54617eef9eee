//! What a gateway says to a question, whatever way it came: from what is known, or from others.

use std::cell::Cell;
use std::rc::Rc;

use hickory_proto::op::{Message, ResponseCode};

use super::forward::{self, Forwarder};
use super::resolv::Followed;
use crate::dataplane::Outlet;
use crate::names::View;
use crate::names::made::Made;
use crate::names::respond::{self, Outcome};
use crate::services::Count;
use crate::snapshot::{NetworkId, PortId, Snapshot};

/// Names.
#[derive(Debug)]
pub(super) struct Dns {
    forwarder: Forwarder,
    pub(super) outlet: Outlet,
    /// Which of several addresses comes first.
    turn: Cell<usize>,
}

impl Dns {
    pub(super) fn new(resolvers: Followed, outlet: Outlet) -> Self {
        Self { forwarder: Forwarder::new(resolvers), outlet, turn: Cell::default() }
    }

    fn respond(&self, snapshot: &Snapshot, view: View, question: &[u8]) -> Outcome {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let known = Made { snapshot, neighbors: self.outlet.neighbors() };
        respond::respond(known, view, question, turn)
    }

    /// Answers a question of a container, now or when others have answered it. `say` is given the answer; none where there is to be none.
    pub(super) fn ask(
        self: &Rc<Self>,
        (network, port): (NetworkId, PortId),
        question: &[u8],
        say: impl FnOnce(Option<&Message>) + 'static,
    ) {
        let snapshot = self.outlet.snapshot();
        let counts = self.outlet.counts();
        match self.respond(&snapshot, View::Network(network), question) {
            Outcome::Ignore => say(None),
            Outcome::Answer(message) => {
                counts.add(Count::of(&message));
                say(Some(&message));
            }
            // What leaves by a resolver leaves: an internal network has no way out, by names neither.
            Outcome::Forward(request) if snapshot.internal.contains(&network) => {
                counts.add(Count::Refused);
                say(Some(&respond::reply(&request, ResponseCode::Refused)));
            }
            Outcome::Forward(request) => {
                if let Some(known) = self.forwarder.cached(&request) {
                    counts.add(Count::Cached);
                    return say(Some(&known));
                }
                let Some(place) = self.forwarder.place(port) else {
                    counts.add(Count::Failed);
                    return say(Some(&forward::fail(&request)));
                };
                let dns = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    let message = dns.forwarder.resolve(&request).await;
                    dns.forwarder.leave(place);
                    let failed = message.metadata.response_code == ResponseCode::ServFail;
                    dns.outlet.counts().add(if failed { Count::Failed } else { Count::Forwarded });
                    say(Some(&message));
                });
            }
        }
    }

    /// The answer to a question of the host's own: only what is known, for what others know it asks them itself.
    pub(super) fn ask_for_host(&self, question: &[u8]) -> Option<Message> {
        let message = match self.respond(&self.outlet.snapshot(), View::Host, question) {
            Outcome::Ignore => return None,
            Outcome::Answer(message) => message,
            Outcome::Forward(request) => respond::reply(&request, ResponseCode::Refused),
        };
        self.outlet.counts().add(Count::of(&message));
        Some(message)
    }
}
