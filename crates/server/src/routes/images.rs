//! Images in the pool.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;
use offshoot_model::Operation;
use offshoot_model::view::{ImagePullRequest, ImageView};
use offshoot_operations::Request as Change;

use super::Api;
use crate::answer::{Accepted, ApiError, Json, Path, detached};

/// Images in the pool.
#[utoipa::path(
    get, path = "/images", tag = "images", operation_id = "list_images",
    responses((status = 200, body = Vec<ImageView>), ApiError),
)]
pub(super) async fn list(State(api): State<Api>) -> Result<axum::Json<Vec<ImageView>>, ApiError> {
    Ok(axum::Json(api.platform.images().await?))
}

/// Fetches or makes an image.
#[utoipa::path(
    post, path = "/images", tag = "images", operation_id = "pull_image",
    request_body = ImagePullRequest,
    responses((status = 202, body = Operation), ApiError),
)]
pub(super) async fn pull(
    State(api): State<Api>,
    Json(request): Json<ImagePullRequest>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::ImagePull(request.source)).await
}

/// Removes an image that no environment uses.
#[utoipa::path(
    delete, path = "/images/{image}", tag = "images", operation_id = "remove_image",
    params(("image" = String, Path, description = "Id, unique beginning of an id, or source (percent-encoded)")),
    responses((status = 204, description = "It is gone"), ApiError),
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<StatusCode, ApiError> {
    let platform = Arc::clone(&api.platform);
    detached(async move { platform.image_remove(&image).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
