//! What a cut leaves to be undone when its clone is open, or answers: the clone yields to others, tracking is left in the parent's processes,
//! and merging pauses. Of a daemon that ended, the kernel undoes the tracking, and the next daemon the others.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use offshoot_checkpoint::Tracking;
use offshoot_model::EnvId;
use offshoot_runtime::Yielding;
use offshoot_runtime::cgroup::Hierarchies;

use crate::config::LocalConfig;
use crate::ksm::Pause;

/// A clone yields no longer than this: on a busy host it would never be there.
const YIELD_MAX: Duration = Duration::from_secs(5);

/// What is left of one cut; dropping it undoes it.
pub(crate) struct Left {
    pub(crate) parent: EnvId,
    pub(crate) yields: Option<Yields>,
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

    /// `clone` is open: from now on it has its part of the processors.
    pub(crate) fn open(&self, clone: &EnvId) {
        if let Some(left) = self.lock().get_mut(clone) {
            left.yields = None;
        }
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

/// A clone that yields until this is dropped, or for [`YIELD_MAX`].
pub(crate) struct Yields {
    groups: Yielding,
    /// Its end tells the thread that waits for the time.
    _here: Sender<()>,
}

impl Yields {
    /// From now on; `None` where the host cannot do that.
    pub(crate) fn begin(groups: Yielding) -> Option<Self> {
        let begun = groups.begin();
        if let Err(error) = begun {
            tracing::debug!(%error, "a clone does not yield");
            return None;
        }
        let (here, ends) = channel();
        let in_time = groups.clone();
        let waiting = Builder::new().name("yields".into()).spawn(move || {
            if ends.recv_timeout(YIELD_MAX) == Err(RecvTimeoutError::Timeout) {
                in_time.end();
            }
        });
        let yields = Self {
            groups,
            _here: here,
        };
        // without the thread it ends at once
        waiting.ok().map(|_| yields)
    }
}

impl Drop for Yields {
    fn drop(&mut self) {
        self.groups.end();
    }
}

/// The groups by which `environment` yields.
pub(crate) fn yielding(config: &LocalConfig, environment: &EnvId) -> Option<Yielding> {
    let host = Hierarchies::of_host().ok()?;
    Yielding::of(&host, &config.instance, environment)
}

/// Has `environment` yield no longer, whoever began it.
pub(crate) fn end_yielding(config: &LocalConfig, environment: &EnvId) {
    if let Some(groups) = yielding(config, environment) {
        groups.end();
    }
}
