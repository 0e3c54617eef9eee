//! `/v1/publishes`, `/v1/connections`.

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use ctl::api;

use super::{Answer, Failure, Shared, change, read};

#[utoipa::path(get, path = "/v1/publishes", responses((status = 200, body = Vec<api::Published>)))]
pub(super) async fn publishes(State(daemon): State<Shared>) -> Json<Vec<api::Published>> {
    Json(daemon.lock().await.published())
}

#[utoipa::path(post, path = "/v1/publishes", request_body = api::PublishSpec,
    responses((status = 201, body = api::Published), (status = 400, body = api::Problem), (status = 409, body = api::Problem)))]
pub(super) async fn publish(
    State(daemon): State<Shared>,
    request: Request,
) -> Result<(StatusCode, Json<api::Published>), Failure> {
    let spec: api::PublishSpec = read(request).await?;
    let made = change(&daemon, move |d| Box::pin(async move { d.publish_ports(&spec) }));
    Ok((StatusCode::CREATED, Json(made.await?)))
}

#[utoipa::path(delete, path = "/v1/publishes/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = api::Problem)))]
pub(super) async fn unpublish(
    State(daemon): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    change(&daemon, move |d| Box::pin(async move { d.unpublish_ports(&name) })).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/v1/connections", params(("filter" = api::ConnectionFilter, Query)),
    responses((status = 200, body = Vec<api::Connection>), (status = 404, body = api::Problem)))]
pub(super) async fn connections(
    State(daemon): State<Shared>,
    Query(filter): Query<api::ConnectionFilter>,
) -> Answer<Vec<api::Connection>> {
    Ok(Json(daemon.lock().await.connections(&filter)?))
}

#[utoipa::path(get, path = "/v1/connections/count", params(("filter" = api::ConnectionFilter, Query)),
    responses((status = 200, body = api::Count), (status = 404, body = api::Problem)))]
pub(super) async fn count(
    State(daemon): State<Shared>,
    Query(filter): Query<api::ConnectionFilter>,
) -> Answer<api::Count> {
    Ok(Json(api::Count { connections: daemon.lock().await.count_connections(&filter)? }))
}

#[utoipa::path(post, path = "/v1/connections/flush", request_body = api::ConnectionFilter,
    responses((status = 200, body = api::Flushed), (status = 404, body = api::Problem)))]
pub(super) async fn flush(State(daemon): State<Shared>, request: Request) -> Answer<api::Flushed> {
    let filter: api::ConnectionFilter = read::<Option<_>>(request).await?.unwrap_or_default();
    Ok(Json(api::Flushed { flushed: daemon.lock().await.flush_connections(&filter)? }))
}
