//! An operation while it runs: its record, its cancel flag, its progress.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use offshoot_model::operation::{Progress, StepState};
use offshoot_model::{EnvId, Operation, ProgressSink};

use crate::shared::Shared;

/// Shortest time between two progress events of one operation.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// An operation that is not final.
#[derive(Debug)]
pub(crate) struct Live {
    operation: Mutex<Operation>,
    cancel: AtomicBool,
    /// Environments that it changes or reads under lock.
    environments: Vec<EnvId>,
    reported: Mutex<Option<Instant>>,
}

impl Live {
    pub(crate) fn new(operation: Operation, environments: Vec<EnvId>) -> Self {
        Self {
            operation: Mutex::new(operation),
            cancel: AtomicBool::new(false),
            environments,
            reported: Mutex::default(),
        }
    }

    pub(crate) fn snapshot(&self) -> Operation {
        self.operation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Operation)) -> Operation {
        let mut operation = self
            .operation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut operation);
        operation.clone()
    }

    pub(crate) fn environments(&self) -> &[EnvId] {
        &self.environments
    }

    pub(crate) fn touches(&self, environment: &EnvId) -> bool {
        self.environments.contains(environment)
    }

    pub(crate) fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    fn may_report(&self) -> bool {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let due = reported.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY);
        if due {
            *reported = Some(Instant::now());
        }
        due
    }
}

/// Progress of the step that runs.
pub(crate) struct StepProgress {
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: Arc<Live>,
}

impl ProgressSink for StepProgress {
    fn report(&self, done: u64, total: u64, unit: &str, note: &str) {
        let progress = Progress {
            done,
            total,
            unit: unit.to_owned(),
            note: note.to_owned(),
        };
        let operation = self.live.change(|operation| {
            if let Some(step) = operation
                .steps
                .iter_mut()
                .find(|step| step.state == StepState::Running)
            {
                step.progress = Some(progress);
            }
        });
        if self.live.may_report() {
            self.shared.publish(&operation);
        }
    }

    fn cancelled(&self) -> bool {
        self.live.cancelled()
    }
}
