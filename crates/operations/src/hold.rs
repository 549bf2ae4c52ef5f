//! Hold: an environment is kept from its mail and its jobs, or let go. What it holds is recorded first, so that whatever starts meanwhile
//! obeys.

use async_trait::async_trait;
use futures::future::try_join_all;
use offshoot_engine::Begin;
use offshoot_model::{EnvId, Environment, EnvironmentState, Hold, Node, NodeState, Problem};
use serde::{Deserialize, Serialize};

use crate::saga::{Cx, Plan, Saga};
use crate::shared::{Shared, store_problem};
use crate::submit::Draft;

/// Sets what an environment is kept from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SetHeld {
    pub(crate) environment: EnvId,
    pub(crate) held: Hold,
    /// What it held before; journalled with the end of the pre-flight, before anything changes.
    pub(crate) before: Option<Hold>,
}

#[async_trait]
impl Saga for SetHeld {
    fn steps(&self) -> &'static [&'static str] {
        &["preflight", "record", "apply"]
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.environment.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        match step {
            "preflight" => {
                self.before = Some(cx.shared.by_id(&self.environment)?.held);
                Ok(())
            }
            "record" => record(cx, &self.environment, self.held),
            _ => {
                let before = self.before.unwrap_or_default();
                apply(cx, &self.environment, before, self.held).await
            }
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        match self.before {
            Some(before) => change(cx, &self.environment, self.held, before).await,
            None => Ok(()),
        }
    }
}

/// Records that an environment holds `to` instead of `from`, and makes what runs of it do so.
pub(crate) async fn change(cx: &Cx, id: &EnvId, from: Hold, to: Hold) -> Result<(), Problem> {
    record(cx, id, to)?;
    apply(cx, id, from, to).await
}

fn record(cx: &Cx, id: &EnvId, held: Hold) -> Result<(), Problem> {
    cx.shared.store.set_held(id, held).map_err(store_problem)
}

async fn apply(cx: &Cx, id: &EnvId, from: Hold, to: Hold) -> Result<(), Problem> {
    let environment = cx.shared.by_id(id)?;
    if environment.state != EnvironmentState::Running {
        return Ok(());
    }
    cx.engine().ensure_held(&environment).await?;
    if to.jobs {
        stop_jobs(cx, &environment).await
    } else if from.jobs {
        start_jobs(cx, &environment).await
    } else {
        Ok(())
    }
}

/// Stops the nodes that run jobs.
async fn stop_jobs(cx: &Cx, environment: &Environment) -> Result<(), Problem> {
    let held: Vec<&Node> = environment
        .nodes
        .iter()
        .filter(|node| environment.is_held(node))
        .collect();
    try_join_all(
        held.iter()
            .map(|node| cx.engine().ensure_stopped(environment, node)),
    )
    .await?;
    for node in held {
        cx.shared.begin_afresh(&node.id);
    }
    Ok(())
}

/// Starts the nodes that were held; one that ended by itself meanwhile, or before, is left to its policy. What they depend on runs. Also
/// the way back of a cancelled hold, so a cancel does not end it.
async fn start_jobs(cx: &Cx, environment: &Environment) -> Result<(), Problem> {
    let status = cx.engine().status(environment).await?;
    let waits = |node: &&Node| {
        let seen = status.iter().find(|seen| seen.node == node.name());
        let layer = environment.manifest.layer(&node.layer);
        layer.is_some_and(|layer| layer.jobs)
            && seen.is_none_or(|seen| seen.state == NodeState::Stopped)
    };
    let starts = environment.nodes.iter().filter(waits).map(|node| {
        cx.shared.begin_afresh(&node.id);
        cx.engine().ensure_started(environment, node, Begin::Fresh)
    });
    try_join_all(starts).await.map(drop)
}

/// Lets an environment go that people reach at its domains from now on. `held`: what it held before.
pub(crate) async fn let_go(cx: &Cx, id: &EnvId, held: Hold, old: &EnvId) -> Result<(), Problem> {
    let Some(words) = held.words() else {
        return Ok(());
    };
    change(cx, id, held, Hold::default()).await?;
    let (new, old) = (cx.shared.by_id(id)?, cx.shared.by_id(old)?);
    cx.notice(format!(
        "{words} of {} were held and were let go with the switch",
        new.name
    ));
    if let Some(both) = held.without(old.held).words() {
        cx.notice(format!(
            "{both} of {old} go on too: `offshoot hold {old}` holds them",
            old = old.name
        ));
    }
    Ok(())
}

/// Says that an environment which people reach at more domains from now on still holds something.
pub(crate) fn warn_held(cx: &Cx, id: &EnvId) -> Result<(), Problem> {
    let environment = cx.shared.by_id(id)?;
    if let Some(words) = environment.held.words() {
        cx.notice(format!(
            "{words} of {name} are held although it has the domains now: `offshoot release {name}` lets them go",
            name = environment.name
        ));
    }
    Ok(())
}

impl Shared {
    pub(crate) fn draft_hold(&self, environment: &str, held: Hold) -> Result<Draft, Problem> {
        let found = self.settled(environment, "held or let go")?;
        let plan = Plan::Hold(SetHeld {
            environment: found.id.clone(),
            held,
            before: None,
        });
        Ok(Draft::on(&found, plan))
    }
}
