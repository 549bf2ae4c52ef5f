//! The host and the daemon.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use offshoot_model::Operation;
use offshoot_model::view::{DoctorReport, PoolGrowRequest, PoolView};
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
