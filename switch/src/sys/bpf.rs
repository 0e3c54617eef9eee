//! `bpf(2)`: maps, programs and their links, as far as port guards, dials and the fast path need them (linux/bpf.h).
//!
//! Every object is a descriptor and ends with it, so a process that is killed leaves nothing behind in the kernel. The
//! descriptors are close-on-exec by the kernel's own doing.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_LOOKUP_ELEM: i64 = 1;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_MAP_DELETE_ELEM: i64 = 3;
const BPF_PROG_LOAD: i64 = 5;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: i64 = 21;
const BPF_LINK_CREATE: i64 = 28;

const BPF_SK_LOOKUP: u32 = 36;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_NO_PREALLOC: u32 = 1 << 0;
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// Most of what the verifier says that is kept: its last words say what was wrong.
const LOG_SIZE: usize = 64 << 10;

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// What to do.
    pub code: u8,
    /// Destination in the low half, source in the high half.
    pub registers: u8,
    /// Of a jump or of a memory access.
    pub offset: i16,
    /// Constant operand.
    pub immediate: i32,
}

/// What kind of map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Keys are 0, 1, ...; all values exist from the start.
    Array,
    /// Any keys.
    Hash,
    /// Keys are 0, 1, ...; values are sockets.
    Sockets,
    /// Keys are 0, 1, ...; each CPU has values of its own. For programs only: a look from outside would be given the values of
    /// all CPUs.
    PerCpuArray,
    /// An array whose values can be mapped into memory. See [`super::words::Words`].
    Mappable,
    /// Keys are prefixes, a `u32` of their length in bits first; the longest that matches is found.
    Prefixes,
    /// Any keys; the one that was not used for longest makes room for a new one.
    Recent,
    /// No keys: a ring of what programs report. See [`super::reports::Reports`].
    Reports,
}

impl MapKind {
    /// `enum bpf_map_type`.
    const fn number(self) -> u32 {
        match self {
            Self::Hash => 1,
            Self::Array | Self::Mappable => 2,
            Self::PerCpuArray => 6,
            Self::Recent => 9,
            Self::Prefixes => 11,
            Self::Sockets => 15,
            Self::Reports => 27,
        }
    }

    const fn flags(self) -> u32 {
        match self {
            Self::Mappable => BPF_F_MMAPABLE,
            // The kernel wants it so.
            Self::Prefixes => BPF_F_NO_PREALLOC,
            _ => 0,
        }
    }
}

/// A map.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    kind: MapKind,
    key_size: usize,
    value_size: usize,
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

#[repr(C)]
struct Element {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u64,
    expected_revision: u64,
}

impl Map {
    /// Makes a map.
    ///
    /// # Errors
    /// As bpf(2): `EPERM` without `CAP_BPF`, `ENOSYS` without BPF in the kernel.
    pub fn create(
        kind: MapKind,
        name: &str,
        key_size: usize,
        value_size: usize,
        entries: u32,
    ) -> io::Result<Self> {
        let mut attributes = MapCreate {
            map_type: kind.number(),
            key_size: key_size as u32,
            value_size: value_size as u32,
            max_entries: entries,
            map_flags: kind.flags(),
            inner_map_fd: 0,
            numa_node: 0,
            map_name: object_name(name),
        };
        let fd = open(BPF_MAP_CREATE, &mut attributes)?;
        Ok(Self { fd, kind, key_size, value_size })
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// As bpf(2): `E2BIG` when the map is full. `InvalidInput` when a size is not the map's.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if value.len() != self.value_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.element(BPF_MAP_UPDATE_ELEM, key, value.as_ptr() as u64)
    }

    /// Puts a socket into a map of sockets.
    ///
    /// # Errors
    /// As bpf(2): `EOPNOTSUPP` for a socket that is neither listening (TCP) nor bound (UDP).
    pub fn update_socket(&self, index: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.update(&index.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes())
    }

    /// Deletes a key of a hash or of prefixes.
    ///
    /// # Errors
    /// As bpf(2): `ENOENT` when it has no such key.
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.element(BPF_MAP_DELETE_ELEM, key, 0)
    }

    /// The value of a key.
    ///
    /// # Errors
    /// As bpf(2): `ENOENT` when it has no such key.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let mut value = vec![0; self.value_size];
        self.element(BPF_MAP_LOOKUP_ELEM, key, value.as_mut_ptr() as u64)?;
        Ok(value)
    }

    /// The value of a key of a hash, which is deleted in the same step: what is counted in it meanwhile is not lost.
    ///
    /// # Errors
    /// As bpf(2): `ENOENT` when it has no such key.
    pub fn take(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let mut value = vec![0; self.value_size];
        self.element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key, value.as_mut_ptr() as u64)?;
        Ok(value)
    }

    /// `value` is 0 or points to as many bytes as a value of this map has, writable for a lookup.
    fn element(&self, command: i64, key: &[u8], value: u64) -> io::Result<()> {
        // The kernel reads and writes as much as it thinks right, whatever there is room for.
        if key.len() != self.key_size || self.kind == MapKind::PerCpuArray {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes =
            Element { map_fd: raw(self.fd.as_fd()), _pad: 0, key: key.as_ptr() as u64, value, flags: 0 };
        call(command, &mut attributes).map(|_| ())
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Why a program was not loaded.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refuses the program: {source}{}", last_words(.log))]
pub struct LoadError {
    /// The error number.
    pub source: io::Error,
    /// What the verifier said.
    pub log: String,
}

fn last_words(log: &str) -> String {
    let mut lines = log.lines().rev().filter(|l| !l.trim().is_empty() && !l.starts_with("processed "));
    lines.next().map(|l| format!(" ({})", l.trim())).unwrap_or_default()
}

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramKind {
    /// Chooses the socket for a packet (`BPF_PROG_TYPE_SK_LOOKUP`).
    SkLookup,
    /// Chooses what a socket receives (`BPF_PROG_TYPE_SOCKET_FILTER`).
    SocketFilter,
    /// Decides about what a device receives (`BPF_PROG_TYPE_SCHED_CLS`).
    Ingress,
    /// Sees and changes where a socket connects to (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`).
    Connect {
        /// Of an IPv6 socket.
        v6: bool,
    },
    /// Sees and changes what a socket says that it is connected to (the same type).
    PeerName {
        /// Of an IPv6 socket.
        v6: bool,
    },
}

impl ProgramKind {
    const fn number(self) -> u32 {
        match self {
            Self::SocketFilter => 1,
            Self::Ingress => 3,
            Self::Connect { .. } | Self::PeerName { .. } => 18,
            Self::SkLookup => 30,
        }
    }

    const fn attach_type(self) -> u32 {
        match self {
            Self::SocketFilter => 0,
            Self::Ingress => BPF_TCX_INGRESS,
            Self::SkLookup => BPF_SK_LOOKUP,
            Self::Connect { v6: false } => 10,
            Self::Connect { v6: true } => 11,
            Self::PeerName { v6: false } => 29,
            Self::PeerName { v6: true } => 30,
        }
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    kind: ProgramKind,
}

impl Program {
    /// Loads it.
    ///
    /// # Errors
    /// With the verifier's log when that is what refused it.
    pub fn load(kind: ProgramKind, name: &str, program: &[Insn]) -> Result<Self, LoadError> {
        let fail = |source| LoadError { source, log: String::new() };
        let license = CString::from(c"MIT");
        let mut attributes = ProgLoad {
            prog_type: kind.number(),
            insn_cnt: u32::try_from(program.len()).map_err(|_| fail(io::ErrorKind::InvalidInput.into()))?,
            insns: program.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
            prog_name: object_name(name),
            prog_ifindex: 0,
            expected_attach_type: kind.attach_type(),
        };
        let refused = match open(BPF_PROG_LOAD, &mut attributes) {
            Ok(fd) => return Ok(Self { fd, kind }),
            Err(e) => e,
        };
        // Once more, to hear why.
        let mut log = vec![0_u8; LOG_SIZE];
        attributes.log_level = 1;
        attributes.log_size = LOG_SIZE as u32;
        attributes.log_buf = log.as_mut_ptr() as u64;
        match open(BPF_PROG_LOAD, &mut attributes) {
            Ok(fd) => Ok(Self { fd, kind }),
            Err(_) => {
                let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
                Err(LoadError {
                    source: refused,
                    log: String::from_utf8_lossy(&log[..end]).trim_end().to_owned(),
                })
            }
        }
    }

    /// Puts it in force in a network namespace, for as long as the link is held.
    ///
    /// # Errors
    /// As bpf(2): `E2BIG` when 64 such programs are in force there already.
    pub fn attach_netns(&self, netns: impl AsFd) -> io::Result<Link> {
        self.attach(raw(netns.as_fd()))
    }

    /// Puts it in force on an interface of the calling thread's network namespace, for as long as the link is held and the
    /// interface is there.
    ///
    /// # Errors
    /// As bpf(2): `ENODEV` when there is no such interface, `EINVAL` before Linux 6.6.
    pub fn attach_interface(&self, ifindex: u32) -> io::Result<Link> {
        self.attach(ifindex)
    }

    /// Puts it in force for the processes of a control group (version 2) and of those below it, whatever their namespaces, for
    /// as long as the link is held.
    ///
    /// # Errors
    /// As bpf(2): `EBADF` for what is no control group, `E2BIG` when 64 such programs are in force there already.
    pub fn attach_cgroup(&self, cgroup: impl AsFd) -> io::Result<Link> {
        self.attach(raw(cgroup.as_fd()))
    }

    fn attach(&self, target: u32) -> io::Result<Link> {
        let mut attributes = LinkCreate {
            prog_fd: raw(self.fd.as_fd()),
            target,
            attach_type: self.kind.attach_type(),
            flags: 0,
            // Of an interface: where among other programs. Zeroes: at the end.
            relative: 0,
            expected_revision: 0,
        };
        open(BPF_LINK_CREATE, &mut attributes).map(|fd| Link { fd })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A program in force.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// A name as the kernel takes it: at most 15 letters, digits, dots and underscores.
fn object_name(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    for (to, from) in padded[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

fn open<T>(command: i64, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the commands that come here return a descriptor that was opened just now and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `attributes` is the part of `union bpf_attr` that belongs to `command`; pointers in it are good for the call.
fn call<T>(command: i64, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the pointer and the length describe `attributes`; callers in this file fill it with pointers to memory that
    // outlives the call and is as long as its sizes say.
    let rc = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>() as libc::c_ulong)
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut() {
        assert_eq!(&object_name("swd_guard")[..10], b"swd_guard\0");
        assert_eq!(object_name("a_name_that_is_far_too_long")[15], 0);
    }

    #[test]
    fn the_verifiers_last_words_are_told() {
        let log = "0: (95) exit\nR0 !read_ok\nprocessed 1 insns (limit 1000000)\n\n";
        assert_eq!(last_words(log), " (R0 !read_ok)");
        assert_eq!(last_words(""), "");
    }
}
