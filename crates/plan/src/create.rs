//! The plan of a new environment.

use std::collections::BTreeSet;

use jiff::Timestamp;
use offshoot_model::environment::{FIRST_NODE_HOST, MacAddr, PortBinding};
use offshoot_model::manifest::{MAX_NODES, Mount};
use offshoot_model::{
    EnvId, EnvName, Environment, EnvironmentState, Hold, Layer, Manifest, Node, NodeId, Volume,
};

use crate::PlanError;
use crate::allocate::{Host, Taken, placement};
use crate::order::start_waves;

/// A new environment, fully decided but for its images' digests.
#[derive(Debug, Clone, PartialEq)]
pub struct CreatePlan {
    /// The environment as it will be recorded; nodes' `image` is empty until the images are there.
    pub environment: Environment,
    /// Published ports; `host_port` is decided where the manifest named one.
    pub ports: Vec<PortBinding>,
}

/// Longest host name in bytes (HOST_NAME_MAX, gethostname(2)).
const HOST_NAME_MAX: usize = 64;

/// Host name of a node: the layer's fixed one, or `<layer>-<n>.<environment>`, whose first label is the same in
/// every clone (servers such as RabbitMQ name their data after it) while the whole differs.
#[must_use]
pub fn hostname(layer: &Layer, node: &str, environment: &EnvName) -> String {
    let mut name = layer
        .hostname
        .clone()
        .unwrap_or_else(|| format!("{node}.{environment}"));
    // Both parts are ASCII, so any byte is a boundary.
    name.truncate(HOST_NAME_MAX);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// Gives every node the host name that it has under the environment's present name.
pub fn rehost(environment: &mut Environment) {
    for node in &mut environment.nodes {
        if let Some(layer) = environment
            .manifest
            .layers
            .iter()
            .find(|layer| layer.name == node.layer)
        {
            node.hostname = hostname(layer, node.id.name(), &environment.name);
        }
    }
}

/// Decides a new environment.
///
/// # Errors
/// When the manifest contradicts itself, or nothing is left to give.
pub fn plan_create(
    id: EnvId,
    name: EnvName,
    created: Timestamp,
    manifest: Manifest,
    host: &Host,
    taken: &Taken,
) -> Result<CreatePlan, PlanError> {
    start_waves(&manifest)?;
    let nodes = nodes(&id, &name, &manifest)?;
    let volumes = volumes(&id, &manifest)?;
    let ports = manifest
        .layers
        .iter()
        .flat_map(|layer| {
            layer.ports.iter().map(|port| PortBinding {
                port: port.clone(),
                layer: layer.name.clone(),
            })
        })
        .collect();
    let placement = placement(host, taken, None)?;
    let environment = Environment {
        id,
        name,
        state: EnvironmentState::Creating,
        held: Hold::default(),
        lineage: None,
        created,
        manifest,
        placement,
        nodes,
        volumes,
    };
    Ok(CreatePlan { environment, ports })
}

fn nodes(id: &EnvId, name: &EnvName, manifest: &Manifest) -> Result<Vec<Node>, PlanError> {
    let count = manifest
        .layers
        .iter()
        .map(|layer| layer.replicas as usize)
        .sum();
    if count > MAX_NODES {
        return Err(PlanError::TooManyNodes(count));
    }
    let mut names = BTreeSet::new();
    let mut nodes = Vec::with_capacity(count);
    let mut hosts = FIRST_NODE_HOST..=u8::MAX - 1;
    for layer in &manifest.layers {
        for number in 1..=layer.replicas {
            let node = format!("{}-{number}", layer.name);
            if !names.insert(node.clone()) {
                return Err(PlanError::NodeNameTwice(node));
            }
            let host = hosts.next().ok_or(PlanError::TooManyNodes(count))?;
            nodes.push(Node {
                id: NodeId::new(id.clone(), &node)
                    .map_err(|_| PlanError::NodeNameTwice(node.clone()))?,
                layer: layer.name.clone(),
                number,
                host,
                // Locally administered ("of"): the same in every clone, unique inside.
                mac: MacAddr([0x02, b'o', b'f', 0, 0, host]),
                image: String::new(),
                hostname: hostname(layer, &node, name),
            });
        }
    }
    if let Some(layer) = manifest
        .layers
        .iter()
        .find(|layer| names.contains(layer.name.as_str()))
    {
        return Err(PlanError::NodeNameTwice(layer.name.to_string()));
    }
    Ok(nodes)
}

fn volumes(id: &EnvId, manifest: &Manifest) -> Result<Vec<Volume>, PlanError> {
    for layer in &manifest.layers {
        for mount in &layer.mounts {
            if let Mount::Volume { volume, .. } = mount
                && !manifest.volumes.contains_key(volume)
            {
                return Err(PlanError::VolumeUnknown {
                    layer: layer.name.to_string(),
                    volume: volume.to_string(),
                });
            }
        }
    }
    Ok(manifest
        .volumes
        .keys()
        .map(|name| Volume {
            name: name.clone(),
            owner: id.clone(),
        })
        .collect())
}
