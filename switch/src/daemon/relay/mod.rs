//! The relay: clients on the host itself, brought to published ports of containers.
//!
//! # Theory of operation
//!
//! A program on the host that dials a published port, at 127.0.0.1, ::1 or any address of the host, never leaves the host: its
//! packets go by `lo`, which swd does not see. The port guards hand them to the relay's sockets ([`RelaySockets`]), and a
//! socket knows what was dialled. The relay asks where that leads, connects there from the host's namespace (through `sw0`,
//! so the container sees the gateway's address as its client), and carries bytes both ways. TCP clients that can be led straight
//! to the container never come here (`daemon/dial`).
//!
//! **TCP** (`tcp.rs`): `splice(2)` through a pipe, so no byte is copied into this process. A pipe is lent to a direction while
//! bytes are in it and is given back when they are gone: idle connections have two descriptors. A full receiver stops the
//! sender: nothing is read while the last bytes are not written. The end of one direction is passed on when its bytes are;
//! the connection is over when both have ended. A reset is passed on at once. A target that refuses, or does not answer
//! within [`CONNECT_TIMEOUT`], is told to the client by a reset. Idle connections stay; keepalive finds dead ones.
//!
//! **UDP** (`udp.rs`): a session for each (client, dialled address), with a socket towards the container. Answers leave from
//! the address and port that the client dialled. A session ends after [`IDLE_TIMEOUT`]; when there are too many, the
//! one that was silent longest makes room.
//!
//! One thread and one epoll descriptor, never the data path. It sleeps when nothing moves.
//!
//! A relay that ends in good order gives away what it carries ([`Relay::retire`]): the sockets, and the pipes with what is in
//! them. Another one, of another process, goes on with it ([`Relay::adopt`]).
//!
//! # Limits
//!
//! [`RelayLimits`]. A connection too many is reset, and counted. Descriptors: at most six for a connection and two for a
//! session.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit};

mod arena;
mod carried;
mod tcp;
mod udp;

use super::portguard::Protocol;
use super::portguard::door::{DOOR_TOKEN, DoorSocket, Doors, RelaySockets};
pub use carried::Carried;

/// How long a container may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After how long without a datagram a UDP session ends.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Token of the descriptor by which other threads wake the relay.
const WAKE_TOKEN: u64 = DOOR_TOKEN - 1;
/// Events taken at a time.
const EVENTS: usize = 256;
/// How often deadlines are looked at while there are any.
const TICK: Duration = Duration::from_secs(1);

/// How much the relay may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayLimits {
    /// TCP connections at a time.
    pub connections: usize,
    /// UDP sessions at a time.
    pub sessions: usize,
}

impl Default for RelayLimits {
    /// 2,000 of each, or fewer where the process may not open 20,000 descriptors: four fifths of those are for the relay.
    fn default() -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft).min(20_000);
        let each = usize::try_from(descriptors / 10).unwrap_or(0).max(16);
        Self { connections: each, sessions: each }
    }
}

/// What the relay has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayCounts {
    /// TCP connections and UDP sessions that are open.
    pub open: u64,
    /// TCP connections accepted.
    pub accepted: u64,
    /// TCP connections reset because there were too many.
    pub overflowed: u64,
    /// TCP connections reset because nothing is published there, or the container refused or did not answer.
    pub refused: u64,
    /// Datagrams dropped: nothing is published there, or they could not be sent.
    pub dropped: u64,
    /// UDP sessions that made room for new ones.
    pub evicted: u64,
}

#[derive(Debug, Default)]
struct Counters {
    open: AtomicU64,
    accepted: AtomicU64,
    overflowed: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    evicted: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A descriptor.
    #[error("cannot set up the relay for clients on the host: {0}")]
    Setup(#[from] io::Error),
}

/// What ends connections.
#[derive(Clone, Debug)]
enum Ending {
    Ports(Protocol, RangeInclusive<u16>),
    Target(IpAddr),
    All,
}

impl Ending {
    fn matches(&self, protocol: Protocol, dialled: SocketAddr, target: SocketAddr) -> bool {
        match self {
            Self::Ports(p, ports) => *p == protocol && ports.contains(&dialled.port()),
            Self::Target(address) => target.ip() == *address,
            Self::All => true,
        }
    }
}

/// What other threads want of the relay.
#[derive(Debug)]
enum Order {
    End(Ending),
    /// Give everything away, and end.
    Retire(Sender<Vec<Carried>>),
    /// Carry what another relay has given away.
    Adopt(Vec<Carried>),
}

/// The running relay; dropping it ends all that it carries.
#[derive(Debug)]
pub struct Relay {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts serving.
    ///
    /// `targets` says where a dialled address leads: (protocol, dialled, client) in, the container's address out; `None`
    /// refuses. It is asked once for each connection or session, on the relay's thread, and must not block.
    ///
    /// # Errors
    /// When its thread or a descriptor cannot be had.
    pub fn start(
        sockets: RelaySockets,
        targets: Arc<dyn Fn(Protocol, SocketAddr, SocketAddr) -> Option<SocketAddr> + Send + Sync>,
        limits: RelayLimits,
    ) -> Result<Self, RelayError> {
        let wake = Arc::new(
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(io::Error::from)?,
        );
        let (orders, inbox) = channel();
        let counters = Arc::new(Counters::default());
        let RelaySockets { doors, host } = sockets;
        doors.epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE_TOKEN)).map_err(io::Error::from)?;
        let mut server = Server {
            tcp: tcp::Connections::new(limits.connections, Arc::clone(&counters))?,
            udp: udp::Sessions::new(limits.sessions, Arc::clone(&counters)),
            doors,
            targets,
            inbox,
            wake: Arc::clone(&wake),
            counters: Arc::clone(&counters),
        };
        let (ready, entered) = channel();
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || {
            let inside = host.enter_for_good();
            let go = inside.is_ok();
            let _ = ready.send(inside);
            if go {
                server.run();
            }
        })?;
        entered.recv().map_err(|_| io::Error::other("its thread ended"))??;
        Ok(Self { orders, wake, counters, thread: Some(thread) })
    }

    /// Ends connections and sessions whose clients dialled one of these ports. They are gone soon after, not yet on return.
    pub fn end(&self, protocol: Protocol, ports: RangeInclusive<u16>) {
        self.order(Order::End(Ending::Ports(protocol, ports)));
    }

    /// Ends connections and sessions with a container.
    pub fn end_target(&self, address: IpAddr) {
        self.order(Order::End(Ending::Target(address)));
    }

    /// Gives away all that it carries, with every byte that is under way, and carries nothing from here on.
    pub fn retire(&self) -> Vec<Carried> {
        let (carried, all) = channel();
        self.order(Order::Retire(carried));
        // An error: it has ended before, with all that it carried.
        all.recv().unwrap_or_default()
    }

    /// Carries what another relay has given away, as far as it leads where that led.
    pub fn adopt(&self, carried: Vec<Carried>) {
        self.order(Order::Adopt(carried));
    }

    /// What it has done so far.
    pub fn counts(&self) -> RelayCounts {
        let load = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let c = &self.counters;
        RelayCounts {
            open: load(&c.open),
            accepted: load(&c.accepted),
            overflowed: load(&c.overflowed),
            refused: load(&c.refused),
            dropped: load(&c.dropped),
            evicted: load(&c.evicted),
        }
    }

    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
        let _ = self.wake.write(1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.order(Order::End(Ending::All));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Server {
    doors: Arc<Doors>,
    targets: Arc<dyn Fn(Protocol, SocketAddr, SocketAddr) -> Option<SocketAddr> + Send + Sync>,
    inbox: Receiver<Order>,
    wake: Arc<EventFd>,
    counters: Arc<Counters>,
    tcp: tcp::Connections,
    udp: udp::Sessions,
}

impl Server {
    fn run(&mut self) {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        loop {
            let n = match self.doors.epoll.wait(&mut events, self.patience()) {
                Ok(n) => n,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(e) => {
                    tracing::error!("the relay for clients on the host ends: {e}");
                    return;
                }
            };
            let now = Instant::now();
            for event in &events[..n] {
                let token = event.data();
                if token == WAKE_TOKEN {
                    let _ = self.wake.read();
                } else if token & DOOR_TOKEN != 0 {
                    self.serve(token, now);
                } else if token & udp::TOKEN != 0 {
                    self.udp.answer(token, now, &self.doors);
                } else {
                    self.tcp.ready(token, event.events());
                }
            }
            self.tcp.go_on();
            self.tcp.expire(now);
            self.udp.expire(now);
            loop {
                match self.inbox.try_recv() {
                    Ok(Order::End(Ending::All)) => return,
                    Ok(Order::Retire(to)) => {
                        let mut carried = self.tcp.give_away();
                        carried.extend(self.udp.give_away());
                        let _ = to.send(carried);
                        return;
                    }
                    Ok(Order::Adopt(carried)) => self.adopt(carried, now),
                    Ok(Order::End(ending)) => {
                        self.tcp.end(|dialled, target| ending.matches(Protocol::Tcp, dialled, target));
                        self.udp.end(|dialled, target| ending.matches(Protocol::Udp, dialled, target));
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
        }
    }

    fn adopt(&mut self, carried: Vec<Carried>, now: Instant) {
        for Carried { what, fds } in carried {
            let protocol = if what.client.is_some() { Protocol::Udp } else { Protocol::Tcp };
            let adopted = match what.client {
                Some(client) => {
                    let leads = (self.targets)(protocol, what.dialled, client) == Some(what.target);
                    leads && self.udp.adopt(&what, client, fds, now, &self.doors)
                }
                None => self.tcp.adopt(&what, fds, &*self.targets, now, &self.doors.epoll),
            };
            if !adopted {
                add(&self.counters.refused);
            }
        }
    }

    fn patience(&self) -> EpollTimeout {
        if self.tcp.has_more() {
            EpollTimeout::ZERO
        } else if self.tcp.has_deadline() || self.udp.has_deadline() {
            EpollTimeout::try_from(TICK).unwrap_or(EpollTimeout::NONE)
        } else {
            EpollTimeout::NONE
        }
    }

    fn serve(&mut self, token: u64, now: Instant) {
        let Some(door) = self.doors.by_token(token) else { return };
        let targets = &self.targets;
        match &door.socket {
            DoorSocket::Tcp(listener) => {
                let target = |dialled, client| targets(Protocol::Tcp, dialled, client);
                self.tcp.accept(listener, &target, now, &self.doors.epoll);
            }
            DoorSocket::Udp(socket) => {
                let target = |dialled, client| targets(Protocol::Udp, dialled, client);
                self.udp.receive(socket, &target, now, &self.doors);
            }
        }
    }
}
