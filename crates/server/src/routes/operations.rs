//! Operations: changes under way and past.

use std::sync::Arc;

use axum::extract::State;
use offshoot_model::{Code, Fault, Operation, OperationId, Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use crate::answer::{Accepted, ApiError, Path, Query, detached};

/// Operations listed when no number is given.
const LIMIT: usize = 50;
/// Most operations listed.
const LIMIT_MAX: usize = 1_000;

/// Which operations are listed.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Most operations listed, 1 to 1000; 50 when absent.
    limit: Option<usize>,
}

/// Operations, newest first.
#[utoipa::path(
    get, path = "/operations", tag = "operations", operation_id = "list_operations",
    params(ListQuery),
    responses((status = 200, body = Vec<Operation>), ApiError),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Vec<Operation>>, ApiError> {
    let limit = query.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
    Ok(axum::Json(api.platform.operations(limit).await?))
}

/// One operation.
#[utoipa::path(
    get, path = "/operations/{operation}", tag = "operations", operation_id = "show_operation",
    params(("operation" = String, Path, description = "Id")),
    responses((status = 200, body = Operation), ApiError),
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path(operation): Path<String>,
) -> Result<axum::Json<Operation>, ApiError> {
    Ok(axum::Json(
        api.platform.operation(parse(&operation)?).await?,
    ))
}

/// Asks an operation to stop at its next safe point and to undo what it did.
#[utoipa::path(
    post, path = "/operations/{operation}/cancel", tag = "operations", operation_id = "cancel_operation",
    params(("operation" = String, Path, description = "Id")),
    responses((status = 202, body = Operation), ApiError),
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    Path(operation): Path<String>,
) -> Result<Accepted, ApiError> {
    let id = parse(&operation)?;
    let platform = Arc::clone(&api.platform);
    detached(async move { platform.cancel(id).await })
        .await
        .map(Accepted)
}

/// What is no id names no operation.
pub(super) fn parse(text: &str) -> Result<OperationId, ApiError> {
    text.parse().map_err(|_| {
        Problem::new(
            Code::OperationUnknown,
            Fault::Request,
            format!("there is no operation {text:?}"),
            "see `offshoot op ls` for what there is",
        )
        .into()
    })
}
