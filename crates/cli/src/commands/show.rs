//! `show`, and an environment in detail.

use clap::Args;
use jiff::Timestamp;
use offshoot_model::environment::EnvironmentState;
use offshoot_model::manifest::{Manifest, Role, Scaling};
use offshoot_model::view::EnvironmentView;

use super::hold::standing;
use super::ls::node_grid;
use super::plan_view;
use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::human;
use crate::table::{Grid, fields, optional};
use crate::term::Paint;

/// Show everything about one environment.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot show shop\n  \
    offshoot show shop -o json\n  \
    offshoot show shop --manifest       what it was made from, as JSON, secrets left out")]
pub(crate) struct ShowArgs {
    /// Environment, by name or id
    #[arg(value_name = "ENV")]
    environment: String,

    /// Print the manifest it was made from instead
    #[arg(long)]
    manifest: bool,
}

pub(crate) async fn run(context: &Context, args: ShowArgs) -> Result<(), Failure> {
    let route = Route::environment(&args.environment);
    if args.manifest {
        let manifest: Manifest = context.client.get(&route.then("manifest")).await?;
        return context.json(&manifest);
    }
    let view: EnvironmentView = context.client.get(&route).await?;
    context.answer(&view, || {
        details(&view, context.out_paint, Timestamp::now())
    })
}

/// Name, address and where to look next.
pub(crate) fn summary(view: &EnvironmentView, paint: Paint) -> String {
    let nodes: usize = view.layers.iter().map(|layer| layer.nodes.len()).sum();
    let mut out = fields(
        &[
            ("Name", view.name.clone()),
            ("Address", optional(view.url.clone())),
            ("Nodes", nodes.to_string()),
        ],
        paint,
    );
    if !view.ports.is_empty() {
        out.push('\n');
        out.push_str(&plan_view::ports(&view.ports, paint));
    }
    out.push_str(&format!(
        "\nLook at it: offshoot show {0}\nClone it: offshoot clone {0}\nRemove it: offshoot rm {0}\n",
        view.name
    ));
    out
}

fn details(view: &EnvironmentView, paint: Paint, now: Timestamp) -> String {
    let mut rows = vec![
        ("Name", view.name.clone()),
        ("Id", view.id.to_string()),
        ("State", state_text(view)),
        ("Address", optional(view.url.clone())),
        (
            "Domains",
            optional((!view.domains.is_empty()).then(|| {
                let names = view.domains.iter().map(|held| held.domain().to_string());
                names.collect::<Vec<_>>().join(", ")
            })),
        ),
        (
            "Created",
            format!("{} ({:.0})", human::age(view.created, now), view.created),
        ),
    ];
    if let Some(parent) = &view.parent {
        rows.push((
            "Cloned from",
            format!("{} ({}), cut at {:.3}", parent.name, parent.id, parent.cut),
        ));
        rows.push((
            "Clone's report",
            format!("offshoot op show {}", parent.operation),
        ));
    }
    if let Some(words) = view.held.words() {
        rows.push(("Held", words.to_owned()));
        let standing = standing(view);
        if !standing.is_empty() {
            rows.push(("Do not run", standing.join(", ")));
        }
    }
    if let Some(operation) = view.operation {
        rows.push(("Being changed", format!("offshoot op show {operation}")));
    }
    let mut out = fields(&rows, paint);

    let mut layers = Grid::new(
        &["LAYER", "ROLE", "SCALING", "NODES", "ENTRY", "IMAGE"],
        paint,
    )
    .right(&[3]);
    for layer in &view.layers {
        layers.row([
            layer.name.clone(),
            role(layer.role).to_owned(),
            match layer.scaling {
                Scaling::Stateful => "stateful",
                Scaling::Stateless => "stateless",
            }
            .to_owned(),
            layer.nodes.len().to_string(),
            optional(layer.entry.map(|port| port.to_string())),
            layer.image.clone(),
        ]);
    }
    out.push('\n');
    out.push_str(&layers.render());
    out.push('\n');
    out.push_str(&node_grid(
        std::slice::from_ref(view),
        paint,
        now,
        super::ls::Whose::One,
    ));
    if !view.volumes.is_empty() {
        let mut volumes =
            Grid::new(&["VOLUME", "IN A CLONE", "OWN DATA", "SHARED WITH"], paint).right(&[2]);
        for volume in &view.volumes {
            volumes.row([
                volume.name.clone(),
                plan_view::volume_clone(volume.clone).to_owned(),
                optional(volume.exclusive_bytes.map(human::bytes)),
                optional(volume.shared_with.as_ref().map(ToString::to_string)),
            ]);
        }
        out.push('\n');
        out.push_str(&volumes.render());
    }
    if !view.ports.is_empty() {
        out.push('\n');
        out.push_str(&plan_view::ports(&view.ports, paint));
    }
    out
}

/// State and health in words.
pub(crate) fn state_text(view: &EnvironmentView) -> String {
    match view.state {
        EnvironmentState::Creating => "creating",
        EnvironmentState::Running if view.healthy => "running",
        EnvironmentState::Running => "running (unhealthy)",
        EnvironmentState::Stopped => "stopped",
        EnvironmentState::Removing => "removing",
        EnvironmentState::Broken => "broken",
    }
    .to_owned()
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Balancer => "balancer",
        Role::App => "app",
        Role::Sql => "sql",
        Role::Nosql => "nosql",
        Role::Cache => "cache",
        Role::Storage => "storage",
        Role::Other => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn an_environment_in_detail() {
        insta::assert_snapshot!(details(&fixtures::clone(), Paint::Plain, fixtures::now()));
    }

    #[test]
    fn what_create_says_at_its_end() {
        insta::assert_snapshot!(summary(&fixtures::shop(), Paint::Plain));
    }
}
