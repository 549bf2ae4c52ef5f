//! An operation while it runs: its record, its cancel flag, its progress.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use offshoot_model::operation::{Progress, StepRecord, StepState};
use offshoot_model::{EnvId, Operation, OperationId, ProgressSink};
use tokio::sync::watch;

use crate::shared::Shared;

/// Shortest time between two progress events of one operation.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// An operation that is not final.
#[derive(Debug)]
pub(crate) struct Live {
    id: OperationId,
    operation: Mutex<Operation>,
    cancel: watch::Sender<bool>,
    /// Environments that it changes or reads under lock.
    environments: Vec<EnvId>,
    reported: Mutex<Option<Instant>>,
}

impl Live {
    pub(crate) fn new(operation: Operation, environments: Vec<EnvId>) -> Self {
        Self {
            id: operation.id,
            operation: Mutex::new(operation),
            cancel: watch::Sender::new(false),
            environments,
            reported: Mutex::default(),
        }
    }

    pub(crate) fn id(&self) -> OperationId {
        self.id
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

    pub(crate) fn touches(&self, environment: &EnvId) -> bool {
        self.environments.contains(environment)
    }

    pub(crate) fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    pub(crate) fn cancelled(&self) -> bool {
        *self.cancel.borrow()
    }

    /// Returns when somebody cancels it.
    pub(crate) async fn until_cancelled(&self) {
        // The sender is here: it does not go while it is waited for.
        let _ = self.cancel.subscribe().wait_for(|cancel| *cancel).await;
    }

    /// Whether a step of it ever began.
    pub(crate) fn begun(&self) -> bool {
        let operation = self
            .operation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let begun = |step: &StepRecord| step.state != StepState::Pending;
        operation.steps.iter().any(begun)
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
