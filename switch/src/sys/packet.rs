//! Packet sockets: `packet(7)`, with the options that nix does not know (linux/if_packet.h).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::bpf::Program;

/// Bytes of frames waiting to be received, kernel overhead included. Enough for some milliseconds at full rate; more
/// would only make an overloaded switch slower, by cold caches and by waiting.
const RECEIVE_BUFFER: i32 = 8 << 20;
/// Bytes of frames sent and not yet taken by their receivers.
const SEND_BUFFER: i32 = 32 << 20;

/// Why no packet socket.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `socket(2)` is refused.
    #[error("socket(AF_PACKET)")]
    Socket(#[source] io::Error),
    /// An option is refused.
    #[error("{0}")]
    Option(&'static str, #[source] io::Error),
}

/// A packet socket for all interfaces of the namespace it was opened in.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    /// Frames that were announced and could not be received whole, since they were asked for last.
    missed: AtomicU64,
}

impl PacketSocket {
    /// Opens a socket in the calling thread's network namespace. It gets frames from [`PacketSocket::bind`] on: all that are
    /// received, and none sent.
    ///
    /// It does not block. Frames come and go with a `virtio_net_hdr` in front.
    pub fn open_unbound() -> Result<Self, OpenError> {
        // SAFETY: socket(2) takes no pointers.
        let raw = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        };
        if raw < 0 {
            return Err(OpenError::Socket(io::Error::last_os_error()));
        }
        // SAFETY: raw is a descriptor that was opened just now and belongs to nobody else.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(raw) }, missed: AtomicU64::new(0) };
        // Before bind: each of these refuses, or misses frames, on a socket that already receives.
        socket
            .set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)
            .map_err(|e| OpenError::Option("PACKET_VNET_HDR", e))?;
        socket
            .set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)
            .map_err(|e| OpenError::Option("PACKET_AUXDATA", e))?;
        socket
            .set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)
            .map_err(|e| OpenError::Option("PACKET_IGNORE_OUTGOING (needs Linux 4.20)", e))?;
        // The FORCE variants pass the system's limits; they need CAP_NET_ADMIN, which swd has for netlink anyway.
        socket
            .set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)
            .map_err(|e| OpenError::Option("SO_RCVBUFFORCE", e))?;
        socket
            .set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)
            .map_err(|e| OpenError::Option("SO_SNDBUFFORCE", e))?;
        Ok(socket)
    }

    /// Receives from now on: from one interface, or from all (0).
    ///
    /// # Errors
    /// `ENODEV`: there is no such interface.
    pub fn bind(&self, ifindex: u32) -> Result<(), OpenError> {
        let address = link_address(ifindex);
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let rc = unsafe {
            libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), socklen::<libc::sockaddr_ll>())
        };
        check(rc).map_err(|e| OpenError::Option("bind(ETH_P_ALL)", e))
    }

    /// Receives only what a classic BPF program lets in (`SO_ATTACH_FILTER`), in place of the program before.
    ///
    /// # Errors
    /// `EINVAL`: the program is wrong or too long.
    pub fn set_filter(&self, program: &[libc::sock_filter]) -> io::Result<()> {
        let Ok(len) = u16::try_from(program.len()) else { return Err(io::ErrorKind::InvalidInput.into()) };
        let described = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
        // SAFETY: the pointer and the length describe `described`, whose own describe `program`; both outlive the call,
        // and the kernel only reads.
        let rc = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const described).cast(),
                socklen::<libc::sock_fprog>(),
            )
        };
        check(rc)
    }

    /// Receives only what a program lets in (`SO_ATTACH_BPF`), in place of the program before.
    ///
    /// # Errors
    /// `EINVAL`: the program is of another kind.
    pub fn set_program(&self, program: &Program) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_BPF, program.as_fd().as_raw_fd())
    }

    /// Lets this socket share what is received with the other members of `group`, by flow, the same way in both
    /// directions (`PACKET_FANOUT_HASH`). Returns the group's number; `None` opens a new group.
    pub fn join_fanout(&self, group: Option<u16>) -> Result<u16, OpenError> {
        let failed = |e| OpenError::Option("PACKET_FANOUT", e);
        let kind = if group.is_some() {
            libc::PACKET_FANOUT_HASH
        } else {
            libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_UNIQUEID
        };
        let word = (kind << 16) | u32::from(group.unwrap_or(0));
        self.set(libc::SOL_PACKET, libc::PACKET_FANOUT, word.cast_signed()).map_err(failed)?;
        let word: u32 = self.get(libc::PACKET_FANOUT).map_err(failed)?;
        Ok((word & 0xffff) as u16)
    }

    /// Frames lost for want of room since the last call: those for which the kernel found none (`PACKET_STATISTICS`), and
    /// those of [`PacketSocket::miss`].
    pub fn take_losses(&self) -> u64 {
        // struct tpacket_stats { tp_packets, tp_drops }; both start again at zero. A socket always has them.
        let [_, drops]: [u32; 2] = self.get(libc::PACKET_STATISTICS).unwrap_or_default();
        u64::from(drops) + self.missed.swap(0, Ordering::Relaxed)
    }

    /// Notes frames that were announced in the ring, and of which the socket's queue had no room for the rest.
    pub(super) fn miss(&self, frames: u64) {
        self.missed.fetch_add(frames, Ordering::Relaxed);
    }

    pub(super) fn set(&self, level: i32, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `value`, which outlives the call.
        let rc = unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, option, (&raw const value).cast(), socklen::<i32>())
        };
        check(rc)
    }

    /// Sets an option of the packet level that is a C struct.
    pub(super) fn set_plain<T>(&self, option: i32, value: &T) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `value`, which outlives the call; the kernel only reads.
        let rc = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                std::ptr::from_ref(value).cast(),
                socklen::<T>(),
            )
        };
        check(rc)
    }

    fn get<T: Plain>(&self, option: i32) -> io::Result<T> {
        let mut value = T::default();
        let mut len = socklen::<T>();
        // SAFETY: the pointer and the length describe `value`, which outlives the call; T has no invalid bit patterns.
        let rc = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw mut value).cast(),
                &raw mut len,
            )
        };
        check(rc)?;
        Ok(value)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Types any bit pattern of which is a value.
trait Plain: Default {}
impl Plain for u32 {}
impl Plain for [u32; 2] {}

/// A link-layer address: interface `ifindex`, 0 for all.
pub(super) fn link_address(ifindex: u32) -> libc::sockaddr_ll {
    // SAFETY: sockaddr_ll is plain data for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = ifindex.cast_signed();
    address
}

pub(super) const fn socklen<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn check(rc: i32) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
