//! `/v1/policy`, and `PATCH /v1/ports/{name}`.

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use ctl::api;

use super::{Answer, Failure, Shared, change, read};

#[utoipa::path(get, path = "/v1/policy", responses((status = 200, body = Vec<api::Rule>)))]
pub(super) async fn rules(State(daemon): State<Shared>) -> Json<Vec<api::Rule>> {
    Json(daemon.lock().await.desired.rules.clone())
}

#[utoipa::path(post, path = "/v1/policy", request_body = api::Rule,
    responses((status = 200, body = api::Rule), (status = 404, body = api::Problem), (status = 409, body = api::Problem)))]
pub(super) async fn add_rule(State(daemon): State<Shared>, request: Request) -> Answer<api::Rule> {
    let rule: api::Rule = read(request).await?;
    Ok(Json(change(&daemon, move |d| Box::pin(async move { d.add_rule(rule).await })).await?))
}

#[utoipa::path(delete, path = "/v1/policy",
    params(("from" = String, Query), ("to" = String, Query), ("from_kind" = Option<api::SideKind>, Query),
        ("to_kind" = Option<api::SideKind>, Query), ("service" = Option<String>, Query)),
    responses((status = 204), (status = 404, body = api::Problem)))]
pub(super) async fn remove_rule(
    State(daemon): State<Shared>,
    Query(rule): Query<api::Rule>,
) -> Result<StatusCode, Failure> {
    change(&daemon, move |d| Box::pin(async move { d.remove_rule(&rule).await })).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(patch, path = "/v1/ports/{name}", params(("name" = String, Path)), request_body = api::PortChange,
    responses((status = 200, body = api::Port), (status = 404, body = api::Problem), (status = 409, body = api::Problem)))]
pub(super) async fn change_port(
    State(daemon): State<Shared>,
    Path(name): Path<String>,
    request: Request,
) -> Answer<api::Port> {
    let wanted: api::PortChange = read(request).await?;
    let changed = change(&daemon, move |d| Box::pin(async move { d.change_port(&name, &wanted).await }));
    Ok(Json(changed.await?))
}
