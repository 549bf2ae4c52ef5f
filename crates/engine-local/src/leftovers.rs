//! What a cut leaves to be undone when its clone answers: tracking in the parent's processes, and the pause of merging. Of a daemon that
//! ended, the kernel undoes the one, and the next daemon the other.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use offshoot_checkpoint::Tracking;
use offshoot_model::EnvId;

use crate::ksm::Pause;

/// What is left of one cut; dropping it undoes it.
pub(crate) struct Left {
    pub(crate) parent: EnvId,
    pub(crate) _tracking: Option<Tracking>,
    pub(crate) _pause: Pause,
}

/// By clone.
#[derive(Default)]
pub(crate) struct Leftovers(Mutex<HashMap<EnvId, Left>>);

impl Leftovers {
    /// Keeps what is left of the cut for `clone`.
    pub(crate) fn keep(&self, clone: &EnvId, left: Left) {
        self.lock().insert(clone.clone(), left);
    }

    /// Undoes what the cut for `clone` left.
    pub(crate) fn forget(&self, clone: &EnvId) {
        let left = self.lock().remove(clone);
        // it takes a while, and not with the lock held
        drop(left);
    }

    /// Undoes what cuts of `parent` left: its processes are to be tracked again.
    pub(crate) fn forget_of_parent(&self, parent: &EnvId) {
        let of_parent = |_: &EnvId, left: &mut Left| left.parent == *parent;
        let left: Vec<_> = self.lock().extract_if(of_parent).collect();
        drop(left);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EnvId, Left>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
