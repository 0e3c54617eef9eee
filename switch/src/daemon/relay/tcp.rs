//! Connections: accepted, connected, spliced, ended.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::unistd::pipe2;

use super::arena::{Arena, Id};
use super::carried::{Carried, What};
use super::{CONNECT_TIMEOUT, Counters, Protocol, add};

/// Connections accepted before anything else gets its turn.
const ACCEPTS: usize = 64;
/// Rounds of filling and emptying a pipe before anything else gets its turn.
const ROUNDS: usize = 16;
/// What a pipe is asked to hold; a system that allows less gives less.
const PIPE_SIZE: i32 = 512 << 10;
/// Empty pipes kept for the next who needs one.
const SPARE_PIPES: usize = 32;
/// Most bytes asked for at a time.
const CHUNK: usize = 1 << 20;
/// Seconds of silence after which the kernel asks whether the other side is still there, and how often it asks.
const KEEPALIVE: (u32, u32, u32) = (300, 30, 5);

/// Which end of a connection an event is of: the lowest bit of its token.
const CLIENT: u64 = 0;
const SERVER: u64 = 1;

/// All TCP connections.
#[derive(Debug)]
pub(super) struct Connections {
    all: Arena<Connection>,
    limit: usize,
    /// Those that still wait for their container, by deadline, which is the order in which they came.
    connecting: VecDeque<(Instant, Id)>,
    /// Those that had more to do than their turn allowed.
    more: Vec<Id>,
    pipes: Vec<Pipe>,
    /// Given up for a moment when there are no descriptors left, to be able to refuse.
    reserve: Option<File>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Connection {
    dialled: SocketAddr,
    target: SocketAddr,
    client: TcpStream,
    server: TcpStream,
    connected: bool,
    /// From the client, and to it.
    there: Way,
    back: Way,
}

/// One direction of a connection. Events are told once only, so what they said is kept.
#[derive(Debug, Default)]
struct Way {
    /// There may be something to read, and room to write.
    readable: bool,
    writable: bool,
    /// The sender has ended, and the receiver knows.
    ended: bool,
    told: bool,
    /// Held only while bytes are in it.
    pipe: Option<Pipe>,
    held: usize,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing to do until the next event.
    Idle,
    /// The turn was over before the work.
    More,
}

impl Connections {
    pub(super) fn new(limit: usize, counters: Arc<Counters>) -> io::Result<Self> {
        Ok(Self {
            all: Arena::default(),
            limit,
            connecting: VecDeque::new(),
            more: Vec::new(),
            pipes: Vec::new(),
            reserve: Some(File::open("/dev/null")?),
            counters,
        })
    }

    pub(super) fn has_more(&self) -> bool {
        !self.more.is_empty()
    }

    pub(super) fn has_deadline(&self) -> bool {
        !self.connecting.is_empty()
    }

    /// Accepts who waits at a door, and starts to connect them.
    pub(super) fn accept(
        &mut self,
        listener: &TcpListener,
        target: &dyn Fn(SocketAddr, SocketAddr) -> Option<SocketAddr>,
        now: Instant,
        epoll: &Epoll,
    ) {
        for _ in 0..ACCEPTS {
            let (client, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) => match e.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE) => {
                        if !self.refuse_one(listener) {
                            return;
                        }
                        continue;
                    }
                    // Gone before it was accepted.
                    Some(libc::ECONNABORTED | libc::EINTR) => continue,
                    _ => return,
                },
            };
            add(&self.counters.accepted);
            if self.all.len() >= self.limit {
                add(&self.counters.overflowed);
                reset(client);
                continue;
            }
            if let Err(client) = self.open(client, from, target, now, epoll) {
                add(&self.counters.refused);
                reset(client);
            }
        }
    }

    /// With the descriptor kept for this: accepts one and resets it. Otherwise it would wait for ever, and the door be ready for
    /// ever.
    fn refuse_one(&mut self, listener: &TcpListener) -> bool {
        self.reserve = None;
        let refused = listener.accept().map(|(client, _)| {
            add(&self.counters.accepted);
            add(&self.counters.overflowed);
            reset(client);
        });
        self.reserve = File::open("/dev/null").ok();
        refused.is_ok()
    }

    fn open(
        &mut self,
        client: TcpStream,
        from: SocketAddr,
        target: &dyn Fn(SocketAddr, SocketAddr) -> Option<SocketAddr>,
        now: Instant,
        epoll: &Epoll,
    ) -> Result<(), TcpStream> {
        let Ok(dialled) = client.local_addr() else { return Err(client) };
        let Some(target) = target(dialled, from).filter(|t| *t != dialled) else { return Err(client) };
        let Ok(server) = dial(target) else { return Err(client) };
        if prepare(&client).is_err() || prepare(&server).is_err() {
            return Err(client);
        }
        let (there, back) = (Way::default(), Way::default());
        let connection = Connection { dialled, target, client, server, connected: false, there, back };
        self.watch(connection, now, epoll)
    }

    /// Carries a connection: from its beginning, or from where another relay was. Gives the client back where it cannot be
    /// waited for.
    fn watch(&mut self, mut connection: Connection, now: Instant, epoll: &Epoll) -> Result<(), TcpStream> {
        for way in [&mut connection.there, &mut connection.back] {
            (way.readable, way.writable) = (true, true);
        }
        let connected = connection.connected;
        let id = self.all.insert(connection);
        if let Some(c) = self.all.get_mut(id) {
            let all = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            let waiting = epoll
                .add(&c.client, EpollEvent::new(all, id.0 << 1 | CLIENT))
                .and_then(|()| epoll.add(&c.server, EpollEvent::new(all, id.0 << 1 | SERVER)));
            if waiting.is_err() {
                return self.all.remove(id).map_or(Ok(()), |c| Err(c.client));
            }
        }
        if connected {
            self.more.push(id);
        } else {
            self.connecting.push_back((now + CONNECT_TIMEOUT, id));
        }
        self.counters.open.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Everything that is carried, with what is in the pipes.
    pub(super) fn give_away(&mut self) -> Vec<Carried> {
        let all: Vec<_> = self.all.iter().map(|(id, _)| id).collect();
        all.into_iter().filter_map(|id| self.all.remove(id)).map(Connection::give_away).collect()
    }

    /// Goes on with a connection that another relay has given away, or resets it if it leads elsewhere by now.
    pub(super) fn adopt(
        &mut self,
        what: &What,
        fds: Vec<OwnedFd>,
        targets: &dyn Fn(Protocol, SocketAddr, SocketAddr) -> Option<SocketAddr>,
        now: Instant,
        epoll: &Epoll,
    ) -> bool {
        let Some(connection) = Connection::adopt(what, fds) else { return false };
        let client = connection.client.peer_addr();
        // The client may have gone, with bytes of its still under way.
        let leads =
            client.map_or(true, |from| targets(Protocol::Tcp, what.dialled, from) == Some(what.target));
        if leads && self.all.len() < self.limit {
            return self.watch(connection, now, epoll).is_ok();
        }
        reset(connection.client);
        reset(connection.server);
        false
    }

    /// An event of one end of a connection.
    pub(super) fn ready(&mut self, token: u64, events: EpollFlags) {
        let id = Id(token >> 1);
        let Some(c) = self.all.get_mut(id) else { return };
        let broken = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        let readable = events.intersects(EpollFlags::EPOLLIN | broken);
        let writable = events.intersects(EpollFlags::EPOLLOUT | broken);
        let (from, to) =
            if token & 1 == CLIENT { (&mut c.there, &mut c.back) } else { (&mut c.back, &mut c.there) };
        from.readable |= readable;
        to.writable |= writable;
        if !c.connected {
            if token & 1 == CLIENT || !writable {
                return;
            }
            if !matches!(c.server.take_error(), Ok(None)) || c.server.peer_addr().is_err() {
                add(&self.counters.refused);
                self.abort(id);
                return;
            }
            c.connected = true;
        }
        self.turn(id);
    }

    /// Gives those their next turn who had more to do.
    pub(super) fn go_on(&mut self) {
        for id in std::mem::take(&mut self.more) {
            self.turn(id);
        }
    }

    /// Resets those whose container did not answer in time.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((deadline, id)) = self.connecting.front().copied() {
            let waits = self.all.get_mut(id).is_some_and(|c| !c.connected);
            if waits && deadline > now {
                return;
            }
            self.connecting.pop_front();
            if waits {
                add(&self.counters.refused);
                self.abort(id);
            }
        }
    }

    /// Resets the connections that `over` says, by what was dialled and where it led.
    pub(super) fn end(&mut self, over: impl Fn(SocketAddr, SocketAddr) -> bool) {
        let over: Vec<_> =
            self.all.iter().filter(|(_, c)| over(c.dialled, c.target)).map(|(id, _)| id).collect();
        over.into_iter().for_each(|id| self.abort(id));
    }

    fn turn(&mut self, id: Id) {
        let Some(c) = self.all.get_mut(id) else { return };
        let there = c.there.turn(&c.client, &c.server, &mut self.pipes);
        let back = c.back.turn(&c.server, &c.client, &mut self.pipes);
        match (there, back) {
            (Err(_), _) | (_, Err(_)) => self.abort(id),
            _ if c.there.told && c.back.told => self.close(id),
            (Ok(Turn::Idle), Ok(Turn::Idle)) => {}
            _ => self.more.push(id),
        }
    }

    /// Both directions have ended.
    fn close(&mut self, id: Id) {
        if self.all.remove(id).is_some() {
            self.counters.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Both sides learn that it did not end well.
    fn abort(&mut self, id: Id) {
        if let Some(c) = self.all.remove(id) {
            self.counters.open.fetch_sub(1, Ordering::Relaxed);
            reset(c.client);
            reset(c.server);
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.end(|_, _| true);
    }
}

/// Bits of [`What::flags`].
const CONNECTED: u8 = 1;
const ENDED: [u8; 2] = [2, 4];
const TOLD: [u8; 2] = [8, 16];

impl Connection {
    fn give_away(self) -> Carried {
        let mut flags = if self.connected { CONNECTED } else { 0 };
        let mut fds = vec![OwnedFd::from(self.client), OwnedFd::from(self.server)];
        let mut held = [0; 2];
        for (i, way) in [self.there, self.back].into_iter().enumerate() {
            flags |= if way.ended { ENDED[i] } else { 0 } | if way.told { TOLD[i] } else { 0 };
            if let Some(pipe) = way.pipe.filter(|_| way.held > 0) {
                held[i] = way.held;
                fds.extend([pipe.read, pipe.write]);
            }
        }
        let what = What { dialled: self.dialled, target: self.target, client: None, flags, held };
        Carried { what, fds }
    }

    fn adopt(what: &What, fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let (client, server) = (TcpStream::from(fds.next()?), TcpStream::from(fds.next()?));
        let mut ways = [Way::default(), Way::default()];
        for (i, way) in ways.iter_mut().enumerate() {
            way.ended = what.flags & ENDED[i] != 0;
            way.told = what.flags & TOLD[i] != 0;
            way.held = what.held[i];
            if way.held > 0 {
                way.pipe = Some(Pipe { read: fds.next()?, write: fds.next()? });
            }
        }
        let [there, back] = ways;
        let connected = what.flags & CONNECTED != 0;
        Some(Self { dialled: what.dialled, target: what.target, client, server, connected, there, back })
    }
}

impl Way {
    /// Carries bytes until there are none, or no room, or the turn is over.
    fn turn(&mut self, from: &TcpStream, to: &TcpStream, pipes: &mut Vec<Pipe>) -> Result<Turn, Errno> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        for _ in 0..ROUNDS {
            // The pipe is filled only when it is empty: then "again" can only mean that there is nothing to read.
            if self.held == 0 {
                if self.ended && !self.told {
                    // A receiver that is gone already shows by its own event.
                    let _ = to.shutdown(Shutdown::Write);
                    self.told = true;
                }
                if self.ended || !self.readable {
                    self.give_back(pipes);
                    return Ok(Turn::Idle);
                }
                let pipe = match &mut self.pipe {
                    Some(pipe) => pipe,
                    none => none.insert(pipes.pop().map_or_else(Pipe::new, Ok)?),
                };
                match splice(from, None, &pipe.write, None, CHUNK, flags) {
                    Ok(0) => self.ended = true,
                    Ok(n) => self.held = n,
                    Err(Errno::EAGAIN) => self.readable = false,
                    Err(Errno::EINTR) => {}
                    Err(e) => return Err(e),
                }
                continue;
            }
            let Some(pipe) = self.pipe.as_ref().filter(|_| self.writable) else { return Ok(Turn::Idle) };
            match splice(&pipe.read, None, to, None, self.held, flags) {
                Ok(n) => self.held -= n,
                Err(Errno::EAGAIN) => self.writable = false,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Turn::More)
    }

    fn give_back(&mut self, pipes: &mut Vec<Pipe>) {
        if let Some(pipe) = self.pipe.take()
            && pipes.len() < SPARE_PIPES
        {
            pipes.push(pipe);
        }
    }
}

impl Pipe {
    fn new() -> Result<Self, Errno> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // An ordinary one will do where a larger one is refused.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        Ok(Self { read, write })
    }
}

/// A connection under way from the calling thread's namespace.
fn dial(target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd.into()),
        Err(e) => Err(e.into()),
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let (idle, interval, count) = KEEPALIVE;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &interval)?;
    Ok(setsockopt(stream, sockopt::TcpKeepCount, &count)?)
}

/// Closes with a reset.
fn reset(stream: impl AsFd) {
    let _ = setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}
