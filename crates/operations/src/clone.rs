//! Clone: one cut of the running parent, brought to life beside it.

use std::time::Instant;

use async_trait::async_trait;
use futures::future::join_all;
use jiff::Timestamp;
use offshoot_engine::{Begin, CutOrder, Fallback, Gate};
use offshoot_model::manifest::Scaling;
use offshoot_model::view::CloneRequest;
use offshoot_model::{
    CloneReport, Code, EnvId, Environment, EnvironmentState, Node, Problem, Rung, RungChoice,
};
use offshoot_plan::{Begins, NodePlan, Wish, plan_rungs, why_held};
use serde::{Deserialize, Serialize};

use crate::create::{LEAST_ROOM, discard};
use crate::health::Paused;
use crate::power::{start_nodes, wait_ready};
use crate::saga::{Cx, Saga, Settle};
use crate::shared::{Change, store_problem};

/// Its steps.
pub(crate) const STEPS: &[&str] = &[
    "preflight",
    "prepare",
    "cut",
    "restore",
    "open",
    "start",
    "route",
    "ready",
];

/// Clones an environment; the clone's row was reserved with the operation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Clone {
    pub(crate) parent: EnvId,
    pub(crate) environment: EnvId,
    pub(crate) choice: RungChoice,
    /// Whether it runs when it is made, as its parent does.
    #[serde(default = "running")]
    pub(crate) begins: Begins,
    pub(crate) max_freeze_ms: u64,
    /// Decided by the step `preflight`, corrected by `cut` and `restore`.
    pub(crate) nodes: Vec<NodePlan>,
    /// Whether the clone is to run: it was asked for, and the parent ran.
    pub(crate) runs: bool,
    /// Keeps health checks out of the parent from pre-flight to thaw. Not journalled: a crash lets go of it.
    #[serde(skip)]
    pub(crate) paused: Pause,
}

fn running() -> Begins {
    Begins::Running
}

/// Whether the nodes of the clone that is asked for run.
pub(crate) fn begins(request: &CloneRequest) -> Begins {
    match request.start {
        true => Begins::Running,
        false => Begins::Stopped,
    }
}

/// A pause that a journalled plan may hold.
#[derive(Debug, Default)]
pub(crate) struct Pause(#[expect(dead_code, reason = "held, never read")] Option<Paused>);

impl std::clone::Clone for Pause {
    fn clone(&self) -> Self {
        Self(None)
    }
}

#[async_trait]
impl Saga for Clone {
    fn steps(&self) -> &'static [&'static str] {
        STEPS
    }

    /// Once the memory runs in the clone it is worth keeping; before, the cut is lost with the daemon.
    fn forward_from(&self) -> usize {
        4
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.parent.clone(), self.environment.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        let clone = cx.shared.by_id(&self.environment)?;
        match step {
            "preflight" => self.preflight(cx).await,
            "prepare" => self.prepare(cx, &clone).await,
            "cut" => self.cut(cx, clone).await,
            "restore" => self.restore(cx, &clone).await,
            "open" if self.runs => cx.engine().ensure_open(&clone).await,
            "start" if self.runs => {
                if !self.all_live() {
                    cx.engine().ensure_cut_forgotten(&clone.id).await?;
                }
                let fresh =
                    |node: &Node| matches!(self.rung(node.name()), Some(Rung::Disk | Rung::Image));
                start_nodes(cx, &clone, fresh).await
            }
            "ready" => {
                if self.runs {
                    wait_ready(cx, &clone).await?;
                    let asked = cx.live.snapshot().created;
                    let us = Timestamp::now().duration_since(asked).as_micros();
                    measure(cx, |report| report.ready_us = u64::try_from(us).ok());
                }
                // Where nothing else is waited for it is the last thing: it takes a while, and people wait for the first answer.
                if self.runs && !self.all_live() {
                    return Ok(());
                }
                cx.engine().ensure_cut_forgotten(&clone.id).await
            }
            "route" if self.runs => {
                // The nodes that did not come along live are asked first.
                if !self.all_live() {
                    wait_ready(cx, &clone).await?;
                }
                cx.expose(Change::Open(&clone.id)).await
            }
            // People who come are told that it does not run.
            "route" if self.begins == Begins::Stopped => cx.expose(Change::Close(&clone.id)).await,
            _ => Ok(()),
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        self.paused = Pause(None);
        discard(cx, &self.environment).await
    }

    fn on_success(&self) -> Settle {
        let state = if self.runs {
            EnvironmentState::Running
        } else {
            EnvironmentState::Stopped
        };
        Settle::State(self.environment.clone(), state)
    }

    fn on_undone(&self) -> Settle {
        Settle::Gone(self.environment.clone())
    }

    fn on_stuck(&self) -> Settle {
        Settle::State(self.environment.clone(), EnvironmentState::Broken)
    }
}

impl Clone {
    fn all_live(&self) -> bool {
        self.nodes.iter().all(|plan| plan.rung == Rung::Live)
    }

    fn rung(&self, node: &str) -> Option<Rung> {
        self.nodes
            .iter()
            .find(|plan| plan.node == node)
            .map(|plan| plan.rung)
    }

    async fn preflight(&mut self, cx: &Cx) -> Result<(), Problem> {
        let parent = cx.shared.by_id(&self.parent)?;
        self.paused = Pause(Some(cx.shared.health.pause(&parent.id).await));
        let facts: Vec<_> = cx
            .engine()
            .preflight(&parent)
            .await?
            .into_iter()
            .map(|(facts, _memory)| facts)
            .collect();
        let clone = cx.shared.by_id(&self.environment)?;
        let wish = Wish {
            choice: self.choice,
            begins: self.begins,
            held: clone.held,
        };
        self.nodes = plan_rungs(&parent, &facts, wish).map_err(|e| e.problem())?;
        self.runs = parent.state == EnvironmentState::Running && self.begins == Begins::Running;
        for node in &clone.nodes {
            if let Some(why) = why_held(&clone, node, &facts) {
                cx.notice(format!("node {}: {why}", node.name()));
            }
        }
        Ok(())
    }

    async fn prepare(&mut self, cx: &Cx, clone: &Environment) -> Result<(), Problem> {
        cx.engine().ensure_room(LEAST_ROOM).await?;
        let parent = cx.shared.by_id(&self.parent)?;
        for node in &clone.nodes {
            if self.rung(node.name()) == Some(Rung::Image) {
                cx.engine().renew_disk(clone, node).await?;
            }
        }
        if self.runs {
            cx.engine().ensure_network(clone, Gate::Closed).await?;
        }
        cx.engine().prepare_cut(&parent, clone).await
    }

    async fn cut(&mut self, cx: &Cx, mut clone: Environment) -> Result<(), Problem> {
        let parent = cx.shared.by_id(&self.parent)?;
        let order = CutOrder {
            parent: &parent,
            clone: &clone,
            nodes: &self.nodes,
            max_freeze_ms: self.max_freeze_ms,
            fallback: self.fallback(),
        };
        let outcome = cx.engine().cut(order, &cx.progress()).await;
        self.paused = Pause(None);
        let outcome = outcome?;
        cx.release(&self.parent);
        self.nodes = outcome.nodes;
        if let (Some(lineage), Some(cut)) = (clone.lineage.as_mut(), outcome.report.cut) {
            lineage.cut = cut;
        }
        cx.live
            .change(|operation| operation.report = Some(outcome.report));
        cx.shared
            .store
            .update_environment(&clone)
            .map_err(store_problem)
    }

    fn fallback(&self) -> Fallback {
        if self.choice == RungChoice::Live {
            Fallback::Fail
        } else {
            Fallback::Disk
        }
    }

    async fn restore(&mut self, cx: &Cx, clone: &Environment) -> Result<(), Problem> {
        let parent = cx.shared.by_id(&self.parent)?;
        let nodes = clone
            .nodes
            .iter()
            .filter(|node| self.rung(node.name()) == Some(Rung::Live));
        let restored = join_all(nodes.map(|node| async move {
            let begun = Instant::now();
            let outcome = cx
                .engine()
                .ensure_started(clone, node, Begin::FromCut)
                .await;
            (
                node,
                outcome,
                u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            )
        }))
        .await;
        for (node, outcome, us) in restored {
            let name = node.name();
            match outcome {
                Ok(()) => {
                    inherit_health(cx, &parent, node);
                    measure(cx, |report| {
                        if let Some(row) = report.nodes.iter_mut().find(|row| row.node == name) {
                            row.restore_us = us;
                        }
                    });
                }
                Err(problem)
                    if self.fallback() == Fallback::Fail || problem.code == Code::Cancelled =>
                {
                    return Err(problem);
                }
                Err(problem) => {
                    // Its disk at the cut is as good as ever: its processes start afresh from it.
                    cx.engine().ensure_stopped(clone, node).await?;
                    self.fall_back(cx, name, &problem);
                }
            }
        }
        Ok(())
    }

    fn fall_back(&mut self, cx: &Cx, name: &str, problem: &Problem) {
        let cause = problem
            .details
            .first()
            .map(|detail| format!(" ({detail})"))
            .unwrap_or_default();
        let why = format!("its memory could not be brought back: {problem}{cause}");
        tracing::warn!(node = name, details = ?problem.details, "{why}");
        if let Some(plan) = self.nodes.iter_mut().find(|plan| plan.node == name) {
            plan.rung = Rung::Disk;
            plan.why = Some(why.clone());
            plan.memory = None;
        }
        measure(cx, |report| {
            if let Some(row) = report.nodes.iter_mut().find(|row| row.node == name) {
                row.rung = Rung::Disk;
                row.why = Some(why);
                row.memory = None;
            }
        });
    }
}

/// A node that came along live is as well as it was in the parent.
fn inherit_health(cx: &Cx, parent: &Environment, node: &Node) {
    let source = parent.nodes.iter().find(|own| own.name() == node.name());
    let layer = parent.manifest.layer(&node.layer);
    if let (Some(source), Some(check)) = (source, layer.and_then(|l| l.healthcheck.as_ref())) {
        cx.shared.health.inherit(&source.id, &node.id, check);
    }
}

fn measure(cx: &Cx, change: impl FnOnce(&mut CloneReport)) {
    cx.live.change(|operation| {
        if let Some(report) = operation.report.as_mut() {
            change(report);
        }
    });
}

/// What a person should know before a clone: names of stateless layers, whose nodes lose what they hold.
pub(crate) fn stateless_layers(parent: &Environment) -> Vec<String> {
    parent
        .manifest
        .layers
        .iter()
        .filter(|layer| layer.scaling == Scaling::Stateless)
        .map(|layer| layer.name.to_string())
        .collect()
}
