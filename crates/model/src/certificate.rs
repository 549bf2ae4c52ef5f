//! Certificates for HTTPS: what is known of them. Keys are never part of it.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateKind {
    /// A person brought it.
    Uploaded,
    /// The instance's own authority signed it.
    SelfSigned,
    /// An ACME server signed it (RFC 8555).
    Acme,
}

impl fmt::Display for CertificateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uploaded => "uploaded",
            Self::SelfSigned => "self-signed",
            Self::Acme => "acme",
        })
    }
}

/// A certificate and the host names that it is shown for; a name has one certificate in an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    /// Identity; also the name of its files.
    pub id: String,
    /// Where it comes from.
    pub kind: CertificateKind,
    /// Host names that it is shown for, in lower case; `*.` stands for one label, as in certificates.
    pub names: Vec<String>,
    /// Whether it was made for default domains without being asked for.
    #[serde(default)]
    pub automatic: bool,
    /// Who signed it.
    pub issuer: String,
    /// When it came.
    #[schema(value_type = String)]
    pub added: Timestamp,
    /// From when on it is valid.
    #[schema(value_type = String)]
    pub not_before: Timestamp,
    /// Until when it and all of its chain are valid; after that it is not shown.
    #[schema(value_type = String)]
    pub not_after: Timestamp,
    /// When the daemon tries to renew it next; absent for those that people bring.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub renew_at: Option<Timestamp>,
    /// Renewals that failed in a row.
    #[serde(default)]
    pub failures: u32,
    /// Why the last renewal failed; absent when it did not.
    #[serde(default)]
    pub problem: Option<Problem>,
}

/// `GET /api/v1/certificates`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificatesView {
    /// Whether HTTPS is served at all (`edge.listen_tls`).
    pub served: bool,
    /// Certificates, by their first name.
    pub certificates: Vec<Certificate>,
}

/// `POST /api/v1/certificates`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CertificateRequest {
    /// Use this one.
    Uploaded {
        /// The certificate and those that lead to its root, PEM.
        chain: String,
        /// Its private key, PEM: PKCS #8, PKCS #1 or SEC 1.
        key: String,
        /// Host names to show it for; all that it is for when there are none.
        #[serde(default)]
        domains: Vec<String>,
    },
    /// Have the instance's own authority sign one.
    SelfSigned {
        /// Host names.
        domains: Vec<String>,
    },
    /// Have the configured ACME server sign one.
    Acme {
        /// Host names; each must lead to an environment, and from the outside to this host.
        domains: Vec<String>,
    },
}

impl fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, domains) = match self {
            // neither chain nor key: requests are logged
            Self::Uploaded { domains, .. } => (CertificateKind::Uploaded, domains),
            Self::SelfSigned { domains } => (CertificateKind::SelfSigned, domains),
            Self::Acme { domains } => (CertificateKind::Acme, domains),
        };
        write!(f, "{kind} {domains:?}")
    }
}

/// `GET /api/v1/certificates/ca`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthorityView {
    /// The root of the instance's own authority, PEM.
    pub certificate: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_does_not_show_its_key() {
        let request: CertificateRequest =
            serde_json::from_str(r#"{"kind":"uploaded","chain":"CHAIN","key":"SECRET"}"#).unwrap();
        let shown = format!("{request:?}");
        assert_eq!(shown, "uploaded []");
    }
}
