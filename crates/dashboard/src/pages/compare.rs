//! Two environments side by side: what a clone has become.

use std::collections::BTreeSet;

use askama::Template;
use axum::extract::Query;
use axum::response::Response;
use jiff::Timestamp;
use offshoot_model::manifest::{Layer, Mount, RestartPolicy, VolumeClone};
use offshoot_model::view::EnvironmentView;
use offshoot_model::{Code, Manifest};
use serde::Deserialize;

use super::{environment_mark, topology};
use crate::Web;
use crate::answer::{Failure, html};
use crate::context::{Context, Shell};
use crate::format::{When, bare_address, bytes, duration, encode, shortened};
use crate::hide::{HIDDEN, conceal, is_secret};

/// Operations that are searched for the cut.
const SEARCHED: usize = 500;
/// Most lines of a page, and the longest value in it, characters.
const ROWS_MAX: usize = 300;
const VALUE_MAX: usize = 120;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    a: String,
    b: String,
    /// `differences`: what is equal is left out.
    show: String,
}

#[derive(Template)]
#[template(path = "compare.html")]
struct Page {
    shell: Shell,
    names: Vec<String>,
    a: String,
    b: String,
    pair: Option<Pair>,
}

struct Pair {
    a: Side,
    b: Side,
    /// Addresses of this page with everything, and with what differs.
    all: String,
    different: String,
    only_different: bool,
    /// Where files that differ are shown.
    changes: String,
    cut: Option<Cut>,
    groups: Vec<Group>,
    differences: usize,
    left_out: usize,
}

struct Side {
    name: String,
    href: String,
    mark: super::Mark,
}

struct Cut {
    /// Whether the second is the clone of the first, and not the other way round.
    forwards: bool,
    at: When,
    operation: String,
    freeze: Option<String>,
}

struct Group {
    title: &'static str,
    rows: Vec<Row>,
}

/// A property of both; `None` where one has no such thing.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: String,
    a: Option<String>,
    b: Option<String>,
    differs: bool,
}

/// An environment with its description.
struct Whole {
    view: EnvironmentView,
    manifest: Manifest,
}

/// Where two environments are compared.
pub(super) fn href(a: &str, b: &str) -> String {
    format!("/compare?a={}&b={}", encode(a), encode(b))
}

/// Two environments, or the question which.
pub(super) async fn show(
    context: Context,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let web = &context.web;
    let names = web.platform.environments().await?;
    let names: Vec<_> = names.into_iter().map(|env| env.name).collect();
    let pair = if asked.a.is_empty() || asked.b.is_empty() {
        None
    } else {
        let (a, b) = (whole(web, &asked.a).await?, whole(web, &asked.b).await?);
        let cut = cut(web, &a.view, &b.view).await?;
        Some(pair(&a, &b, cut, asked.show == "differences"))
    };
    let title = pair.as_ref().map_or_else(
        || "Compare".to_owned(),
        |pair| format!("{} and {}", pair.a.name, pair.b.name),
    );
    html(&Page {
        shell: context.shell(title),
        names,
        a: pair.as_ref().map_or(asked.a, |pair| pair.a.name.clone()),
        b: pair.as_ref().map_or(asked.b, |pair| pair.b.name.clone()),
        pair,
    })
}

async fn whole(web: &Web, name: &str) -> Result<Whole, Failure> {
    let view = super::find(web, name).await?;
    let manifest = match web.platform.manifest(view.id.as_str()).await {
        Ok(manifest) => manifest,
        // Removed in this moment: the page says what was.
        Err(problem) if problem.code == Code::EnvironmentUnknown => Manifest::default(),
        Err(problem) => return Err(problem.into()),
    };
    Ok(Whole { view, manifest })
}

/// The cut between the two, where one is the clone of the other.
async fn cut(web: &Web, a: &EnvironmentView, b: &EnvironmentView) -> Result<Option<Cut>, Failure> {
    let of = |clone: &EnvironmentView, parent: &EnvironmentView| {
        clone
            .parent
            .clone()
            .filter(|lineage| lineage.id == parent.id)
    };
    let forwards = of(b, a);
    let Some(lineage) = forwards.clone().or_else(|| of(a, b)) else {
        return Ok(None);
    };
    let operations = web.platform.operations(SEARCHED).await?;
    let report = operations
        .iter()
        .find(|operation| operation.id == lineage.operation)
        .and_then(|operation| operation.report.as_ref());
    Ok(Some(Cut {
        forwards: forwards.is_some(),
        at: When::new(lineage.cut, Timestamp::now()),
        operation: lineage.operation.to_string(),
        freeze: report.map(|report| duration(report.freeze_us)),
    }))
}

fn pair(a: &Whole, b: &Whole, cut: Option<Cut>, only_different: bool) -> Pair {
    let mut groups = vec![
        Group {
            title: "Environment",
            rows: environment(a, b),
        },
        Group {
            title: "Layers",
            rows: layers(a, b),
        },
        Group {
            title: "Variables",
            rows: variables(a, b),
        },
        Group {
            title: "Published ports",
            rows: ports(a, b),
        },
        Group {
            title: "Volumes",
            rows: volumes(a, b),
        },
    ];
    let mut left_out = 0;
    let mut room = ROWS_MAX;
    let mut differences = 0;
    for group in &mut groups {
        differences += group.rows.iter().filter(|row| row.differs).count();
        if only_different {
            group.rows.retain(|row| row.differs);
        }
        left_out += group.rows.len().saturating_sub(room);
        group.rows.truncate(room);
        room -= group.rows.len();
    }
    groups.retain(|group| !group.rows.is_empty());
    let all = href(&a.view.name, &b.view.name);
    Pair {
        changes: all.replacen("/compare", "/compare/changes", 1),
        different: format!("{all}&show=differences"),
        all,
        only_different,
        a: side(&a.view),
        b: side(&b.view),
        cut,
        groups,
        differences,
        left_out,
    }
}

fn side(environment: &EnvironmentView) -> Side {
    Side {
        name: environment.name.clone(),
        href: format!("/environments/{}", encode(&environment.name)),
        mark: environment_mark(environment),
    }
}

/// A property that should be equal.
fn row(name: impl Into<String>, a: Option<String>, b: Option<String>) -> Row {
    let differs = a != b;
    let short = |value: Option<String>| value.map(|value| shortened(&value, VALUE_MAX));
    Row {
        name: name.into(),
        a: short(a),
        b: short(b),
        differs,
    }
}

/// A property that is each one's own.
fn own(name: &str, a: Option<String>, b: Option<String>) -> Row {
    Row {
        differs: false,
        ..row(name, a, b)
    }
}

fn environment(a: &Whole, b: &Whole) -> Vec<Row> {
    let each = |of: &dyn Fn(&EnvironmentView) -> Option<String>| (of(&a.view), of(&b.view));
    let mut rows = Vec::new();
    let (ours, theirs) = each(&|env| Some(environment_mark(env).word.to_owned()));
    rows.push(row("State", ours, theirs));
    let (ours, theirs) = each(&|env| env.url.as_deref().map(|url| bare_address(url).to_owned()));
    rows.push(own("Address", ours, theirs));
    let (ours, theirs) = each(&|env| {
        let domains = env.domains.iter().map(|domain| domain.domain().to_string());
        joined(domains.collect())
    });
    rows.push(row("Custom domains", ours, theirs));
    let (ours, theirs) = each(&|env| Some(When::new(env.created, env.created).utc));
    rows.push(own("Created", ours, theirs));
    let (ours, theirs) = each(&|env| {
        let nodes = env.layers.iter().flat_map(|layer| &layer.nodes);
        nodes
            .map(|node| node.memory_bytes)
            .fold(None, |sum: Option<u64>, memory| match (sum, memory) {
                (Some(sum), Some(memory)) => Some(sum.saturating_add(memory)),
                (sum, memory) => sum.or(memory),
            })
            .map(bytes)
    });
    rows.push(own("Memory now", ours, theirs));
    rows.retain(|row| row.a.is_some() || row.b.is_some());
    rows
}

fn layers(a: &Whole, b: &Whole) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in names(a, b) {
        let (ours, theirs) = (layer(a, &name), layer(b, &name));
        if ours.is_none() || theirs.is_none() {
            let image = |layer: Option<&Layer>| layer.map(|layer| layer.image.display());
            rows.push(row(name, image(ours), image(theirs)));
            continue;
        }
        for (what, of) in PROPERTIES {
            let (ours, theirs) = (ours.and_then(of), theirs.and_then(of));
            if ours.is_some() || theirs.is_some() {
                rows.push(row(format!("{name}: {what}"), ours, theirs));
            }
        }
        let states = |whole: &Whole| {
            let layer = whole.view.layers.iter().find(|layer| layer.name == name);
            joined(
                layer
                    .into_iter()
                    .flat_map(|layer| &layer.nodes)
                    .map(|node| format!("{} {}", node.name, super::node_mark(&node.status).word))
                    .collect(),
            )
        };
        rows.push(row(format!("{name}: nodes now"), states(a), states(b)));
    }
    rows
}

type Property = fn(&Layer) -> Option<String>;

/// What is compared of a layer.
const PROPERTIES: [(&str, Property); 13] = [
    ("image", |layer| Some(layer.image.display())),
    ("for", |layer| {
        Some(topology::role_name(layer.role))
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
    }),
    ("nodes", |layer| Some(layer.replicas.to_string())),
    ("entry", |layer| layer.entry.map(|port| port.to_string())),
    ("entrypoint", |layer| {
        words(layer, layer.entrypoint.as_deref())
    }),
    ("command", |layer| words(layer, layer.command.as_deref())),
    ("user", |layer| layer.user.clone()),
    ("working directory", |layer| layer.working_dir.clone()),
    ("restart", |layer| match &layer.restart {
        RestartPolicy::No => None,
        RestartPolicy::Always => Some("always".to_owned()),
        RestartPolicy::UnlessStopped => Some("unless stopped".to_owned()),
        RestartPolicy::OnFailure { max_attempts } => Some(match max_attempts {
            Some(most) => format!("on failure, {most} times"),
            None => "on failure".to_owned(),
        }),
    }),
    ("health check", |layer| {
        words(
            layer,
            layer
                .healthcheck
                .as_ref()
                .map(|check| check.test.as_slice()),
        )
    }),
    ("depends on", |layer| {
        joined(
            layer
                .depends_on
                .iter()
                .map(|dependency| dependency.layer.to_string())
                .collect(),
        )
    }),
    ("mounts", |layer| {
        let mounts = layer.mounts.iter().map(|mount| match mount {
            Mount::Volume { volume, target, .. } => format!("{volume} at {target}"),
            Mount::File { target, .. } => format!("a file at {target}"),
            Mount::Tmpfs { target, .. } => format!("memory at {target}"),
        });
        joined(mounts.collect())
    }),
    ("limits", |layer| {
        let limits = &layer.limits;
        let memory = limits
            .memory
            .map(|memory| format!("memory {}", bytes(memory)));
        let cpus = limits
            .milli_cpus
            .map(|milli| format!("{} CPUs", f64::from(milli) / 1_000.0));
        let pids = limits.pids.map(|pids| format!("{pids} processes"));
        joined([memory, cpus, pids].into_iter().flatten().collect())
    }),
];

/// A command line without secrets.
fn words(layer: &Layer, words: Option<&[String]>) -> Option<String> {
    let secrets = layer
        .environment
        .iter()
        .filter(|(name, value)| is_secret(name, value))
        .map(|(_, value)| value.as_str());
    let line = words.filter(|words| !words.is_empty())?.join(" ");
    Some(conceal(&line, secrets))
}

/// All variables of both. Of secrets only whether they are equal is told.
fn variables(a: &Whole, b: &Whole) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in names(a, b) {
        let (ours, theirs) = (layer(a, &name), layer(b, &name));
        let both = [ours, theirs];
        let all = both
            .iter()
            .flatten()
            .flat_map(|layer| layer.environment.keys());
        for variable in all.collect::<BTreeSet<_>>() {
            let value = |layer: Option<&Layer>| {
                layer
                    .and_then(|layer| layer.environment.get(variable))
                    .cloned()
            };
            let (ours, theirs) = (value(ours), value(theirs));
            let secret = [&ours, &theirs]
                .into_iter()
                .flatten()
                .any(|value| is_secret(variable, value));
            let mut row = row(format!("{name}: {variable}"), ours, theirs);
            if secret {
                row.a = row.a.map(|_| HIDDEN.to_owned());
                row.b = row.b.map(|_| {
                    if row.differs {
                        format!("{HIDDEN} (another value)")
                    } else {
                        HIDDEN.to_owned()
                    }
                });
            }
            rows.push(row);
        }
    }
    rows
}

fn ports(a: &Whole, b: &Whole) -> Vec<Row> {
    let inside = |whole: &Whole| -> BTreeSet<(String, u16)> {
        let ports = whole.view.ports.iter();
        ports
            .map(|binding| (binding.layer.to_string(), binding.port.target))
            .collect()
    };
    let outside = |whole: &Whole, layer: &str, target: u16| {
        let ports = whole.view.ports.iter();
        let found = ports
            .filter(|binding| binding.layer.as_str() == layer && binding.port.target == target);
        joined(
            found
                .map(|binding| {
                    format!(
                        "{}:{}",
                        binding.port.host_ip,
                        binding.port.host_port.unwrap_or_default()
                    )
                })
                .collect(),
        )
    };
    let all: BTreeSet<_> = inside(a).union(&inside(b)).cloned().collect();
    all.into_iter()
        .map(|(layer, target)| {
            let (ours, theirs) = (outside(a, &layer, target), outside(b, &layer, target));
            row(format!("{layer}:{target}"), ours, theirs)
        })
        .collect()
}

fn volumes(a: &Whole, b: &Whole) -> Vec<Row> {
    let names = |whole: &Whole| -> BTreeSet<String> {
        whole
            .view
            .volumes
            .iter()
            .map(|volume| volume.name.clone())
            .collect()
    };
    let of = |whole: &Whole, name: &str| {
        let volume = whole
            .view
            .volumes
            .iter()
            .find(|volume| volume.name == name)?;
        let shared = volume.shared_with.is_some();
        Some(match volume.clone {
            _ if shared => "another environment's".to_owned(),
            VolumeClone::Copy => "copied into clones".to_owned(),
            VolumeClone::Empty => "empty in clones".to_owned(),
            VolumeClone::Shared => "shared with clones".to_owned(),
        })
    };
    let all: BTreeSet<_> = names(a).union(&names(b)).cloned().collect();
    all.into_iter()
        .map(|name| {
            let (ours, theirs) = (of(a, &name), of(b, &name));
            row(name, ours, theirs)
        })
        .collect()
}

/// Names of the layers of either.
fn names(a: &Whole, b: &Whole) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for layer in a.manifest.layers.iter().chain(&b.manifest.layers) {
        if !names.iter().any(|name| name == layer.name.as_str()) {
            names.push(layer.name.to_string());
        }
    }
    names
}

fn layer<'a>(whole: &'a Whole, name: &str) -> Option<&'a Layer> {
    whole
        .manifest
        .layers
        .iter()
        .find(|layer| layer.name.as_str() == name)
}

fn joined(texts: Vec<String>) -> Option<String> {
    (!texts.is_empty()).then(|| texts.join(", "))
}
