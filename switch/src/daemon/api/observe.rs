//! `/v1/trace`, `/v1/trace/live`, `/v1/capture`, `/v1/mirrors`, `/metrics`: what people look through.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ctl::api;
use tokio::sync::mpsc;

use super::{Answer, Failure, Shared, change, read, read_up_to};
use crate::daemon::inspect::InspectError;
use crate::daemon::live_trace;
use crate::engine;
use crate::observe::live::LiveTrace;

/// How long traced frames gather before they are sent.
const GATHER: Duration = Duration::from_millis(20);

/// Longest body of a trace: recorded frames take two bytes for one.
const MAX_TRACE: usize = 8 << 20;

#[utoipa::path(post, path = "/v1/trace", request_body = api::TraceSpec,
    responses((status = 200, body = Vec<api::Traced>), (status = 400, body = api::Problem)))]
pub(super) async fn trace(State(daemon): State<Shared>, request: Request) -> Answer<Vec<api::Traced>> {
    let spec: api::TraceSpec = read_up_to(request, MAX_TRACE).await?;
    let traced = daemon.lock().await.trace(&spec);
    traced.map(Json).map_err(|e| Failure::invalid(e.to_string()))
}

/// A live trace that ends when its reader does.
struct Tracing {
    daemon: Shared,
    world: Arc<engine::Shared>,
    trace: Arc<LiveTrace>,
    left: Option<u64>,
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let (daemon, trace) = (Arc::clone(&self.daemon), Arc::clone(&self.trace));
        tokio::spawn(async move { daemon.lock().await.end_live_trace(&trace) });
    }
}

impl Tracing {
    /// What passed since the last call, a line each, as soon as there is something; none at the end.
    async fn next(&mut self) -> Option<Vec<u8>> {
        while self.left != Some(0) {
            let closed = self.trace.is_closed();
            let (mut walks, missed) = self.trace.take();
            if let Some(left) = &mut self.left {
                walks.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= walks.len() as u64;
            }
            if walks.is_empty() {
                if closed {
                    return None;
                }
                self.trace.news().await;
                // The reader of one frame is likely to be that of the next, too.
                tokio::time::sleep(GATHER).await;
                continue;
            }
            let mut lines = Vec::new();
            for traced in live_trace::view(&self.world.snapshot.load(), &walks, missed) {
                lines.extend(serde_json::to_vec(&traced).unwrap_or_default());
                lines.push(b'\n');
            }
            return Some(lines);
        }
        None
    }
}

#[utoipa::path(get, path = "/v1/trace/live", params(("trace" = api::LiveTraceSpec, Query)),
    responses((status = 200, description = "Frames as they pass, with what each stage decided: a LiveTraced a line", content_type = "application/jsonl", body = api::LiveTraced),
        (status = 400, body = api::Problem)))]
pub(super) async fn live_trace(
    State(daemon): State<Shared>,
    spec: Result<Query<api::LiveTraceSpec>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(spec) = spec.map_err(|e| Failure::invalid(e.body_text()))?;
    let (world, begun) = {
        let mut daemon = daemon.lock().await;
        (daemon.dataplane.shared(), daemon.begin_live_trace(&spec))
    };
    let trace = begun.map_err(|e| Failure::invalid(e.to_string()))?;
    let tracing = Tracing { daemon, world, trace, left: spec.count };
    let lines = futures_util::stream::unfold(tracing, |mut tracing| async move {
        let lines = tracing.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(lines)), tracing))
    });
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response())
}

/// A capture that ends when its client does.
struct Capturing {
    daemon: Shared,
    id: u64,
    pieces: mpsc::Receiver<Vec<u8>>,
}

impl Drop for Capturing {
    fn drop(&mut self) {
        let (daemon, id) = (Arc::clone(&self.daemon), self.id);
        tokio::spawn(async move { daemon.lock().await.end_capture(id) });
    }
}

#[utoipa::path(get, path = "/v1/capture", params(("capture" = api::CaptureSpec, Query)),
    responses((status = 200, description = "Frames as they pass: pcapng, or a line each", content_type = "application/x-pcapng",
            headers(("capture-id" = u64, description = "Its number, to end it by"))),
        (status = 400, body = api::Problem)))]
pub(super) async fn capture(
    State(daemon): State<Shared>,
    spec: Result<Query<api::CaptureSpec>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(spec) = spec.map_err(|e| Failure::invalid(e.body_text()))?;
    let begun = daemon.lock().await.begin_capture(&spec);
    let (id, pieces) = begun.map_err(|e| match e.is_ours() {
        true => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", e.to_string()),
        false => Failure::invalid(e.to_string()),
    })?;
    let capturing = Capturing { daemon, id, pieces };
    let chunks = futures_util::stream::unfold(capturing, |mut capturing| async move {
        let bytes = capturing.pieces.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), capturing))
    });
    let kind = match spec.format {
        api::CaptureFormat::Pcapng => "application/x-pcapng",
        api::CaptureFormat::Text => "text/plain; charset=utf-8",
    };
    let head = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (HeaderName::from_static(api::CAPTURE_ID), id.into()),
    ];
    Ok((head, Body::from_stream(chunks)).into_response())
}

#[utoipa::path(delete, path = "/v1/capture/{id}", params(("id" = u64, Path)),
    responses((status = 204, description = "Its client gets what was captured so far, and then the end"),
        (status = 404, body = api::Problem)))]
pub(super) async fn capture_end(
    State(daemon): State<Shared>,
    Path(id): Path<u64>,
) -> Result<StatusCode, Failure> {
    let ended = daemon.lock().await.end_capture(id);
    let none =
        || format!("no capture has the number {id}: it has ended by itself, or is of another run of swd");
    ended
        .then_some(StatusCode::NO_CONTENT)
        .ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, "not-found", none()))
}

#[utoipa::path(get, path = "/v1/mirrors", responses((status = 200, body = Vec<api::MirrorState>)))]
pub(super) async fn mirrors(State(daemon): State<Shared>) -> Json<Vec<api::MirrorState>> {
    let daemon = daemon.lock().await;
    let state = |m: &api::Mirror| api::MirrorState {
        kind: m.kind,
        from: m.from.clone(),
        to: m.to.clone(),
        ways: m.ways,
        active: daemon.mirror_is_active(m),
    };
    Json(daemon.desired.mirrors.iter().map(state).collect())
}

#[utoipa::path(post, path = "/v1/mirrors", request_body = api::Mirror,
    responses((status = 201, body = api::Mirror), (status = 400, body = api::Problem), (status = 404, body = api::Problem)))]
pub(super) async fn mirror_add(
    State(daemon): State<Shared>,
    request: Request,
) -> Result<(StatusCode, Json<api::Mirror>), Failure> {
    let mirror: api::Mirror = read(request).await?;
    let wanted = mirror.clone();
    change(&daemon, move |d| Box::pin(async move { d.add_mirror(&wanted).await })).await?;
    Ok((StatusCode::CREATED, Json(mirror)))
}

#[utoipa::path(delete, path = "/v1/mirrors/{kind}/{from}/{to}",
    params(("kind" = api::MirrorKind, Path), ("from" = String, Path), ("to" = String, Path)),
    responses((status = 204), (status = 404, body = api::Problem)))]
pub(super) async fn mirror_remove(
    State(daemon): State<Shared>,
    Path((kind, from, to)): Path<(api::MirrorKind, String, String)>,
) -> Result<StatusCode, Failure> {
    change(&daemon, move |d| Box::pin(async move { d.remove_mirror(kind, &from, &to).await })).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/metrics",
    responses((status = 200, description = "OpenMetrics", content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(daemon): State<Shared>) -> Result<Response, Failure> {
    let text = daemon.lock().await.metrics();
    let text =
        text.map_err(|_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "cannot write metrics"))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// Which namespace.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Inspect {
    /// A name below /run/netns, a path of a namespace file, or a process id.
    netns: String,
}

#[utoipa::path(get, path = "/v1/inspect", params(Inspect),
    responses((status = 200, body = api::Inspected), (status = 404, body = api::Problem)))]
pub(super) async fn inspect(
    State(daemon): State<Shared>,
    what: Result<Query<Inspect>, QueryRejection>,
) -> Answer<api::Inspected> {
    let Query(what) = what.map_err(|e| Failure::invalid(e.body_text()))?;
    let seen = daemon.lock().await.inspect(&what.netns).await;
    seen.map(Json).map_err(|e| match e {
        InspectError::NoNamespace { .. } => Failure::new(StatusCode::NOT_FOUND, "not-found", e.to_string()),
        InspectError::Link(_) => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", e.to_string()),
    })
}
