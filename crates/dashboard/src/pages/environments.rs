//! The list of environments.

use std::time::Instant;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use jiff::Timestamp;
use offshoot_model::view::{EnvironmentView, PoolView};
use offshoot_model::{EnvironmentState, NodeState};

use super::{Mark, custom_domains, environment_mark, node_mark, settled};
use crate::Web;
use crate::answer::Failure;
use crate::context::{Context, Shell};
use crate::examples::{EXAMPLES, Example};
use crate::format::{When, bare_address, bytes, encode, percent, web_address};
use crate::tree::{Filter, Placed, Selection, Sort, Usage, arrange};

/// Generations that are drawn; later ones stand where the last of them does.
const DEPTH_MAX: usize = 6;
/// Rows that are laid out for the first paint, as in the style sheet.
const SEEN: usize = 16;
/// Element that holds the list.
const LIST: &str = "environments";

#[derive(Template)]
#[template(path = "environments.html")]
struct Page {
    shell: Shell,
    list: List,
}

/// The list without the frame of the page.
#[derive(Template)]
#[template(path = "environments_list.html")]
struct List {
    selection: Selection,
    filters: Vec<FilterLink>,
    columns: Vec<Column>,
    rows: Vec<Row>,
    total: usize,
    summary: String,
    examples: &'static [Example],
}

impl List {
    /// The last row that browsers wait for before they show anything (HTML, link type `expect`): a frame without rows
    /// would only be in the way of the one that has them.
    fn last_seen(&self) -> Option<&Row> {
        self.rows.get(SEEN - 1).or(self.rows.last())
    }
}

struct FilterLink {
    label: &'static str,
    href: String,
    current: bool,
    count: usize,
}

struct Column {
    label: &'static str,
    class: &'static str,
    /// Where it can be sorted by it.
    href: String,
    current: bool,
}

struct LayerCell {
    name: String,
    nodes: usize,
    mood: &'static str,
    /// What is with its nodes, where not all is good.
    title: Option<String>,
}

struct Row {
    name: String,
    href: String,
    depth: usize,
    mark: Mark,
    operation: Option<String>,
    /// Set when the parent is not in the list.
    orphan_of: Option<String>,
    url: Option<String>,
    address: Option<String>,
    domains: Vec<String>,
    layers: Vec<LayerCell>,
    memory: String,
    cpu: String,
    disk: String,
    created: When,
    /// Whether it can be asked for a change now.
    settled: bool,
    runs: bool,
}

/// The list, or its content where only that is wanted.
pub(super) async fn list(
    State(web): State<Web>,
    context: Context,
    Query(selection): Query<Selection>,
) -> Result<Response, Failure> {
    let environments = web.platform.environments().await?;
    web.meter.look(&environments, Instant::now());
    web.meter.survey(&web.platform, &environments);
    // The pool's size is an extra: a pool that cannot be looked at has its own page to say so.
    let pool = web.platform.pool().await.ok();
    let list = make(&context, &environments, selection, pool.as_ref());
    if context.wants(LIST) {
        return context.page(&list);
    }
    context.page(&Page {
        shell: context.shell("Environments"),
        list,
    })
}

fn make(
    context: &Context,
    environments: &[EnvironmentView],
    selection: Selection,
    pool: Option<&PoolView>,
) -> List {
    let now = Timestamp::now();
    let placed = arrange(environments, &selection, |env| usage(context, env));
    let rows = placed
        .iter()
        .map(|placed| row(context, placed, now))
        .collect();
    let filters = Filter::ALL
        .into_iter()
        .map(|(filter, _, label)| {
            let alone = Selection {
                state: filter,
                sort: Sort::Name,
                q: selection.q.clone(),
            };
            FilterLink {
                label,
                href: selection.with_state(filter),
                current: selection.state == filter,
                count: arrange(environments, &alone, |_| Usage::default()).len(),
            }
        })
        .collect();
    let column = |label, class, sort| Column {
        label,
        class,
        href: selection.with_sort(sort),
        current: selection.sort == sort,
    };
    List {
        filters,
        columns: vec![
            column("Memory", "number", Sort::Memory),
            column("CPU", "number", Sort::Cpu),
            column("Own disk", "number", Sort::Disk),
            column("Age", "number", Sort::Age),
        ],
        rows,
        total: environments.len(),
        summary: summary(environments, pool),
        examples: EXAMPLES,
        selection,
    }
}

fn summary(environments: &[EnvironmentView], pool: Option<&PoolView>) -> String {
    let nodes = environments
        .iter()
        .flat_map(|env| &env.layers)
        .flat_map(|layer| &layer.nodes);
    let running = nodes
        .filter(|node| matches!(node.status, NodeState::Running { .. }))
        .count();
    let mut text = format!("{running} nodes running");
    if let Some(pool) = pool {
        text.push_str(&format!(
            " · pool {} of {}",
            bytes(pool.used),
            bytes(pool.size)
        ));
    }
    text
}

fn usage(context: &Context, environment: &EnvironmentView) -> Usage {
    let nodes = || environment.layers.iter().flat_map(|layer| &layer.nodes);
    let memory: Vec<_> = nodes().filter_map(|node| node.memory_bytes).collect();
    let meter = &context.web.meter;
    let cpu: Vec<_> = nodes()
        .filter_map(|node| meter.cpu(&environment.id, &node.name))
        .collect();
    Usage {
        memory: (!memory.is_empty()).then(|| memory.iter().sum()),
        cpu: (!cpu.is_empty()).then(|| cpu.iter().sum()),
        disk: meter.disk(&environment.id),
    }
}

fn row(context: &Context, placed: &Placed<'_>, now: Timestamp) -> Row {
    let environment = placed.environment;
    let usage = usage(context, environment);
    let missing = || "–".to_owned();
    let url = environment.url.as_deref().and_then(web_address);
    let layers = environment.layers.iter().map(|layer| {
        let marks: Vec<_> = layer
            .nodes
            .iter()
            .map(|node| node_mark(&node.status))
            .collect();
        let worst = ["bad", "warn", "busy", "good"]
            .into_iter()
            .find(|mood| marks.iter().any(|mark| mark.mood == *mood));
        let words: Vec<_> = layer
            .nodes
            .iter()
            .zip(&marks)
            .map(|(node, mark)| format!("{}: {}", node.name, mark.word))
            .collect();
        LayerCell {
            name: layer.name.clone(),
            nodes: layer.nodes.len(),
            mood: worst.unwrap_or("off"),
            title: marks
                .iter()
                .any(|mark| mark.mood != "good")
                .then(|| words.join(", ")),
        }
    });
    Row {
        href: format!("/environments/{}", encode(&environment.name)),
        depth: placed.depth.min(DEPTH_MAX),
        mark: environment_mark(environment),
        operation: environment.operation.map(|id| id.to_string()),
        orphan_of: environment
            .parent
            .as_ref()
            .filter(|_| placed.depth == 0)
            .map(|parent| parent.name.clone()),
        url: url.map(str::to_owned),
        address: url.map(|url| bare_address(url).to_owned()),
        domains: custom_domains(environment),
        layers: layers.collect(),
        memory: usage.memory.map_or_else(missing, bytes),
        cpu: usage.cpu.map_or_else(missing, percent),
        disk: usage.disk.map_or_else(missing, bytes),
        created: When::new(environment.created, now),
        settled: settled(environment),
        runs: environment.state == EnvironmentState::Running,
        name: environment.name.clone(),
    }
}
