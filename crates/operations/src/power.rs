//! Start and stop: the nodes of an environment, in the order of `depends_on`.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use offshoot_engine::{Begin, Gate, LogQuery};
use offshoot_model::environment::Health;
use offshoot_model::manifest::Condition;
use offshoot_model::{
    Code, EnvId, Environment, EnvironmentState, Fault, LayerName, Node, NodeState, Problem,
};
use offshoot_plan::start_waves;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::health::check_if_due;
use crate::runner::cancelled;
use crate::saga::{Cx, Saga, Settle};
use crate::shared::{Change, Shared};

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(50);
/// Longest wait for a `depends_on` condition.
const DEPENDENCY_TIMEOUT: Duration = Duration::from_secs(180);

/// Starts an environment that was stopped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) environment: EnvId,
}

/// Stops an environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stop {
    pub(crate) environment: EnvId,
}

#[async_trait]
impl Saga for Start {
    fn steps(&self) -> &'static [&'static str] {
        &["network", "start", "ready", "route"]
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.environment.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        let environment = cx.shared.by_id(&self.environment)?;
        match step {
            "network" => cx.engine().ensure_network(&environment, Gate::Open).await,
            "start" => start_nodes(cx, &environment, |_| true).await,
            "ready" => wait_ready(cx, &environment).await,
            _ => cx.expose(Change::Open(&self.environment)).await,
        }
    }

    /// What ran before goes on running: a person may start what runs, to bring back single nodes.
    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        if cx.shared.by_id(&self.environment)?.state == EnvironmentState::Running {
            return Ok(());
        }
        cx.expose(Change::Close(&self.environment)).await?;
        cx.engine().ensure_halted(&self.environment).await
    }

    fn on_success(&self) -> Settle {
        Settle::State(self.environment.clone(), EnvironmentState::Running)
    }
}

#[async_trait]
impl Saga for Stop {
    fn steps(&self) -> &'static [&'static str] {
        &["unroute", "stop", "halt"]
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.environment.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        let environment = cx.shared.by_id(&self.environment)?;
        match step {
            "unroute" => cx.expose(Change::Close(&self.environment)).await,
            "stop" => stop_nodes(cx, &environment).await,
            _ => cx.engine().ensure_halted(&self.environment).await,
        }
    }

    /// A stop that fails or is cancelled half way leaves what still runs running: starting the rest again is the
    /// way back.
    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        let environment = cx.shared.by_id(&self.environment)?;
        if environment.state != EnvironmentState::Running {
            return Ok(());
        }
        cx.engine().ensure_network(&environment, Gate::Open).await?;
        for node in &environment.nodes {
            if environment.is_held(node) {
                continue;
            }
            cx.engine()
                .ensure_started(&environment, node, Begin::Fresh)
                .await?;
        }
        cx.expose(Change::Open(&self.environment)).await
    }

    fn on_success(&self) -> Settle {
        Settle::State(self.environment.clone(), EnvironmentState::Stopped)
    }
}

/// Starts the nodes that `wanted` names and that are not held, wave by wave, each after what it depends on.
pub(crate) async fn start_nodes(
    cx: &Cx,
    environment: &Environment,
    wanted: impl Fn(&Node) -> bool + Send + Sync,
) -> Result<(), Problem> {
    let wanted = |node: &Node| wanted(node) && !environment.is_held(node);
    let waves = start_waves(&environment.manifest)
        .map_err(|e| offshoot_plan::PlanError::from(e).problem())?;
    let total = environment.nodes.iter().filter(|node| wanted(node)).count() as u64;
    let mut done = 0;
    for wave in waves {
        let nodes: Vec<&Node> = environment
            .nodes
            .iter()
            .filter(|node| wave.contains(&node.layer) && wanted(node))
            .collect();
        for layer in &wave {
            if nodes.iter().any(|node| &node.layer == layer) {
                wait_dependencies(cx, environment, layer).await?;
            }
        }
        if cx.live.cancelled() {
            return Err(cancelled());
        }
        for node in &nodes {
            cx.shared.begin_afresh(&node.id);
        }
        try_join_all(nodes.iter().map(|node| start_node(cx, environment, node))).await?;
        done += nodes.len() as u64;
        let names: Vec<_> = wave.iter().map(LayerName::as_str).collect();
        offshoot_model::ProgressSink::report(
            &cx.progress(),
            done,
            total,
            "nodes",
            &names.join(", "),
        );
    }
    Ok(())
}

async fn start_node(cx: &Cx, environment: &Environment, node: &Node) -> Result<(), Problem> {
    match cx
        .engine()
        .ensure_started(environment, node, Begin::Fresh)
        .await
    {
        Ok(()) => Ok(()),
        Err(problem) => Err(with_last_lines(&cx.shared, environment, node, problem).await),
    }
}

/// Adds the last lines of a node's output: they usually say why it did not work.
async fn with_last_lines(
    shared: &Shared,
    environment: &Environment,
    node: &Node,
    mut problem: Problem,
) -> Problem {
    let query = LogQuery {
        node: Some(node.name().to_owned()),
        tail: Some(10),
        follow: false,
    };
    if let Ok(mut lines) = shared.engine.logs(environment, query).await {
        while let Some(line) = lines.recv().await {
            problem
                .details
                .push(format!("{}: {}", line.node, line.line));
        }
    }
    problem
}

async fn wait_dependencies(
    cx: &Cx,
    environment: &Environment,
    layer: &LayerName,
) -> Result<(), Problem> {
    let Some(layer) = environment.manifest.layer(layer) else {
        return Ok(());
    };
    for dependency in &layer.depends_on {
        let nodes: Vec<&Node> = environment.nodes_of(&dependency.layer).collect();
        let deadline = Instant::now() + DEPENDENCY_TIMEOUT;
        for node in nodes {
            if environment.is_held(node) {
                cx.notice(format!(
                    "layer {} does not wait for node {}: jobs are held",
                    layer.name,
                    node.name()
                ));
                continue;
            }
            let met = wait_condition(cx, environment, node, dependency.condition, deadline).await;
            match met {
                Ok(()) => {}
                Err(problem) if dependency.required => {
                    return Err(with_last_lines(&cx.shared, environment, node, problem).await);
                }
                Err(problem) => cx.notice(problem.what),
            }
        }
    }
    Ok(())
}

async fn wait_condition(
    cx: &Cx,
    environment: &Environment,
    node: &Node,
    condition: Condition,
    deadline: Instant,
) -> Result<(), Problem> {
    let failed = |code, what: String| {
        Problem::new(
            code,
            Fault::Environment,
            what,
            "look at its output above, and at its health check",
        )
    };
    let name = node.name();
    loop {
        if cx.live.cancelled() {
            return Err(cancelled());
        }
        let state = state_of(cx, environment, node).await?;
        match (condition, &state) {
            (Condition::Started, NodeState::Running { .. })
            | (Condition::CompletedSuccessfully, NodeState::Exited { status: 0, .. }) => {
                return Ok(());
            }
            (Condition::Started, NodeState::Exited { .. }) => return Ok(()),
            (_, NodeState::Exited { status, .. }) => {
                let what = format!("node {name} ended with status {status}");
                return Err(failed(Code::StartFailed, what));
            }
            (Condition::Healthy, NodeState::Running { .. }) => {
                let check = environment
                    .manifest
                    .layer(&node.layer)
                    .and_then(|layer| layer.healthcheck.as_ref());
                if let Some(check) = check {
                    check_if_due(&cx.shared, environment, node, check).await;
                }
                match cx.shared.health.verdict(&node.id, check) {
                    Health::Healthy => return Ok(()),
                    Health::None => {
                        let what = format!("node {name} has no health check to wait for");
                        return Err(failed(Code::StartFailed, what));
                    }
                    Health::Unhealthy => {
                        let what = format!("node {name} is unhealthy, and others wait for it");
                        return Err(failed(Code::Unhealthy, what));
                    }
                    Health::Starting => {}
                }
            }
            _ => {}
        }
        if Instant::now() > deadline {
            let (code, what) = match condition {
                Condition::Started => (Code::StartFailed, "start"),
                Condition::Healthy => (Code::Unhealthy, "become healthy"),
                Condition::CompletedSuccessfully => (Code::StartFailed, "end"),
            };
            let within = DEPENDENCY_TIMEOUT.as_secs();
            let what = format!("node {name} did not {what} in {within} s, and others wait for it");
            return Err(failed(code, what));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn state_of(cx: &Cx, environment: &Environment, node: &Node) -> Result<NodeState, Problem> {
    let all = cx.engine().status(environment).await?;
    Ok(all
        .into_iter()
        .find(|status| status.node == node.name())
        .map_or(NodeState::Stopped, |status| status.state))
}

/// Waits until every node with a health check passes it. One that does not in time is a notice, not a failure: a
/// person can look at an environment that is there.
pub(crate) async fn wait_ready(cx: &Cx, environment: &Environment) -> Result<(), Problem> {
    let deadline = Instant::now() + cx.shared.settings.ready_timeout;
    loop {
        if cx.live.cancelled() {
            return Err(cancelled());
        }
        let states = cx.engine().status(environment).await?;
        let runs = |node: &Node| {
            states
                .iter()
                .any(|s| s.node == node.name() && matches!(s.state, NodeState::Running { .. }))
        };
        let open: Vec<_> = environment
            .nodes
            .iter()
            .filter_map(|node| {
                Some((
                    node,
                    environment
                        .manifest
                        .layer(&node.layer)?
                        .healthcheck
                        .as_ref()?,
                ))
            })
            .filter(|(node, check)| runs(node) && !check.test.is_empty())
            .filter(|(node, check)| {
                cx.shared.health.verdict(&node.id, Some(check)) != Health::Healthy
            })
            .collect();
        let bad: Vec<_> = states
            .iter()
            .filter_map(|status| match status.state {
                NodeState::Exited { status: code, .. } if code != 0 => Some(format!(
                    "node {} ended with status {code}; see its logs",
                    status.node
                )),
                _ => None,
            })
            .collect();
        if open.is_empty() || Instant::now() > deadline {
            for sentence in bad {
                cx.notice(sentence);
            }
            for (node, _) in open {
                cx.notice(format!(
                    "node {} is not healthy yet; see its logs",
                    node.name()
                ));
            }
            return Ok(());
        }
        futures::future::join_all(
            open.iter()
                .map(|(node, check)| check_if_due(&cx.shared, environment, node, check)),
        )
        .await;
        let healthy = environment.nodes.len().saturating_sub(open.len()) as u64;
        offshoot_model::ProgressSink::report(
            &cx.progress(),
            healthy,
            environment.nodes.len() as u64,
            "nodes",
            "health checks",
        );
        tokio::time::sleep(POLL).await;
    }
}

async fn stop_nodes(cx: &Cx, environment: &Environment) -> Result<(), Problem> {
    let waves = start_waves(&environment.manifest)
        .map_err(|e| offshoot_plan::PlanError::from(e).problem())?;
    for wave in waves.into_iter().rev() {
        let nodes = environment
            .nodes
            .iter()
            .filter(|node| wave.contains(&node.layer));
        try_join_all(nodes.map(|node| cx.engine().ensure_stopped(environment, node))).await?;
    }
    for node in &environment.nodes {
        cx.shared.begin_afresh(&node.id);
    }
    Ok(())
}
