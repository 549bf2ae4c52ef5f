//! Runs operations: journals every step before and after it, and goes back when one fails.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use offshoot_engine::failpoint;
use offshoot_model::operation::StepState;
use offshoot_model::{Code, EnvId, Fault, Operation, OperationState, Problem};

use crate::live::Live;
use crate::locks::Held;
use crate::saga::{Cx, Plan, Settle};
use crate::shared::{Change, Shared, store_problem};

/// Which way an operation goes when it begins or is taken up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// From its first step that is not done.
    Forward,
    /// Back, because of this.
    Back(Problem),
}

impl Shared {
    /// Lets a recorded operation run on a task of its own.
    pub(crate) fn launch(
        self: &Arc<Self>,
        operation: Operation,
        mut plan: Plan,
        way: Way,
    ) -> Arc<Live> {
        let environments = plan.saga().environments();
        let live = Arc::new(Live::new(operation, environments.clone()));
        let id = live.id();
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, Arc::clone(&live));
        let shared = Arc::clone(self);
        let task = Arc::clone(&live);
        // Queued here and not by the task: operations run in the order in which they were recorded.
        let turn = self.locks.queue(environments);
        tokio::spawn(async move {
            shared.drive(&task, plan, way, turn).await;
            shared
                .live
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&id);
            shared.ended.notify_waiters();
        });
        live
    }

    async fn drive(
        self: &Arc<Self>,
        live: &Arc<Live>,
        mut plan: Plan,
        way: Way,
        turn: impl Future<Output = HashMap<EnvId, Held>>,
    ) {
        let cx = Cx::new(Arc::clone(self), Arc::clone(live));
        let taken_up = live.begun();
        tokio::select! {
            biased;
            held = turn => cx.keep(held),
            // It waits and has done nothing: there is nothing to wait for any longer.
            () = live.until_cancelled(), if !taken_up => {}
        }
        let outcome = match way {
            Way::Forward => self.go_forward(&cx, &mut plan).await,
            Way::Back(problem) => Err(problem),
        };
        let settled = match outcome {
            Ok(()) => self.settle(live, OperationState::Done, None, plan.saga().on_success()),
            Err(problem) => self.go_back(&cx, &mut plan, problem).await,
        };
        match settled {
            Ok(()) if taken_up => {
                // What its first steps made known went with the daemon that ran them.
                if let Err(problem) = self.expose(None, Change::None).await {
                    tracing::warn!(operation = %live.id(), %problem, details = ?problem.details,
                        "the edge could not be told how an operation ended");
                }
            }
            Ok(()) => {}
            Err(problem) => {
                // The journal still says that the operation runs: the next start of the daemon takes it up again.
                tracing::error!(operation = %live.id(), %problem, details = ?problem.details,
                    "the end of an operation could not be recorded");
            }
        }
    }

    async fn go_forward(&self, cx: &Cx, plan: &mut Plan) -> Result<(), Problem> {
        let kind = kind_name(plan);
        for (index, step) in plan.saga().steps().iter().copied().enumerate() {
            if cx
                .live
                .snapshot()
                .steps
                .get(index)
                .is_some_and(|record| record.state == StepState::Done)
            {
                continue;
            }
            if cx.live.cancelled() {
                return Err(cancelled());
            }
            self.journal(cx, plan, |operation| {
                operation.state = OperationState::Running;
                mark(operation, index, StepState::Running, None);
            })?;
            if failpoint::reach(&format!("{kind}.{step}.before")) {
                return Err(Problem::internal("a test asked for a failure here"));
            }
            let begun = Instant::now();
            let done = plan.saga().run(step, cx).await;
            let us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            let failed = failpoint::reach(&format!("{kind}.{step}.after"));
            let done = done.and(if failed {
                Err(Problem::internal("a test asked for a failure here"))
            } else {
                Ok(())
            });
            let state = if done.is_ok() {
                StepState::Done
            } else {
                StepState::Failed
            };
            self.journal(cx, plan, |operation| {
                mark(operation, index, state, Some(us))
            })?;
            done?;
        }
        Ok(())
    }

    async fn go_back(&self, cx: &Cx, plan: &mut Plan, problem: Problem) -> Result<(), Problem> {
        let state = if problem.code == Code::Cancelled {
            OperationState::Cancelled
        } else {
            OperationState::Failed
        };
        if !cx.live.begun() {
            return self.settle(&cx.live, state, Some(problem), plan.saga().on_unbegun());
        }
        let kind = kind_name(plan);
        self.journal(cx, plan, |operation| {
            operation.state = OperationState::Undoing;
            operation.problem = Some(problem.clone());
        })?;
        let _ = failpoint::reach(&format!("{kind}.undo.before"));
        let undone = plan.saga().undo(cx).await;
        let _ = failpoint::reach(&format!("{kind}.undo.after"));
        match undone {
            Ok(()) => {
                cx.live.change(|operation| {
                    for step in &mut operation.steps {
                        if step.state != StepState::Pending {
                            step.state = StepState::Undone;
                        }
                    }
                });
                self.settle(&cx.live, state, Some(problem), plan.saga().on_undone())
            }
            Err(stuck) => {
                let mut problem = problem;
                problem
                    .details
                    .push(format!("and it could not be undone: {stuck}"));
                problem.details.extend(stuck.details);
                self.settle(
                    &cx.live,
                    OperationState::Failed,
                    Some(problem),
                    plan.saga().on_stuck(),
                )
            }
        }
    }

    fn journal(
        &self,
        cx: &Cx,
        plan: &Plan,
        change: impl FnOnce(&mut Operation),
    ) -> Result<(), Problem> {
        let operation = cx.live.change(change);
        let plan = serde_json::to_value(plan)
            .map_err(|e| Problem::internal(format!("a plan has no JSON: {e}")))?;
        let event = self
            .store
            .save_operation(&operation, &plan)
            .map_err(store_problem)?;
        let _ = self.news.send(event.seq);
        Ok(())
    }

    /// Publishes progress; it is no part of the journal's truth, so a failure to write it fails nothing.
    pub(crate) fn publish(&self, operation: &Operation) {
        match self.store.note_progress(operation) {
            Ok(event) => {
                let _ = self.news.send(event.seq);
            }
            Err(error) => tracing::warn!(%error, "progress could not be recorded"),
        }
    }

    fn settle(
        &self,
        live: &Live,
        state: OperationState,
        problem: Option<Problem>,
        settle: Settle,
    ) -> Result<(), Problem> {
        let operation = live.change(|operation| {
            operation.state = state;
            operation.ended = Some(Timestamp::now());
            operation.problem = problem;
            for step in &mut operation.steps {
                step.progress = None;
            }
        });
        let event = match settle {
            Settle::Nothing => self.store.update_operation(&operation),
            Settle::State(id, state) => self.store.finish_with_state(&operation, &id, state),
            Settle::Gone(id) => self.store.finish_with_removal(&operation, &id),
            Settle::DomainsGone => self.store.finish_with_domains_gone(&operation),
            Settle::Swapped(swap) => self.store.finish_with_swap(&operation, &swap),
        }
        .map_err(store_problem)?;
        self.forget_announced(operation.id);
        let _ = self.news.send(event.seq);
        Ok(())
    }
}

fn kind_name(plan: &Plan) -> String {
    // The serialised name, `image-pull`, is the one people and tests use.
    serde_json::to_value(plan.kind())
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn mark(operation: &mut Operation, index: usize, state: StepState, us: Option<u64>) {
    if let Some(step) = operation.steps.get_mut(index) {
        step.state = state;
        step.us = us;
        step.progress = None;
    }
}

/// What a cancelled operation ends with.
pub(crate) fn cancelled() -> Problem {
    Problem::new(
        Code::Cancelled,
        Fault::Request,
        "the operation was cancelled",
        "start it again when you want to",
    )
}
