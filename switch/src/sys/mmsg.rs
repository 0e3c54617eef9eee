//! `recvmmsg(2)` and `sendmmsg(2)` on packet sockets: a batch of frames for one call.
//!
//! The arrays that these calls want are made once and kept. Their pointers are set right before each call and are not
//! used after it.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd};

use super::packet::{link_address, socklen};
use crate::batch::{BATCH, Batch, SLOT, Source, VlanTag};
use crate::frame::{HEADROOM, OFFLOAD_HEADER};

/// Most messages that one `sendmmsg` takes (`UIO_MAXIOV`).
pub const MAX_SEND: usize = 1024;

/// Room for one control message of type `PACKET_AUXDATA`: header (16) and `tpacket_auxdata` (20), aligned.
const CONTROL: usize = 40;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Receives batches.
pub struct Receiver {
    messages: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_ll>,
    controls: Vec<Control>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

// SAFETY: the pointers inside the arrays are set and used within one call of `receive` only.
unsafe impl Send for Receiver {}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

impl Receiver {
    /// Room for a batch.
    pub fn new() -> Self {
        Self {
            // SAFETY: mmsghdr and iovec are plain data for which all zeroes is a value.
            messages: vec![unsafe { zeroed() }; BATCH],
            // SAFETY: as above.
            vectors: vec![unsafe { zeroed() }; BATCH],
            names: vec![link_address(0); BATCH],
            controls: vec![Control([0; CONTROL]); BATCH],
        }
    }

    /// Receives up to `most` frames into `batch`, which must be empty, without waiting. None there is no error: then the
    /// batch stays empty. `ENETDOWN` comes once when an interface goes away and is passed over.
    pub fn receive(&mut self, socket: &impl AsFd, batch: &mut Batch, most: usize) -> io::Result<()> {
        debug_assert!(batch.is_empty());
        let mut n = 0;
        for buffer in batch.free_buffers().take(most) {
            let buffer = &mut buffer[HEADROOM - OFFLOAD_HEADER..];
            self.vectors[n] = libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: SLOT - HEADROOM + OFFLOAD_HEADER,
            };
            let header = &mut self.messages[n].msg_hdr;
            header.msg_name = (&raw mut self.names[n]).cast();
            header.msg_namelen = socklen::<libc::sockaddr_ll>();
            header.msg_iov = &raw mut self.vectors[n];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[n]).cast();
            header.msg_controllen = CONTROL;
            n += 1;
        }
        // MSG_TRUNC: the length told is the frame's, also where the buffer was too short for it.
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: the first n messages point at names, controls, vectors and buffers that outlive the call and that
        // nobody else refers to; n is not larger than the arrays.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.messages.as_mut_ptr(),
                n as u32,
                flags,
                std::ptr::null_mut(),
            )
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN | libc::ENXIO) => Ok(()),
                _ => Err(error),
            };
        }
        for i in 0..got.unsigned_abs() as usize {
            let len = (self.messages[i].msg_len as usize).saturating_sub(OFFLOAD_HEADER);
            batch.push(len, Source::Ifindex(self.names[i].sll_ifindex.unsigned_abs()), self.tag(i));
        }
        Ok(())
    }

    /// The VLAN tag that the kernel took out of frame `i`.
    fn tag(&self, i: usize) -> Option<VlanTag> {
        const HEADER: usize = size_of::<libc::cmsghdr>();
        if self.messages[i].msg_hdr.msg_controllen < HEADER + size_of::<libc::tpacket_auxdata>() {
            return None;
        }
        let bytes = &self.controls[i].0;
        // SAFETY: cmsghdr is plain data, Control is long enough for one and aligned for it.
        let header: libc::cmsghdr = unsafe { bytes.as_ptr().cast::<libc::cmsghdr>().read() };
        if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            return None;
        }
        // SAFETY: tpacket_auxdata is plain data, CONTROL is long enough for it after the header.
        let aux: libc::tpacket_auxdata =
            unsafe { bytes[HEADER..].as_ptr().cast::<libc::tpacket_auxdata>().read_unaligned() };
        let valid = |bit| aux.tp_status & bit != 0;
        valid(libc::TP_STATUS_VLAN_VALID).then(|| VlanTag {
            tpid: if valid(libc::TP_STATUS_VLAN_TPID_VALID) {
                aux.tp_vlan_tpid
            } else {
                crate::frame::ETHERTYPE_VLAN
            },
            tci: aux.tp_vlan_tci,
        })
    }
}

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
