//! Sessions: datagrams of one client to one dialled address, and the answers.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind,
    recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use super::arena::{Arena, Id};
use super::carried::{Carried, What};
use super::{Counters, Doors, IDLE_TIMEOUT, add};

/// Bit of an epoll token that says "a session".
pub(super) const TOKEN: u64 = 1 << 62;
/// Datagrams taken from one socket before anything else gets its turn.
const DATAGRAMS: usize = 64;
/// The longest datagram.
const MAX_DATAGRAM: usize = 1 << 16;
/// How often idle sessions are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// All UDP sessions.
#[derive(Debug)]
pub(super) struct Sessions {
    all: Arena<Session>,
    by_ends: HashMap<Ends, Id>,
    limit: usize,
    speakers: HashMap<SocketAddr, Weak<UdpSocket>>,
    buffer: Vec<u8>,
    next_sweep: Option<Instant>,
    counters: Arc<Counters>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends {
    client: SocketAddr,
    dialled: SocketAddr,
}

#[derive(Debug)]
struct Session {
    ends: Ends,
    target: SocketAddr,
    /// Connected to the container.
    socket: UdpSocket,
    /// What answers from the dialled port, where no door does: shared by all sessions of that address and port.
    speaker: Option<Arc<UdpSocket>>,
    last: Instant,
}

impl Sessions {
    pub(super) fn new(limit: usize, counters: Arc<Counters>) -> Self {
        Self {
            all: Arena::default(),
            by_ends: HashMap::new(),
            limit,
            speakers: HashMap::new(),
            buffer: vec![0; MAX_DATAGRAM],
            next_sweep: None,
            counters,
        }
    }

    pub(super) fn has_deadline(&self) -> bool {
        self.all.len() > 0
    }

    /// Takes the datagrams that wait at a door to their containers.
    pub(super) fn receive(
        &mut self,
        door: &UdpSocket,
        target: &dyn Fn(SocketAddr, SocketAddr) -> Option<SocketAddr>,
        now: Instant,
        doors: &Doors,
    ) {
        for _ in 0..DATAGRAMS {
            let (length, ends) = match receive(door.as_raw_fd(), &mut self.buffer) {
                Ok(Some(received)) => received,
                Ok(None) => {
                    add(&self.counters.dropped);
                    continue;
                }
                Err(nix::errno::Errno::EAGAIN) => return,
                Err(_) => continue,
            };
            let id = match self.by_ends.get(&ends) {
                Some(id) => Some(*id),
                None => self.open(ends, target, now, doors),
            };
            let Some(session) = id.and_then(|id| self.all.get_mut(id)) else {
                add(&self.counters.dropped);
                continue;
            };
            session.last = now;
            // The first failure may be the report of an earlier datagram that found the port closed.
            let bytes = &self.buffer[..length];
            if session.socket.send(bytes).or_else(|_| session.socket.send(bytes)).is_err() {
                add(&self.counters.dropped);
            }
        }
    }

    /// Takes a container's answers to the client.
    pub(super) fn answer(&mut self, token: u64, now: Instant, doors: &Doors) {
        let Some(session) = self.all.get_mut(Id(token & !TOKEN)) else { return };
        for _ in 0..DATAGRAMS {
            let length = match session.socket.recv(&mut self.buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                // The container's port is closed: reported once, and not a reason to end.
                Err(_) => continue,
            };
            session.last = now;
            let bytes = &self.buffer[..length];
            let sent = match &session.speaker {
                Some(speaker) => speaker.send_to(bytes, session.ends.client).is_ok(),
                None => {
                    doors.speaker(session.ends.dialled).is_some_and(|door| speak(&*door, bytes, session.ends))
                }
            };
            if !sent {
                add(&self.counters.dropped);
            }
        }
    }

    /// Ends sessions that were silent for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.next_sweep.is_none_or(|at| at <= now) {
            self.next_sweep = Some(now + SWEEP);
            self.close_all(|s| now.duration_since(s.last) >= IDLE_TIMEOUT);
        }
    }

    /// Ends the sessions that `over` says, by what was dialled and where it led.
    pub(super) fn end(&mut self, over: impl Fn(SocketAddr, SocketAddr) -> bool) {
        self.close_all(|s| over(s.ends.dialled, s.target));
    }

    fn open(
        &mut self,
        ends: Ends,
        target: &dyn Fn(SocketAddr, SocketAddr) -> Option<SocketAddr>,
        now: Instant,
        doors: &Doors,
    ) -> Option<Id> {
        let target = target(ends.dialled, ends.client).filter(|t| *t != ends.dialled)?;
        if self.all.len() >= self.limit {
            let oldest = self.all.iter().min_by_key(|(_, s)| s.last).map(|(id, _)| id)?;
            add(&self.counters.evicted);
            self.close(oldest);
        }
        let any: SocketAddr = if target.is_ipv6() {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any).ok()?;
        socket.set_nonblocking(true).ok()?;
        socket.connect(target).ok()?;
        self.watch(ends, target, socket, now, doors)
    }

    /// Everything that is carried.
    pub(super) fn give_away(&mut self) -> Vec<Carried> {
        let all: Vec<_> = self.all.iter().map(|(id, _)| id).collect();
        let sessions = all.into_iter().filter_map(|id| self.all.remove(id));
        let carried = sessions.map(|session| {
            let Session { ends, target, socket, .. } = session;
            let what =
                What { dialled: ends.dialled, target, client: Some(ends.client), flags: 0, held: [0; 2] };
            Carried { what, fds: vec![socket.into()] }
        });
        carried.collect()
    }

    /// Goes on with a session that another relay has given away.
    pub(super) fn adopt(
        &mut self,
        what: &What,
        client: SocketAddr,
        fds: Vec<OwnedFd>,
        now: Instant,
        doors: &Doors,
    ) -> bool {
        let ends = Ends { client, dialled: what.dialled };
        let socket = fds.into_iter().next().filter(|_| !self.by_ends.contains_key(&ends));
        let known = socket.and_then(|socket| self.watch(ends, what.target, socket.into(), now, doors));
        known.is_some()
    }

    fn watch(
        &mut self,
        ends: Ends,
        target: SocketAddr,
        socket: UdpSocket,
        now: Instant,
        doors: &Doors,
    ) -> Option<Id> {
        let speaker = match doors.speaker(ends.dialled) {
            Some(_) => None,
            None => Some(self.speaker(ends.dialled)?),
        };
        let id = self.all.insert(Session { ends, target, socket, speaker, last: now });
        let session = self.all.get_mut(id)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, TOKEN | id.0);
        if doors.epoll.add(&session.socket, event).is_err() {
            self.all.remove(id);
            return None;
        }
        self.by_ends.insert(ends, id);
        self.counters.open.fetch_add(1, Ordering::Relaxed);
        Some(id)
    }

    /// A socket that sends from the dialled address. Nothing comes in by it: the program is asked before it.
    fn speaker(&mut self, dialled: SocketAddr) -> Option<Arc<UdpSocket>> {
        if let Some(speaker) = self.speakers.get(&dialled).and_then(Weak::upgrade) {
            return Some(speaker);
        }
        let family = if dialled.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family, SockType::Datagram, flags, None).ok()?;
        setsockopt(&fd, sockopt::ReuseAddr, &true).ok()?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(dialled)).ok()?;
        let speaker = Arc::new(UdpSocket::from(fd));
        self.speakers.retain(|_, s| s.strong_count() > 0);
        self.speakers.insert(dialled, Arc::downgrade(&speaker));
        Some(speaker)
    }

    fn close(&mut self, id: Id) {
        if let Some(session) = self.all.remove(id) {
            self.by_ends.remove(&session.ends);
            self.counters.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn close_all(&mut self, over: impl Fn(&Session) -> bool) {
        let over: Vec<_> = self.all.iter().filter(|(_, s)| over(s)).map(|(id, _)| id).collect();
        over.into_iter().for_each(|id| self.close(id));
    }
}

/// One datagram: its length, and who sent it where. `None`: the kernel does not say.
fn receive(door: RawFd, buffer: &mut [u8]) -> nix::Result<Option<(usize, Ends)>> {
    let mut control = nix::cmsg_space!(libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(door, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let dialled = message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::Ipv4OrigDstAddr(a) => {
            let address = Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(address, u16::from_be(a.sin_port))))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(a) => {
            let address = Ipv6Addr::from(a.sin6_addr.s6_addr);
            Some(SocketAddr::V6(SocketAddrV6::new(address, u16::from_be(a.sin6_port), 0, a.sin6_scope_id)))
        }
        _ => None,
    });
    let client = message.address.and_then(|from| {
        let v4 = from.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
        v4.or_else(|| from.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
    });
    Ok(client.zip(dialled).map(|(client, dialled)| (message.bytes, Ends { client, dialled })))
}

/// Sends from a door, which is bound to the dialled port, with the dialled address as the source.
fn speak(door: &impl std::os::fd::AsFd, bytes: &[u8], ends: Ends) -> bool {
    let fd = door.as_fd().as_raw_fd();
    let to = SockaddrStorage::from(ends.client);
    let parts = [IoSlice::new(bytes)];
    let send = |control: ControlMessage<'_>| {
        sendmsg(fd, &parts, &[control], MsgFlags::MSG_DONTWAIT, Some(&to)).is_ok()
    };
    match ends.dialled {
        SocketAddr::V4(dialled) => {
            let source = libc::in_addr { s_addr: u32::from(*dialled.ip()).to_be() };
            let any = libc::in_addr { s_addr: 0 };
            send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: source,
                ipi_addr: any,
            }))
        }
        SocketAddr::V6(dialled) => send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr { s6_addr: dialled.ip().octets() },
            ipi6_ifindex: dialled.scope_id(),
        })),
    }
}
