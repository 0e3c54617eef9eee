//! Network namespaces: open, enter for a while, make and pin one.
//!
//! `setns(2)` and `unshare(2)` change the calling *thread*. The guard restores the thread's namespace when dropped; the
//! control plane runs on one thread, so between entering and leaving no `.await` may stand.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// asm-generic/socket.h; libc has it for few machines.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

/// Which namespace it is: device and inode of its file in nsfs, unique while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetNsId {
    /// Device of nsfs.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

impl NetNs {
    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace behind a file: a pin below /run/netns, or /proc/PID/ns/net.
    ///
    /// A file that is no network namespace is refused with `InvalidInput`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::try_from(OwnedFd::from(File::open(path)?))
    }

    /// A new, empty namespace. It lives as long as somebody holds it.
    ///
    /// # Errors
    /// As unshare(2): `EPERM` without `CAP_SYS_ADMIN`.
    pub fn make() -> io::Result<Self> {
        // Only a thread can be moved into a new namespace: one for this and nothing else.
        let maker = std::thread::Builder::new().name("netns".into()).spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })?;
        maker.join().map_err(|_| io::Error::other("the thread that makes a namespace panicked"))?
    }

    /// Makes the namespace visible as `path`, as `ip netns add` does: until the file is removed, it lives.
    ///
    /// The folder becomes a shared mount first, so that the pin is seen in every mount namespace that follows this one.
    ///
    /// # Errors
    /// As mount(2).
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        std::fs::create_dir_all(folder)?;
        share(folder)?;
        File::options().create(true).append(true).open(path)?;
        let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    }

    /// The same namespace, held once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// Which namespace it is.
    pub fn id(&self) -> io::Result<NetNsId> {
        let meta = self.file.metadata()?;
        Ok(NetNsId { dev: meta.dev(), ino: meta.ino() })
    }

    /// The number by which BPF programs know it.
    ///
    /// # Errors
    /// As socket(2) and getsockopt(2): `ENOPROTOOPT` before Linux 5.14.
    pub fn cookie(&self) -> io::Result<u64> {
        let _inside = self.enter()?;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut cookie = 0_u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: `cookie` has room for `length` bytes.
        let rc = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                std::ptr::from_mut(&mut cookie).cast(),
                &raw mut length,
            )
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
    }

    /// Runs `f` with the calling thread inside the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter(&self) -> io::Result<Entered> {
        let back = Self::current()?;
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        Ok(Entered { back, _not_send: PhantomData })
    }

    /// Moves the calling thread into the namespace for good.
    pub fn enter_for_good(&self) -> io::Result<()> {
        Ok(setns(&self.file, CloneFlags::CLONE_NEWNET)?)
    }
}

/// Makes mounts below a folder visible in the mount namespaces that follow this one (iproute2 does the same).
fn share(folder: &Path) -> io::Result<()> {
    let none = None::<&str>;
    let shared = || mount(none, folder, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match shared() {
        // Not a mount yet: becomes one, of itself.
        Err(nix::errno::Errno::EINVAL) => {
            mount(Some(folder), folder, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
            Ok(shared()?)
        }
        other => Ok(other?),
    }
}

impl TryFrom<OwnedFd> for NetNs {
    type Error = io::Error;

    fn try_from(fd: OwnedFd) -> io::Result<Self> {
        let ns = Self { file: fd.into() };
        // nsfs files of other kinds are found out by setns; ordinary files by the file system's magic number.
        let stat = nix::sys::statfs::fstatfs(&ns.file)?;
        if stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC {
            Ok(ns)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "not a namespace"))
        }
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The calling thread is inside a namespace until this is dropped.
#[derive(Debug)]
#[must_use = "the thread leaves the namespace when this is dropped"]
pub struct Entered {
    back: NetNs,
    // The guard is for the thread that made it.
    _not_send: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(e) = self.back.enter_for_good() {
            // Going on would let this thread act in the wrong namespace: on the host with a container's orders.
            tracing::error!("cannot return to the host's network namespace: {e}");
            std::process::abort();
        }
    }
}
