//! A packet socket that gets copies of what the kernel forwards from one port by itself, for captures of that port.
//!
//! The kernel shows a frame to the sockets of all interfaces first, then to those of its own interface, then to the ingress program
//! (`__netif_receive_skb_core`, net/core/dev.c). So this socket, which is bound to the port's interface, is asked when the worker's filter has decided:
//! what the worker receives it does not get, and the other way round.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::SocketError;

use crate::batch::SLOT;
use crate::frame::{MAX_FRAME, OFFLOAD_HEADER};
use crate::sys::packet::{OpenError, PacketSocket};
use crate::sys::ring::Ring;

/// Slots of the ring: 20 ms at 400,000 frames a second, 16 MB.
const SLOTS: usize = 8192;

/// A classic filter that lets nothing in.
const NOTHING: libc::sock_filter = libc::sock_filter { code: BPF_RET_K, jt: 0, jf: 0, k: 0 };
const BPF_RET_K: u16 = 0x06;

/// Reads the copies.
#[derive(Debug)]
pub struct Sniffer {
    socket: Arc<PacketSocket>,
    ring: Ring,
    ifindex: u32,
    buffer: Vec<u8>,
}

impl Sniffer {
    /// Opens it in the calling thread's namespace. `guard` lets it receive what the kernel forwards and nothing else.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn open(
        ifindex: u32,
        guard: impl FnOnce(&PacketSocket) -> io::Result<()>,
    ) -> Result<Self, OpenError> {
        let socket = Arc::new(PacketSocket::open_unbound()?);
        guard(&socket).map_err(|e| OpenError::Option("SO_ATTACH_BPF", e))?;
        let ring = Ring::new(Arc::clone(&socket), SLOTS)?;
        socket.bind(ifindex)?;
        Ok(Self { socket, ring, ifindex, buffer: vec![0; SLOT] })
    }

    /// The interface.
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The next frame, offload header first, and when the kernel received it: time since 1970. Does not wait.
    ///
    /// # Errors
    /// When the kernel does not give a long frame that it has.
    pub fn receive(&mut self) -> io::Result<Option<(Duration, &[u8])>> {
        while let Some(taken) = self.ring.take(&mut self.buffer)? {
            if let Some(len) = taken.len {
                return Ok(Some((taken.at, &self.buffer[..OFFLOAD_HEADER + len.min(MAX_FRAME)])));
            }
        }
        Ok(None)
    }

    /// Frames of which there is no copy for want of room, since the last call.
    pub fn take_losses(&self) -> u64 {
        self.socket.take_losses()
    }

    /// Gets no more from now on. What came before is there still.
    ///
    /// # Errors
    /// As `SO_ATTACH_FILTER`.
    pub fn deafen(&self) -> io::Result<()> {
        self.socket.set_filter(&[NOTHING])
    }

    /// Forgets that the interface went down, which until it is told looks like something to be read.
    pub fn clear_error(&self) {
        let _ = getsockopt(&self.socket, SocketError);
    }
}

impl AsFd for Sniffer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
