//! The socket: who may connect, how many at once, and how long they may take.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::unistd::{Gid, Group, Uid, User, chown};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::{Failure, Shared};

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// Readers of metrics at once.
const MAX_SCRAPERS: usize = 16;
/// How long a connection of theirs may last. They come again.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a client may take to send a request's head, and to be silent between requests.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);

/// Who may use the API besides root and the daemon's own user.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Access {
    group: Option<Gid>,
}

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ServerError {
    /// The group is not known.
    #[error(
        "cannot give group '{0}' access to the API: there is no such group; create it with 'groupadd', or correct api.group in the configuration"
    )]
    NoGroup(String),
    /// No address for metrics.
    #[error("cannot listen on {address} for metrics: {source}; correct metrics.listen in the configuration")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No socket.
    #[error("cannot listen on {path}: {source}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Access {
    /// From the name of a group; empty: no group.
    pub(in super::super) fn of(group: &str) -> Result<Self, ServerError> {
        if group.is_empty() {
            return Ok(Self { group: None });
        }
        match Group::from_name(group) {
            Ok(Some(found)) => Ok(Self { group: Some(found.gid) }),
            _ => Err(ServerError::NoGroup(group.to_owned())),
        }
    }

    fn allows(self, peer: &UCred) -> bool {
        if is_own(peer) {
            return true;
        }
        let Some(group) = self.group else { return false };
        if peer.gid() == group.as_raw() {
            return true;
        }
        // The credentials carry one group; the others are in the user database.
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(peer.uid())) else { return false };
        let Ok(name) = std::ffi::CString::new(user.name) else { return false };
        nix::unistd::getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
    }
}

/// Serves the API at `path`, in place of a socket that an earlier daemon left.
///
/// # Errors
/// When there is no socket to be had.
pub(in super::super) fn serve(daemon: Shared, path: &Path, access: Access) -> Result<(), ServerError> {
    let listener =
        listen(path, access).map_err(|source| ServerError::Listen { path: path.to_owned(), source })?;
    let router = super::router(Arc::clone(&daemon));
    // Whoever may start a daemon may replace one.
    let own = router.clone().merge(super::handover::routes(daemon));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let router =
                        if stream.peer_cred().is_ok_and(|peer| is_own(&peer)) { &own } else { &router };
                    let router = router.clone();
                    tokio::spawn(async move {
                        converse(stream, router, access).await;
                        drop(place);
                    });
                }
                Err(e) => {
                    // Out of descriptors, say: waiting is better than spinning.
                    tracing::warn!("cannot accept a client: {e}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

/// Root, or the daemon's own user.
fn is_own(peer: &UCred) -> bool {
    peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw()
}

fn listen(path: &Path, access: Access) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Nobody else gets in between binding and setting mode and group.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener?;
    if access.group.is_some() {
        chown(path, None, access.group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// One client, until it hangs up or is silent for too long.
async fn converse(stream: UnixStream, router: Router, access: Access) {
    let allowed = stream.peer_cred().is_ok_and(|peer| access.allows(&peer));
    let router = if allowed { router } else { Router::new().fallback(refuse) };
    speak(stream, router).await;
}

/// One client's requests.
async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(e) = connection.await {
        tracing::debug!("a client's connection ended: {e}");
    }
}

/// Serves `/metrics` and nothing else over TCP.
///
/// # Errors
/// When the address cannot be had.
pub(in super::super) async fn serve_metrics(daemon: Shared, address: SocketAddr) -> Result<(), ServerError> {
    let listener =
        TcpListener::bind(address).await.map_err(|source| ServerError::Metrics { address, source })?;
    let router = super::metrics_router(daemon);
    let places = Arc::new(Semaphore::new(MAX_SCRAPERS));
    tokio::spawn(async move {
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let router = router.clone();
                    tokio::spawn(async move {
                        // One that stops reading does not keep its place.
                        let _ = tokio::time::timeout(SCRAPE_PATIENCE, speak(stream, router)).await;
                        drop(place);
                    });
                }
                Err(e) => {
                    tracing::warn!("cannot accept a reader of metrics: {e}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

async fn refuse(_: Request) -> impl IntoResponse {
    Failure::forbidden("only root and members of the group api.group of swd's configuration may do this")
}
