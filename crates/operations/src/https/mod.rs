//! HTTPS: certificates and who signs them, proofs for ACME, and what requests without TLS get.
//!
//! A certificate belongs to host names, not to environments: whoever has the domain is shown with it, also after a swap.

mod automatic;
mod domain;
mod draft;
mod install;
mod proofs;
mod remove;
mod renewal;

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use offshoot_certificates::{Authority, Checked, Files, Own};
use offshoot_engine::ShownCertificate;
use offshoot_model::certificate::{Certificate, CertificateKind};
use offshoot_model::{Operation, Problem};
use serde_json::Value;

pub(crate) use domain::SetHttps;
pub(crate) use install::Install;
pub(crate) use proofs::Proofs;
pub(crate) use remove::Forget;
pub(crate) use renewal::renew;

use crate::saga::Plan;
use crate::shared::{Shared, store_problem};

/// Certificates of a daemon: where they are, and who signs them.
#[derive(Debug, Clone)]
pub struct Https {
    /// Whether the edge serves HTTPS.
    pub served: bool,
    /// Files of certificates and keys.
    pub files: Files,
    /// The instance's own authority.
    pub own: Arc<Own>,
    /// The ACME server, when one is configured.
    pub acme: Option<Arc<dyn Authority>>,
}

/// A certificate as it is recorded when it comes.
fn record(id: &str, kind: CertificateKind, names: Vec<String>, checked: Checked) -> Certificate {
    let renew_at = match kind {
        CertificateKind::Uploaded => None,
        CertificateKind::SelfSigned | CertificateKind::Acme => Some(renewal::due(&checked)),
    };
    Certificate {
        id: id.to_owned(),
        kind,
        names,
        automatic: false,
        issuer: checked.issuer,
        added: Timestamp::now(),
        not_before: checked.not_before,
        not_after: checked.not_after,
        renew_at,
        failures: 0,
        problem: None,
    }
}

/// Names for people, not too many of them.
fn subject(names: &[String]) -> String {
    const SHOWN: usize = 3;
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!(
            "{} and {more} more",
            names
                .iter()
                .take(SHOWN)
                .cloned()
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

impl Shared {
    /// Those that the edge can show now. One that it could not use would keep all routes from being changed.
    pub(crate) fn shown_certificates(&self) -> Result<Vec<ShownCertificate>, Problem> {
        let https = &self.settings.https;
        if !https.served {
            return Ok(Vec::new());
        }
        let now = Timestamp::now();
        let mut seen = HashSet::new();
        let mut shown = Vec::new();
        for mut one in self.store.certificates().map_err(store_problem)? {
            one.names.retain(|name| seen.insert(name.clone()));
            if one.names.is_empty() || one.not_after <= now {
                continue;
            }
            if !https.files.has(&one.id) {
                tracing::warn!(certificate = one.id, names = ?one.names, "its files are gone; it is not shown");
                continue;
            }
            shown.push(ShownCertificate {
                id: one.id,
                names: one.names,
            });
        }
        Ok(shown)
    }

    /// Removes files of certificates that neither the store nor an unfinished operation knows.
    pub(crate) fn sweep_certificates(
        &self,
        unfinished: &[(Operation, Value)],
    ) -> Result<(), Problem> {
        let mut known: HashSet<String> = self
            .store
            .certificates()
            .map_err(store_problem)?
            .into_iter()
            .map(|one| one.id)
            .collect();
        for (_, plan) in unfinished {
            match serde_json::from_value(plan.clone()) {
                Ok(Plan::CertificateAdd(install)) => known.extend(install.files_needed()),
                Ok(Plan::CertificateRemove(forget)) => known.extend(forget.files_needed()),
                _ => {}
            }
        }
        self.settings.https.files.sweep(&|id| known.contains(id))
    }

    /// Removes the files of those of these certificates that are no longer recorded. What stays is swept at the next start.
    fn remove_files(&self, certificates: &[Certificate]) {
        let kept = match self.store.certificates() {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(%error, "the certificates could not be read");
                return;
            }
        };
        for one in certificates {
            if kept.iter().any(|other| other.id == one.id) {
                continue;
            }
            if let Err(problem) = self.settings.https.files.remove(&one.id) {
                tracing::warn!(%problem, "files of a certificate could not be removed");
            }
        }
    }

    /// What to know where nothing serves HTTPS.
    fn unserved_notice(&self) -> Option<String> {
        (!self.settings.https.served).then(|| {
            "nothing serves HTTPS yet: set `edge.listen_tls` in the configuration".to_owned()
        })
    }
}
