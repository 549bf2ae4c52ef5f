//! The host and the daemon.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use offshoot_model::view::{DoctorReport, LoginLink, PoolGrowRequest, PoolView};
use offshoot_model::{Code, Fault, Operation, Problem};
use offshoot_operations::Request as Change;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use crate::answer::{Accepted, ApiError, Json, body_of};

/// The pool.
#[utoipa::path(
    get, path = "/pool", tag = "host", operation_id = "show_pool",
    responses((status = 200, body = PoolView), ApiError),
)]
pub(super) async fn pool(State(api): State<Api>) -> Result<axum::Json<PoolView>, ApiError> {
    Ok(axum::Json(api.platform.pool().await?))
}

/// Grows the pool. Environments go on.
#[utoipa::path(
    post, path = "/pool/grow", tag = "host", operation_id = "grow_pool",
    request_body = PoolGrowRequest,
    responses((status = 202, body = Operation), ApiError),
)]
pub(super) async fn grow(
    State(api): State<Api>,
    Json(request): Json<PoolGrowRequest>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::PoolGrow(request.size)).await
}

/// What the host has and lacks.
#[utoipa::path(
    get, path = "/doctor", tag = "host", operation_id = "doctor",
    responses((status = 200, body = DoctorReport), ApiError),
)]
pub(super) async fn doctor(State(api): State<Api>) -> Result<axum::Json<DoctorReport>, ApiError> {
    Ok(axum::Json(api.platform.doctor().await?))
}

/// Which daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) struct Version {
    /// Version of the daemon.
    version: String,
    /// Version of the API: `v1`. Within it, fields and paths may come but do not go.
    api: String,
    /// The daemon's instance.
    instance: String,
}

/// Which daemon answers.
#[utoipa::path(
    get, path = "/version", tag = "host", operation_id = "version",
    responses((status = 200, body = Version), ApiError),
)]
pub(super) async fn version(State(api): State<Api>) -> axum::Json<Version> {
    axum::Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: "v1".to_owned(),
        instance: api.instance.to_string(),
    })
}

/// A link that signs one person in to the dashboard, once, within 15 minutes.
#[utoipa::path(
    post, path = "/login-links", tag = "host", operation_id = "create_login_link",
    responses((status = 201, body = LoginLink), ApiError),
)]
pub(super) async fn login_link(State(api): State<Api>) -> Result<impl IntoResponse, ApiError> {
    let Some(dashboard) = &api.dashboard else {
        return Err(Problem::new(
            Code::ConfigInvalid,
            Fault::Host,
            "this daemon has no dashboard",
            "set dashboard.listen in its configuration and start it again",
        )
        .into());
    };
    let link = dashboard
        .login_link()
        .map_err(|error| Problem::internal(format!("a link could not be made: {error}")))?;
    Ok((StatusCode::CREATED, axum::Json(link)))
}

/// The OpenAPI document as text.
#[derive(Debug, Clone)]
pub(super) struct Document(pub(super) Bytes);

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "host", operation_id = "openapi",
    responses((status = 200, body = Object), ApiError),
)]
pub(super) async fn openapi(Extension(Document(text)): Extension<Document>) -> Response {
    body_of("application/json", Body::from(text))
}
