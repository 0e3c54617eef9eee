//! The socket: who may connect, how many at once, and how long they may take.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as UnixSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::unistd::{Gid, Group, Uid, User, chown};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, UnixListener};
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

/// Strangers that are told that they may not, at once. More are hung up on.
const MAX_STRANGERS: usize = 16;

/// Who may use the API besides root and the daemon's own user.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Access {
    group: Option<Gid>,
    readers: Option<Gid>,
}

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Everything.
    Admin,
    /// See what is there, but not what is sent.
    Reader,
    /// Nothing.
    Stranger,
}

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ServerError {
    /// The group is not known.
    #[error(
        "cannot give group '{group}' access to the API: there is no such group; create it with 'groupadd', or correct {key} in the configuration"
    )]
    NoGroup {
        /// Which.
        group: String,
        /// What names it.
        key: &'static str,
    },
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
    /// Nobody besides.
    pub(in super::super) const NOBODY: Self = Self { group: None, readers: None };

    /// From the names of groups; empty: no group.
    pub(in super::super) fn of(config: &ctl::config::Api) -> Result<Self, ServerError> {
        let gid = |group: &str, key| match Group::from_name(group) {
            _ if group.is_empty() => Ok(None),
            Ok(Some(found)) => Ok(Some(found.gid)),
            _ => Err(ServerError::NoGroup { group: group.to_owned(), key }),
        };
        Ok(Self { group: gid(&config.group, "api.group")?, readers: gid(&config.readers, "api.readers")? })
    }

    fn role(self, peer: &UCred) -> Role {
        if is_own(peer) {
            return Role::Admin;
        }
        // The credentials carry one group; the others are in the user database.
        let others = || {
            let user = User::from_uid(Uid::from_raw(peer.uid())).ok()??;
            nix::unistd::getgrouplist(&std::ffi::CString::new(user.name).ok()?, user.gid).ok()
        };
        let all = if (self.group, self.readers) == (None, None) { None } else { others() };
        let in_group = |wanted: Option<Gid>| {
            wanted
                .is_some_and(|g| peer.gid() == g.as_raw() || all.as_ref().is_some_and(|all| all.contains(&g)))
        };
        match (in_group(self.group), in_group(self.readers)) {
            (true, _) => Role::Admin,
            (false, true) => Role::Reader,
            (false, false) => Role::Stranger,
        }
    }
}

/// Serves the API at `path`: by the socket that was passed for it, else in place of one that an earlier daemon left.
///
/// # Errors
/// When there is no socket to be had.
pub(in super::super) fn serve(
    daemon: Shared,
    path: &Path,
    access: Access,
    passed: Option<UnixSocket>,
) -> Result<(), ServerError> {
    let all = super::router(Arc::clone(&daemon));
    // Whoever may start a daemon may replace one.
    let own = all.clone().merge(super::handover::routes(daemon));
    let listener = match passed {
        Some(passed) => adopt(passed, path, access),
        None => listen(path, access),
    };
    serve_at(all, own, listener, path, access)
}

/// Serves something else in the same way: `own` to root and the daemon's own user, `all` to the group, and what of it is only
/// looked at to readers.
///
/// # Errors
/// When there is no socket to be had.
pub(in super::super) fn serve_router(
    all: Router,
    own: Router,
    path: &Path,
    access: Access,
) -> Result<(), ServerError> {
    serve_at(all, own, listen(path, access), path, access)
}

fn serve_at(
    all: Router,
    own: Router,
    listener: io::Result<UnixListener>,
    path: &Path,
    access: Access,
) -> Result<(), ServerError> {
    let listener = listener.map_err(|source| ServerError::Listen { path: path.to_owned(), source })?;
    let read = all.clone().layer(axum::middleware::from_fn(read_only));
    let none = Router::new().fallback(refuse);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
    tokio::spawn(async move {
        while let Ok(mut place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let peer = stream.peer_cred();
                    let role = peer.as_ref().map_or(Role::Stranger, |peer| access.role(peer));
                    let router = match role {
                        Role::Admin if peer.is_ok_and(|peer| is_own(&peer)) => own.clone(),
                        Role::Admin => all.clone(),
                        Role::Reader => read.clone(),
                        Role::Stranger => none.clone(),
                    };
                    // They do not take the places of those who may.
                    if role == Role::Stranger {
                        let Ok(other) = Arc::clone(&strangers).try_acquire_owned() else { continue };
                        place = other;
                    }
                    tokio::spawn(async move {
                        speak(stream, router).await;
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
    admit(path, access)?;
    Ok(listener)
}

/// Takes over a socket that the service manager has made, and will go on listening on when this daemon has ended.
fn adopt(passed: UnixSocket, path: &Path, access: Access) -> io::Result<UnixListener> {
    admit(path, access)?;
    passed.set_nonblocking(true)?;
    UnixListener::from_std(passed)
}

/// Sets who may connect.
fn admit(path: &Path, access: Access) -> io::Result<()> {
    if access.group.is_some() {
        chown(path, None, access.group)?;
    }
    // A file has one group: where there are two, anybody comes in, and is asked who it is.
    let mode = if access.readers.is_some() { 0o666 } else { 0o660 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
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

/// Lets readers read: what is there, not what goes by or what a container has in its files.
async fn read_only(request: Request, next: axum::middleware::Next) -> Response {
    let path = request.uri().path();
    let shows_more = ["/v1/capture", "/v1/inspect", "/v1/trace"].iter().any(|p| path.starts_with(p));
    if request.method() == Method::GET && !shows_more {
        return next.run(request).await;
    }
    let why = "members of the group api.readers of swd's configuration may only look; api.group may do this";
    Failure::forbidden(why).into_response()
}

async fn refuse(_: Request) -> impl IntoResponse {
    Failure::forbidden("only root and members of the group api.group of swd's configuration may do this")
}
