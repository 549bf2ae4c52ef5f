//! The plan of a clone: who it is, what comes along, and on which rung each node is cloned.

use jiff::Timestamp;
use offshoot_model::environment::PortBinding;
use offshoot_model::manifest::{CloneMode, Scaling, VolumeClone};
use offshoot_model::name::ENV_NAME_MAX;
use offshoot_model::{
    EnvId, EnvName, Environment, EnvironmentState, Hold, Lineage, Memory, Node, NodeId,
    OperationId, Rung, RungChoice, Volume,
};
use serde::{Deserialize, Serialize};

use crate::PlanError;
use crate::allocate::{Host, Taken, collides, placement};
use crate::create::rehost;
use crate::hold::{held_in_clone, hold_notices};

/// A clone, fully decided but for the rungs, which need a look at the parent's processes ([`plan_rungs`]).
#[derive(Debug, Clone, PartialEq)]
pub struct ClonePlan {
    /// The clone as it will be recorded.
    pub environment: Environment,
    /// Its published ports; a port that the parent holds has no `host_port` yet.
    pub ports: Vec<PortBinding>,
    /// What differs from the parent, in sentences.
    pub notices: Vec<String>,
}

/// How one node of the clone is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    /// Node name, the same in parent and clone.
    pub node: String,
    /// Name of the parent's node that is its source.
    pub source: String,
    /// How.
    pub rung: Rung,
    /// Why not `live`, when it is not.
    pub why: Option<String>,
    /// How its memory is taken, when it is `live`.
    #[serde(default)]
    pub memory: Option<Memory>,
}

/// What was seen of one of the parent's nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Node name.
    pub node: String,
    /// Whether its main process runs.
    pub running: bool,
    /// Why its memory cannot come along; empty when it can.
    pub obstacles: Vec<String>,
    /// The best way to take its memory on its host, when there is one.
    pub memory: Option<Memory>,
    /// Schedulers that run in it, each as `cron (process 4711)`.
    pub schedulers: Vec<String>,
}

/// What is asked of a clone as to its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// How they come along.
    pub choice: RungChoice,
    /// Whether they run.
    pub begins: Begins,
    /// What they are kept from.
    pub held: Hold,
}

/// Whether the nodes of a clone run when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Begins {
    /// As its parent does.
    Running,
    /// They do not.
    Stopped,
}

/// Memory was asked for, and nodes are in the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} of the environment's nodes cannot be cloned with their memory", .reasons.len())]
pub struct NotLive {
    /// Node name and reason.
    pub reasons: Vec<(String, String)>,
}

/// The default name of a clone: `<parent>-clone`, then `<parent>-clone2`, ...
///
/// A parent's name that leaves no room is shortened.
#[must_use]
pub fn clone_name(parent: &EnvName, taken: &Taken) -> EnvName {
    (1u32..)
        .find_map(|n| {
            let suffix = if n == 1 {
                "-clone".to_owned()
            } else {
                format!("-clone{n}")
            };
            let room = ENV_NAME_MAX.saturating_sub(suffix.len());
            let stem: String = parent.as_str().chars().take(room).collect();
            let name = format!("{}{suffix}", stem.trim_end_matches('-'));
            if taken.names.contains(&name) {
                None
            } else {
                name.parse().ok()
            }
        })
        .unwrap_or_else(|| parent.clone())
}

/// Decides a clone's identity and places.
///
/// # Errors
/// When nothing is left to give.
#[expect(
    clippy::too_many_arguments,
    reason = "a pure function of everything that a clone depends on"
)]
pub fn plan_clone(
    parent: &Environment,
    parent_ports: &[PortBinding],
    id: EnvId,
    name: EnvName,
    now: Timestamp,
    operation: OperationId,
    host: &Host,
    taken: &Taken,
    held: Hold,
) -> Result<ClonePlan, PlanError> {
    let placement = placement(host, taken, Some(&parent.placement))?;
    let mut notices = Vec::new();
    let nodes = parent
        .nodes
        .iter()
        .filter_map(|node| {
            Some(Node {
                id: NodeId::new(id.clone(), node.name()).ok()?,
                ..node.clone()
            })
        })
        .collect();
    let volumes = parent
        .volumes
        .iter()
        .map(|volume| {
            let how = parent
                .manifest
                .volumes
                .get(&volume.name)
                .map(|spec| spec.clone)
                .unwrap_or_default();
            match how {
                VolumeClone::Shared => {
                    notices.push(format!(
                        "volume {} is shared: the clone writes to the parent's data",
                        volume.name
                    ));
                    volume.clone()
                }
                VolumeClone::Copy | VolumeClone::Empty => Volume {
                    owner: id.clone(),
                    ..volume.clone()
                },
            }
        })
        .collect();
    let ports = parent_ports
        .iter()
        .map(|binding| {
            let mut binding = binding.clone();
            if taken
                .ports
                .iter()
                .any(|other| collides(&other.port, &binding.port))
            {
                binding.port.host_port = None;
            }
            binding
        })
        .collect();
    let mut environment = Environment {
        id,
        name,
        state: EnvironmentState::Creating,
        held: held_in_clone(parent, held),
        lineage: Some(Lineage {
            parent: parent.id.clone(),
            parent_name: parent.name.clone(),
            cut: now,
            operation,
        }),
        created: now,
        manifest: parent.manifest.clone(),
        placement,
        nodes,
        volumes,
    };
    rehost(&mut environment);
    notices.extend(hold_notices(&environment, parent));
    Ok(ClonePlan {
        environment,
        ports,
        notices,
    })
}

/// Decides how each node is cloned, from what was seen of the parent's nodes.
///
/// # Errors
/// [`NotLive`] when `live` was chosen and a running, stateful node that is not held cannot come along with its memory.
pub fn plan_rungs(
    parent: &Environment,
    facts: &[NodeFacts],
    wish: Wish,
) -> Result<Vec<NodePlan>, PlanError> {
    let plans: Vec<NodePlan> = parent
        .nodes
        .iter()
        .map(|node| plan_node(parent, node, facts, wish))
        .collect();
    let reasons: Vec<_> = plans
        .iter()
        .zip(&parent.nodes)
        .filter(|(plan, node)| {
            wish.choice == RungChoice::Live
                && plan.rung == Rung::Disk
                && plan.source == plan.node
                && !runs_held_jobs(parent, node, wish.held)
        })
        .map(|(plan, _)| (plan.node.clone(), plan.why.clone().unwrap_or_default()))
        .collect();
    if reasons.is_empty() {
        Ok(plans)
    } else {
        Err(NotLive { reasons }.into())
    }
}

/// Whether a clone that holds `held` keeps this node of its parent from running.
fn runs_held_jobs(parent: &Environment, node: &Node, held: Hold) -> bool {
    held.jobs
        && parent
            .manifest
            .layer(&node.layer)
            .is_some_and(|layer| layer.jobs)
}

fn plan_node(parent: &Environment, node: &Node, facts: &[NodeFacts], wish: Wish) -> NodePlan {
    let choice = wish.choice;
    let layer = parent.manifest.layer(&node.layer);
    let mode = layer.map(|layer| layer.clone).unwrap_or_default();
    let stateless = layer.is_some_and(|layer| layer.scaling == Scaling::Stateless);
    let source = match mode {
        CloneMode::Master => parent.nodes_of(&node.layer).next().unwrap_or(node),
        CloneMode::Each | CloneMode::Image => node,
    };
    let plan = |rung, why: Option<String>| NodePlan {
        node: node.name().to_owned(),
        source: source.name().to_owned(),
        rung,
        why,
        memory: None,
    };
    let seen = facts.iter().find(|fact| fact.node == source.name());
    if choice == RungChoice::Image {
        return plan(Rung::Image, Some("asked for with --rung image".into()));
    }
    if stateless {
        return plan(Rung::Image, Some("the layer is stateless".into()));
    }
    if mode == CloneMode::Image {
        return plan(
            Rung::Image,
            Some("the layer is cloned from its image".into()),
        );
    }
    if !seen.is_some_and(|fact| fact.running) {
        return plan(Rung::Stopped, Some("the parent's node does not run".into()));
    }
    if source.id != node.id {
        return plan(
            Rung::Disk,
            Some(format!(
                "the layer is cloned from its master {}",
                source.name()
            )),
        );
    }
    // With its disk at the cut, as if it had memory: it is what other nodes know of it.
    if runs_held_jobs(parent, node, wish.held) {
        return plan(
            Rung::Disk,
            Some("it runs jobs, which are held: it does not run".into()),
        );
    }
    if wish.begins == Begins::Stopped {
        return plan(Rung::Disk, Some("the clone is not started".into()));
    }
    if choice == RungChoice::Disk {
        return plan(Rung::Disk, Some("asked for with --rung disk".into()));
    }
    match seen.map(|fact| fact.obstacles.join("; ")) {
        Some(obstacles) if !obstacles.is_empty() => plan(Rung::Disk, Some(obstacles)),
        _ => NodePlan {
            memory: seen.and_then(|fact| fact.memory.clone()),
            ..plan(Rung::Live, None)
        },
    }
}
