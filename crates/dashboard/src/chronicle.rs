//! What happened to nodes, as far as two looks one after the other tell: kept in memory, and gone with the daemon. Operations are kept by
//! the daemon itself, for longer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use offshoot_model::environment::Health;
use offshoot_model::view::{EnvironmentView, NodeView};
use offshoot_model::{EnvId, NodeState};

/// Most events of an environment that are kept, the newest.
const EVENTS_MAX: usize = 200;
/// Most nodes that are looked at, all environments together. Those that come later have no events.
const NODES_MAX: usize = 1_000;

/// Something that happened to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeEvent {
    /// When; where the host does not tell, when it was seen.
    pub(crate) at: Timestamp,
    /// Its name.
    pub(crate) node: String,
    /// What.
    pub(crate) what: Happened,
}

/// What happened to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happened {
    /// It was started, or came with its memory.
    Started,
    /// It was started again, this many times by its restart policy.
    StartedAgain(u32),
    /// Its main process ended with this status, or 128 + signal.
    Ended(i32),
    /// It has no process any more.
    Stopped,
    /// Its health check passes.
    Healthy,
    /// Its health check fails.
    Unhealthy,
}

/// How a node was at the last look.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Running { since: Timestamp, health: Health },
    Ended { at: Timestamp },
    Stopped,
}

#[derive(Debug, Default)]
struct Past {
    nodes: HashMap<String, Seen>,
    events: VecDeque<NodeEvent>,
}

/// What happened to all nodes since the daemon began.
#[derive(Debug, Default)]
pub(crate) struct Chronicle(Mutex<HashMap<EnvId, Past>>);

impl Chronicle {
    /// Takes up how all nodes are at `now`. Environments that no longer exist are forgotten.
    pub(crate) fn look(&self, environments: &[EnvironmentView], now: Timestamp) {
        let mut pasts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let there: HashSet<_> = environments.iter().map(|env| &env.id).collect();
        pasts.retain(|id, _| there.contains(id));
        let mut room = NODES_MAX;
        for environment in environments {
            let past = pasts.entry(environment.id.clone()).or_default();
            let nodes: Vec<_> = environment.layers.iter().flat_map(|l| &l.nodes).collect();
            past.nodes
                .retain(|name, _| nodes.iter().any(|node| node.name == *name));
            for node in nodes.into_iter().take(room) {
                past.look(node, now);
            }
            room = room.saturating_sub(past.nodes.len());
        }
    }

    /// What happened to the nodes of an environment, in the order in which it was seen.
    pub(crate) fn of(&self, environment: &EnvId) -> Vec<NodeEvent> {
        let pasts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let past = pasts.get(environment);
        past.map_or_else(Vec::new, |past| past.events.iter().cloned().collect())
    }
}

impl Past {
    fn look(&mut self, node: &NodeView, now: Timestamp) {
        let (seen, status) = match node.status {
            NodeState::Running { since, health, .. } => (Seen::Running { since, health }, 0),
            NodeState::Exited { status, at } => (Seen::Ended { at }, status),
            NodeState::Stopped => (Seen::Stopped, 0),
            // On its way: what it becomes is seen the next time.
            NodeState::Starting | NodeState::Frozen { .. } => return,
        };
        let before = self.nodes.insert(node.name.clone(), seen.clone());
        if before.as_ref() == Some(&seen) {
            return;
        }
        let again = match node.restarts {
            0 => Happened::Started,
            times => Happened::StartedAgain(times),
        };
        match (before, seen) {
            (
                Some(Seen::Running { since, .. }),
                Seen::Running {
                    since: then,
                    health,
                },
            ) if since == then => {
                self.add(node, now, of_health(health));
            }
            (_, Seen::Running { since, health }) => {
                self.add(node, since, Some(again));
                let well = of_health(health).filter(|what| *what == Happened::Unhealthy);
                self.add(node, now, well);
            }
            (_, Seen::Ended { at }) => self.add(node, at, Some(Happened::Ended(status))),
            // One that never ran was not stopped.
            (None, Seen::Stopped) => {}
            (Some(_), Seen::Stopped) => self.add(node, now, Some(Happened::Stopped)),
        }
    }

    fn add(&mut self, node: &NodeView, at: Timestamp, what: Option<Happened>) {
        self.events.extend(what.map(|what| NodeEvent {
            at,
            node: node.name.clone(),
            what,
        }));
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }
}

fn of_health(health: Health) -> Option<Happened> {
    match health {
        Health::Healthy => Some(Happened::Healthy),
        Health::Unhealthy => Some(Happened::Unhealthy),
        Health::None | Health::Starting => None,
    }
}

#[cfg(test)]
#[path = "chronicle_tests.rs"]
mod tests;
