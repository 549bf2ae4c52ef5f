//! Certificates for HTTPS: their files, what makes one fit to be shown, the instance's own authority, and an ACME client.
//!
//! Nothing here knows environments or the edge: [`Authority`] and [`Order`] say what must answer where, and whoever calls
//! sees to it.

mod acme;
mod authority;
mod check;
mod files;

use std::fmt;

use async_trait::async_trait;
use offshoot_model::Problem;

pub use acme::{Acme, AcmeConfig};
pub use authority::Own;
pub use check::{Checked, check, covers};
pub use files::Files;

/// Where proofs are asked for by HTTP (RFC 8555, 8.3).
pub const PROOF_PATH: &str = "/.well-known/acme-challenge/";

/// A certificate and its key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate and those that lead to its root, PEM.
    pub chain: String,
    /// Its private key, PEM.
    pub key: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a certificate and its key")
    }
}

/// What must be answered at a host name before a certificate is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Host name.
    pub host: String,
    /// Last part of the path, behind [`PROOF_PATH`].
    pub token: String,
    /// The answer's whole body.
    pub text: String,
}

/// Whoever signs certificates for host names that are proven to lead here.
#[async_trait]
pub trait Authority: fmt::Debug + Send + Sync {
    /// Begins an order for a certificate for these host names.
    ///
    /// # Errors
    /// `acme-failed` when the authority refuses or cannot be reached.
    async fn order(&self, names: &[String]) -> Result<Box<dyn Order>, Problem>;
}

/// An order under way. It does not outlive the process: whoever is interrupted begins another.
#[async_trait]
pub trait Order: Send {
    /// What must be answered before [`Self::validate`].
    fn proofs(&self) -> &[Proof];

    /// Has the authority look at the proofs, and waits for its verdict, bounded in time.
    ///
    /// # Errors
    /// `acme-failed` with what it saw, when it is not content.
    async fn validate(&mut self) -> Result<(), Problem>;

    /// Gets the certificate, with a fresh key; bounded in time.
    ///
    /// # Errors
    /// `acme-failed`.
    async fn finalise(&mut self) -> Result<Issued, Problem>;
}
