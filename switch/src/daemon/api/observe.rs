//! `/v1/trace`: what people look through.

use axum::Json;
use axum::extract::{Request, State};
use ctl::api;

use super::{Answer, Failure, Shared, read_up_to};

/// Longest body of a trace: recorded frames take two bytes for one.
const MAX_TRACE: usize = 8 << 20;

#[utoipa::path(post, path = "/v1/trace", request_body = api::TraceSpec,
    responses((status = 200, body = Vec<api::Traced>), (status = 400, body = api::Problem)))]
pub(super) async fn trace(State(daemon): State<Shared>, request: Request) -> Answer<Vec<api::Traced>> {
    let spec: api::TraceSpec = read_up_to(request, MAX_TRACE).await?;
    let traced = daemon.lock().await.trace(&spec);
    traced.map(Json).map_err(|e| Failure::invalid(e.to_string()))
}
