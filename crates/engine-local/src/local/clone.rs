//! What a clone needs of the host: what may come along, the cut, and its way out once it runs.

use std::time::Duration;

use offshoot_checkpoint::{Container, Insist, expected_freeze, preflight};
use offshoot_engine::{CutOutcome, Fallback};
use offshoot_model::manifest::VolumeClone;
use offshoot_model::{Code, EnvId, Environment, Fault, Node, NodeState, Problem, Rung};
use offshoot_network::Gate;
use offshoot_plan::{NodeFacts, NodePlan};

use super::Inner;
use crate::leftovers::Left;
use crate::plant::Planter;
use crate::{cut, disks, nodes};

impl Inner {
    pub(super) fn preflight(&self, environment: &Environment) -> Vec<(NodeFacts, u64)> {
        let status = nodes::status(&self.config, environment);
        let facts = |node: &Node| {
            let seen = status.iter().find(|seen| seen.node == node.name());
            let running = seen.is_some_and(|seen| matches!(seen.state, NodeState::Running { .. }));
            let mut obstacles = Vec::new();
            if running {
                if self.criu.is_none() {
                    obstacles.push("no working CRIU was found; see `offshoot doctor`".to_owned());
                }
                match self.container(node).map(|container| preflight(&container)) {
                    Ok(Ok(found)) => {
                        obstacles.extend(
                            found
                                .into_iter()
                                .map(|obstacle| format!("{}: {}", obstacle.what, obstacle.why)),
                        );
                    }
                    Ok(Err(error)) => obstacles.push(error.to_string()),
                    Err(problem) => obstacles.push(problem.what),
                }
            }
            let memory = seen.and_then(|seen| seen.memory_bytes).unwrap_or(0);
            (
                NodeFacts {
                    node: node.name().to_owned(),
                    running,
                    obstacles,
                    memory: Some(self.ladder.best()),
                    schedulers: match running {
                        true => nodes::schedulers(&self.config, node),
                        false => Vec::new(),
                    },
                },
                memory,
            )
        };
        environment.nodes.iter().map(facts).collect()
    }

    pub(super) fn expected_freeze(
        &self,
        environment: &Environment,
        plans: &[NodePlan],
    ) -> Option<u64> {
        let stands_still =
            |plan: &&NodePlan| plan.rung != Rung::Stopped && plan.source == plan.node;
        let look = |plan: &NodePlan| {
            let container = self.container(environment.node(&plan.node)?).ok()?;
            let memory = plan.memory.as_ref().filter(|_| plan.rung == Rung::Live);
            Some((container, memory.map(|memory| memory.way)))
        };
        let nodes: Option<Vec<_>> = plans.iter().filter(stands_still).map(look).collect();
        let nodes = nodes.filter(|nodes| !nodes.is_empty())?;
        let freeze = expected_freeze(&nodes)?;
        Some(u64::try_from(freeze.as_micros()).unwrap_or(u64::MAX))
    }

    pub(super) fn prepare_cut(&self, parent: &EnvId, clone: &Environment) -> Result<(), Problem> {
        self.leftovers.forget_of_parent(parent);
        cut::ensure_room_for_memory(&self.config.cuts(), &clone.id)?;
        self.pool.prepare_env(&clone.id).map_err(|e| e.problem())?;
        for volume in clone
            .volumes
            .iter()
            .filter(|volume| volume.owner == clone.id)
        {
            let spec = clone.manifest.volumes.get(&volume.name);
            if spec.is_some_and(|spec| spec.clone == VolumeClone::Empty) {
                let target = disks::volume_subvolume(volume);
                self.pool.ensure_empty(&target).map_err(|e| e.problem())?;
            }
        }
        // What is dirty now is written now; the snapshot in the freeze then has little left to write.
        self.pool.sync().map_err(|e| e.problem())
    }

    pub(super) fn cut(
        &self,
        parent: &Environment,
        clone: &Environment,
        plans: Vec<NodePlan>,
        max_freeze_ms: u64,
        fallback: Fallback,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<CutOutcome, Problem> {
        let parent_node = |name: &str| parent.nodes.iter().find(|node| node.name() == name);
        let node_dir = |name: &str| {
            parent_node(name)
                .map(|node| nodes::node_dir(&self.config, &node.id))
                .unwrap_or_default()
        };
        let cutter = cut::Cutter {
            pool: &self.pool,
            criu: self.criu.as_ref(),
            ladder: &self.ladder,
            cuts: &self.config.cuts(),
            node_dir: &node_dir,
            container: &|name| {
                let node = parent_node(name);
                node.map_or_else(
                    || Err(Problem::internal(format!("no node {name}"))),
                    |node| self.container(node),
                )
            },
            router: self.router(&parent.id).ok(),
            plant: &Planter {
                shim: &self.config.shim,
                node_dir: &node_dir,
            },
            cancelled,
        };
        let insist = match fallback {
            Fallback::Fail => Insist::OnLive,
            Fallback::Disk => Insist::No,
        };
        let max_freeze = Duration::from_millis(max_freeze_ms);
        let pause = self.sharing.pause();
        let (nodes, report, tracking) = cutter.cut(parent, clone, plans, max_freeze, insist)?;
        let left = Left {
            parent: parent.id.clone(),
            _tracking: tracking,
            _pause: pause,
        };
        self.leftovers.keep(&clone.id, left);
        Ok(CutOutcome { nodes, report })
    }

    pub(super) fn ensure_open(&self, environment: &Environment) -> Result<(), Problem> {
        for node in &environment.nodes {
            if let Some(pid) = nodes::pid_of(&self.config, node) {
                let closed = offshoot_network::close_outside(pid, &environment.placement)
                    .map_err(|e| e.problem())?;
                tracing::debug!(node = %node.id, closed, "ended connections to the parent's peers");
            }
        }
        let router = self.router(&environment.id)?;
        router.lift().map_err(|e| e.problem())?;
        router.set_gate(Gate::Open).map_err(|e| e.problem())
    }

    pub(super) fn ensure_cut_forgotten(&self, clone: &EnvId) -> Result<(), Problem> {
        self.leftovers.forget(clone);
        cut::ensure_forgotten(&self.config.cuts(), clone)
    }

    fn container(&self, node: &Node) -> Result<Container, Problem> {
        let root = nodes::node_dir(&self.config, &node.id).join("runc");
        Container::of_runc(&root, &node.id.to_string()).map_err(|e| {
            Problem::new(
                Code::NodeUnknown,
                Fault::Environment,
                format!("node {} does not run", node.id),
                "see `offshoot ps`",
            )
            .caused_by(&e)
        })
    }
}
