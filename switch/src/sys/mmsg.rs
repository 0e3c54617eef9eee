//! `sendmmsg(2)` on a packet socket: a batch of frames for one call.
//!
//! The arrays that it wants are made once and kept. Their pointers are set right before the call and are not used after it.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd};

use super::packet::{link_address, socklen};

/// Most messages that one `sendmmsg` takes (`UIO_MAXIOV`).
pub const MAX_SEND: usize = 1024;

/// Sends batches.
pub struct Sender {
    messages: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_ll>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

// SAFETY: the pointers inside the arrays are set and used within one call of `send` only.
unsafe impl Send for Sender {}

impl Default for Sender {
    fn default() -> Self {
        Self::new()
    }
}

impl Sender {
    /// Room for [`MAX_SEND`] frames.
    pub fn new() -> Self {
        Self {
            // SAFETY: mmsghdr and iovec are plain data for which all zeroes is a value.
            messages: vec![unsafe { zeroed() }; MAX_SEND],
            // SAFETY: as above.
            vectors: vec![unsafe { zeroed() }; MAX_SEND],
            names: vec![link_address(0); MAX_SEND],
        }
    }

    /// Sends frames (offload header first), each to an interface. `done` hears of each in turn: sent, or the error.
    ///
    /// A frame that the kernel refuses does not hold up the next.
    pub fn send<'a>(
        &mut self,
        socket: &impl AsFd,
        frames: impl Iterator<Item = (&'a [u8], u32)>,
        mut done: impl FnMut(usize, Result<(), io::Error>),
    ) {
        let mut base = 0;
        let mut frames = frames.peekable();
        while frames.peek().is_some() {
            let mut n = 0;
            for (bytes, ifindex) in frames.by_ref().take(MAX_SEND) {
                // The kernel only reads through this pointer; iovec has no const form.
                self.vectors[n] =
                    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
                self.names[n].sll_ifindex = ifindex.cast_signed();
                let header = &mut self.messages[n].msg_hdr;
                header.msg_name = (&raw mut self.names[n]).cast();
                header.msg_namelen = socklen::<libc::sockaddr_ll>();
                header.msg_iov = &raw mut self.vectors[n];
                header.msg_iovlen = 1;
                n += 1;
            }
            let mut at = 0;
            while at < n {
                // SAFETY: messages at..n point at names, vectors and frames that outlive the call ('a).
                let sent = unsafe {
                    libc::sendmmsg(
                        socket.as_fd().as_raw_fd(),
                        self.messages[at..].as_mut_ptr(),
                        (n - at) as u32,
                        libc::MSG_DONTWAIT,
                    )
                };
                if sent < 0 {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        done(base + at, Err(error));
                        at += 1;
                    }
                    continue;
                }
                for _ in 0..sent {
                    done(base + at, Ok(()));
                    at += 1;
                }
            }
            base += n;
        }
    }
}
