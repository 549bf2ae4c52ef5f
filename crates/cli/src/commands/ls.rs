//! `ls` and `ps`.

use std::collections::HashSet;

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;
use offshoot_model::environment::{EnvironmentState, Health, NodeState};
use offshoot_model::view::{EnvironmentView, NodeView};
use serde::Serialize;

use super::show::state_text;
use crate::api::Route;
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::human;
use crate::table::{Grid, Mood, optional, state, text};
use crate::term::Paint;

/// List environments, each clone below what it was cloned from.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot ls\n  \
    offshoot ls -q            names only, one a line\n  \
    offshoot ls -o json       everything, for programs")]
pub(crate) struct LsArgs {}

/// List the nodes of an environment, or of all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot ps               every node on this host\n  \
    offshoot ps shop          those of one environment\n  \
    offshoot ps shop -o json")]
pub(crate) struct PsArgs {
    /// Environment, by name or id [default: all]
    #[arg(value_name = "ENV")]
    environment: Option<String>,
}

pub(crate) async fn ls(context: &Context, _args: LsArgs) -> Result<(), Failure> {
    let views: Vec<EnvironmentView> = context.client.get(&Route::to("environments")).await?;
    if context.is_quiet() && context.format == Format::Table {
        return context.print(
            &views
                .iter()
                .map(|view| format!("{}\n", view.name))
                .collect::<String>(),
        );
    }
    context.answer(&views, || list(&views, context.out_paint, Timestamp::now()))
}

pub(crate) async fn ps(context: &Context, args: PsArgs) -> Result<(), Failure> {
    let (views, whose) = match args.environment {
        Some(environment) => (
            vec![
                context
                    .client
                    .get(&Route::environment(&environment))
                    .await?,
            ],
            Whose::One,
        ),
        None => (
            context
                .client
                .get::<Vec<EnvironmentView>>(&Route::to("environments"))
                .await?,
            Whose::Several,
        ),
    };
    if context.is_quiet() && context.format == Format::Table {
        let names = nodes(&views).map(|row| match whose {
            Whose::One => format!("{}\n", row.node.name),
            Whose::Several => format!("{}/{}\n", row.environment, row.node.name),
        });
        return context.print(&names.collect::<String>());
    }
    let rows: Vec<NodeRow<'_>> = nodes(&views).collect();
    context.answer(&rows, || {
        node_grid(&views, context.out_paint, Timestamp::now(), whose)
    })
}

/// A node with where it belongs: a line of `ps`, and its JSON form.
#[derive(Debug, Serialize)]
struct NodeRow<'a> {
    environment: &'a str,
    layer: &'a str,
    image: &'a str,
    #[serde(flatten)]
    node: &'a NodeView,
}

fn nodes(views: &[EnvironmentView]) -> impl Iterator<Item = NodeRow<'_>> {
    views.iter().flat_map(|view| {
        view.layers.iter().flat_map(|layer| {
            layer.nodes.iter().map(|node| NodeRow {
                environment: &view.name,
                layer: &layer.name,
                image: &layer.image,
                node,
            })
        })
    })
}

/// Whether a table of nodes says whose they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// All of one environment.
    One,
    /// Of several.
    Several,
}

/// Nodes as a table.
pub(crate) fn node_grid(
    views: &[EnvironmentView],
    paint: Paint,
    now: Timestamp,
    whose: Whose,
) -> String {
    let mut headings = vec![
        "NODE", "STATUS", "INNER", "OUTER", "MEMORY", "CPU TIME", "PIDS", "RESTARTS", "IMAGE",
    ];
    let mut right = vec![4, 5, 6, 7];
    if whose == Whose::Several {
        headings.insert(0, "ENVIRONMENT");
        right.iter_mut().for_each(|column| *column += 1);
    }
    let mut grid = Grid::new(&headings, paint).right(&right);
    for NodeRow {
        environment,
        image,
        node,
        ..
    } in nodes(views)
    {
        let owner = (whose == Whose::Several).then(|| text(environment));
        let cells = [
            text(&node.name),
            match node.held {
                true => state("held", Mood::Neutral),
                false => status(&node.status, now),
            },
            text(&node.inner),
            text(&node.outer),
            text(optional(node.memory_bytes.map(human::bytes))),
            text(optional(node.cpu_us.map(human::duration))),
            text(optional(node.pids.map(|pids| pids.to_string()))),
            text(node.restarts.to_string()),
            text(image),
        ];
        grid.cells(owner.into_iter().chain(cells));
    }
    grid.render()
}

fn status(status: &NodeState, now: Timestamp) -> Cell {
    match status {
        NodeState::Stopped => state("stopped", Mood::Neutral),
        NodeState::Starting => state("starting", Mood::Waiting),
        NodeState::Frozen { .. } => state("frozen", Mood::Waiting),
        NodeState::Running { since, health, .. } => {
            let seconds = now
                .as_second()
                .saturating_sub(since.as_second())
                .max(0)
                .unsigned_abs();
            let up = format!("up {}", human::span(seconds));
            match health {
                Health::None => state(up, Mood::Good),
                Health::Healthy => state(format!("{up} (healthy)"), Mood::Good),
                Health::Starting => state(format!("{up} (not yet healthy)"), Mood::Waiting),
                Health::Unhealthy => state(format!("{up} (unhealthy)"), Mood::Bad),
            }
        }
        NodeState::Exited { status, at } => state(
            format!("exited ({status}) {}", human::age(*at, now)),
            Mood::Bad,
        ),
    }
}

fn list(views: &[EnvironmentView], paint: Paint, now: Timestamp) -> String {
    let mut grid = Grid::new(
        &["NAME", "STATE", "NODES", "MEMORY", "CREATED", "ADDRESS"],
        paint,
    )
    .right(&[2, 3]);
    for (branch, view) in tree(views) {
        let all = || view.layers.iter().flat_map(|layer| &layer.nodes);
        let up = all().filter(|node| {
            matches!(
                node.status,
                NodeState::Running { .. } | NodeState::Frozen { .. }
            )
        });
        let memory = all()
            .filter_map(|node| node.memory_bytes)
            .fold(None, |sum: Option<u64>, bytes| {
                Some(sum.unwrap_or(0).saturating_add(bytes))
            });
        let mood = match view.state {
            EnvironmentState::Running if view.healthy => Mood::Good,
            EnvironmentState::Running | EnvironmentState::Broken => Mood::Bad,
            EnvironmentState::Creating | EnvironmentState::Removing => Mood::Waiting,
            EnvironmentState::Stopped => Mood::Neutral,
        };
        grid.cells([
            text(format!("{branch}{}", view.name)),
            state(state_text(view), mood),
            text(format!("{}/{}", up.count(), all().count())),
            text(optional(memory.map(human::bytes))),
            text(human::age(view.created, now)),
            text(optional(view.url.clone())),
        ]);
    }
    grid.render()
}

/// Environments in the order they are drawn, each with the branches before its name. Every one comes exactly once;
/// one whose parent is gone stands at the left.
fn tree(views: &[EnvironmentView]) -> Vec<(String, &EnvironmentView)> {
    let known: HashSet<_> = views.iter().map(|view| &view.id).collect();
    let mut drawn = HashSet::new();
    let mut out = Vec::new();
    let roots = views.iter().filter(|view| {
        !view
            .parent
            .as_ref()
            .is_some_and(|parent| known.contains(&parent.id))
    });
    for root in roots {
        draw(root, String::new(), "", views, &mut drawn, &mut out);
    }
    // Only a loop of parents, which cannot be, leaves some; they must be seen nevertheless.
    for view in views {
        draw(view, String::new(), "", views, &mut drawn, &mut out);
    }
    out
}

fn draw<'a>(
    view: &'a EnvironmentView,
    branch: String,
    below: &str,
    views: &'a [EnvironmentView],
    drawn: &mut HashSet<&'a offshoot_model::EnvId>,
    out: &mut Vec<(String, &'a EnvironmentView)>,
) {
    if !drawn.insert(&view.id) {
        return;
    }
    out.push((branch, view));
    let children: Vec<_> = views
        .iter()
        .filter(|child| {
            child
                .parent
                .as_ref()
                .is_some_and(|parent| parent.id == view.id)
        })
        .collect();
    let count = children.len();
    for (index, child) in children.into_iter().enumerate() {
        let (corner, line) = if index + 1 == count {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        draw(
            child,
            format!("{below}{corner}"),
            &format!("{below}{line}"),
            views,
            drawn,
            out,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn clones_stand_below_their_parents() {
        insta::assert_snapshot!(list(&fixtures::family(), Paint::Plain, fixtures::now()));
    }

    #[test]
    fn nodes_of_several_environments() {
        let views = [fixtures::shop(), fixtures::clone()];
        insta::assert_snapshot!(node_grid(
            &views,
            Paint::Plain,
            fixtures::now(),
            Whose::Several
        ));
    }

    #[test]
    fn a_loop_of_parents_is_drawn_once() {
        let mut views = fixtures::family();
        let last = views.last().unwrap();
        let lineage = fixtures::lineage(last);
        views[0].parent = Some(lineage);
        assert_eq!(tree(&views).len(), views.len());
    }

    #[test]
    fn node_rows_are_the_api_s_nodes_and_their_owner() {
        let views = [fixtures::shop()];
        let json = serde_json::to_value(nodes(&views).next().unwrap()).unwrap();
        assert_eq!(json["environment"], "shop");
        assert_eq!(json["name"], "web-1");
        assert_eq!(json["status"]["state"], "running");
    }
}
