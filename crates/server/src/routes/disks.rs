//! What disks hold, and how those of two environments differ.

use axum::extract::State;
use offshoot_model::disk::{Changes, Directory};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::files::FilesQuery;
use crate::answer::{ApiError, Path, Query};

/// With what is compared.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ChangesQuery {
    /// Another environment, by name or id; the parent when absent, and the nodes' images where there is none.
    #[serde(default)]
    with: Option<String>,
}

/// What is in a directory of a node, whether it runs or not.
#[utoipa::path(
    get, path = "/environments/{environment}/nodes/{node}/directory", tag = "nodes", operation_id = "list_directory",
    params(
        ("environment" = String, Path, description = "Name or id"),
        ("node" = String, Path, description = "Node, or a layer for its first node"),
        FilesQuery,
    ),
    responses((status = 200, body = Directory), ApiError),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Path((environment, node)): Path<(String, String)>,
    Query(query): Query<FilesQuery>,
) -> Result<axum::Json<Directory>, ApiError> {
    let directory = api.platform.list(&environment, &node, &query.path).await?;
    Ok(axum::Json(directory))
}

/// Files that differ from those of another environment, by root file system and volume. No content is read: type, size,
/// times, owner and mode are compared. Bounded in time and names.
#[utoipa::path(
    get, path = "/environments/{environment}/changes", tag = "environments", operation_id = "list_changes",
    params(("environment" = String, Path, description = "Name or id"), ChangesQuery),
    responses((status = 200, body = Changes), ApiError),
)]
pub(super) async fn changes(
    State(api): State<Api>,
    Path(environment): Path<String>,
    Query(query): Query<ChangesQuery>,
) -> Result<axum::Json<Changes>, ApiError> {
    let with = query.with.as_deref();
    Ok(axum::Json(api.platform.changes(&environment, with).await?))
}
