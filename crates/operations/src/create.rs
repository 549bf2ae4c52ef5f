//! Create: images, disks, network, nodes, and the way to them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use offshoot_engine::{Gate, ReadyImage};
use offshoot_model::{EnvId, Environment, EnvironmentState, ImageSource, Problem};
use serde::{Deserialize, Serialize};

use crate::power::{start_nodes, wait_ready};
use crate::saga::{Cx, Saga, Settle};
use crate::shared::{Change, store_problem};

/// Least free room in the pool for a new environment or clone, bytes.
pub(crate) const LEAST_ROOM: u64 = 64 << 20;

/// Its steps.
pub(crate) const STEPS: &[&str] = &["images", "disks", "network", "start", "ready", "route"];

/// Creates an environment whose row was reserved with the operation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Create {
    pub(crate) environment: EnvId,
}

#[async_trait]
impl Saga for Create {
    fn steps(&self) -> &'static [&'static str] {
        STEPS
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.environment.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        let environment = cx.shared.by_id(&self.environment)?;
        match step {
            "images" => images(cx, environment).await,
            "disks" => {
                cx.engine().ensure_room(LEAST_ROOM).await?;
                cx.engine().ensure_disks(&environment).await
            }
            "network" => cx.engine().ensure_network(&environment, Gate::Open).await,
            "start" => start_nodes(cx, &environment, |_| true).await,
            "ready" => wait_ready(cx, &environment).await,
            _ => cx.expose(Change::Open(&self.environment)).await,
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        discard(cx, &self.environment).await
    }

    fn on_success(&self) -> Settle {
        Settle::State(self.environment.clone(), EnvironmentState::Running)
    }

    fn on_undone(&self) -> Settle {
        Settle::Gone(self.environment.clone())
    }

    fn on_stuck(&self) -> Settle {
        Settle::State(self.environment.clone(), EnvironmentState::Broken)
    }
}

/// Takes away everything of an environment but its row.
pub(crate) async fn discard(cx: &Cx, environment: &EnvId) -> Result<(), Problem> {
    let routes = cx.expose(Change::Forget(environment)).await;
    cx.engine().ensure_cut_forgotten(environment).await?;
    cx.engine().ensure_removed(environment).await?;
    routes
}

/// Fetches or makes every image, then writes down what each layer takes from its image.
async fn images(cx: &Cx, mut environment: Environment) -> Result<(), Problem> {
    let mut ready: BTreeMap<String, ReadyImage> = BTreeMap::new();
    let mut sources: Vec<ImageSource> = Vec::new();
    for layer in &environment.manifest.layers {
        if !sources.contains(&layer.image) {
            sources.push(layer.image.clone());
        }
    }
    let progress = cx.progress();
    let fetched = futures::future::try_join_all(
        sources
            .iter()
            .map(|source| cx.engine().ensure_image(source, &progress)),
    )
    .await?;
    for layer in &mut environment.manifest.layers {
        let Some(image) = sources
            .iter()
            .position(|s| s == &layer.image)
            .and_then(|at| fetched.get(at))
        else {
            return Err(Problem::internal(format!(
                "layer {} has no image after all were fetched",
                layer.name
            )));
        };
        if layer.healthcheck.is_none() {
            layer.healthcheck = image.config.healthcheck.clone();
        }
        ready.insert(layer.name.to_string(), image.clone());
    }
    for node in &mut environment.nodes {
        if let Some(image) = ready.get(node.layer.as_str()) {
            node.image.clone_from(&image.id);
        }
    }
    cx.shared
        .store
        .update_environment(&environment)
        .map_err(store_problem)
}
