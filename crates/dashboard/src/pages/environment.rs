//! The page of one environment.

use std::time::Instant;

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use jiff::Timestamp;
use offshoot_model::manifest::{Manifest, Mount, Scaling, VolumeClone};
use offshoot_model::view::{EnvironmentView, LayerView, NodeView};
use offshoot_model::{Code, EnvironmentState, NodeState};

use super::{
    Mark, custom_domains, environment_mark, events, family, health, node_mark, settled, topology,
};
use crate::answer::{Failure, html};
use crate::context::{Context, Shell};
use crate::format::{When, bare_address, bytes, encode, percent, web_address};
use crate::hide::{HIDDEN, is_secret};

/// Operations that are searched, and events that are shown.
const SEARCHED: usize = 500;
const SHOWN: usize = 8;
/// Element that holds what changes.
const PART: &str = "environment";
#[derive(Template)]
#[template(path = "environment.html")]
struct Page {
    shell: Shell,
    part: Part,
    variables: Vec<LayerVariables>,
}

#[derive(Template)]
#[template(path = "environment_part.html")]
struct Part {
    name: String,
    id: String,
    href: String,
    mark: Mark,
    settled: bool,
    runs: bool,
    operation: Option<String>,
    url: Option<String>,
    address: Option<String>,
    domains: Vec<String>,
    /// What it is kept from.
    held: Option<&'static str>,
    parent: Option<Parent>,
    topology: String,
    family: Option<String>,
    health: Option<String>,
    created: When,
    layers: Vec<Layer>,
    volumes: Vec<VolumeLine>,
    ports: Vec<PortLine>,
    entries: Vec<events::Entry>,
}

struct Parent {
    name: String,
    /// Where it is, unless it is gone.
    href: Option<String>,
    cut: When,
    operation: String,
    freeze: Option<String>,
}

struct Layer {
    name: String,
    role: &'static str,
    image: String,
    entry: Option<u16>,
    stateless: bool,
    nodes: Vec<NodeLine>,
}

struct NodeLine {
    name: String,
    logs: String,
    mark: Mark,
    since: Option<When>,
    detail: Option<String>,
    memory: String,
    cpu: String,
    pids: String,
    inner: String,
    outer: String,
    restarts: u32,
}

struct VolumeLine {
    name: String,
    /// `layer:/path`, for each place.
    mounted: Vec<String>,
    clone: &'static str,
    shared: bool,
    bytes: String,
}

struct PortLine {
    outside: String,
    inside: String,
}

struct LayerVariables {
    layer: String,
    variables: Vec<(String, Option<String>)>,
}

/// An environment, or what changes of its page where only that is wanted.
pub(super) async fn show(
    context: Context,
    Path(environment): Path<String>,
) -> Result<Response, Failure> {
    let platform = &context.web.platform;
    let all = platform.environments().await?;
    context.web.meter.look(&all, Instant::now());
    context.web.meter.survey(platform, &all);
    context.web.chronicle.look(&all, Timestamp::now());
    let found = all
        .iter()
        .find(|env| env.name == environment)
        .or_else(|| all.iter().find(|env| env.id.as_str() == environment));
    let Some(found) = found else {
        return Err(super::find(&context.web, &environment)
            .await
            .err()
            .unwrap_or_else(|| {
                Failure::bad_request("the environment was just made", "load the page again")
            }));
    };
    let manifest = match platform.manifest(&found.name).await {
        Ok(manifest) => manifest,
        // Removed in this moment: the page says what was.
        Err(problem) if problem.code == Code::EnvironmentUnknown => Manifest::default(),
        Err(problem) => return Err(problem.into()),
    };
    let part = draw(&context, found, &all, &manifest).await?;
    if context.wants(PART) {
        return html(&part);
    }
    html(&Page {
        shell: context.shell(found.name.clone()),
        part,
        variables: variables(&manifest),
    })
}

async fn draw(
    context: &Context,
    environment: &EnvironmentView,
    all: &[EnvironmentView],
    manifest: &Manifest,
) -> Result<Part, Failure> {
    let now = Timestamp::now();
    let operations = context.web.platform.operations(SEARCHED).await?;
    let href = format!("/environments/{}", encode(&environment.name));
    let url = environment.url.as_deref().and_then(web_address);
    let parent = environment.parent.as_ref().map(|lineage| {
        let freeze = operations
            .iter()
            .find(|operation| operation.id == lineage.operation)
            .and_then(|operation| operation.report.as_ref())
            .map(|report| crate::format::duration(report.freeze_us));
        Parent {
            name: lineage.name.clone(),
            href: all
                .iter()
                .find(|env| env.id == lineage.id)
                .map(|env| format!("/environments/{}", encode(&env.name))),
            cut: When::new(lineage.cut, now),
            operation: lineage.operation.to_string(),
            freeze,
        }
    });
    Ok(Part {
        id: environment.id.to_string(),
        mark: environment_mark(environment),
        settled: settled(environment),
        runs: environment.state == EnvironmentState::Running,
        operation: environment.operation.map(|id| id.to_string()),
        url: url.map(str::to_owned),
        address: url.map(|url| bare_address(url).to_owned()),
        domains: custom_domains(environment),
        held: environment.held.words(),
        parent,
        topology: topology::picture(environment, manifest)?,
        family: family::tree(environment, all, &operations, now)?,
        health: health::checks(environment, manifest)?,
        created: When::new(environment.created, now),
        layers: environment
            .layers
            .iter()
            .map(|layer| self::layer(context, environment, layer, &href, now))
            .collect(),
        volumes: environment
            .volumes
            .iter()
            .map(|volume| VolumeLine {
                name: volume.name.clone(),
                mounted: mounted(manifest, &volume.name),
                clone: match volume.clone {
                    VolumeClone::Copy => "copied as of the cut",
                    VolumeClone::Empty => "empty in a clone",
                    VolumeClone::Shared => "shared with clones",
                },
                shared: volume.shared_with.is_some(),
                bytes: context
                    .web
                    .meter
                    .volume(&environment.id, &volume.name)
                    .map_or_else(|| "–".to_owned(), bytes),
            })
            .collect(),
        ports: environment
            .ports
            .iter()
            .map(|binding| PortLine {
                outside: format!(
                    "{}:{}",
                    binding.port.host_ip,
                    binding.port.host_port.unwrap_or_default()
                ),
                inside: format!("{}:{}", binding.layer, binding.port.target),
            })
            .collect(),
        entries: events::of(context, environment, &operations, SHOWN, now).await,
        name: environment.name.clone(),
        href,
    })
}

fn layer(
    context: &Context,
    environment: &EnvironmentView,
    layer: &LayerView,
    href: &str,
    now: Timestamp,
) -> Layer {
    Layer {
        name: layer.name.clone(),
        role: topology::role_name(layer.role),
        image: layer.image.clone(),
        entry: layer.entry,
        stateless: layer.scaling == Scaling::Stateless,
        nodes: layer
            .nodes
            .iter()
            .map(|node| self::node(context, environment, node, href, now))
            .collect(),
    }
}

fn node(
    context: &Context,
    environment: &EnvironmentView,
    node: &NodeView,
    href: &str,
    now: Timestamp,
) -> NodeLine {
    let missing = || "–".to_owned();
    let (since, detail) = match &node.status {
        NodeState::Running { since, .. } => (Some(When::new(*since, now)), None),
        NodeState::Exited { status, at } => (
            Some(When::new(*at, now)),
            Some(format!("with status {status}")),
        ),
        NodeState::Stopped | NodeState::Starting | NodeState::Frozen { .. } => (None, None),
    };
    let detail = match (node.held, node.held_processes.as_slice()) {
        (true, _) => Some("held: it runs jobs".to_owned()),
        (false, []) => detail,
        (false, processes) => Some(format!("{} stands still", processes.join(", "))),
    };
    NodeLine {
        logs: format!("{href}/logs?node={}", encode(&node.name)),
        mark: node_mark(&node.status),
        since,
        detail,
        memory: node.memory_bytes.map_or_else(missing, bytes),
        cpu: context
            .web
            .meter
            .cpu(&environment.id, &node.name)
            .map_or_else(missing, percent),
        pids: node.pids.map_or_else(missing, |pids| pids.to_string()),
        inner: node.inner.clone(),
        outer: node.outer.clone(),
        restarts: node.restarts,
        name: node.name.clone(),
    }
}

/// Where layers have a volume.
fn mounted(manifest: &Manifest, volume: &str) -> Vec<String> {
    let layers = manifest.layers.iter();
    layers
        .flat_map(|layer| layer.mounts.iter().map(move |mount| (layer, mount)))
        .filter_map(|(layer, mount)| match mount {
            Mount::Volume {
                volume: name,
                target,
                read_only,
            } if name.as_str() == volume => {
                let only = if *read_only { ", read-only" } else { "" };
                Some(format!("{}:{target}{only}", layer.name))
            }
            _ => None,
        })
        .collect()
}

/// Variables of each layer. The value of what sounds like a secret, or carries a password in an address, is left out:
/// `None`.
fn variables(manifest: &Manifest) -> Vec<LayerVariables> {
    manifest
        .layers
        .iter()
        .filter(|layer| !layer.environment.is_empty())
        .map(|layer| LayerVariables {
            layer: layer.name.to_string(),
            variables: layer
                .environment
                .iter()
                .map(|(name, value)| {
                    let shown = !is_secret(name, value);
                    (name.clone(), shown.then(|| value.clone()))
                })
                .collect(),
        })
        .collect()
}
