//! Sockets that the service manager listens on for the daemon: sd_listen_fds(3).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// They are taken once: who asks again would own them a second time.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The listening sockets that were passed to this process, at its first call; none at later ones.
///
/// # Errors
/// When the environment names descriptors that are not there.
pub fn take() -> io::Result<Vec<OwnedFd>> {
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds()?;
    // SAFETY: `listen_fds` has found them open; by the protocol they are this process's from its start, nothing else has
    // opened these numbers, and they are taken once.
    Ok(passed.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

/// The one among them that listens at `path`. The others are closed.
pub fn listener_at(passed: Vec<OwnedFd>, path: &Path) -> Option<UnixListener> {
    let at = |listener: &UnixListener| {
        let address = listener.local_addr();
        address.is_ok_and(|address| address.as_pathname() == Some(path))
    };
    passed.into_iter().map(UnixListener::from).find(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_is_found_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        let passed = || {
            let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let _ = std::fs::remove_file(&two);
            vec![OwnedFd::from(other), UnixListener::bind(&two).unwrap().into()]
        };
        assert!(listener_at(passed(), &one).is_none());
        let found = listener_at(passed(), &two).unwrap();
        assert_eq!(found.local_addr().unwrap().as_pathname(), Some(two.as_path()));
        assert!(take().unwrap().is_empty(), "this process was passed none");
    }
}
