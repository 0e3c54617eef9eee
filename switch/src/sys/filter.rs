//! Classic socket filters: `SO_ATTACH_FILTER` (linux/filter.h), of which the port guards need two.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The index of `lo`: the first interface of every network namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

/// Offset from which a load reads the packet's metadata (`SKF_AD_OFF`), and that of the interface's index in it.
const SKF_AD_OFF: u32 = 0xffff_f000;
const SKF_AD_IFINDEX: u32 = 8;

/// What a socket lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// What comes in by `lo`. That is the device itself: also for the host's own addresses, v4 and v6.
    Loopback,
    /// Nothing.
    Nothing,
}

/// Makes a socket drop what the filter does not let in, without an answer; in place of the filter it has.
///
/// # Errors
/// As setsockopt(2).
pub fn attach(socket: impl AsFd, filter: Filter) -> io::Result<()> {
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, SKF_AD_OFF.wrapping_add(SKF_AD_IFINDEX));
    let is_loopback = op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, LOOPBACK);
    let take = op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX);
    let drop = op(libc::BPF_RET | libc::BPF_K, 0, 0, 0);
    let mut program = match filter {
        Filter::Loopback => vec![load, is_loopback, take, drop],
        Filter::Nothing => vec![drop],
    };
    let described = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the pointer and the length describe `described`, whose own describe `program`; both outlive the call, and the
    // kernel only reads.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const described).cast(),
            super::packet::socklen::<libc::sock_fprog>(),
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn loopback_passes_and_nothing_is_nothing() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        to.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.connect(to.local_addr().unwrap()).unwrap();
        let mut bytes = [0; 8];
        attach(&to, Filter::Loopback).unwrap();
        from.send(b"one").unwrap();
        assert_eq!(to.recv(&mut bytes).unwrap(), 3);
        attach(&to, Filter::Nothing).unwrap();
        from.send(b"two").unwrap();
        assert!(to.recv(&mut bytes).is_err());
        // And no ICMP error: the next send would report it.
        from.send(b"three").unwrap();
    }
}
