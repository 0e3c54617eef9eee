//! The gateway's own services: a thread that takes frames from the [desk](crate::services) and puts answers on it.
//!
//! A runtime of its own, so that neither the workers nor the control plane wait for a name. It is in the host's namespace, and so are
//! its sockets towards the host's resolvers. It sleeps while nobody asks.

mod cache;
mod forward;
mod resolv;
mod udp;

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;

use tokio::runtime::Builder;
use tokio::sync::mpsc::Receiver;
use tokio::task::{LocalSet, yield_now};

use self::forward::Forwarder;
use self::resolv::Followed;
use crate::dataplane::{Dataplane, Outlet};
use crate::names::respond::{self, Outcome};
use crate::services::{Answer, Asked, Asker, Service};

/// Frames taken together, before answers from others get their turn.
const AT_ONCE: usize = 64;
/// Where the host says whom to ask: resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Starts the thread. Nothing happens when the services run already.
///
/// # Errors
/// When there is no thread or no runtime to be had.
pub(super) fn start(dataplane: &Dataplane) -> io::Result<()> {
    let Some((asked, outlet)) = dataplane.services() else { return Ok(()) };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("services".into()).spawn(move || {
        LocalSet::new().block_on(&runtime, serve(asked, outlet));
    })?;
    Ok(())
}

async fn serve(mut asked: Receiver<Asked>, outlet: Outlet) {
    let dns = Rc::new(Dns { forwarder: Forwarder::new(Followed::new(PathBuf::from(RESOLV_CONF))), outlet });
    let mut batch = Vec::with_capacity(AT_ONCE);
    let mut turn = 0_usize;
    while asked.recv_many(&mut batch, AT_ONCE).await > 0 {
        for frame in batch.drain(..) {
            match frame.service {
                Service::Dns => dns.ask(&frame, turn),
            }
            turn = turn.wrapping_add(1);
        }
        yield_now().await;
    }
}

/// Names.
#[derive(Debug)]
struct Dns {
    forwarder: Forwarder,
    outlet: Outlet,
}

impl Dns {
    /// Answers a question, or has others asked.
    fn ask(self: &Rc<Self>, asked: &Asked, turn: usize) {
        let snapshot = self.outlet.snapshot();
        let Some(network) = snapshot.network(asked.network) else { return };
        let Some((ends, question)) = udp::read(&asked.bytes) else { return };
        let most = respond::limit(question).min(ends.room(network.mtu));
        match respond::respond(&snapshot.names, asked.network, question, turn) {
            Outcome::Ignore => {}
            Outcome::Answer(message) => self.answer(&asked.from, &ends, respond::emit(&message, most)),
            // What leaves by a resolver leaves: an internal network has no way out, by names neither.
            Outcome::Forward(request) if snapshot.internal.contains(&asked.network) => {
                let refused = forward::refuse(&request);
                self.answer(&asked.from, &ends, respond::emit(&refused, most));
            }
            Outcome::Forward(request) => {
                if let Some(known) = self.forwarder.cached(&request) {
                    return self.answer(&asked.from, &ends, respond::emit(&known, most));
                }
                let Some(place) = self.forwarder.place(asked.from.port) else {
                    let busy = forward::fail(&request);
                    return self.answer(&asked.from, &ends, respond::emit(&busy, most));
                };
                let (dns, from) = (Rc::clone(self), asked.from.clone());
                tokio::task::spawn_local(async move {
                    let message = dns.forwarder.resolve(&request).await;
                    dns.forwarder.leave(place);
                    dns.answer(&from, &ends, respond::emit(&message, most));
                });
            }
        }
    }

    fn answer(&self, to: &Asker, ends: &udp::Ends, payload: Option<Vec<u8>>) {
        let Some(bytes) = payload.and_then(|payload| ends.answer(&payload)) else { return };
        // One for which there is no room is lost, as any frame to a port may be; the asker asks again.
        if !self.outlet.send(Answer { to: to.clone(), bytes }) {
            to.counters.tx.drop_one();
        }
    }
}
