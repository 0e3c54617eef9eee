//! The socket: Docker posts JSON to `/Interface.Method`, and gets JSON back, which says why where it failed.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::driver::Refusal;
use super::wire::{
    CreateEndpoint, CreateNetwork, OfAddress, OfEndpoint, OfNetwork, Program, ReleasePool, RequestPool,
};
use crate::daemon::api::{Access, ServerError, serve_router};
use crate::daemon::control::Daemon;

/// Longest request: every port of two protocols is mapped, twice.
const MAX_BODY: usize = 64 << 20;
/// What Docker's plugin protocol calls its JSON.
const JSON: &str = "application/vnd.docker.plugins.v1.1+json";

type Shared = Arc<Mutex<Daemon>>;
type Doing<'a, A> = Pin<Box<dyn Future<Output = Result<A, Refusal>> + Send + 'a>>;

/// Serves Docker at `path`, for root only.
///
/// # Errors
/// When there is no socket to be had.
pub(in crate::daemon) fn serve(daemon: Shared, path: &Path) -> Result<(), ServerError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|source| ServerError::Listen { path: path.to_owned(), source })?;
    }
    let methods = router(daemon);
    serve_router(methods.clone(), methods, path, Access::NOBODY)
}

/// The handler of a method: `handler!(Request, |daemon, request| answer)`.
macro_rules! handler {
    ($request:ty, |$daemon:ident, $asked:ident| $work:expr) => {
        post(async |State(daemon): State<Shared>, request: Request| {
            carry_out::<$request, _>(daemon, request, |$daemon, $asked| Box::pin(async move { $work })).await
        })
    };
}

fn router(daemon: Shared) -> Router {
    Router::new()
        .route("/Plugin.Activate", constant(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })))
        .route(
            "/NetworkDriver.GetCapabilities",
            constant(json!({ "Scope": "local", "ConnectivityScope": "local" })),
        )
        .route("/NetworkDriver.CreateNetwork", handler!(CreateNetwork, |d, r| d.docker_add_network(r).await))
        .route("/NetworkDriver.DeleteNetwork", handler!(OfNetwork, |d, r| d.docker_remove_network(r).await))
        .route(
            "/NetworkDriver.CreateEndpoint",
            handler!(CreateEndpoint, |d, r| d.docker_add_endpoint(r).await),
        )
        .route(
            "/NetworkDriver.DeleteEndpoint",
            handler!(OfEndpoint, |d, r| d.docker_remove_endpoint(r).await),
        )
        .route("/NetworkDriver.EndpointOperInfo", handler!(OfEndpoint, |d, r| d.docker_endpoint_info(r)))
        .route("/NetworkDriver.Join", handler!(OfEndpoint, |d, r| d.docker_join(r)))
        .route("/NetworkDriver.Leave", handler!(OfEndpoint, |d, r| d.docker_unpublish(r)))
        .route("/NetworkDriver.ProgramExternalConnectivity", handler!(Program, |d, r| d.docker_publish(r)))
        .route(
            "/NetworkDriver.RevokeExternalConnectivity",
            handler!(OfEndpoint, |d, r| d.docker_unpublish(r)),
        )
        .route("/NetworkDriver.DiscoverNew", constant(json!({})))
        .route("/NetworkDriver.DiscoverDelete", constant(json!({})))
        .route(
            "/IpamDriver.GetCapabilities",
            constant(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false })),
        )
        .route(
            "/IpamDriver.GetDefaultAddressSpaces",
            constant(json!({ "LocalDefaultAddressSpace": "swd", "GlobalDefaultAddressSpace": "swd" })),
        )
        .route("/IpamDriver.RequestPool", handler!(RequestPool, |d, r| d.docker_request_pool(r).await))
        .route("/IpamDriver.ReleasePool", handler!(ReleasePool, |d, r| d.docker_release_pool(r)))
        .route("/IpamDriver.RequestAddress", handler!(OfAddress, |d, r| d.docker_request_address(r)))
        .route("/IpamDriver.ReleaseAddress", handler!(OfAddress, |d, r| d.docker_release_address(r)))
        // A method that came later: Docker does without it.
        .fallback(async |_: Request| failed(StatusCode::NOT_FOUND, "swd does not know this method"))
        .with_state(daemon)
}

/// An answer that is always the same.
fn constant(answer: Value) -> axum::routing::MethodRouter<Shared> {
    post(async move || answered(&answer))
}

/// Reads the request and does what it says, to its end, whether or not Docker waits for it.
async fn carry_out<Q, A>(
    daemon: Shared,
    request: Request,
    work: impl for<'a> FnOnce(&'a mut Daemon, &'a Q) -> Doing<'a, A> + Send + 'static,
) -> Response
where
    Q: DeserializeOwned + Send + Sync + 'static,
    A: Serialize + Send + 'static,
{
    let Ok(body) = to_bytes(request.into_body(), MAX_BODY).await else {
        return failed(StatusCode::PAYLOAD_TOO_LARGE, "the request is cut off or too long");
    };
    let asked: Q = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        // What Docker sends when it tries again after it did not reach swd.
        Err(_) if body.is_empty() => {
            return failed(StatusCode::BAD_REQUEST, "Docker's request is empty; try again");
        }
        Err(e) => return failed(StatusCode::BAD_REQUEST, &format!("cannot read the request: {e}")),
    };
    let task = tokio::spawn(async move {
        let mut daemon = daemon.lock_owned().await;
        work(&mut daemon, &asked).await
    });
    match task.await {
        Ok(Ok(answer)) => answered(&answer),
        Ok(Err(e)) => {
            tracing::warn!("Docker's request failed: {e}");
            failed(StatusCode::OK, &e.to_string())
        }
        Err(_) => failed(StatusCode::INTERNAL_SERVER_ERROR, "swd is stopping"),
    }
}

fn answered(answer: &impl Serialize) -> Response {
    // Of a method that answers nothing, Docker wants an empty object.
    let value = match serde_json::to_value(answer) {
        Ok(Value::Null) | Err(_) => json!({}),
        Ok(value) => value,
    };
    ([(header::CONTENT_TYPE, JSON)], value.to_string()).into_response()
}

fn failed(status: StatusCode, why: &str) -> Response {
    let why = why.lines().collect::<Vec<_>>().join("; ");
    // The IPAM protocol calls it by another name.
    let both = json!({ "Err": why, "Error": why });
    (status, [(header::CONTENT_TYPE, JSON)], both.to_string()).into_response()
}
