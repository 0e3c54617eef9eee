//! DHCP: messages from the desk, answers to it, and in between, where a port has no address yet, the control plane.

use tokio::sync::{mpsc, oneshot};

use super::ends::{self, Carried};
use super::send;
use crate::addressing::dhcp::{Message, Outcome, Wish};
use crate::addressing::{self, Holder};
use crate::dataplane::Outlet;
use crate::services::{Answer, Asked, Asker};

/// Wishes that may wait for the control plane. Who finds no room asks again.
const WAITING: usize = 256;

/// A wish on its way to the control plane.
#[derive(Debug)]
pub(in crate::daemon) struct Ask {
    /// The port that it comes from.
    pub(in crate::daemon) from: Asker,
    /// What is wanted.
    pub(in crate::daemon) wish: Wish,
    /// Told when it was looked at, and the workers know what came of it.
    pub(in crate::daemon) done: oneshot::Sender<()>,
}

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Dhcp {
    asks: mpsc::Sender<Ask>,
}

impl Dhcp {
    /// The service, and what it asks.
    pub(super) fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(WAITING);
        (Self { asks }, asked)
    }

    /// Answers a message, at once or once the control plane has had its say.
    pub(super) fn ask(&self, asked: Asked, outlet: &Outlet) {
        let Some((ends, Carried::Datagram(payload))) = ends::read(&asked.bytes) else { return };
        let Some(message) = Message::parse(payload, ends.client_mac()) else { return };
        let Some(wish) = respond(&asked, &message, outlet) else { return };
        let (done, looked_at) = oneshot::channel();
        if self.asks.try_send(Ask { from: asked.from.clone(), wish, done }).is_err() {
            return;
        }
        let outlet = outlet.clone();
        tokio::task::spawn_local(async move {
            // An error says that the control plane has ended.
            if looked_at.await.is_ok() && respond(&asked, &message, &outlet).is_some() {
                say(&asked, &message, &outlet, |_, _| message.refusal());
            }
        });
    }
}

/// Says what there is to be said by what is known; else gives what has to be done first.
fn respond(asked: &Asked, message: &Message, outlet: &Outlet) -> Option<Wish> {
    let mut wish = None;
    say(asked, message, outlet, |dhcp, holder| match message.respond(dhcp, holder) {
        Outcome::Answer(answer) => Some(answer),
        Outcome::Ask(wanted) => {
            wish = Some(wanted);
            None
        }
        Outcome::Ignore => None,
    });
    wish
}

/// Sends what `choose` chooses, if it does and the port that asked is still there.
fn say(
    asked: &Asked,
    message: &Message,
    outlet: &Outlet,
    choose: impl FnOnce(&addressing::Dhcp, Option<&Holder>) -> Option<addressing::dhcp::Answer>,
) {
    let snapshot = outlet.snapshot();
    if !snapshot.port(asked.from.port).is_some_and(|port| asked.from.is(port)) {
        return;
    }
    let Some(terms) = snapshot.addressing.terms.get(&asked.network) else { return };
    let Some(dhcp) = &terms.dhcp else { return };
    let answer = choose(dhcp, snapshot.addressing.holders.get(&asked.from.port));
    if let Some(bytes) = answer.and_then(|answer| message.frame(&answer, terms, dhcp)) {
        send(outlet, Answer { to: asked.from.clone(), bytes });
    }
}
