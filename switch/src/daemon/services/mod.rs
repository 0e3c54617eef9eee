//! The gateway's own services: a thread that takes frames from the [desk](crate::services) and puts answers on it.
//!
//! A runtime of its own, so that neither the workers nor the control plane wait for a name. It is in the host's namespace, and so are
//! its sockets towards the host's resolvers. It sleeps while nobody asks, but for what routers say by themselves.

mod cache;
mod dhcp;
mod dns;
mod ends;
mod forward;
mod host;
mod resolv;
mod router;
mod tcp;

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::sync::mpsc::Receiver;
use tokio::task::{LocalSet, yield_now};
use tokio::time::{MissedTickBehavior, interval, sleep};

pub(super) use self::dhcp::Ask;
use self::dhcp::Dhcp;
use self::dns::Dns;
use self::ends::{Carried, Ends};
pub(super) use self::host::Sockets;
use self::resolv::Followed;
use self::tcp::{Connections, Question};
use crate::dataplane::{Dataplane, Outlet};
use crate::names::respond;
use crate::services::{Answer, Asked, Service};
use crate::worker::now;

/// Frames taken together, before answers from others get their turn.
const AT_ONCE: usize = 64;
/// How often routers advertise themselves without being asked, the first time at the start: often enough for the lifetime that they
/// say (RFC 4861 6.2.1), and seldom enough to cost nothing.
const ADVERTISE: Duration = Duration::from_secs(300);
/// Where the host says whom to ask: resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Starts the thread, which answers the host's own questions at `host`, too; gives what it asks of the control plane. Nothing happens
/// when the services run already.
///
/// # Errors
/// When there is no thread or no runtime to be had.
pub(super) fn start(dataplane: &Dataplane, host: Option<Sockets>) -> io::Result<Receiver<Ask>> {
    let (dhcp, asks) = Dhcp::new();
    let Some((asked, outlet)) = dataplane.services() else { return Ok(asks) };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("services".into()).spawn(move || {
        LocalSet::new().block_on(&runtime, serve(asked, outlet, host, dhcp));
    })?;
    Ok(asks)
}

async fn serve(mut asked: Receiver<Asked>, outlet: Outlet, host: Option<Sockets>, dhcp: Dhcp) {
    let dns = Rc::new(Dns::new(Followed::new(PathBuf::from(RESOLV_CONF)), outlet));
    if let Some(Err(e)) = host.map(|sockets| sockets.serve(&dns)) {
        tracing::error!("cannot answer the host's questions for names: {e}");
    }
    let gateways = Rc::new(Gateways { dns, connections: RefCell::default(), answered: Notify::new() });
    let outlet = &gateways.dns.outlet;
    let mut batch = Vec::with_capacity(AT_ONCE);
    let mut advertise = interval(ADVERTISE);
    advertise.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = gateways.connections.borrow().due();
        let waited = async {
            match due {
                Some(due) => sleep(due.since(now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            taken = asked.recv_many(&mut batch, AT_ONCE) => {
                if taken == 0 {
                    return;
                }
            }
            _ = advertise.tick() => router::advertise(outlet),
            () = waited => {}
            () = gateways.answered.notified() => {}
        }
        for frame in batch.drain(..) {
            match frame.service {
                Service::Dhcp => dhcp.ask(frame, outlet),
                Service::Dhcp6 => router::inform(&frame, outlet),
                Service::Dns => gateways.datagram(&frame),
                Service::DnsTcp => gateways.segment(&frame),
                Service::Router => router::solicited(&frame, outlet),
            }
        }
        gateways.work();
        yield_now().await;
    }
}

/// The gateways of all networks, as far as they answer for names.
#[derive(Debug)]
struct Gateways {
    dns: Rc<Dns>,
    connections: RefCell<Connections>,
    /// A connection has an answer to send.
    answered: Notify,
}

impl Gateways {
    /// A question by UDP.
    fn datagram(&self, asked: &Asked) {
        let snapshot = self.dns.outlet.snapshot();
        let Some(network) = snapshot.network(asked.network) else { return };
        let Some((ends, Carried::Datagram(question))) = ends::read(&asked.bytes) else { return };
        let most = respond::limit(question).min(ends.room(network.mtu));
        let (dns, to) = (Rc::clone(&self.dns), asked.from.clone());
        self.dns.ask((asked.network, asked.from.port), question, move |message| {
            if let Some(bytes) = message.and_then(|m| datagram(&ends, m, most)) {
                send(&dns.outlet, Answer { to, bytes });
            }
        });
    }

    /// A segment of TCP.
    fn segment(&self, asked: &Asked) {
        let snapshot = self.dns.outlet.snapshot();
        let Some(network) = snapshot.network(asked.network) else { return };
        let Some((ends, Carried::Segment { opens })) = ends::read(&asked.bytes) else { return };
        self.connections.borrow_mut().receive(asked, ends, opens, network.mtu, now());
    }

    /// Has the connections do what they have to, until there is nothing more.
    fn work(self: &Rc<Self>) {
        loop {
            let questions = self.connections.borrow_mut().work(now());
            if questions.is_empty() {
                break;
            }
            for Question { network, port, bytes, way } in questions {
                let gateways = Rc::clone(self);
                self.dns.ask((network, port), &bytes, move |message| {
                    let bytes = message.map(|m| respond::emit(m, u16::MAX.into()));
                    gateways.connections.borrow_mut().answer(way, bytes);
                    gateways.answered.notify_one();
                });
            }
        }
        let mut connections = self.connections.borrow_mut();
        for answer in connections.said() {
            send(&self.dns.outlet, answer);
        }
        self.dns.outlet.counts().connections(connections.numbers());
    }
}

/// A frame with an answer by UDP, cut where it must be.
fn datagram(ends: &Ends, message: &Message, most: usize) -> Option<Vec<u8>> {
    ends.datagram(&respond::emit(message, most)?)
}

/// Has a frame sent. One for which there is no room is lost, as any frame to a port may be; the asker asks again.
fn send(outlet: &Outlet, answer: Answer) {
    let counters = std::sync::Arc::clone(&answer.to.counters);
    if !outlet.send(answer) {
        counters.tx.drop_one();
    }
}
