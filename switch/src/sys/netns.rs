//! Network namespaces: open, enter for a while, make and pin one.
//!
//! `setns(2)` and `unshare(2)` change the calling *thread*. The guard restores the thread's namespace when dropped; the
//! control plane runs on one thread, so between entering and leaving no `.await` may stand.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

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
        let file = File::open(path)?;
        let ns = Self { file };
        // nsfs files of other kinds are found out by setns; ordinary files by the file system's magic number.
        let stat = nix::sys::statfs::fstatfs(&ns.file)?;
        if stat.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a namespace"));
        }
        Ok(ns)
    }

    /// Which namespace it is.
    pub fn id(&self) -> io::Result<NetNsId> {
        let meta = self.file.metadata()?;
        Ok(NetNsId { dev: meta.dev(), ino: meta.ino() })
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
