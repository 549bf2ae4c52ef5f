//! One change at a time for each environment; different environments go on side by side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use offshoot_model::EnvId;
use tokio::sync::OwnedMutexGuard;

/// Hands out environments, first come first served.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    known: Mutex<HashMap<EnvId, Arc<tokio::sync::Mutex<()>>>>,
}

/// Environments held; dropping it lets them go.
#[derive(Debug)]
pub(crate) struct Held {
    _guards: Vec<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits for all of `ids`. They are taken in order of their ids, so that two callers never wait for each other.
    pub(crate) async fn hold(&self, mut ids: Vec<EnvId>) -> Held {
        ids.sort();
        ids.dedup();
        let mut guards = Vec::with_capacity(ids.len());
        for id in ids {
            guards.push(self.lock_of(&id).lock_owned().await);
        }
        Held { _guards: guards }
    }

    /// Takes an environment that nobody holds or waits for.
    pub(crate) fn try_hold(&self, id: &EnvId) -> Option<Held> {
        let guard = self.lock_of(id).try_lock_owned().ok()?;
        Some(Held {
            _guards: vec![guard],
        })
    }

    fn lock_of(&self, id: &EnvId) -> Arc<tokio::sync::Mutex<()>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(known.entry(id.clone()).or_default())
    }
}
