//! Health checks: who is healthy, and a pause while an environment is cut.
//!
//! A check is a process inside the node that is no descendant of its main process; one that runs during a cut
//! would stand in CRIU's way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use offshoot_engine::{ExecOutput, ExecSession};
use offshoot_model::environment::Health;
use offshoot_model::manifest::HealthCheck;
use offshoot_model::view::ExecRequest;
use offshoot_model::{EnvId, Environment, Node, NodeId};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::Instant;

use crate::shared::Shared;

/// Longest wait for running checks to end before a cut.
const PAUSE_WAIT: Duration = Duration::from_secs(5);

/// What is known of every node's health. Kept in memory: after a restart of the daemon every node is checked again.
#[derive(Debug, Default)]
pub(crate) struct HealthBook {
    tracks: Mutex<HashMap<NodeId, Track>>,
    gates: Mutex<HashMap<EnvId, Arc<RwLock<()>>>>,
}

/// What is known of one node.
#[derive(Debug, Clone)]
pub(crate) struct Track {
    /// Verdict.
    pub(crate) health: Health,
    failures: u32,
    begun: Instant,
    next: Instant,
    busy: bool,
}

/// No check of the environment begins while this is held.
#[derive(Debug)]
pub(crate) struct Paused {
    _gate: Option<OwnedRwLockWriteGuard<()>>,
}

impl HealthBook {
    fn gate(&self, id: &EnvId) -> Arc<RwLock<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        Arc::clone(gates.entry(id.clone()).or_default())
    }

    /// Waits (bounded) until no check of the environment runs, and keeps new ones from beginning.
    pub(crate) async fn pause(&self, id: &EnvId) -> Paused {
        let gate = self.gate(id);
        Paused {
            _gate: tokio::time::timeout(PAUSE_WAIT, gate.write_owned())
                .await
                .ok(),
        }
    }

    fn enter(&self, id: &EnvId) -> Option<OwnedRwLockReadGuard<()>> {
        self.gate(id).try_read_owned().ok()
    }

    /// Forgets what is known of a node: it was started, stopped or removed.
    pub(crate) fn reset(&self, node: &NodeId) {
        self.tracks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node);
    }

    /// What is known of `parent` holds for `clone` too, which goes on in the middle of what `parent` did; until its own first check, one
    /// interval later.
    pub(crate) fn inherit(&self, parent: &NodeId, clone: &NodeId, check: &HealthCheck) {
        let mut tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(track) = tracks.get(parent).cloned() {
            let next = Instant::now() + interval(check);
            let busy = false;
            tracks.insert(
                clone.clone(),
                Track {
                    next,
                    busy,
                    ..track
                },
            );
        }
    }

    /// Verdict on a node with this check.
    pub(crate) fn verdict(&self, node: &NodeId, check: Option<&HealthCheck>) -> Health {
        if check.is_none_or(|check| check.test.is_empty()) {
            return Health::None;
        }
        let tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
        tracks
            .get(node)
            .map_or(Health::Starting, |track| track.health)
    }

    /// Whether a check is due; if so it counts as begun.
    fn take_due(&self, node: &NodeId) -> bool {
        let mut tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let track = tracks.entry(node.clone()).or_insert(Track {
            health: Health::Starting,
            failures: 0,
            begun: now,
            next: now,
            busy: false,
        });
        let due = !track.busy && track.next <= now;
        track.busy |= due;
        due
    }

    fn record(&self, node: &NodeId, check: &HealthCheck, passed: Option<bool>) {
        let mut tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(track) = tracks.get_mut(node) else {
            return;
        };
        let now = Instant::now();
        track.busy = false;
        let starting =
            now.duration_since(track.begun) < Duration::from_millis(check.start_period_ms);
        match passed {
            Some(true) => {
                track.failures = 0;
                track.health = Health::Healthy;
            }
            Some(false) if !(starting && track.health == Health::Starting) => {
                track.failures = track.failures.saturating_add(1);
                if track.failures >= check.retries.max(1) {
                    track.health = Health::Unhealthy;
                }
            }
            Some(false) | None => {}
        }
        track.next = now
            + if track.health == Health::Starting {
                // A node that is not yet healthy is looked at often: people wait for it.
                Duration::from_millis(check.start_interval_ms.clamp(100, 1_000))
            } else {
                interval(check)
            };
    }
}

/// From one check to the next.
fn interval(check: &HealthCheck) -> Duration {
    Duration::from_millis(check.interval_ms.max(1_000))
}

/// Runs the node's check if one is due.
pub(crate) async fn check_if_due(
    shared: &Shared,
    environment: &Environment,
    node: &Node,
    check: &HealthCheck,
) {
    if check.test.is_empty() || !shared.health.take_due(&node.id) {
        return;
    }
    let passed = match shared.health.enter(&environment.id) {
        Some(_gate) => Some(passes(shared, environment, node, check).await),
        None => None,
    };
    shared.health.record(&node.id, check, passed);
}

async fn passes(
    shared: &Shared,
    environment: &Environment,
    node: &Node,
    check: &HealthCheck,
) -> bool {
    let request = ExecRequest {
        args: check.test.clone(),
        ..ExecRequest::default()
    };
    let timeout = Duration::from_millis(check.timeout_ms.max(100));
    let run = async {
        let mut session: ExecSession = shared.engine.exec(environment, node, request).await.ok()?;
        while let Some(output) = session.output.recv().await {
            match output {
                ExecOutput::Exit(status) => return Some(status == 0),
                ExecOutput::Problem(problem) => {
                    tracing::debug!(node = %node.id, %problem, "a health check could not be run");
                    return Some(false);
                }
                ExecOutput::Stdout(_) | ExecOutput::Stderr(_) => {}
            }
        }
        None
    };
    tokio::time::timeout(timeout, run)
        .await
        .ok()
        .flatten()
        .unwrap_or(false)
}
