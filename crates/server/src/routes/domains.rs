//! Custom domains of environments.

use axum::extract::State;
use offshoot_model::Operation;
use offshoot_model::domain::{DomainHttpsRequest, DomainView};
use offshoot_model::view::{DomainAddRequest, SwapRequest};
use offshoot_operations::Request as Change;

use super::Api;
use crate::answer::{Accepted, ApiError, Json, Path};

/// Custom domains of an environment, by name.
#[utoipa::path(
    get, path = "/environments/{environment}/domains", tag = "environments", operation_id = "list_domains",
    params(("environment" = String, Path, description = "Name or id")),
    responses((status = 200, body = Vec<DomainView>), ApiError),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Path(environment): Path<String>,
) -> Result<axum::Json<Vec<DomainView>>, ApiError> {
    Ok(axum::Json(api.platform.domains(&environment).await?))
}

/// Gives an environment custom domains, all in one step. The edge uses them when the operation is done.
#[utoipa::path(
    post, path = "/environments/{environment}/domains", tag = "environments", operation_id = "add_domains",
    params(("environment" = String, Path, description = "Name or id")),
    request_body = DomainAddRequest,
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn add(
    State(api): State<Api>,
    Path(environment): Path<String>,
    Json(request): Json<DomainAddRequest>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::DomainAdd(environment, request)).await
}

/// Takes a custom domain away from an environment.
#[utoipa::path(
    delete, path = "/environments/{environment}/domains/{domain}", tag = "environments",
    operation_id = "remove_domain",
    params(
        ("environment" = String, Path, description = "Name or id"),
        ("domain" = String, Path, description = "Host name, with its path behind it when that is not / (percent-encoded)"),
    ),
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Path((environment, domain)): Path<(String, String)>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::DomainRemove(environment, domain)).await
}

/// Says what requests without TLS get at a custom domain.
#[utoipa::path(
    put, path = "/domains/{domain}/https", tag = "environments", operation_id = "set_domain_https",
    params(("domain" = String, Path, description = "Host name, with its path behind it when that is not / (percent-encoded)")),
    request_body = DomainHttpsRequest,
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn https(
    State(api): State<Api>,
    Path(domain): Path<String>,
    Json(request): Json<DomainHttpsRequest>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::DomainHttps(domain, request.https)).await
}

/// Exchanges the custom domains of an environment with another's, in one step.
#[utoipa::path(
    post, path = "/environments/{environment}/swap", tag = "environments", operation_id = "swap_environments",
    params(("environment" = String, Path, description = "Name or id")),
    request_body = SwapRequest,
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn swap(
    State(api): State<Api>,
    Path(environment): Path<String>,
    Json(request): Json<SwapRequest>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::Swap(environment, request)).await
}
