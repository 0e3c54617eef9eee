//! Doors: the sockets by which clients on the host itself come to published ports, and which keep ports from others.
//!
//! The guards open and close doors; the relay waits at all of them with one epoll descriptor, which both share.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt,
    shutdown, socket, sockopt,
};

use super::Protocol;
use crate::daemon::keeper::{NOT_A_PORT, Safe};
use crate::sys::filter::{self, Filter};
use crate::sys::netns::NetNs;

/// Bit of an epoll token that says "a door"; the relay's own tokens are without.
pub(crate) const DOOR_TOKEN: u64 = 1 << 63;
/// Connections that wait to be accepted at a door.
const BACKLOG: i32 = 4096;

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) socket: DoorSocket,
    token: u64,
}

/// A door's socket.
#[derive(Debug)]
pub(crate) enum DoorSocket {
    /// It listens.
    Tcp(TcpListener),
    /// It is bound and says to which address and port a datagram was sent.
    Udp(UdpSocket),
}

/// What a door is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) protocol: Protocol,
    /// The address it is bound to; unspecified for all of its family.
    pub(super) address: IpAddr,
    /// 0: a socket that the BPF program hands packets to, for whatever port.
    pub(super) port: u16,
}

impl Key {
    /// By which the keeper knows the door.
    fn name(self) -> String {
        format!("{NOT_A_PORT}door:{}:{}:{}", self.protocol, self.port, self.address)
    }

    /// The doors of a port: one for each family.
    pub(super) fn of(protocol: Protocol, address: Option<IpAddr>, port: u16, v6: bool) -> Vec<Self> {
        let addresses = match address {
            Some(address) => vec![address],
            None if v6 => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            None => vec![Ipv4Addr::UNSPECIFIED.into()],
        };
        addresses.into_iter().map(|address| Self { protocol, address, port }).collect()
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            DoorSocket::Tcp(s) => s.as_fd(),
            DoorSocket::Udp(s) => s.as_fd(),
        }
    }
}

impl Door {
    /// Opens a socket in the calling thread's namespace.
    pub(super) fn open(key: Key, filter: Filter, token: u64) -> io::Result<Self> {
        let v6 = key.address.is_ipv6();
        let kind = match key.protocol {
            Protocol::Tcp => SockType::Stream,
            Protocol::Udp => SockType::Datagram,
        };
        let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        // Before anything can come in.
        filter::attach(&fd, filter)?;
        if v6 {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        }
        // The address need not be there yet; the sockets of the program have one that never is.
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
        match key.protocol {
            Protocol::Tcp => {
                // Connections of the past, still in TIME_WAIT, are not in the way. Another listening socket is.
                setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            }
            Protocol::Udp if v6 => setsockopt(&fd, sockopt::Ipv6OrigDstAddr, &true)?,
            Protocol::Udp => setsockopt(&fd, sockopt::Ipv4OrigDstAddr, &true)?,
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(key.address, key.port)))?;
        if key.protocol == Protocol::Tcp {
            listen(&fd, Backlog::new(BACKLOG)?)?;
        }
        Ok(Self::of(key.protocol, fd, token))
    }

    /// The door that an earlier daemon had open.
    fn inherit(protocol: Protocol, fd: OwnedFd, filter: Filter, token: u64) -> io::Result<Self> {
        filter::attach(&fd, filter)?;
        Ok(Self::of(protocol, fd, token))
    }

    fn of(protocol: Protocol, fd: OwnedFd, token: u64) -> Self {
        let socket = match protocol {
            Protocol::Tcp => DoorSocket::Tcp(fd.into()),
            Protocol::Udp => DoorSocket::Udp(fd.into()),
        };
        Self { socket, token }
    }
}

/// What an earlier daemon left with the keeper, by name.
pub(crate) type Kept = BTreeMap<String, Vec<OwnedFd>>;

/// All open doors, and the descriptor that waits at them.
#[derive(Debug)]
pub(crate) struct Doors {
    pub(crate) epoll: Epoll,
    table: Mutex<Table>,
    /// Where duplicates of all doors are.
    safe: Option<Arc<Safe>>,
}

#[derive(Debug, Default)]
struct Table {
    by_token: HashMap<u64, Arc<Door>>,
    by_key: HashMap<Key, Entry>,
    inodes: HashSet<u64>,
    last: u64,
    /// Doors of an earlier daemon, by name, that nobody has asked for yet.
    inherited: BTreeMap<String, OwnedFd>,
}

#[derive(Debug)]
struct Entry {
    door: Arc<Door>,
    filter: Filter,
}

impl Doors {
    /// Those of an earlier daemon are among `kept`, and are opened again when they are asked for.
    pub(super) fn new(safe: Option<Arc<Safe>>, kept: &mut Kept) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let prefix = format!("{NOT_A_PORT}door:");
        let doors = kept.extract_if(.., |name, _| name.starts_with(&prefix));
        let inherited = doors.filter_map(|(name, fds)| Some((name, fds.into_iter().next()?))).collect();
        Ok(Self { epoll, table: Mutex::new(Table { inherited, ..Table::default() }), safe })
    }

    /// Closes the doors of an earlier daemon that nobody has asked for.
    pub(super) fn settle(&self) {
        let unwanted = std::mem::take(&mut self.lock().inherited);
        if let Some(safe) = &self.safe {
            unwanted.keys().for_each(|name| safe.delete(name));
        }
    }

    /// Leaves everything with the keeper again: another one that knows of nothing.
    pub(super) fn put_again(&self) {
        let Some(safe) = &self.safe else { return };
        for (key, entry) in &self.lock().by_key {
            safe.put(&key.name(), &[&*entry.door]);
        }
    }

    /// Opens a door where there is none yet, and lets the relay wait at it if `filter` lets anything in. A door that is there
    /// already gets the filter. Says whether the door is new.
    pub(super) fn open(&self, key: Key, filter: Filter) -> io::Result<bool> {
        let mut table = self.lock();
        if let Some(entry) = table.by_key.get_mut(&key) {
            if entry.filter != filter {
                filter::attach(&entry.door, filter)?;
                let (door, old) = (Arc::clone(&entry.door), std::mem::replace(&mut entry.filter, filter));
                match old {
                    Filter::Nothing => self.wait_at(&door)?,
                    Filter::Loopback => self.epoll.delete(&door)?,
                }
            }
            return Ok(false);
        }
        table.last += 1;
        let token = DOOR_TOKEN | table.last;
        let door = match table.inherited.remove(&key.name()) {
            Some(fd) => Door::inherit(key.protocol, fd, filter, token)?,
            None => Door::open(key, filter, token)?,
        };
        let door = Arc::new(door);
        if let Some(safe) = &self.safe {
            safe.put(&key.name(), &[&*door]);
        }
        if filter != Filter::Nothing {
            self.wait_at(&door)?;
        }
        table.inodes.insert(inode(&door)?);
        table.by_token.insert(token, Arc::clone(&door));
        table.by_key.insert(key, Entry { door, filter });
        Ok(true)
    }

    /// Closes a door; what waits there is refused.
    pub(super) fn close(&self, key: Key) {
        let mut table = self.lock();
        let Some(Entry { door, filter }) = table.by_key.remove(&key) else { return };
        table.by_token.remove(&door.token);
        if filter != Filter::Nothing {
            let _ = self.epoll.delete(&door);
        }
        if let Some(safe) = &self.safe {
            safe.delete(&key.name());
        }
        if let DoorSocket::Tcp(listener) = &door.socket {
            // Now, even if a process that was just forked has a copy.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
        if let Ok(inode) = inode(&door) {
            table.inodes.remove(&inode);
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<Arc<Door>> {
        self.lock().by_key.get(&key).map(|e| Arc::clone(&e.door))
    }

    pub(super) fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    /// Inodes of all doors' sockets.
    pub(super) fn inodes(&self) -> HashSet<u64> {
        self.lock().inodes.clone()
    }

    /// The door that an event is of; it may have been closed since.
    pub(crate) fn by_token(&self, token: u64) -> Option<Arc<Door>> {
        self.lock().by_token.get(&token).cloned()
    }

    /// A UDP door that is bound to this address and port, or to the port at all addresses: what answers from there.
    pub(crate) fn speaker(&self, dialled: SocketAddr) -> Option<Arc<Door>> {
        let any = if dialled.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let table = self.lock();
        let mut keys = [dialled.ip(), any].into_iter().map(|address| Key {
            protocol: Protocol::Udp,
            address,
            port: dialled.port(),
        });
        keys.find_map(|k| table.by_key.get(&k)).map(|e| Arc::clone(&e.door))
    }

    fn wait_at(&self, door: &Door) -> io::Result<()> {
        Ok(self.epoll.add(door, EpollEvent::new(EpollFlags::EPOLLIN, door.token))?)
    }

    /// Nothing is left half done in the table where a thread could panic.
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn inode(door: &Door) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(door)?.st_ino)
}

/// What the relay serves: the doors, and the namespace from which it reaches the containers.
#[derive(Debug)]
pub struct RelaySockets {
    pub(crate) doors: Arc<Doors>,
    pub(crate) host: NetNs,
}
