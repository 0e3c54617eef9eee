//! `/v1/handover`: a new daemon takes over from this one.
//!
//! Two steps. *Begin*: nothing is changed here from now on, so the new one can set itself up beside; frames are forwarded as
//! ever. *End*: the workers stop, everything is left for the new one, this process ends. If the second step does not come in
//! [`STILL`], or is called off, all goes on as if nothing had been.

use std::path::Path;
use std::sync::{Arc, Mutex as PlainMutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use ctl::api::{HANDOVER, Handover, HandoverSpec};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::{sleep, timeout};

use super::super::control::Daemon;
use super::{Answer, Failure, Shared, read};

/// How long the new daemon may take to set itself up: less than what systemd's watchdog waits.
const STILL: Duration = Duration::from_secs(10);
/// How long a change that is under way may take to be finished.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the last answer may take to leave before the process ends.
const FAREWELL: Duration = Duration::from_millis(50);

/// How often it is looked whether the new daemon is still there.
const LOOK: Duration = Duration::from_millis(100);

/// Who is told when everything is left behind.
type Done = oneshot::Sender<()>;

#[derive(Clone)]
pub(super) struct Successor {
    daemon: Shared,
    /// Open while this daemon stands still: by which it is told to end. Dropped: to go on.
    standing: Arc<PlainMutex<Option<oneshot::Sender<Done>>>>,
}

pub(super) fn routes(daemon: Shared) -> Router {
    let successor = Successor { daemon, standing: Arc::default() };
    Router::new()
        .route("/v1/handover", post(begin).delete(call_off))
        .route("/v1/handover/end", post(end))
        .with_state(successor)
}

impl Successor {
    fn take(&self) -> Option<oneshot::Sender<Done>> {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.take().filter(|standing| !standing.is_closed())
    }
}

#[utoipa::path(post, path = "/v1/handover", request_body = HandoverSpec,
    responses((status = 200, body = Handover), (status = 409, body = ctl::api::Problem)))]
pub(super) async fn begin(State(successor): State<Successor>, request: Request) -> Answer<Handover> {
    let spec: HandoverSpec = read(request).await?;
    let conflict = |why: String| Failure::new(StatusCode::CONFLICT, "handover", why);
    let version = env!("CARGO_PKG_VERSION");
    if spec.protocol != HANDOVER {
        return Err(conflict(format!(
            "this swd ({version}) hands over by protocol {HANDOVER}, not {}",
            spec.protocol
        )));
    }
    let guard = timeout(PATIENCE, Arc::clone(&successor.daemon).lock_owned()).await;
    let guard = guard.map_err(|_| conflict("a change, or another swd --replace, is under way".to_owned()))?;
    if !is_alive(spec.pid) {
        return Err(conflict("who asked for it has ended".to_owned()));
    }
    let (stand, told) = oneshot::channel();
    *successor.standing.lock().unwrap_or_else(PoisonError::into_inner) = Some(stand);
    tokio::spawn(stand_still(guard, told, spec.pid));
    Ok(Json(Handover { pid: std::process::id(), version: version.to_owned() }))
}

#[utoipa::path(delete, path = "/v1/handover", responses((status = 204)))]
pub(super) async fn call_off(State(successor): State<Successor>) -> StatusCode {
    drop(successor.take());
    StatusCode::NO_CONTENT
}

#[utoipa::path(post, path = "/v1/handover/end",
    responses((status = 204), (status = 409, body = ctl::api::Problem)))]
pub(super) async fn end(State(successor): State<Successor>) -> Result<StatusCode, Failure> {
    let late =
        || Failure::new(StatusCode::CONFLICT, "handover", "this swd did not wait any longer and goes on");
    let (done, left) = oneshot::channel();
    successor.take().ok_or_else(late)?.send(done).map_err(|_| late())?;
    left.await.map_err(|_| late())?;
    Ok(StatusCode::NO_CONTENT)
}

fn is_alive(process: u32) -> bool {
    Path::new("/proc").join(process.to_string()).exists()
}

/// Holds the daemon until it is told to end, or not to.
async fn stand_still(mut daemon: OwnedMutexGuard<Daemon>, told: oneshot::Receiver<Done>, successor: u32) {
    tracing::info!("another swd prepares to take over");
    let ended = async {
        while is_alive(successor) {
            sleep(LOOK).await;
        }
    };
    let told = async {
        tokio::select! {
            told = told => told.ok(),
            () = ended => None,
        }
    };
    match timeout(STILL, told).await {
        Ok(Some(done)) => {
            daemon.leave();
            let _ = done.send(());
            sleep(FAREWELL).await;
            // Nothing more is to be done, or undone, by anybody here: it is the new one's.
            std::process::exit(0);
        }
        Ok(None) => tracing::warn!("the other swd has called it off, or ended; this one goes on"),
        Err(_) => {
            tracing::warn!("the other swd did not take over in {} s; this one goes on", STILL.as_secs());
        }
    }
}
