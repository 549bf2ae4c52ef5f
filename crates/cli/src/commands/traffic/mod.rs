//! `traffic`: who answers how much of the requests for an environment's domains, and how well.

mod edit;
mod show;
mod words;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use offshoot_model::Operation;
use offshoot_model::quantity::parse_duration_ms;
use offshoot_model::traffic::Policy;
use offshoot_model::traffic::view::{RampRequest, TrafficView};

use self::edit::{FailoverArgs, SetArgs};
use super::guard::{self, GuardArgs, percent};
use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::follow::{Wait, complete};
use crate::table::fields;

/// See and change who answers the requests for an environment's domains.
///
/// An environment's traffic policy says which environments answer what share of the requests for its domains (A/B,
/// canary), who takes over when one is down, who gets copies, and what clients may ask for. Without one the environment
/// answers all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot traffic split shop next=10%          next answers every tenth visitor of shop's domains\n  \
    offshoot traffic show shop                    how both do\n  \
    offshoot traffic ramp shop next               1, 10, 50, 100 %, back when it is worse\n  \
    offshoot traffic failover shop spare --check /health\n  \
    offshoot traffic clear shop                   shop answers all again")]
pub(crate) struct TrafficArgs {
    #[command(subcommand)]
    command: TrafficCommand,
}

#[derive(Debug, Subcommand)]
enum TrafficCommand {
    /// Show the policy, and how every side does
    #[command(
        after_help = "Examples:\n  offshoot traffic show shop\n  offshoot traffic show shop -o json"
    )]
    Show {
        /// Environment, by name or id
        #[arg(value_name = "ENV")]
        environment: String,
    },
    Set(Box<SetArgs>),
    /// Give other environments a share; the rest stays with the environment
    #[command(after_help = "Examples:\n  \
        offshoot traffic split shop next=10%\n  \
        offshoot traffic split shop blue=25% green=25%")]
    Split {
        /// Environment, by name or id
        #[arg(value_name = "ENV")]
        environment: String,
        /// Who answers what share, in percent
        #[arg(value_name = "NAME=SHARE", required = true, value_parser = words::share)]
        shares: Vec<(String, u32)>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Copy requests to another environment; its answers are compared and go nowhere
    #[command(after_help = "Examples:\n  \
        offshoot traffic mirror shop next --share 10%\n  \
        offshoot traffic mirror shop --off")]
    Mirror {
        /// Environment, by name or id
        #[arg(value_name = "ENV")]
        environment: String,
        /// Who gets the copies; a side cannot
        #[arg(value_name = "CLONE", required_unless_present = "off")]
        to: Option<String>,
        /// The share of requests that is copied
        #[arg(long, value_name = "SHARE", default_value = "100%", value_parser = percent)]
        share: f64,
        /// Copy no more
        #[arg(long, conflicts_with = "to")]
        off: bool,
        #[command(flatten)]
        wait: Wait,
    },
    Failover(Box<FailoverArgs>),
    /// Let every side that is up take its requests again, where that is by hand
    #[command(after_help = "Examples:\n  offshoot traffic back shop")]
    Back {
        /// Environment, by name or id
        #[arg(value_name = "ENV")]
        environment: String,
    },
    /// Take the policy away: the environment answers all
    #[command(after_help = "Examples:\n  offshoot traffic clear shop")]
    Clear {
        /// Environment, by name or id
        #[arg(value_name = "ENV")]
        environment: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Send a growing share of the requests to another environment, back when it is worse
    ///
    /// At every share both are compared over the same time. When the other is worse, its entry dies, or you cancel, the
    /// policy is again what it was. Ends at the last share; `offshoot promote` makes 100 % final.
    #[command(after_help = "Examples:\n  \
        offshoot traffic ramp shop next\n  \
        offshoot traffic ramp shop next --steps 5,25,100 --every 1h --errors 0.5%")]
    Ramp {
        /// Environment, by name or id
        #[arg(value_name = "ENV")]
        environment: String,
        /// Who gets them
        #[arg(value_name = "CLONE")]
        to: String,
        /// Shares one after the other, in percent
        #[arg(
            long,
            value_name = "PERCENT,...",
            default_value = "1,10,50,100",
            value_delimiter = ','
        )]
        steps: Vec<u32>,
        /// How long each share lasts
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration_ms)]
        every: u64,
        #[command(flatten)]
        guard: GuardArgs,
        #[command(flatten)]
        wait: Wait,
    },
}

/// What becomes of a policy that was changed.
#[derive(Debug, Args)]
struct Apply {
    /// Print the policy that would be set, as JSON, and set nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: Wait,
}

fn route(environment: &str) -> Route {
    Route::environment(environment).then("traffic")
}

pub(crate) async fn run(context: &Context, args: TrafficArgs) -> Result<(), Failure> {
    match args.command {
        TrafficCommand::Show { environment } => {
            let view: TrafficView = context.client.get(&route(&environment)).await?;
            tell(context, &view)
        }
        TrafficCommand::Set(args) => {
            let policy = match &args.file {
                Some(file) => read(file)?,
                None => {
                    let mut policy = policy(context, &args.environment).await?;
                    args.edit(&mut policy)?;
                    policy
                }
            };
            put(context, &args.environment, policy, args.apply).await
        }
        TrafficCommand::Split {
            environment,
            shares,
            wait,
        } => {
            let mut policy = policy(context, &environment).await?;
            let own = name(context, &environment).await?;
            edit::split(&mut policy, own, shares)?;
            let dry_run = false;
            put(context, &environment, policy, Apply { dry_run, wait }).await
        }
        TrafficCommand::Mirror {
            environment,
            to,
            share,
            off: _,
            wait,
        } => {
            let mut policy = policy(context, &environment).await?;
            edit::mirror(&mut policy, to, share)?;
            let dry_run = false;
            put(context, &environment, policy, Apply { dry_run, wait }).await
        }
        TrafficCommand::Failover(args) => {
            let mut policy = policy(context, &args.environment).await?;
            let own = name(context, &args.environment).await?;
            args.edit(&mut policy, own)?;
            put(context, &args.environment, policy, args.apply).await
        }
        TrafficCommand::Back { environment } => {
            let route = route(&environment).then("back");
            let view: TrafficView = context.client.post_empty(&route).await?;
            tell(context, &view)
        }
        TrafficCommand::Clear { environment, wait } => {
            let operation = context.client.delete(&route(&environment)).await?;
            done(context, operation, wait).await
        }
        TrafficCommand::Ramp {
            environment,
            to,
            steps,
            every,
            guard,
            wait,
        } => {
            let request = RampRequest {
                to,
                steps,
                every_ms: every,
                guard: guard.into(),
            };
            let route = route(&environment).then("ramp");
            let operation: Operation = context.client.post(&route, &request).await?;
            let Some(operation) = complete(context, operation, wait).await? else {
                return Ok(());
            };
            context.answer(&operation, || ramped(context, &operation))
        }
    }
}

fn tell(context: &Context, view: &TrafficView) -> Result<(), Failure> {
    context.answer(view, || {
        show::details(view, context.out_paint, Timestamp::now())
    })
}

fn ramped(context: &Context, operation: &Operation) -> String {
    let Some(report) = &operation.traffic else {
        return operation.subject.clone();
    };
    let mut rows = vec![("Share", format!("{} % to {}", report.percent, report.new))];
    rows.extend(guard::rows(report));
    let mut out = fields(&rows, context.out_paint);
    if report.percent == 100 {
        out.push_str(&format!(
            "\nMake it final: offshoot promote {} --of {}\n",
            report.new, report.old
        ));
    }
    out
}

async fn policy(context: &Context, environment: &str) -> Result<Policy, Failure> {
    let view: TrafficView = context.client.get(&route(environment)).await?;
    Ok(view.policy)
}

/// The name of an environment that may have been given by its id: policies that are read have names.
async fn name(context: &Context, environment: &str) -> Result<String, Failure> {
    let view: offshoot_model::view::EnvironmentView =
        context.client.get(&Route::environment(environment)).await?;
    Ok(view.name)
}

async fn put(
    context: &Context,
    environment: &str,
    policy: Policy,
    apply: Apply,
) -> Result<(), Failure> {
    if apply.dry_run {
        policy.check().map_err(edit::invalid)?;
        return context.json(&policy);
    }
    let operation = context
        .client
        .put_json(&route(environment), &policy)
        .await?;
    done(context, operation, apply.wait).await
}

async fn done(context: &Context, operation: Operation, wait: Wait) -> Result<(), Failure> {
    match complete(context, operation, wait).await? {
        Some(operation) => context.answer(&operation, || operation.subject.clone()),
        None => Ok(()),
    }
}

/// A policy in a file, or on standard input.
fn read(file: &PathBuf) -> Result<Policy, Failure> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text =
        text.map_err(|error| edit::bad(format!("cannot read {}: {error}", file.display())))?;
    serde_json::from_str(&text)
        .map_err(|error| edit::invalid(format!("{} is no policy: {error}", file.display())).into())
}
