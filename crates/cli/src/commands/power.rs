//! `start`, `stop`, `rename`, `rm`.

use clap::Args;
use offshoot_model::view::{EnvironmentView, RenameRequest};
use offshoot_model::{Operation, Problem};

use crate::api::Route;
use crate::context::Context;
use crate::failure::{Failure, STATUS_PROBLEM};
use crate::follow::{Wait, complete_all, complete_and_show};
use crate::term;

/// Start the nodes of stopped environments, or those that ended in running ones.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot start shop\n  \
    offshoot start shop shop-clone")]
pub(crate) struct StartArgs {
    #[command(flatten)]
    chosen: Chosen,
}

/// Stop the nodes of environments; disks and addresses stay.
///
/// Each node gets its stop signal and time to end; what is in memory is lost.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot stop shop\n  \
    offshoot start shop             brings it back")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    chosen: Chosen,
}

/// Which environments.
#[derive(Debug, Args)]
struct Chosen {
    /// Environments, by name or id
    #[arg(value_name = "ENV", required = true)]
    environments: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

/// Give an environment another name, and with it another address.
///
/// Nothing inside is restarted. The old address stops answering; with --redirect it sends visitors to the new one, until
/// another environment has the old name or `offshoot domain rm` ends it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot rename shop-clone experiment\n  \
    offshoot rename shop store --redirect")]
pub(crate) struct RenameArgs {
    /// Environment, by name or id
    #[arg(value_name = "OLD")]
    old: String,
    /// Its new name
    #[arg(value_name = "NEW")]
    new: String,
    /// Let the old address send visitors to the new one
    #[arg(long)]
    redirect: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Remove environments with their data, running or not.
///
/// Clones of them stay: they are independent, but for one that shares a volume, which must go first. Asks for each
/// name unless --force is given.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot rm experiment\n  \
    offshoot rm --force a b c       no questions, for scripts")]
pub(crate) struct RmArgs {
    /// Environments, by name or id
    #[arg(value_name = "ENV", required = true)]
    environments: Vec<String>,
    /// Do not ask
    #[arg(short, long, visible_alias = "yes", visible_short_alias = 'y')]
    force: bool,
    #[command(flatten)]
    wait: Wait,
}

pub(crate) async fn start(context: &Context, args: StartArgs) -> Result<(), Failure> {
    change_each(context, args.chosen, "start").await
}

pub(crate) async fn stop(context: &Context, args: StopArgs) -> Result<(), Failure> {
    change_each(context, args.chosen, "stop").await
}

pub(crate) async fn rename(context: &Context, args: RenameArgs) -> Result<(), Failure> {
    let route = Route::environment(&args.old).then("rename");
    let operation: Operation = context
        .client
        .post(
            &route,
            &RenameRequest {
                name: args.new,
                redirect: args.redirect,
            },
        )
        .await?;
    complete_and_show(context, operation, args.wait, |_, view| {
        super::show::summary(view, context.out_paint)
    })
    .await
}

pub(crate) async fn rm(context: &Context, args: RmArgs) -> Result<(), Failure> {
    let mut chosen = Vec::new();
    let mut kept = false;
    for environment in args.environments {
        if chosen.contains(&environment) {
            continue;
        }
        if args.force || confirmed(context, &environment).await? {
            chosen.push(environment);
        } else {
            kept = true;
        }
    }
    let mut begun = Vec::new();
    for environment in &chosen {
        begun.push(
            context
                .client
                .delete(&Route::environment(environment))
                .await,
        );
    }
    if !chosen.is_empty() {
        complete_all(context, begun, args.wait).await?;
    }
    if kept {
        Err(Failure::Status(STATUS_PROBLEM))
    } else {
        Ok(())
    }
}

/// Asks the person to type the environment's name.
async fn confirmed(context: &Context, environment: &str) -> Result<bool, Failure> {
    if !term::can_ask() {
        return Err(Failure::Usage(format!(
            "removing {environment} destroys its data and nobody can be asked here; add --force"
        )));
    }
    let view: EnvironmentView = context.client.get(&Route::environment(environment)).await?;
    let nodes: usize = view.layers.iter().map(|layer| layer.nodes.len()).sum();
    let question = format!(
        "This removes {} with {nodes} node{} and {} volume{}, and all their data.\nType its name to remove it: ",
        view.name,
        crate::human::plural(nodes as u64),
        view.volumes.len(),
        crate::human::plural(view.volumes.len() as u64),
    );
    let answer = tokio::task::spawn_blocking(move || term::ask(&question))
        .await
        .map_err(|error| Problem::internal(error.to_string()))??;
    if answer.as_deref() == Some(view.name.as_str()) {
        return Ok(true);
    }
    context.warn(&format!(
        "{} was not removed: the name was not typed",
        view.name
    ));
    Ok(false)
}

async fn change_each(context: &Context, chosen: Chosen, what: &str) -> Result<(), Failure> {
    let mut begun = Vec::new();
    for environment in &chosen.environments {
        begun.push(
            context
                .client
                .post_empty(&Route::environment(environment).then(what))
                .await,
        );
    }
    complete_all(context, begun, chosen.wait).await
}
