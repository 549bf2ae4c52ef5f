//! Certificates for HTTPS. No answer has a key.

use axum::extract::State;
use offshoot_model::Operation;
use offshoot_model::certificate::{AuthorityView, CertificateRequest, CertificatesView};
use offshoot_operations::Request as Change;

use super::Api;
use crate::answer::{Accepted, ApiError, Json, Path};

/// All certificates, by their first name.
#[utoipa::path(
    get, path = "/certificates", tag = "certificates", operation_id = "list_certificates",
    responses((status = 200, body = CertificatesView), ApiError),
)]
pub(super) async fn list(State(api): State<Api>) -> Result<axum::Json<CertificatesView>, ApiError> {
    Ok(axum::Json(api.platform.certificates().await?))
}

/// Takes or gets a certificate. A host name has one: it loses the one it had. The edge shows it when the operation is done.
#[utoipa::path(
    post, path = "/certificates", tag = "certificates", operation_id = "add_certificate",
    request_body = CertificateRequest,
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn add(
    State(api): State<Api>,
    Json(request): Json<CertificateRequest>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::CertificateAdd(request)).await
}

/// Takes the certificate away from a host name; it goes with its last one.
#[utoipa::path(
    delete, path = "/certificates/{name}", tag = "certificates", operation_id = "remove_certificate",
    params(("name" = String, Path, description = "Host name, as the certificate has it")),
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::CertificateRemove(name)).await
}

/// Renews the certificate of a host name now.
#[utoipa::path(
    post, path = "/certificates/{name}/renew", tag = "certificates", operation_id = "renew_certificate",
    params(("name" = String, Path, description = "Host name, as the certificate has it")),
    responses(
        (status = 202, body = Operation, headers(("Location" = String, description = "The operation"))),
        ApiError,
    ),
)]
pub(super) async fn renew(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Accepted, ApiError> {
    api.submit(Change::CertificateRenew(name)).await
}

/// The root of the instance's own authority, for people who import it; made when there is none yet.
#[utoipa::path(
    get, path = "/certificates/ca", tag = "certificates", operation_id = "show_authority",
    responses((status = 200, body = AuthorityView), ApiError),
)]
pub(super) async fn authority(
    State(api): State<Api>,
) -> Result<axum::Json<AuthorityView>, ApiError> {
    let certificate = api.platform.certificate_root().await?;
    Ok(axum::Json(AuthorityView { certificate }))
}
