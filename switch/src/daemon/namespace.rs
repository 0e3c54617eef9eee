//! The switch namespace: found or made, pinned, quiet, and held by the keeper.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use super::keeper::Keeper;
use crate::sys::netns::NetNs;

/// Where iproute2 looks for namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// Why there is no switch namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel refused one.
    #[error("cannot make the switch namespace: {0}; swd needs CAP_SYS_ADMIN")]
    Make(io::Error),
    /// It cannot be pinned.
    #[error("cannot pin the switch namespace as {path}: {source}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another swd serves it.
    #[error(
        "cannot start instance {name}: another swd{} serves the switch namespace {pin}; stop it, or choose another --name",
        .pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    Taken {
        /// The instance.
        name: String,
        /// The pin.
        pin: PathBuf,
        /// The other, if it can be told.
        pid: Option<i32>,
    },
    /// It is the host's.
    #[error(
        "{0} is the namespace that swd runs in, so it cannot be the switch namespace; choose another --name"
    )]
    IsHost(PathBuf),
    /// No keeper.
    #[error("cannot start the process that keeps the switch namespace ({path}): {source}")]
    Keeper {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What was found or made.
#[derive(Debug)]
pub struct Place {
    /// The switch namespace.
    pub netns: NetNs,
    /// The claim on it, if it was to be claimed.
    pub claim: Option<UnixListener>,
    /// Who holds it.
    pub keeper: Keeper,
    /// The namespace was made just now: whatever was in an earlier one is lost.
    pub netns_is_new: bool,
    /// The keeper was started just now: an earlier one's TAP queues are lost.
    pub keeper_is_new: bool,
}

/// The switch namespace of an instance: that of the pin, else that of a running keeper, else a new one.
///
/// `take` claims it. Who takes over from another daemon does so when that one has ended.
///
/// # Errors
/// When none can be had.
pub fn open(name: &str, runtime_dir: &Path, host: &NetNs, take: bool) -> Result<Place, NamespaceError> {
    let pin = Path::new(NETNS_DIR).join(name);
    let socket = keeper_socket(name, runtime_dir);
    let pin_error = |source| NamespaceError::Pin { path: pin.clone(), source };
    let keeper = Keeper::connect(&socket);
    let pinned = NetNs::open(&pin).ok();
    let kept = keeper.as_ref().and_then(|k| k.netns().ok());
    let netns_is_new = pinned.is_none() && kept.is_none();
    let (netns, held) = match (pinned, kept) {
        (Some(pinned), Some(kept)) => {
            let same = matches!((pinned.id(), kept.id()), (Ok(a), Ok(b)) if a == b);
            (pinned, same)
        }
        (Some(pinned), None) => (pinned, false),
        (None, Some(kept)) => {
            // The pin was made in a mount namespace that has ended.
            kept.pin(&pin).map_err(pin_error)?;
            (kept, true)
        }
        (None, None) => {
            let new = NetNs::make().map_err(NamespaceError::Make)?;
            new.pin(&pin).map_err(pin_error)?;
            (new, false)
        }
    };
    if matches!((netns.id(), host.id()), (Ok(a), Ok(b)) if a == b) {
        return Err(NamespaceError::IsHost(pin));
    }
    let claim = take.then(|| claim(name, &netns)).transpose()?;
    silence(&netns).map_err(NamespaceError::Make)?;
    let keeper = match (keeper, held) {
        (Some(keeper), true) => keeper,
        (other, _) => {
            if let Some(stale) = other {
                stale.end();
            }
            start_keeper(name, runtime_dir, &netns)?
        }
    };
    Ok(Place { netns, claim, keeper, netns_is_new, keeper_is_new: !held })
}

/// Name of the abstract socket by which a daemon claims its switch namespace. Abstract names are a namespace's own, and
/// free again when their owner has died; a lock file would be missed by a daemon with another runtime folder.
const CLAIM: &[u8] = b"swd";

/// Claims a switch namespace for this daemon. The claim ends with the process, however that ends.
///
/// # Errors
/// When another swd has it.
pub fn claim(name: &str, netns: &NetNs) -> Result<UnixListener, NamespaceError> {
    let bind = || {
        let _inside = netns.enter()?;
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(CLAIM)?)
    };
    bind().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => {
            let pin = Path::new(NETNS_DIR).join(name);
            NamespaceError::Taken { name: name.to_owned(), pin, pid: claimant(netns) }
        }
        _ => NamespaceError::Make(source),
    })
}

/// The process that has claimed a switch namespace.
fn claimant(netns: &NetNs) -> Option<i32> {
    let _inside = netns.enter().ok()?;
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(CLAIM).ok()?).ok()?;
    getsockopt(&stream, PeerCredentials).ok().map(|peer| peer.pid())
}

/// Where the keeper of an instance listens.
pub fn keeper_socket(name: &str, runtime_dir: &Path) -> PathBuf {
    runtime_dir.join(format!("{name}.keeper"))
}

/// Starts a keeper for the switch namespace.
///
/// # Errors
/// When it does not start.
pub fn start_keeper(name: &str, runtime_dir: &Path, netns: &NetNs) -> Result<Keeper, NamespaceError> {
    let path = keeper_socket(name, runtime_dir);
    Keeper::start(&path, &Path::new(NETNS_DIR).join(name), netns)
        .map_err(|source| NamespaceError::Keeper { path, source })
}

/// Turns IPv6 off inside: interfaces that come get no address, and the stack there says nothing.
fn silence(netns: &NetNs) -> io::Result<()> {
    let _inside = netns.enter()?;
    for scope in ["all", "default"] {
        // These files are the calling thread's namespace's own. Without IPv6 in the kernel there are none.
        match std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1") {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// The instance, other than `own`, that has an interface of this name in its switch namespace.
pub async fn instance_with(ifname: &str, own: &str) -> Option<String> {
    for entry in std::fs::read_dir(NETNS_DIR).ok()?.flatten() {
        let name = entry.file_name().into_string().ok()?;
        if name == own {
            continue;
        }
        let Ok(netns) = NetNs::open(&entry.path()) else { continue };
        let Ok(conn) = super::links::Conn::within(&netns) else { continue };
        let link = conn.link(ifname).await;
        conn.close().await;
        let alias = link.ok().flatten().and_then(|l| l.alias);
        if let Some(instance) = alias.as_deref().and_then(|a| a.strip_prefix("swd:")) {
            return instance.split(':').next().map(str::to_owned);
        }
    }
    None
}
