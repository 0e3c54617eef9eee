//! The API: HTTP and JSON over a Unix socket, `/v1/…`.
//!
//! A handler takes the daemon's lock in a task of its own: a client that hangs up in the middle does not leave half of a
//! change behind.

mod connections;
mod handover;
mod observe;
mod policy;
mod server;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use ctl::api;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, OwnedMutexGuard};
use utoipa::OpenApi;

use super::control::{Daemon, Error};
use super::desired::Class;
use crate::mac::Mac;

pub(super) use server::{Access, ServerError, serve, serve_metrics, serve_router};

/// Longest request body.
const MAX_BODY: usize = 64 * 1024;
/// How long a client may take to send one.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

type Shared = Arc<Mutex<Daemon>>;

/// Everything below `/v1`.
pub(super) fn router(daemon: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/networks", get(networks).post(network_add))
        .route("/v1/networks/{name}", get(network).delete(network_remove))
        .route("/v1/ports", get(ports).post(port_add))
        .route("/v1/ports/{name}", get(port).delete(port_remove).patch(policy::change_port))
        .route("/v1/attach", post(attach))
        .route("/v1/attach/{name}", delete(detach))
        .route("/v1/fdb", get(fdb).post(fdb_add))
        .route("/v1/fdb/flush", post(fdb_flush))
        .route("/v1/fdb/{network}/{mac}", delete(fdb_remove))
        .route("/v1/publishes", get(connections::publishes).post(connections::publish))
        .route("/v1/publishes/{name}", delete(connections::unpublish))
        .route("/v1/connections", get(connections::connections))
        .route("/v1/connections/count", get(connections::count))
        .route("/v1/connections/flush", post(connections::flush))
        .route("/v1/policy", get(policy::rules).post(policy::add_rule).delete(policy::remove_rule))
        .route("/v1/trace", post(observe::trace))
        .route("/v1/trace/live", get(observe::live_trace))
        .route("/v1/capture", get(observe::capture))
        .route("/v1/capture/{id}", delete(observe::capture_end))
        .route("/v1/mirrors", get(observe::mirrors).post(observe::mirror_add))
        .route("/v1/mirrors/{kind}/{from}/{to}", delete(observe::mirror_remove))
        .route("/v1/inspect", get(observe::inspect))
        .route("/metrics", get(observe::metrics))
        .route("/v1/drops", get(drops))
        .route("/v1/stats", get(stats))
        .route("/v1/events", get(events))
        .route("/v1/openapi.json", get(openapi))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .with_state(daemon)
}

/// `/metrics` alone: for those who may know the numbers and nothing else.
fn metrics_router(daemon: Shared) -> Router {
    Router::new()
        .route("/metrics", get(observe::metrics))
        .fallback(async |_: Uri| {
            Failure::new(
                StatusCode::NOT_FOUND,
                "not-found",
                "there is /metrics only; the API is on the socket",
            )
        })
        .with_state(daemon)
}

/// An error, as a client gets it.
#[derive(Debug)]
pub(super) struct Failure(api::Problem);

impl Failure {
    fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        let detail: String = detail.into();
        Self(api::Problem {
            kind: format!("urn:swd:{kind}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.lines().collect::<Vec<_>>().join("; "),
        })
    }

    fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", detail)
    }

    fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let (status, kind) = match e.class() {
            Class::Invalid => (StatusCode::BAD_REQUEST, "invalid"),
            Class::NotFound => (StatusCode::NOT_FOUND, "not-found"),
            Class::Conflict => (StatusCode::CONFLICT, "conflict"),
            Class::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        };
        Self::new(status, kind, e.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let json = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, json, serde_json::to_vec(&self.0).unwrap_or_default()).into_response()
    }
}

type Answer<T> = Result<Json<T>, Failure>;
type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Runs a change to its end, whether or not the client waits for it.
async fn change<T: Send + 'static>(
    daemon: &Shared,
    work: impl for<'a> FnOnce(&'a mut OwnedMutexGuard<Daemon>) -> Doing<'a, T> + Send + 'static,
) -> Result<T, Failure> {
    let daemon = Arc::clone(daemon);
    let task = tokio::spawn(async move {
        let mut guard = daemon.lock_owned().await;
        work(&mut guard).await
    });
    let failed = |_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the daemon is stopping");
    Ok(task.await.map_err(failed)??)
}

/// Reads a JSON body whatever its content type says.
async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Failure> {
    read_up_to(request, MAX_BODY).await
}

/// The same, of other than ordinary length: a multiple of a KiB.
async fn read_up_to<T: DeserializeOwned>(request: Request, longest: usize) -> Result<T, Failure> {
    let body = tokio::time::timeout(BODY_PATIENCE, to_bytes(request.into_body(), longest)).await;
    let body = body
        .map_err(|_| {
            Failure::new(StatusCode::REQUEST_TIMEOUT, "invalid", "the request's body did not come in 10 s")
        })?
        .map_err(|_| {
            Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "invalid",
                format!("the request's body is cut off or longer than {} KiB", longest / 1024),
            )
        })?;
    let body: &[u8] = if body.is_empty() { b"null" } else { &body };
    serde_json::from_slice(body).map_err(|e| Failure::invalid(format!("cannot read the request: {e}")))
}

#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = api::Status)))]
async fn status(State(daemon): State<Shared>) -> Json<api::Status> {
    Json(daemon.lock().await.status())
}

#[utoipa::path(get, path = "/v1/networks", responses((status = 200, body = Vec<api::Network>)))]
async fn networks(State(daemon): State<Shared>) -> Json<Vec<api::Network>> {
    Json(daemon.lock().await.networks())
}

#[utoipa::path(get, path = "/v1/networks/{name}", params(("name" = String, Path)),
    responses((status = 200, body = api::Network), (status = 404, body = api::Problem)))]
async fn network(State(daemon): State<Shared>, Path(name): Path<String>) -> Answer<api::Network> {
    Ok(Json(daemon.lock().await.network(&name)?))
}

#[utoipa::path(post, path = "/v1/networks", request_body = api::NetworkSpec,
    responses((status = 201, body = api::Network), (status = 400, body = api::Problem), (status = 409, body = api::Problem)))]
async fn network_add(
    State(daemon): State<Shared>,
    request: Request,
) -> Result<(StatusCode, Json<api::Network>), Failure> {
    let spec: api::NetworkSpec = read(request).await?;
    let made = change(&daemon, move |d| {
        Box::pin(async move {
            d.add_network(&spec).await?;
            d.network(&spec.name)
        })
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

#[utoipa::path(delete, path = "/v1/networks/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = api::Problem), (status = 409, body = api::Problem)))]
async fn network_remove(
    State(daemon): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    change(&daemon, move |d| Box::pin(async move { d.remove_network(&name).await })).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/v1/ports", responses((status = 200, body = Vec<api::Port>)))]
async fn ports(State(daemon): State<Shared>) -> Json<Vec<api::Port>> {
    Json(daemon.lock().await.ports())
}

#[utoipa::path(get, path = "/v1/stats", responses((status = 200, body = Vec<api::Port>)))]
async fn stats(State(daemon): State<Shared>) -> Json<Vec<api::Port>> {
    Json(daemon.lock().await.ports())
}

#[utoipa::path(get, path = "/v1/ports/{name}", params(("name" = String, Path)),
    responses((status = 200, body = api::Port), (status = 404, body = api::Problem)))]
async fn port(State(daemon): State<Shared>, Path(name): Path<String>) -> Answer<api::Port> {
    Ok(Json(daemon.lock().await.port(&name)?))
}

#[utoipa::path(post, path = "/v1/ports", request_body = api::PortSpec,
    responses((status = 201, body = api::Port), (status = 400, body = api::Problem), (status = 409, body = api::Problem)))]
async fn port_add(
    State(daemon): State<Shared>,
    request: Request,
) -> Result<(StatusCode, Json<api::Port>), Failure> {
    let spec: api::PortSpec = read(request).await?;
    let made = change(&daemon, move |d| {
        Box::pin(async move {
            let name = d.add_port(&spec).await?;
            d.port(&name)
        })
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

#[utoipa::path(delete, path = "/v1/ports/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = api::Problem), (status = 409, body = api::Problem)))]
async fn port_remove(State(daemon): State<Shared>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    change(&daemon, move |d| Box::pin(async move { d.remove_port(&name).await })).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(post, path = "/v1/attach", request_body = api::AttachSpec,
    responses((status = 201, body = api::Port), (status = 400, body = api::Problem), (status = 409, body = api::Problem)))]
async fn attach(
    State(daemon): State<Shared>,
    request: Request,
) -> Result<(StatusCode, Json<api::Port>), Failure> {
    let spec: api::AttachSpec = read(request).await?;
    let made = change(&daemon, move |d| {
        Box::pin(async move {
            let name = d.attach(&spec).await?;
            d.port(&name)
        })
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

#[utoipa::path(delete, path = "/v1/attach/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = api::Problem), (status = 409, body = api::Problem)))]
async fn detach(State(daemon): State<Shared>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    change(&daemon, move |d| Box::pin(async move { d.detach(&name).await })).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/v1/fdb", responses((status = 200, body = Vec<api::FdbEntry>)))]
async fn fdb(State(daemon): State<Shared>) -> Json<Vec<api::FdbEntry>> {
    Json(daemon.lock().await.fdb())
}

#[utoipa::path(post, path = "/v1/fdb", request_body = api::FdbSpec,
    responses((status = 201, body = api::FdbEntry), (status = 400, body = api::Problem), (status = 404, body = api::Problem)))]
async fn fdb_add(
    State(daemon): State<Shared>,
    request: Request,
) -> Result<(StatusCode, Json<api::FdbEntry>), Failure> {
    let spec: api::FdbSpec = read(request).await?;
    let made =
        change(&daemon, move |d| Box::pin(async move { d.add_static(&spec.mac, &spec.port).await })).await?;
    let entry = api::FdbEntry {
        mac: made.mac.to_string(),
        port: Some(made.port),
        network: made.network,
        kind: api::FdbKind::Static,
        age_s: 0,
    };
    Ok((StatusCode::CREATED, Json(entry)))
}

#[utoipa::path(delete, path = "/v1/fdb/{network}/{mac}", params(("network" = String, Path), ("mac" = String, Path)),
    responses((status = 204), (status = 404, body = api::Problem)))]
async fn fdb_remove(
    State(daemon): State<Shared>,
    Path((network, mac)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let mac: Mac = mac.parse().map_err(|e: crate::mac::ParseMacError| Failure::invalid(e.to_string()))?;
    let missing = format!("{mac} is not known in network {network}; 'swctl fdb ls' lists what is");
    if change(&daemon, move |d| Box::pin(async move { d.remove_mac(&network, mac).await })).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Failure::new(StatusCode::NOT_FOUND, "not-found", missing))
    }
}

#[utoipa::path(post, path = "/v1/fdb/flush", request_body = api::FdbFlush,
    responses((status = 200, body = api::Flushed), (status = 404, body = api::Problem)))]
async fn fdb_flush(State(daemon): State<Shared>, request: Request) -> Answer<api::Flushed> {
    let what: api::FdbFlush = read::<Option<_>>(request).await?.unwrap_or_default();
    let flushed = daemon.lock().await.flush(what.port.as_deref(), what.network.as_deref())?;
    Ok(Json(api::Flushed { flushed: flushed as u64 }))
}

#[utoipa::path(get, path = "/v1/drops", responses((status = 200, body = Vec<api::DropCount>)))]
async fn drops(State(daemon): State<Shared>) -> Json<Vec<api::DropCount>> {
    Json(daemon.lock().await.drops())
}

#[utoipa::path(get, path = "/v1/events",
    responses((status = 200, description = "One JSON object a line, as it happens", body = api::Event, content_type = "application/jsonl")))]
async fn events(State(daemon): State<Shared>) -> Response {
    let listener = daemon.lock().await.events.listen();
    let lines = futures_util::stream::unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), listener))
    });
    ([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response()
}

/// The API's description.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "swd",
        description = "A virtual Ethernet switch and NAT router that is an ordinary process."
    ),
    paths(
        status,
        networks,
        network,
        network_add,
        network_remove,
        ports,
        port,
        port_add,
        port_remove,
        stats,
        attach,
        detach,
        fdb,
        fdb_add,
        fdb_remove,
        fdb_flush,
        connections::publishes,
        connections::publish,
        connections::unpublish,
        connections::connections,
        connections::count,
        connections::flush,
        policy::rules,
        policy::add_rule,
        policy::remove_rule,
        policy::change_port,
        observe::trace,
        observe::live_trace,
        observe::capture,
        observe::capture_end,
        observe::mirrors,
        observe::mirror_add,
        observe::mirror_remove,
        observe::inspect,
        observe::metrics,
        handover::begin,
        handover::call_off,
        handover::end,
        drops,
        events
    )
)]
struct Description;

async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}

async fn not_found(uri: Uri) -> Failure {
    let path: String = uri.path().chars().take(100).collect();
    let detail = format!("there is nothing at {path}; /v1/openapi.json describes what there is");
    Failure::new(StatusCode::NOT_FOUND, "not-found", detail)
}

async fn not_allowed(method: Method, uri: Uri) -> Failure {
    let detail = format!("{method} is not possible on {}; /v1/openapi.json describes what is", uri.path());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "invalid", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_one_line_and_typed() {
        let failure = Failure::invalid("two\nlines");
        assert_eq!(failure.0.detail, "two; lines");
        let json = serde_json::to_value(&failure.0).unwrap();
        assert_eq!(json["type"], "urn:swd:invalid");
        assert_eq!(json["title"], "Bad Request");
        assert_eq!(failure.into_response().headers()[header::CONTENT_TYPE], "application/problem+json");
    }

    #[test]
    fn the_description_names_every_route() {
        let text = serde_json::to_string(&Description::openapi()).unwrap();
        for path in [
            "/v1/status",
            "/v1/networks/{name}",
            "/v1/attach/{name}",
            "/v1/fdb/{network}/{mac}",
            "/v1/events",
        ] {
            assert!(text.contains(&format!("\"{path}\"")), "{path}");
        }
        assert!(text.contains("\"NetworkSpec\"") && text.contains("\"Problem\""));
    }
}
