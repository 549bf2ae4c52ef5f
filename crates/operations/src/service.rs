//! The platform as the API sees it, over the store and an engine.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use offshoot_engine::{ByteStream, Engine, ExecSession, LogQuery};
use offshoot_model::certificate::CertificatesView;
use offshoot_model::disk::{Changes, Directory};
use offshoot_model::domain::DomainView;
use offshoot_model::traffic::view::TrafficView;
use offshoot_model::view::{
    CloneRequest, DoctorReport, EnvironmentView, Event, ExecRequest, ImageView, LogLine, PlanView,
    PlannedNode, PlannedVolume, PoolView,
};
use offshoot_model::{
    Code, Environment, Fault, Manifest, Node, Operation, OperationId, Problem, Rung, RungChoice,
};
use offshoot_plan::{NodeFacts, NodePlan, Wish, plan_rungs, why_held};
use offshoot_store::Store;
use tokio::sync::mpsc;

use crate::platform::{Platform, Request};
use crate::recover::recover;
use crate::shared::{Settings, Shared, store_problem};
use crate::supervise::supervise;
use crate::view::{Detail, without_secrets};

/// Events sent to one reader before it must catch up.
const EVENT_ROOM: usize = 64;
/// Operations shown at most.
const MOST_OPERATIONS: usize = 1_000;

/// The platform of one daemon.
pub struct Operations {
    shared: Arc<Shared>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Operations {
    /// Takes up what the last daemon left, then looks after what runs.
    ///
    /// # Errors
    /// When the store or the host cannot be read at all.
    pub async fn start(
        store: Arc<Store>,
        engine: Arc<dyn Engine>,
        settings: Settings,
    ) -> Result<Self, Problem> {
        let shared = Arc::new(Shared::new(store, engine, settings));
        recover(&shared).await?;
        let tasks = [
            tokio::spawn(supervise(Arc::clone(&shared))),
            tokio::spawn(crate::https::renew(Arc::clone(&shared))),
        ];
        Ok(Self { shared, tasks })
    }

    /// Waits until no operation runs. Operations that are still under way when the daemon ends are taken up by the
    /// next one.
    pub async fn idle(&self) {
        loop {
            let ended = self.shared.ended.notified();
            if self
                .shared
                .live
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .is_empty()
            {
                return;
            }
            ended.await;
        }
    }

    fn node(&self, environment: &Environment, name: &str) -> Result<Node, Problem> {
        environment.node(name).cloned().ok_or_else(|| {
            Problem::new(
                Code::NodeUnknown,
                Fault::Request,
                format!(
                    "environment {} has no node or layer {name:?}",
                    environment.name
                ),
                format!(
                    "see `offshoot ps {}` for those that are there",
                    environment.name
                ),
            )
        })
    }

    fn node_of(&self, environment: &str, node: &str) -> Result<(Environment, Node), Problem> {
        let environment = self.shared.find(environment)?;
        let node = self.node(&environment, node)?;
        Ok((environment, node))
    }

    fn planned(
        &self,
        environment: &Environment,
        rungs: &HashMap<&str, (&NodePlan, u64)>,
        facts: &[NodeFacts],
    ) -> (Vec<PlannedNode>, Vec<PlannedVolume>) {
        let image = |node: &Node| {
            environment
                .manifest
                .layer(&node.layer)
                .map(|layer| layer.image.display())
                .unwrap_or_default()
        };
        let nodes = environment
            .nodes
            .iter()
            .map(|node| {
                let plan = rungs.get(node.name());
                PlannedNode {
                    name: node.name().to_owned(),
                    image: image(node),
                    inner: environment.placement.inner_at(node.host).to_string(),
                    outer: environment.placement.outer_at(node.host).to_string(),
                    hostname: node.hostname.clone(),
                    rung: plan.map(|(plan, _)| plan.rung),
                    why: plan.and_then(|(plan, _)| plan.why.clone()),
                    memory: plan.and_then(|(plan, _)| plan.memory.clone()),
                    memory_bytes: plan
                        .filter(|(plan, _)| plan.rung == Rung::Live)
                        .map(|(_, bytes)| *bytes),
                    held: why_held(environment, node, facts),
                }
            })
            .collect();
        let volumes = environment
            .manifest
            .volumes
            .iter()
            .map(|(name, spec)| PlannedVolume {
                name: name.to_string(),
                clone: spec.clone,
            })
            .collect();
        (nodes, volumes)
    }

    fn url(&self, environment: &Environment) -> Option<String> {
        environment
            .manifest
            .entry()
            .map(|_| self.shared.settings.host.url(environment.name.as_str()))
    }
}

impl Drop for Operations {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[async_trait]
impl Platform for Operations {
    async fn submit(&self, request: Request) -> Result<Operation, Problem> {
        self.shared.submit(request).await
    }

    async fn plan_create(&self, name: &str, manifest: &Manifest) -> Result<PlanView, Problem> {
        let plan = self
            .shared
            .decide_create(name, manifest.clone(), Timestamp::now())
            .await?;
        let (nodes, mut volumes) = self.planned(&plan.environment, &HashMap::new(), &[]);
        for volume in &mut volumes {
            volume.clone = offshoot_model::manifest::VolumeClone::Empty;
        }
        Ok(PlanView {
            name: plan.environment.name.to_string(),
            url: self.url(&plan.environment),
            nodes,
            volumes,
            ports: plan.ports,
            steps: step_names(crate::create::STEPS),
            predicted_freeze_us: None,
            notices: Vec::new(),
        })
    }

    async fn plan_clone(
        &self,
        environment: &str,
        request: &CloneRequest,
    ) -> Result<PlanView, Problem> {
        let parent = self.shared.find(environment)?;
        let plan = self
            .shared
            .decide_clone(&parent, request, OperationId::new(), Timestamp::now())
            .await?;
        let seen = self.shared.engine.preflight(&parent).await?;
        let facts: Vec<_> = seen.iter().map(|(facts, _)| facts.clone()).collect();
        let choice = if request.rung == RungChoice::Live {
            RungChoice::Auto
        } else {
            request.rung
        };
        let wish = Wish {
            choice,
            begins: crate::clone::begins(request),
            held: plan.environment.held,
        };
        let rungs = plan_rungs(&parent, &facts, wish).map_err(|e| e.problem())?;
        let memory: HashMap<&str, u64> = seen
            .iter()
            .map(|(facts, bytes)| (facts.node.as_str(), *bytes))
            .collect();
        let by_node = rungs
            .iter()
            .map(|plan| {
                (
                    plan.node.as_str(),
                    (plan, memory.get(plan.node.as_str()).copied().unwrap_or(0)),
                )
            })
            .collect();
        let (nodes, volumes) = self.planned(&plan.environment, &by_node, &facts);
        let mut notices = plan.notices;
        notices.extend(nodes.iter().filter_map(|node| {
            let why = node.held.as_ref()?;
            Some(format!("node {}: {why}", node.name))
        }));
        notices.push(format!(
            "outer addresses, host names and the domain differ from {}; nothing inside has to",
            parent.name
        ));
        let freeze = self.shared.engine.expected_freeze(&parent, &rungs).await?;
        let bound_ms = request
            .max_freeze_ms
            .unwrap_or(self.shared.settings.max_freeze_ms);
        notices.extend(too_long(freeze, bound_ms, request.rung));
        Ok(PlanView {
            name: plan.environment.name.to_string(),
            url: self.url(&plan.environment),
            nodes,
            volumes,
            ports: plan.ports,
            steps: step_names(crate::clone::STEPS),
            predicted_freeze_us: freeze,
            notices,
        })
    }

    async fn operation(&self, id: OperationId) -> Result<Operation, Problem> {
        match self.shared.live_of(id) {
            Some(live) => Ok(live.snapshot()),
            None => {
                let kept = self.shared.store.operation(id).map_err(store_problem)?;
                kept.map(|(operation, _)| operation).ok_or_else(|| {
                    Problem::new(
                        Code::OperationUnknown,
                        Fault::Request,
                        format!("there is no operation {id}"),
                        "see `offshoot op ls`; old operations are forgotten",
                    )
                })
            }
        }
    }

    async fn operations(&self, limit: usize) -> Result<Vec<Operation>, Problem> {
        self.shared
            .store
            .operations(limit.min(MOST_OPERATIONS))
            .map_err(store_problem)
    }

    async fn cancel(&self, id: OperationId) -> Result<Operation, Problem> {
        let Some(live) = self.shared.live_of(id) else {
            let operation = self.operation(id).await?;
            return Err(Problem::new(
                Code::WrongState,
                Fault::Request,
                format!("operation {id} has ended and cannot be cancelled"),
                format!("see `offshoot op show {}`", operation.id),
            ));
        };
        self.shared
            .store
            .request_cancel(id)
            .map_err(store_problem)?;
        live.cancel();
        Ok(live.snapshot())
    }

    async fn events(&self, seq: u64) -> Result<mpsc::Receiver<Event>, Problem> {
        let (sender, receiver) = mpsc::channel(EVENT_ROOM);
        let mut news = self.shared.news.subscribe();
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            // A position from another database would wait for ever.
            let mut after = shared.store.last_event().map_or(seq, |last| seq.min(last));
            loop {
                let batch = match shared.store.events_after(after, EVENT_ROOM) {
                    Ok(batch) => batch,
                    Err(error) => {
                        tracing::warn!(%error, "events could not be read");
                        return;
                    }
                };
                if batch.is_empty() {
                    tokio::select! {
                        () = sender.closed() => return,
                        heard = news.recv() => match heard {
                            Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                            Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                        },
                    }
                }
                for event in batch {
                    after = event.seq;
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(receiver)
    }

    async fn environments(&self) -> Result<Vec<EnvironmentView>, Problem> {
        let environments = self.shared.store.environments().map_err(store_problem)?;
        let mut views = futures::future::try_join_all(
            environments
                .iter()
                .map(|env| self.shared.view(env, Detail::List)),
        )
        .await?;
        views.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(views)
    }

    async fn environment(&self, environment: &str) -> Result<EnvironmentView, Problem> {
        self.shared
            .view(&self.shared.find(environment)?, Detail::Full)
            .await
    }

    async fn domains(&self, environment: &str) -> Result<Vec<DomainView>, Problem> {
        self.shared.domain_views(&self.shared.find(environment)?)
    }

    async fn certificates(&self) -> Result<CertificatesView, Problem> {
        Ok(CertificatesView {
            served: self.shared.settings.https.served,
            certificates: self.shared.store.certificates().map_err(store_problem)?,
        })
    }

    async fn certificate_root(&self) -> Result<String, Problem> {
        self.shared.settings.https.own.root()
    }

    async fn traffic(&self, environment: &str) -> Result<TrafficView, Problem> {
        self.shared.traffic_view(environment).await
    }

    async fn traffic_back(&self, environment: &str) -> Result<TrafficView, Problem> {
        self.shared.traffic_back(environment).await
    }

    async fn manifest(&self, environment: &str) -> Result<Manifest, Problem> {
        Ok(without_secrets(self.shared.find(environment)?.manifest))
    }

    async fn exec(
        &self,
        environment: &str,
        node: &str,
        request: ExecRequest,
    ) -> Result<ExecSession, Problem> {
        let (environment, node) = self.node_of(environment, node)?;
        self.shared.engine.exec(&environment, &node, request).await
    }

    async fn logs(
        &self,
        environment: &str,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Problem> {
        let environment = self.shared.find(environment)?;
        if let Some(name) = &query.node {
            self.node(&environment, name)?;
        }
        self.shared.engine.logs(&environment, query).await
    }

    async fn copy_out(
        &self,
        environment: &str,
        node: &str,
        path: &str,
    ) -> Result<ByteStream, Problem> {
        let (environment, node) = self.node_of(environment, node)?;
        self.shared.engine.copy_out(&environment, &node, path).await
    }

    async fn copy_in(
        &self,
        environment: &str,
        node: &str,
        path: &str,
        archive: ByteStream,
    ) -> Result<(), Problem> {
        let (environment, node) = self.node_of(environment, node)?;
        self.shared
            .engine
            .copy_in(&environment, &node, path, archive)
            .await
    }

    async fn list(&self, environment: &str, node: &str, path: &str) -> Result<Directory, Problem> {
        let (environment, node) = self.node_of(environment, node)?;
        self.shared.engine.list(&environment, &node, path).await
    }

    async fn changes(&self, environment: &str, other: Option<&str>) -> Result<Changes, Problem> {
        let this = self.shared.find(environment)?;
        let other = match (other, &this.lineage) {
            (Some(other), _) => Some(self.shared.find(other)?),
            (None, Some(lineage)) => self
                .shared
                .store
                .environment(&lineage.parent)
                .map_err(store_problem)?,
            (None, None) => None,
        };
        let cut = other.as_ref().and_then(|other| {
            let of = |clone: &Environment, parent: &Environment| {
                let lineage = clone.lineage.as_ref()?;
                (lineage.parent == parent.id).then_some(lineage.cut)
            };
            of(&this, other).or_else(|| of(other, &this))
        });
        let disks = self
            .shared
            .engine
            .changes(&this, other.as_ref(), cut)
            .await?;
        Ok(Changes {
            with: other.map(|other| other.name.to_string()),
            cut,
            disks,
        })
    }

    async fn images(&self) -> Result<Vec<ImageView>, Problem> {
        let environments = self.shared.store.environments().map_err(store_problem)?;
        let mut images = self.shared.engine.images().await?;
        for image in &mut images {
            let uses = environments
                .iter()
                .flat_map(|env| &env.nodes)
                .filter(|node| node.image == image.id);
            image.used_by = u32::try_from(uses.count()).unwrap_or(u32::MAX);
        }
        Ok(images)
    }

    async fn image_remove(&self, image: &str) -> Result<(), Problem> {
        let images = self.images().await?;
        let hex = image.strip_prefix("sha256:").unwrap_or(image);
        let by_id = |candidate: &&ImageView| {
            hex.len() >= 6 && candidate.id.trim_start_matches("sha256:").starts_with(hex)
        };
        let mut found: Vec<_> = images.iter().filter(by_id).collect();
        if found.is_empty() {
            found = images
                .iter()
                .filter(|candidate| candidate.source == image)
                .collect();
        }
        match found.as_slice() {
            [one] if one.used_by > 0 => Err(Problem::new(
                Code::ImageInUse,
                Fault::Request,
                format!("image {} is used by {} nodes", one.source, one.used_by),
                "remove the environments that use it first",
            )),
            [one] => self.shared.engine.ensure_image_removed(&one.id).await,
            [] => Err(Problem::new(
                Code::ImageNotFound,
                Fault::Request,
                format!("there is no image {image:?}"),
                "see `offshoot image ls`",
            )),
            _ => Err(Problem::new(
                Code::BadRequest,
                Fault::Request,
                format!("{image:?} names {} images", found.len()),
                "give more of the id",
            )),
        }
    }

    async fn root_bytes(&self, environment: &str) -> Result<Option<u64>, Problem> {
        let environment = self.shared.find(environment)?;
        Ok(self.shared.engine.root_bytes(&environment).await)
    }

    async fn pool(&self) -> Result<PoolView, Problem> {
        self.shared.engine.pool().await
    }

    async fn doctor(&self) -> Result<DoctorReport, Problem> {
        self.shared.engine.doctor().await
    }
}

fn step_names(steps: &[&str]) -> Vec<String> {
    steps.iter().map(|step| (*step).to_owned()).collect()
}

/// Says so where a freeze is expected to be longer than it may be.
fn too_long(freeze_us: Option<u64>, bound_ms: u64, choice: RungChoice) -> Option<String> {
    let expected_ms = freeze_us? / 1_000;
    let then = match choice {
        RungChoice::Live => "the clone is given up if that stays so",
        _ => "if that stays so, those with most to copy come along with their disks only",
    };
    (expected_ms > bound_ms).then(|| {
        format!(
            "nodes would stand still for about {expected_ms} ms, and may for {bound_ms} ms: {then}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_that_is_expected_to_be_too_long_is_told() {
        let told = |us, choice| too_long(us, 100, choice).unwrap_or_default();
        assert!(told(Some(151_000), RungChoice::Auto).contains("151 ms, and may for 100 ms"));
        assert!(told(Some(151_000), RungChoice::Live).ends_with("given up if that stays so"));
        assert_eq!(told(Some(100_900), RungChoice::Auto), "");
        assert_eq!(told(None, RungChoice::Auto), "");
    }
}
