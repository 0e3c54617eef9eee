//! TAP devices with offloads: `/dev/net/tun` with `IFF_VNET_HDR` and, for several workers, `IFF_MULTI_QUEUE`.
//!
//! A device is made in the namespace of the calling thread, and its descriptors keep *that* namespace alive. So it is
//! made in the switch namespace and moved into the container afterwards.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;
/// Length of `struct virtio_net_hdr`, which stands before each frame.
static VNET_HEADER: libc::c_int = 10;

/// The ioctls; the macros make public functions, which nobody outside needs.
mod ioctl {
    use nix::libc;

    nix::ioctl_write_ptr_bad!(
        set_iff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_read_bad!(get_iff, nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()), libc::ifreq);
    nix::ioctl_write_int_bad!(set_offload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    nix::ioctl_write_ptr_bad!(
        set_vnet_header,
        nix::request_code_write!(b'T', 216, size_of::<libc::c_int>()),
        libc::c_int
    );
}

/// Makes a TAP device named `name` in the calling thread's namespace, with that many queues; none blocks.
///
/// # Errors
/// `EBUSY` or `EINVAL`: the name is taken; `ENOENT`: no tun driver; `EPERM`: no `CAP_NET_ADMIN`.
pub fn open_tap(name: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    (0..queues.max(1)).map(|_| open_queue(name, flags)).collect()
}

fn open_queue(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = file.as_raw_fd();
    // SAFETY: fd is open, and the request is an ifreq with a terminated name, which the kernel copies.
    unsafe { ioctl::set_iff(fd, &raw const request) }?;
    // SAFETY: fd is open, and the kernel copies the int.
    unsafe { ioctl::set_vnet_header(fd, &raw const VNET_HEADER) }?;
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    let all = tcp | TUN_F_USO4 | TUN_F_USO6;
    for offload in [all, tcp] {
        let Ok(offload) = libc::c_int::try_from(offload) else { continue };
        // SAFETY: fd is open; the argument is an integer.
        match unsafe { ioctl::set_offload(fd, offload) } {
            Ok(_) => return Ok(file.into()),
            // Kernels before 6.2 know no USO.
            Err(nix::errno::Errno::EINVAL) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(file.into())
}

/// Whether there is still a device behind a queue: not when its namespace ended or somebody deleted it.
pub fn is_alive(queue: BorrowedFd<'_>) -> bool {
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is borrowed, so open; the kernel writes one ifreq, and there is room for one.
    unsafe { ioctl::get_iff(queue.as_raw_fd(), &raw mut request) }.is_ok()
}
