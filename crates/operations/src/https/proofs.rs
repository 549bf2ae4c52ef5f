//! What the edge answers while an ACME server looks whether a host name leads here. In memory only: with the daemon goes
//! the order, and the next one tells the edge without them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use offshoot_certificates::{PROOF_PATH, Proof};
use offshoot_engine::HostText;
use offshoot_model::{EnvId, OperationId, Problem};

use crate::shared::{Shared, store_problem};

/// Proofs of all orders under way.
#[derive(Debug, Default)]
pub(crate) struct Proofs(Mutex<HashMap<OperationId, Vec<Proof>>>);

impl Proofs {
    pub(super) fn show(&self, operation: OperationId, proofs: Vec<Proof>) {
        self.lock().insert(operation, proofs);
    }

    pub(super) fn hide(&self, operation: OperationId) {
        self.lock().remove(&operation);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, Vec<Proof>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Texts for all proofs whose host names lead somewhere.
    pub(crate) fn proof_texts(&self) -> Result<Vec<HostText>, Problem> {
        let proofs: Vec<Proof> = self.proofs.lock().values().flatten().cloned().collect();
        let mut texts = Vec::with_capacity(proofs.len());
        for proof in proofs {
            if let Some((environment, host)) = self.leads(&proof.host)? {
                texts.push(HostText {
                    environment,
                    host,
                    path: format!("{PROOF_PATH}{}", proof.token),
                    text: proof.text,
                });
            }
        }
        Ok(texts)
    }

    /// Which environment a host name leads to, and by which domain: its own or the longest wildcard. A text at that
    /// domain is found by the edge without keeping anything else from being found.
    pub(super) fn leads(&self, name: &str) -> Result<Option<(EnvId, String)>, Problem> {
        let mut best: Option<(EnvId, String)> = None;
        let mut consider = |environment: &EnvId, host: &str| {
            let fits = host == name
                || host
                    .strip_prefix('*')
                    .is_some_and(|parent| name.ends_with(parent) && name.len() > parent.len());
            let better = best.as_ref().is_none_or(|(_, other)| {
                host == name || (other != name && host.len() > other.len())
            });
            if fits && better {
                best = Some((environment.clone(), host.to_owned()));
            }
        };
        for environment in self.store.environments().map_err(store_problem)? {
            let own = self.settings.host.domain(environment.name.as_str());
            consider(&environment.id, &own);
            for view in self.store.domains(&environment.id).map_err(store_problem)? {
                consider(&environment.id, &view.host);
            }
        }
        for redirect in self.store.redirects().map_err(store_problem)? {
            consider(&redirect.environment, &redirect.host);
        }
        Ok(best)
    }
}
