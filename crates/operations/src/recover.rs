//! After a start of the daemon: operations that were cut short go on or go back, what has no owner is removed, and
//! what should run does.

use std::sync::Arc;

use offshoot_engine::{Begin, Gate};
use offshoot_model::operation::StepState;
use offshoot_model::{
    Code, EnvId, Environment, EnvironmentState, Fault, NodeState, Operation, OperationState,
    Problem,
};

use crate::runner::{Way, cancelled};
use crate::saga::Plan;
use crate::shared::{Change, Shared, store_problem};

/// Takes up what the last daemon left. Operations go on in the background; environments that ran are running
/// again, or being started, when this returns.
///
/// # Errors
/// When the store or the host cannot be read at all. A single environment that does not come back is logged.
pub(crate) async fn recover(shared: &Arc<Shared>) -> Result<(), Problem> {
    let environments = shared.store.environments().map_err(store_problem)?;
    let known: Vec<EnvId> = environments
        .iter()
        .map(|environment| environment.id.clone())
        .collect();
    for removed in shared.engine.sweep(&known).await? {
        tracing::info!("removed what had no owner: {removed}");
    }
    let unfinished = shared
        .store
        .unfinished_operations()
        .map_err(store_problem)?;
    // Files that a crash left without a record, before anybody makes new ones.
    shared.sweep_certificates(&unfinished)?;
    for (operation, plan) in unfinished {
        let cancel = shared.store.cancel_requested(operation.id).unwrap_or(false);
        match serde_json::from_value::<Plan>(plan) {
            Ok(plan) => take_up(shared, operation, plan, cancel),
            Err(error) => give_up(shared, operation, &error)?,
        }
    }
    for environment in environments {
        let shared = Arc::clone(shared);
        // After the operations taken up above: what they leave is brought back as well.
        let turn = shared.locks.queue(vec![environment.id.clone()]);
        tokio::spawn(async move {
            let _held = turn.await;
            // A change may have come first.
            let Ok(environment) = shared.by_id(&environment.id) else {
                return;
            };
            if let Err(problem) = bring_back(&shared, &environment).await {
                tracing::error!(environment = %environment.name, %problem, details = ?problem.details,
                    "an environment could not be brought back");
            }
        });
    }
    shared.expose(None, Change::None).await
}

fn take_up(shared: &Arc<Shared>, operation: Operation, mut plan: Plan, cancel: bool) {
    let done = operation
        .steps
        .iter()
        .filter(|step| step.state == StepState::Done)
        .count();
    let way = if operation.state == OperationState::Undoing {
        Way::Back(operation.problem.clone().unwrap_or_else(interrupted))
    } else if cancel {
        Way::Back(cancelled())
    } else if done >= plan.saga().forward_from() {
        Way::Forward
    } else {
        Way::Back(interrupted())
    };
    tracing::info!(operation = %operation.id, kind = ?operation.kind, subject = operation.subject, way = ?way,
        "taking up an operation that was cut short");
    shared.launch(operation, plan, way);
}

fn interrupted() -> Problem {
    Problem::new(
        Code::Interrupted,
        Fault::Host,
        "the daemon ended while the operation ran; the operation was undone",
        "start it again",
    )
}

/// A journal entry that this version cannot read.
fn give_up(
    shared: &Arc<Shared>,
    mut operation: Operation,
    error: &serde_json::Error,
) -> Result<(), Problem> {
    operation.state = OperationState::Failed;
    operation.ended = Some(jiff::Timestamp::now());
    operation.problem = Some(interrupted().detail(format!("its plan cannot be read: {error}")));
    let environment = operation.environment.clone();
    shared
        .store
        .update_in_one(|tx| {
            if let Some(id) = &environment
                && let Some(found) = tx.environment(id)?
                && !matches!(
                    found.state,
                    EnvironmentState::Running | EnvironmentState::Stopped
                )
            {
                tx.set_state(id, EnvironmentState::Broken)?;
            }
            // A domain that nobody finishes removing stays.
            tx.let_domains_stay(operation.id)?;
            tx.update_operation(&operation)
        })
        .map(|_| ())
        .map_err(store_problem)
}

/// Makes an environment that nobody changes what its state says: after a reboot nothing of it runs.
pub(crate) async fn bring_back(shared: &Shared, environment: &Environment) -> Result<(), Problem> {
    match environment.state {
        EnvironmentState::Running => {
            shared
                .engine
                .ensure_network(environment, Gate::Open)
                .await?;
            let waves = offshoot_plan::start_waves(&environment.manifest)
                .map_err(|e| offshoot_plan::PlanError::from(e).problem())?;
            let status = shared.engine.status(environment).await?;
            for node in waves
                .iter()
                .flatten()
                .flat_map(|layer| environment.nodes_of(layer))
            {
                let state = status
                    .iter()
                    .find(|s| s.node == node.name())
                    .map(|s| &s.state);
                if matches!(state, None | Some(NodeState::Stopped)) && !environment.is_held(node) {
                    shared
                        .engine
                        .ensure_started(environment, node, Begin::Fresh)
                        .await?;
                }
            }
            shared.engine.ensure_names(environment).await
        }
        EnvironmentState::Stopped => shared.engine.ensure_halted(&environment.id).await,
        EnvironmentState::Creating | EnvironmentState::Removing | EnvironmentState::Broken => {
            Ok(())
        }
    }
}
