//! Sockets as the loads want them.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, connect, listen as start_listening,
    setsockopt, socket, sockopt,
};

/// Room for datagrams that wait: the receiver, not its buffer, is to be what is measured.
const DATAGRAM_BUFFER: usize = 32 << 20;
/// Longest wait for events, so that ends are noticed.
const TICK_MS: u16 = 20;

/// A listening socket on all addresses, with the longest backlog there is. It does not block.
pub(super) fn listen(port: u16) -> Result<TcpListener> {
    let fd =
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).context("socket")?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).context("SO_REUSEADDR")?;
    let address = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
    bind(fd.as_raw_fd(), &address).with_context(|| format!("bind port {port}"))?;
    start_listening(&fd, Backlog::MAXCONN).context("listen")?;
    Ok(fd.into())
}

/// Begins to connect; the socket does not block.
pub(super) fn begin_connect(to: SocketAddrV4) -> io::Result<TcpStream> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    match connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd.into()),
        Err(e) => Err(e.into()),
    }
}

/// A UDP socket on all addresses with large buffers. Port 0: any.
pub(super) fn udp(port: u16) -> Result<UdpSocket> {
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("bind port {port}"))?;
    setsockopt(&socket, sockopt::RcvBufForce, &DATAGRAM_BUFFER).context("SO_RCVBUFFORCE")?;
    setsockopt(&socket, sockopt::SndBufForce, &DATAGRAM_BUFFER).context("SO_SNDBUFFORCE")?;
    Ok(socket)
}

/// Allows as many descriptors as there may be.
pub(super) fn many_descriptors() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("RLIMIT_NOFILE")
}

/// An epoll instance and its events.
#[derive(Debug)]
pub(super) struct Poll {
    /// The instance.
    pub(super) epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poll {
    /// An empty one.
    pub(super) fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::empty()).context("epoll")?;
        Ok(Self { epoll, events: vec![EpollEvent::empty(); 256] })
    }

    /// Waits for events until `end` at the longest; none when it is over.
    pub(super) fn wait(&mut self, end: Instant) -> Result<Option<Vec<u64>>> {
        if Instant::now() >= end {
            return Ok(None);
        }
        let count = match self.epoll.wait(&mut self.events, EpollTimeout::from(TICK_MS)) {
            Err(Errno::EINTR) => 0,
            other => other.context("epoll_wait")?,
        };
        Ok(Some(self.events[..count].iter().map(EpollEvent::data).collect()))
    }
}

/// True for what just means: later.
pub(super) fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
