//! Looks after running environments: health checks, restart policies, and what was killed beside the daemon.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use offshoot_engine::{Begin, Gate, NodeStatus};
use offshoot_model::manifest::RestartPolicy;
use offshoot_model::{Environment, EnvironmentState, Layer, Node, NodeId, NodeState};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use crate::health::check_if_due;
use crate::shared::{Change, Shared};

/// Time between two looks at an environment.
const EVERY: Duration = Duration::from_secs(1);
/// Looks after which the router of every environment is looked at too.
const REPAIR_EVERY: u64 = 5;
/// Time between two looks at the edge, whose end is heard of at once.
const EDGE_EVERY: Duration = Duration::from_secs(5);
/// Between two starts of an edge that ends again and again.
const EDGE_APART: Duration = Duration::from_millis(500);
/// Exit status of a process that SIGKILL ended.
const KILLED: i32 = 128 + 9;
/// First and longest wait before a restart; it doubles from one to the next, as in Docker.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// A node that ran this long begins again with the first attempt and the first wait.
const STEADY: Duration = Duration::from_secs(10);
/// Most health checks at once on the host.
const CHECKS: usize = 8;

/// Nodes that end again and again.
#[derive(Debug, Default)]
pub(crate) struct Restarts(Mutex<HashMap<NodeId, Restart>>);

/// What is remembered of one.
#[derive(Debug)]
struct Restart {
    attempts: u32,
    /// When it was last started again.
    at: Instant,
}

impl Restarts {
    /// Whether a node that ended with `code` is to be started again now, and which attempt that is.
    fn attempt(&self, node: &NodeId, policy: RestartPolicy, code: i32) -> Option<u32> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let past = all.get(node);
        let attempts = past.map_or(0, |past| past.attempts);
        let wanted = match policy {
            RestartPolicy::No => false,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure { max_attempts } => {
                code != 0 && max_attempts.is_none_or(|most| attempts < most)
            }
        };
        let due = past.is_none_or(|past| past.at.elapsed() >= wait_after(past.attempts));
        if !wanted || !due {
            return None;
        }
        let attempts = attempts.saturating_add(1);
        let at = Instant::now();
        all.insert(node.clone(), Restart { attempts, at });
        Some(attempts)
    }

    /// A node runs. When it has for long enough since it was started again, its past is forgotten.
    fn runs(&self, node: &NodeId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all
            .get(node)
            .is_some_and(|past| past.at.elapsed() >= STEADY)
        {
            all.remove(node);
        }
    }

    /// A person started or stopped it: it begins again with no past.
    pub(crate) fn forget(&self, node: &NodeId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(node);
    }

    /// Keeps what is known of nodes of environments that are there.
    fn keep(&self, environments: &[Environment]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|node, _| environments.iter().any(|env| env.id == *node.env()));
    }
}

/// How long to wait after this many attempts before the next.
fn wait_after(attempts: u32) -> Duration {
    let doubled = 1 << attempts.saturating_sub(1).min(10);
    BACKOFF.0.saturating_mul(doubled).min(BACKOFF.1)
}

/// Looks after all environments and the edge until the task is aborted.
pub(crate) async fn supervise(shared: Arc<Shared>) {
    tokio::join!(keep_environments(&shared), keep_edge(&shared));
}

/// Starts the edge again at once when it ends, with what it must know: its own files may be damaged.
async fn keep_edge(shared: &Shared) {
    let mut told = true;
    loop {
        let looked = Instant::now();
        let outcome = match told {
            true => shared.engine.ensure_entrance().await,
            false => shared.expose(None, Change::None).await,
        };
        if let Err(problem) = outcome {
            tracing::warn!(%problem, details = ?problem.details, "the edge does not run as it should");
            told = false;
            sleep(EDGE_EVERY).await;
            continue;
        }
        told = !shared.engine.entrance_ended(EDGE_EVERY).await;
        if !told {
            tracing::warn!("the edge does not run any more: it is started again");
            sleep_until(looked + EDGE_APART).await;
        }
    }
}

async fn keep_environments(shared: &Arc<Shared>) {
    let checks = Arc::new(Semaphore::new(CHECKS));
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for round in 0_u64.. {
        tick.tick().await;
        let repair = round % REPAIR_EVERY == 0;
        let environments = match shared.store.environments() {
            Ok(environments) => environments,
            Err(error) => {
                tracing::warn!(%error, "the environments could not be read");
                continue;
            }
        };
        shared.restarts.keep(&environments);
        for environment in environments
            .into_iter()
            .filter(|env| env.state == EnvironmentState::Running)
        {
            let Some(_held) = shared.locks.try_hold(&environment.id) else {
                continue;
            };
            // While the others were looked at it may have been removed, stopped or renamed.
            let environment = match shared.by_id(&environment.id) {
                Ok(now) if now.state == EnvironmentState::Running => now,
                _ => continue,
            };
            if repair
                && let Err(problem) = shared.engine.ensure_network(&environment, Gate::Open).await
            {
                tracing::warn!(environment = %environment.name, %problem, "its network is not whole");
            }
            match shared.engine.status(&environment).await {
                Ok(status) => look_after(shared, &environment, &status, &checks).await,
                Err(problem) => {
                    tracing::warn!(environment = %environment.name, %problem, "its nodes could not be looked at");
                }
            }
        }
    }
}

async fn look_after(
    shared: &Arc<Shared>,
    environment: &Environment,
    status: &[NodeStatus],
    checks: &Arc<Semaphore>,
) {
    for node in &environment.nodes {
        let Some(layer) = environment.manifest.layer(&node.layer) else {
            continue;
        };
        let Some(seen) = status.iter().find(|status| status.node == node.name()) else {
            continue;
        };
        let ended = match seen.state {
            NodeState::Exited { status, .. } => Some(status),
            // Nobody saw it end: its shim was killed.
            NodeState::Stopped => Some(KILLED),
            _ => None,
        };
        if let NodeState::Running { .. } = seen.state {
            shared.restarts.runs(&node.id);
            check(shared, environment, node, layer, checks);
        }
        if let Some(code) = ended
            && !environment.is_held(node)
            && let Some(attempt) = shared.restarts.attempt(&node.id, layer.restart, code)
        {
            restart(shared, environment, node, code, attempt).await;
        }
    }
}

fn check(
    shared: &Arc<Shared>,
    environment: &Environment,
    node: &Node,
    layer: &Layer,
    checks: &Arc<Semaphore>,
) {
    let Some(check) = layer.healthcheck.clone() else {
        return;
    };
    let Ok(permit) = Arc::clone(checks).try_acquire_owned() else {
        return;
    };
    let (shared, environment, node) = (Arc::clone(shared), environment.clone(), node.clone());
    tokio::spawn(async move {
        check_if_due(&shared, &environment, &node, &check).await;
        drop(permit);
    });
}

async fn restart(shared: &Shared, environment: &Environment, node: &Node, code: i32, attempt: u32) {
    tracing::info!(node = %node.id, code, attempt, "a node ended; starting it again");
    shared.health.reset(&node.id);
    if let Err(problem) = shared
        .engine
        .ensure_started(environment, node, Begin::Fresh)
        .await
    {
        tracing::warn!(node = %node.id, %problem, details = ?problem.details, "it could not be started again");
    }
    let count = shared
        .store
        .node_restarts(&environment.id, node.name())
        .unwrap_or(0)
        .saturating_add(1);
    if let Err(error) = shared
        .store
        .set_node_restarts(&environment.id, node.name(), count)
    {
        tracing::warn!(%error, "a restart could not be recorded");
    }
}
