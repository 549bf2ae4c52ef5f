//! One change at a time for each environment; different environments go on side by side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use offshoot_model::EnvId;
use tokio::sync::OwnedMutexGuard;

/// An environment held; dropping it lets it go.
pub(crate) type Held = OwnedMutexGuard<()>;

/// Hands out environments, first come first served.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    known: Mutex<HashMap<EnvId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Locks {
    /// Queues for all of `ids`, at once: who called first is served first, whenever the answers are awaited. They are
    /// taken in order of their ids, so that two callers never wait for each other.
    pub(crate) fn queue(&self, mut ids: Vec<EnvId>) -> BoxFuture<'static, HashMap<EnvId, Held>> {
        ids.sort();
        ids.dedup();
        let locks: Vec<_> = ids.into_iter().map(|id| (self.lock_of(&id), id)).collect();
        let turn = async move {
            let mut held = HashMap::with_capacity(locks.len());
            for (lock, id) in locks {
                held.insert(id, lock.lock_owned().await);
            }
            held
        };
        // A lock counts who waits from the first time it is asked.
        let mut turn = tokio::task::unconstrained(turn).boxed();
        match (&mut turn).now_or_never() {
            Some(held) => std::future::ready(held).boxed(),
            None => turn,
        }
    }

    /// Takes an environment that nobody holds or waits for.
    pub(crate) fn try_hold(&self, id: &EnvId) -> Option<Held> {
        self.lock_of(id).try_lock_owned().ok()
    }

    fn lock_of(&self, id: &EnvId) -> Arc<tokio::sync::Mutex<()>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(known.entry(id.clone()).or_default())
    }
}
