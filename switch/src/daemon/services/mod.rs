//! The gateway's own services: a thread that takes frames from the [desk](crate::services) and puts answers on it.
//!
//! A runtime of its own, so that neither the workers nor the control plane wait for a name. It is in the host's namespace, and so are
//! its sockets towards the host's resolvers. It sleeps while nobody asks, but for what routers say by themselves.

mod cache;
mod dhcp;
mod forward;
mod resolv;
mod router;
mod udp;

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::mpsc::Receiver;
use tokio::task::{LocalSet, yield_now};
use tokio::time::{MissedTickBehavior, interval};

pub(super) use self::dhcp::Ask;
use self::dhcp::Dhcp;
use self::forward::Forwarder;
use self::resolv::Followed;
use crate::dataplane::{Dataplane, Outlet};
use crate::names::respond::{self, Outcome};
use crate::services::{Answer, Asked, Asker, Service};

/// Frames taken together, before answers from others get their turn.
const AT_ONCE: usize = 64;
/// How often routers advertise themselves without being asked, the first time at the start: often enough for the lifetime that they
/// say (RFC 4861 6.2.1), and seldom enough to cost nothing.
const ADVERTISE: Duration = Duration::from_secs(300);
/// Where the host says whom to ask: resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Starts the thread; gives what it asks of the control plane. Nothing happens when the services run already.
///
/// # Errors
/// When there is no thread or no runtime to be had.
pub(super) fn start(dataplane: &Dataplane) -> io::Result<Receiver<Ask>> {
    let (dhcp, asks) = Dhcp::new();
    let Some((asked, outlet)) = dataplane.services() else { return Ok(asks) };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("services".into()).spawn(move || {
        LocalSet::new().block_on(&runtime, serve(asked, outlet, dhcp));
    })?;
    Ok(asks)
}

async fn serve(mut asked: Receiver<Asked>, outlet: Outlet, dhcp: Dhcp) {
    let dns = Rc::new(Dns { forwarder: Forwarder::new(Followed::new(PathBuf::from(RESOLV_CONF))), outlet });
    let mut batch = Vec::with_capacity(AT_ONCE);
    let mut turn = 0_usize;
    let mut advertise = interval(ADVERTISE);
    advertise.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let came = tokio::select! {
            came = asked.recv_many(&mut batch, AT_ONCE) => came,
            _ = advertise.tick() => {
                router::advertise(&dns.outlet);
                continue;
            }
        };
        if came == 0 {
            return;
        }
        for frame in batch.drain(..) {
            match frame.service {
                Service::Dhcp => dhcp.ask(frame, &dns.outlet),
                Service::Dhcp6 => router::inform(&frame, &dns.outlet),
                Service::Dns => dns.ask(&frame, turn),
                Service::Router => router::solicited(&frame, &dns.outlet),
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
        if let Some(bytes) = payload.and_then(|payload| ends.answer(&payload)) {
            send(&self.outlet, to, bytes);
        }
    }
}

/// Sends a frame to who asked. One for which there is no room is lost, as any frame to a port may be; the asker asks again.
fn send(outlet: &Outlet, to: &Asker, bytes: Vec<u8>) {
    if !outlet.send(Answer { to: to.clone(), bytes }) {
        to.counters.tx.drop_one();
    }
}
