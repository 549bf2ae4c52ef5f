//! Default domains have certificates of the instance's own authority, without anybody asking.
//!
//! One for all names below the base domain, where clients take such a wildcard. They take none below a name of one label,
//! `*.localhost` (NSS, webpki and OpenSSL want two), so there each default domain has its own.

use jiff::Timestamp;
use offshoot_certificates::check;
use offshoot_engine::Exposure;
use offshoot_model::certificate::{Certificate, CertificateKind};
use offshoot_model::{OperationId, Problem};

use super::record;
use crate::shared::{Shared, store_problem};

impl Shared {
    /// Makes certificates for default domains that have none or whose own is to be renewed, and forgets those that
    /// nobody needs. Only whoever tells the edge calls it. A failure keeps no route from being changed.
    pub(crate) fn ensure_automatic(&self, all: &[Exposure]) {
        if !self.settings.https.served {
            return;
        }
        let base = &self.settings.host.base_domain;
        let wanted: Vec<String> = if base.contains('.') {
            vec![format!("*.{base}")]
        } else {
            let with_entry = all
                .iter()
                .filter(|one| one.environment.manifest.entry().is_some());
            // those who come by a former name are told the new one by HTTPS
            let names = with_entry.flat_map(|one| {
                let former = one.redirects.iter().map(|former| former.host.clone());
                former.chain([self.settings.host.domain(one.environment.name.as_str())])
            });
            names.collect()
        };
        if let Err(problem) = self.bring_automatic(&wanted) {
            tracing::warn!(%problem, details = ?problem.details,
                "a default domain has no certificate");
        }
    }

    fn bring_automatic(&self, wanted: &[String]) -> Result<(), Problem> {
        let now = Timestamp::now();
        let kept = self.store.certificates().map_err(store_problem)?;
        let is_due = |one: &Certificate| {
            one.renew_at.is_some_and(|at| at <= now)
                || one.not_after <= now
                || !self.settings.https.files.has(&one.id)
        };
        let mut gone = Vec::new();
        for one in kept.iter().filter(|one| one.automatic) {
            if !one.names.iter().any(|name| wanted.contains(name)) {
                self.store
                    .take_certificate_back(&one.id, &[])
                    .map_err(store_problem)?;
                gone.push(one.clone());
            }
        }
        for name in wanted {
            let found = kept.iter().find(|one| one.names.contains(name));
            match found {
                Some(one) if !one.automatic || !is_due(one) => continue,
                _ => {}
            }
            let names = vec![name.clone()];
            let issued = self.settings.https.own.issue(&names)?;
            let checked = check(&issued, &names, now)?;
            let id = OperationId::new().to_string();
            self.settings.https.files.keep(&id, &issued)?;
            let new = Certificate {
                automatic: true,
                ..record(&id, CertificateKind::SelfSigned, names, checked)
            };
            let replaced = self.store.place_certificate(&new).map_err(store_problem)?;
            gone.extend(replaced);
        }
        // the edge reads files only when it is told, which is after this
        self.remove_files(&gone);
        Ok(())
    }
}
