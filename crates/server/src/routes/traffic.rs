//! Traffic policies of environments, and what is built on them.

use axum::extract::State;
use offshoot_model::Operation;
use offshoot_model::traffic::Policy;
use offshoot_model::traffic::view::{PromoteRequest, RampRequest, TrafficView};
use offshoot_operations::Request as Change;

use super::Api;
use crate::answer::{Accepted, ApiError, Json, Path};

/// The traffic policy of an environment, and what was counted at its domains.
#[utoipa::path(
    get, path = "/environments/{environment}/traffic", tag = "environments", operation_id = "show_traffic",
    params(("environment" = String, Path, description = "Name or id")),
    responses((status = 200, body = TrafficView), ApiError),
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path(environment): Path<String>,
) -> Result<axum::Json<TrafficView>, ApiError> {
    Ok(axum::Json(api.platform.traffic(&environment).await?))
}

/// Gives an environment a traffic policy in place of the one it has; environments in it by name or id. The edge uses it
/// when the operation is done.
#[utoipa::path(
    put, path = "/environments/{environment}/traffic", tag = "environments", operation_id = "set_traffic",
    params(("environment" = String, Path, description = "Name or id")),
    request_body = Policy<String>,
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn set(
    State(api): State<Api>,
    Path(environment): Path<String>,
    Json(policy): Json<Policy<String>>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::TrafficSet(environment, policy)).await
}

/// Takes an environment's traffic policy away: it answers its domains itself.
#[utoipa::path(
    delete, path = "/environments/{environment}/traffic", tag = "environments", operation_id = "clear_traffic",
    params(("environment" = String, Path, description = "Name or id")),
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn clear(
    State(api): State<Api>,
    Path(environment): Path<String>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::TrafficClear(environment)).await
}

/// Lets every side of an environment's policy that is up take requests again.
#[utoipa::path(
    post, path = "/environments/{environment}/traffic/back", tag = "environments", operation_id = "bring_sides_back",
    params(("environment" = String, Path, description = "Name or id")),
    responses((status = 200, body = TrafficView), ApiError),
)]
pub(super) async fn back(
    State(api): State<Api>,
    Path(environment): Path<String>,
) -> Result<axum::Json<TrafficView>, ApiError> {
    Ok(axum::Json(api.platform.traffic_back(&environment).await?))
}

/// Sends more and more of an environment's requests to another, as long as that is not worse.
#[utoipa::path(
    post, path = "/environments/{environment}/traffic/ramp", tag = "environments", operation_id = "ramp_traffic",
    params(("environment" = String, Path, description = "Name or id")),
    request_body = RampRequest,
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn ramp(
    State(api): State<Api>,
    Path(environment): Path<String>,
    Json(request): Json<RampRequest>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::TrafficRamp(environment, request)).await
}

/// Gives a clone its parent's domains, watches it, and gives them back when it is worse.
#[utoipa::path(
    post, path = "/environments/{environment}/promote", tag = "environments", operation_id = "promote_environment",
    params(("environment" = String, Path, description = "Name or id of the clone")),
    request_body = PromoteRequest,
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn promote(
    State(api): State<Api>,
    Path(environment): Path<String>,
    Json(request): Json<PromoteRequest>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::Promote(environment, request)).await
}
