//! `hold` and `release`.

use clap::Args;
use offshoot_model::view::EnvironmentView;
use offshoot_model::{Hold, Operation};

use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::follow::{Wait, complete_and_show};
use crate::table::fields;
use crate::term::Paint;

/// Keep an environment from sending mail and from running jobs.
///
/// Mail: connections to ports 25, 465, 587 and 2525 outside of the environment are refused at once; inside, for instance to a node that
/// catches mail, they pass. Jobs: layers with `x-offshoot: {jobs: true}` are stopped, and known schedulers (cron, supercronic, ...) in
/// other nodes stand still; what they have begun already ends by itself. It holds until `offshoot release`, over stop, start and restarts
/// of the daemon.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot hold shop-clone                  mail and jobs\n  \
    offshoot hold shop-clone --mail\n  \
    offshoot clone shop --hold                a clone that never did either")]
pub(crate) struct HoldArgs {
    #[command(flatten)]
    asked: Asked,
}

/// Let an environment send its mail and run its jobs again.
///
/// Layers that run jobs are started, and schedulers that stood go on. Mail that programs kept for later they send then.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot release shop-clone               mail and jobs\n  \
    offshoot release shop-clone --jobs")]
pub(crate) struct ReleaseArgs {
    #[command(flatten)]
    asked: Asked,
}

/// Of which environment, and what.
#[derive(Debug, Args)]
struct Asked {
    /// Environment, by name or id
    #[arg(value_name = "ENV")]
    environment: String,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    wait: Wait,
}

/// What is meant; both when neither is named.
#[derive(Debug, Clone, Copy, Args)]
struct Which {
    /// Mail only
    #[arg(long)]
    mail: bool,
    /// Jobs only
    #[arg(long)]
    jobs: bool,
}

impl Which {
    fn hold(self) -> Hold {
        match (self.mail, self.jobs) {
            (false, false) => Hold::ALL,
            (mail, jobs) => Hold { mail, jobs },
        }
    }
}

pub(crate) async fn hold(context: &Context, args: HoldArgs) -> Result<(), Failure> {
    change(context, args.asked, Hold::and).await
}

pub(crate) async fn release(context: &Context, args: ReleaseArgs) -> Result<(), Failure> {
    change(context, args.asked, Hold::without).await
}

async fn change(
    context: &Context,
    asked: Asked,
    to: impl FnOnce(Hold, Hold) -> Hold,
) -> Result<(), Failure> {
    let route = Route::environment(&asked.environment);
    let view: EnvironmentView = context.client.get(&route).await?;
    let held = to(view.held, asked.which.hold());
    let operation: Operation = context.client.put_json(&route.then("held"), &held).await?;
    complete_and_show(context, operation, asked.wait, |_, view| {
        summary(view, context.out_paint)
    })
    .await
}

fn summary(view: &EnvironmentView, paint: Paint) -> String {
    let mut rows = vec![
        ("Name", view.name.clone()),
        ("Held", view.held.words().unwrap_or("nothing").to_owned()),
    ];
    let standing = standing(view);
    if !standing.is_empty() {
        rows.push(("Do not run", standing.join(", ")));
    }
    fields(&rows, paint)
}

/// Nodes that do not run, and schedulers that stand, because jobs are held.
pub(crate) fn standing(view: &EnvironmentView) -> Vec<String> {
    let nodes = view.layers.iter().flat_map(|layer| &layer.nodes);
    nodes
        .flat_map(|node| {
            let whole = node.held.then(|| node.name.clone());
            let parts = node.held_processes.iter();
            whole
                .into_iter()
                .chain(parts.map(|process| format!("{process} in {}", node.name)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn what_is_held_for_people() {
        let mut view = fixtures::clone();
        assert_eq!(
            summary(&view, Paint::Plain),
            "Name:  shop-clone\nHeld:  nothing\n"
        );
        view.held = Hold::ALL;
        view.layers[0].nodes[0].held_processes = vec!["cron (process 7)".to_owned()];
        let text = summary(&view, Paint::Plain);
        assert!(
            text.contains("mail and jobs") && text.contains("cron (process 7) in "),
            "{text}"
        );
    }

    #[test]
    fn neither_is_both() {
        let which = |mail, jobs| Which { mail, jobs }.hold();
        assert_eq!(which(false, false), Hold::ALL);
        assert_eq!(which(true, true), Hold::ALL);
        assert!(which(true, false).mail && !which(true, false).jobs);
    }
}
