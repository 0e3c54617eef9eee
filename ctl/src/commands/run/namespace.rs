//! A network namespace that lives as long as a thread of this process.

use std::{
    io,
    process::{self, Child, Command},
    thread,
};

use anyhow::{Context, anyhow};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};
use tokio::sync::{mpsc, oneshot};

/// A command to start, and where to tell how that went.
type Order = (Command, oneshot::Sender<io::Result<Child>>);

/// A new network namespace. Dropping it ends the thread that holds it; the namespace stays with the processes started
/// in it.
#[derive(Debug)]
pub(super) struct Namespace {
    thread: Pid,
    orders: mpsc::UnboundedSender<Order>,
}

impl Namespace {
    /// Makes a namespace.
    pub(super) fn new() -> anyhow::Result<Self> {
        Self::enter(|| unshare(CloneFlags::CLONE_NEWNET))
            .context("cannot start a thread")?
            .map_err(|e| match e {
                Errno::EPERM => anyhow!(
                    "cannot make a network namespace: permission denied; run as root (it takes CAP_SYS_ADMIN)"
                ),
                Errno::ENOSPC => anyhow!(
                    "cannot make a network namespace: there are too many; raise user.max_net_namespaces (sysctl)"
                ),
                e => anyhow!("cannot make a network namespace: {}", e.desc()),
            })
    }

    /// Starts the thread, which makes the namespace with `make`.
    fn enter(make: impl FnOnce() -> nix::Result<()> + Send + 'static) -> io::Result<nix::Result<Self>> {
        let (ready, made) = std::sync::mpsc::sync_channel(1);
        let (orders, mut inbox) = mpsc::unbounded_channel::<Order>();
        thread::Builder::new().name("namespace".to_owned()).spawn(move || {
            let result = make().map(|()| gettid());
            let failed = result.is_err();
            if ready.send(result).is_err() || failed {
                return;
            }
            while let Some((mut command, started)) = inbox.blocking_recv() {
                // A receiver that is gone no longer waits for the command: the process is ending.
                let _ = started.send(command.spawn());
            }
        })?;
        let made = made.recv().map_err(io::Error::other)?;
        Ok(made.map(|thread| Self { thread, orders }))
    }

    /// The namespace's file, as another process sees it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/task/{}/ns/net", process::id(), self.thread)
    }

    /// Starts a command in the namespace.
    pub(super) async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (started, result) = oneshot::channel();
        self.orders.send((command, started)).map_err(io::Error::other)?;
        result.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[tokio::test]
    async fn commands_start_from_the_thread_that_the_path_names() {
        // Any user may run this test: what sets the thread apart here is its name, not its namespace.
        let namespace = Namespace::enter(|| Ok(())).unwrap().unwrap();
        let path = namespace.path();
        assert!(Path::new(&path).exists(), "{path}");
        let task = path.strip_suffix("/ns/net").unwrap();
        assert_eq!(fs::read_to_string(format!("{task}/comm")).unwrap(), "namespace\n");
        let mut child = namespace.spawn(Command::new("true")).await.unwrap();
        assert!(child.wait().unwrap().success());
    }

    #[tokio::test]
    async fn what_cannot_be_started() {
        let namespace = Namespace::enter(|| Ok(())).unwrap().unwrap();
        let missing = namespace.spawn(Command::new("/nonexistent/command")).await.unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let folder = namespace.spawn(Command::new("/")).await.unwrap_err();
        assert_eq!(folder.kind(), io::ErrorKind::PermissionDenied);
    }

    #[tokio::test]
    async fn a_new_namespace_is_the_commands() {
        let Ok(namespace) = Namespace::new() else {
            eprintln!("SKIPPED: making a network namespace takes CAP_SYS_ADMIN");
            return;
        };
        let ours = fs::read_link("/proc/self/ns/net").unwrap();
        let made = fs::read_link(namespace.path()).unwrap();
        assert_ne!(made, ours);
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut child = namespace.spawn(command).await.unwrap();
        let of_child = fs::read_link(format!("/proc/{}/ns/net", child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(of_child.unwrap(), made);
    }

    #[test]
    fn a_namespace_that_cannot_be_made() {
        assert_eq!(Namespace::enter(|| Err(Errno::EPERM)).unwrap().unwrap_err(), Errno::EPERM);
    }
}
