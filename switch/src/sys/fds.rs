//! File descriptors as messages: `SCM_RIGHTS` over Unix sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors in one message; the kernel's own limit is 253 (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 64;

/// Sends `bytes` with descriptors: the receiver gets duplicates.
///
/// # Errors
/// As sendmsg(2); also when only a part was taken.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let iov = [IoSlice::new(bytes)];
    let socket = socket.as_fd().as_raw_fd();
    let sent = sendmsg::<()>(socket, &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message: its length (0: the other side is gone) and the descriptors that came with it.
///
/// # Errors
/// As recvmsg(2).
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([i32; MAX_FDS]);
    let mut iov = [IoSliceMut::new(bytes)];
    let socket = socket.as_fd().as_raw_fd();
    let message = recvmsg::<()>(socket, &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just installed these descriptors for this message; nobody else knows of them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_travels() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut left, right) = UnixStream::pair().unwrap();
        send(&here, b"take", &[right.as_fd()]).unwrap();
        drop(right);
        let mut bytes = [0; 16];
        let (n, mut fds) = receive(&there, &mut bytes).unwrap();
        assert_eq!((&bytes[..n], fds.len()), (&b"take"[..], 1));
        let mut right = UnixStream::from(fds.remove(0));
        right.write_all(b"x").unwrap();
        let mut byte = [0];
        left.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        drop(here);
        assert_eq!(receive(&there, &mut bytes).unwrap().0, 0);
    }
}
