//! What a cut leaves that can wait until its clone answers: tracking to be undone in the parent's processes, and the pause of merging. A daemon
//! that ends leaves none: the kernel undoes the one, and the next daemon the other.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use offshoot_checkpoint::Tracking;
use offshoot_model::EnvId;

use crate::ksm::Pause;

/// What is left of one cut; dropping it undoes it.
type Left = (Option<Tracking>, Pause);

/// By clone: its parent, and what is left.
#[derive(Default)]
pub(crate) struct Leftovers(Mutex<HashMap<EnvId, (EnvId, Left)>>);

impl Leftovers {
    /// Keeps what is left of the cut of `parent` for `clone`.
    pub(crate) fn keep(&self, parent: &EnvId, clone: &EnvId, left: Left) {
        self.lock().insert(clone.clone(), (parent.clone(), left));
    }

    /// Undoes what the cut for `clone` left.
    pub(crate) fn forget(&self, clone: &EnvId) {
        let left = self.lock().remove(clone);
        // it takes a while, and not with the lock held
        drop(left);
    }

    /// Undoes what cuts of `parent` left: its processes are to be tracked again.
    pub(crate) fn forget_of_parent(&self, parent: &EnvId) {
        let left: Vec<_> = self.lock().extract_if(|_, (of, _)| of == parent).collect();
        drop(left);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EnvId, (EnvId, Left)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
