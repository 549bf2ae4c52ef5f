//! Environments and what is done to them.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use offshoot_model::view::{CloneRequest, CreateRequest, EnvironmentView, PlanView, RenameRequest};
use offshoot_model::{Hold, Manifest, Operation};
use offshoot_operations::Request as Change;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use crate::answer::{Accepted, ApiError, Json, Path, Query};

/// All environments, by name.
#[utoipa::path(
    get, path = "/environments", tag = "environments", operation_id = "list_environments",
    responses((status = 200, body = Vec<EnvironmentView>), ApiError),
)]
pub(super) async fn list(
    State(api): State<Api>,
) -> Result<axum::Json<Vec<EnvironmentView>>, ApiError> {
    Ok(axum::Json(api.platform.environments().await?))
}

/// Creates an environment and starts it.
#[utoipa::path(
    post, path = "/environments", tag = "environments", operation_id = "create_environment",
    request_body = CreateRequest,
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn create(
    State(api): State<Api>,
    Json(request): Json<CreateRequest>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::Create(request)).await
}

/// What creating an environment would do. Nothing is done.
#[utoipa::path(
    post, path = "/plan", tag = "environments", operation_id = "plan_environment",
    request_body = CreateRequest,
    responses((status = 200, body = PlanView), ApiError),
)]
pub(super) async fn plan(
    State(api): State<Api>,
    Json(request): Json<CreateRequest>,
) -> Result<axum::Json<PlanView>, ApiError> {
    Ok(axum::Json(
        api.platform
            .plan_create(&request.name, &request.manifest)
            .await?,
    ))
}

/// One environment.
#[utoipa::path(
    get, path = "/environments/{environment}", tag = "environments", operation_id = "show_environment",
    params(("environment" = String, Path, description = "Name or id")),
    responses((status = 200, body = EnvironmentView), ApiError),
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path(environment): Path<String>,
) -> Result<axum::Json<EnvironmentView>, ApiError> {
    Ok(axum::Json(api.platform.environment(&environment).await?))
}

/// Removes an environment with its data, in whatever state it is.
#[utoipa::path(
    delete, path = "/environments/{environment}", tag = "environments", operation_id = "remove_environment",
    params(("environment" = String, Path, description = "Name or id")),
    responses((status = 202, body = Operation), ApiError),
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(environment): Path<String>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::Remove(environment)).await
}

/// The environment's manifest, fully decided, without the contents of secrets.
#[utoipa::path(
    get, path = "/environments/{environment}/manifest", tag = "environments", operation_id = "show_manifest",
    params(("environment" = String, Path, description = "Name or id")),
    responses((status = 200, body = Object), ApiError),
)]
pub(super) async fn manifest(
    State(api): State<Api>,
    Path(environment): Path<String>,
) -> Result<axum::Json<Manifest>, ApiError> {
    Ok(axum::Json(api.platform.manifest(&environment).await?))
}

/// Parameters of a clone.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct CloneQuery {
    /// Only say what would be done, with a pre-flight of every node: answers 200 and a plan.
    #[param(required = false)]
    dry_run: bool,
}

/// Clones an environment alive. The body may be empty.
#[utoipa::path(
    post, path = "/environments/{environment}/clone", tag = "environments", operation_id = "clone_environment",
    params(("environment" = String, Path, description = "Name or id of the parent"), CloneQuery),
    request_body = CloneRequest,
    responses(
        (status = 200, description = "With dry_run: what would be done", body = PlanView),
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn clone(
    State(api): State<Api>,
    Path(environment): Path<String>,
    Query(query): Query<CloneQuery>,
    Json(request): Json<CloneRequest>,
) -> Result<Response, ApiError> {
    if query.dry_run {
        return Ok(
            axum::Json(api.platform.plan_clone(&environment, &request).await?).into_response(),
        );
    }
    Ok(api
        .submit(Change::Clone(environment, request))
        .await?
        .into_response())
}

/// Gives an environment another name, and with it another domain. Nothing stops.
#[utoipa::path(
    post, path = "/environments/{environment}/rename", tag = "environments", operation_id = "rename_environment",
    params(("environment" = String, Path, description = "Name or id")),
    request_body = RenameRequest,
    responses((status = 202, body = Operation), ApiError),
)]
pub(super) async fn rename(
    State(api): State<Api>,
    Path(environment): Path<String>,
    Json(request): Json<RenameRequest>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::Rename(environment, request)).await
}

/// Keeps an environment from exactly this: its mail, its jobs, both, or nothing.
#[utoipa::path(
    put, path = "/environments/{environment}/held", tag = "environments", operation_id = "hold_environment",
    params(("environment" = String, Path, description = "Name or id")),
    request_body = Hold,
    responses((status = 202, body = Operation), ApiError),
)]
pub(super) async fn hold(
    State(api): State<Api>,
    Path(environment): Path<String>,
    Json(held): Json<Hold>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::Hold(environment, held)).await
}

/// Starts the nodes of an environment.
#[utoipa::path(
    post, path = "/environments/{environment}/start", tag = "environments", operation_id = "start_environment",
    params(("environment" = String, Path, description = "Name or id")),
    responses((status = 202, body = Operation), ApiError),
)]
pub(super) async fn start(
    State(api): State<Api>,
    Path(environment): Path<String>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::Start(environment)).await
}

/// Stops the nodes of an environment.
#[utoipa::path(
    post, path = "/environments/{environment}/stop", tag = "environments", operation_id = "stop_environment",
    params(("environment" = String, Path, description = "Name or id")),
    responses((status = 202, body = Operation), ApiError),
)]
pub(super) async fn stop(
    State(api): State<Api>,
    Path(environment): Path<String>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::Stop(environment)).await
}
