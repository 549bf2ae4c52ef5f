//! Pictures of environments for people: what is recorded and what is observed, in one.

use offshoot_engine::NodeStatus;
use offshoot_model::environment::Health;
use offshoot_model::manifest::Mount;
use offshoot_model::view::{EnvironmentView, LayerView, LineageView, NodeView, VolumeView};
use offshoot_model::{Environment, EnvironmentState, Layer, Manifest, Node, NodeState, Problem};

use crate::shared::{Shared, store_problem};

/// How much a view tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// What a list shows: quick however much the disks hold.
    List,
    /// Everything, also what takes a look at every file of a volume.
    Full,
}

impl Shared {
    /// An environment as people see it. A host that does not answer makes its nodes look stopped, not the view
    /// fail.
    pub(crate) async fn view(
        &self,
        environment: &Environment,
        detail: Detail,
    ) -> Result<EnvironmentView, Problem> {
        let status = match self.engine.status(environment).await {
            Ok(status) => status,
            Err(problem) => {
                tracing::warn!(environment = %environment.name, %problem, "its nodes could not be looked at");
                Vec::new()
            }
        };
        let mut layers = Vec::with_capacity(environment.manifest.layers.len());
        for layer in &environment.manifest.layers {
            layers.push(self.layer_view(environment, layer, &status)?);
        }
        let nodes = || layers.iter().flat_map(|layer| &layer.nodes);
        let healthy = match environment.state {
            EnvironmentState::Running => nodes().all(|node| node.held || is_well(&node.status)),
            EnvironmentState::Stopped => nodes()
                .all(|node| matches!(node.status, NodeState::Stopped | NodeState::Exited { .. })),
            _ => false,
        };
        let mut volumes = Vec::with_capacity(environment.volumes.len());
        for volume in &environment.volumes {
            let spec = environment.manifest.volumes.get(&volume.name);
            volumes.push(VolumeView {
                name: volume.name.to_string(),
                clone: spec.map(|spec| spec.clone).unwrap_or_default(),
                shared_with: (volume.owner != environment.id).then(|| volume.owner.clone()),
                exclusive_bytes: match detail {
                    Detail::List => None,
                    Detail::Full => {
                        self.engine
                            .volume_bytes(environment, volume.name.as_str())
                            .await
                    }
                },
            });
        }
        Ok(EnvironmentView {
            id: environment.id.clone(),
            name: environment.name.to_string(),
            state: environment.state,
            healthy,
            url: environment
                .manifest
                .entry()
                .map(|_| self.settings.host.url(environment.name.as_str())),
            domains: self.domain_views(environment)?,
            held: environment.held,
            parent: self.lineage(environment),
            created: environment.created,
            layers,
            volumes,
            ports: self.store.ports(&environment.id).map_err(store_problem)?,
            operation: self.holder(&environment.id),
        })
    }

    fn lineage(&self, environment: &Environment) -> Option<LineageView> {
        let lineage = environment.lineage.as_ref()?;
        let parent = self.store.environment(&lineage.parent).ok().flatten();
        Some(LineageView {
            id: lineage.parent.clone(),
            name: parent.map_or_else(
                || lineage.parent_name.to_string(),
                |parent| parent.name.to_string(),
            ),
            cut: lineage.cut,
            operation: lineage.operation,
        })
    }

    fn layer_view(
        &self,
        environment: &Environment,
        layer: &Layer,
        status: &[NodeStatus],
    ) -> Result<LayerView, Problem> {
        let mut nodes = Vec::new();
        for node in environment.nodes_of(&layer.name) {
            let seen = status.iter().find(|seen| seen.node == node.name());
            nodes.push(self.node_view(environment, layer, node, seen)?);
        }
        Ok(LayerView {
            name: layer.name.to_string(),
            role: layer.role,
            scaling: layer.scaling,
            image: layer.image.display(),
            entry: layer.entry,
            nodes,
        })
    }

    fn node_view(
        &self,
        environment: &Environment,
        layer: &Layer,
        node: &Node,
        seen: Option<&NodeStatus>,
    ) -> Result<NodeView, Problem> {
        let placement = &environment.placement;
        let mut state = seen.map_or(NodeState::Stopped, |seen| seen.state.clone());
        if let NodeState::Running { health, .. } = &mut state {
            *health = self.health.verdict(&node.id, layer.healthcheck.as_ref());
        }
        Ok(NodeView {
            name: node.name().to_owned(),
            status: state,
            hostname: node.hostname.clone(),
            inner: placement.inner_at(node.host).to_string(),
            outer: placement.outer_at(node.host).to_string(),
            inner6: placement.inner6_at(node.host).map(|ip| ip.to_string()),
            outer6: placement.outer6_at(node.host).map(|ip| ip.to_string()),
            memory_bytes: seen.and_then(|seen| seen.memory_bytes),
            cpu_us: seen.and_then(|seen| seen.cpu_us),
            pids: seen.and_then(|seen| seen.pids),
            restarts: self
                .store
                .node_restarts(&environment.id, node.name())
                .map_err(store_problem)?,
            held: environment.is_held(node),
            held_processes: seen.map_or_else(Vec::new, |seen| seen.held.clone()),
        })
    }
}

fn is_well(state: &NodeState) -> bool {
    match state {
        NodeState::Running { health, .. } => matches!(health, Health::None | Health::Healthy),
        NodeState::Exited { status, .. } => *status == 0,
        NodeState::Frozen { .. } => true,
        NodeState::Stopped | NodeState::Starting => false,
    }
}

/// A manifest without the content of its secrets.
pub(crate) fn without_secrets(mut manifest: Manifest) -> Manifest {
    for mount in manifest
        .layers
        .iter_mut()
        .flat_map(|layer| &mut layer.mounts)
    {
        if let Mount::File {
            content,
            secret: true,
            ..
        } = mount
        {
            *content = Vec::new().into();
        }
    }
    manifest
}
