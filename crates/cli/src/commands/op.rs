//! `op`: what was done and what goes on.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use offshoot_model::operation::StepState;
use offshoot_model::{Operation, OperationKind, OperationState};

use super::clone;
use super::guard;
use super::swap;
use super::timing;
use crate::api::Route;
use crate::context::{Context, Format};
use crate::failure::{Failure, render};
use crate::follow::{Wait, cancel, complete, follow_only};
use crate::human;
use crate::table::{Grid, Mood, fields, state, text};
use crate::term::{Paint, safe};

/// See what is being done and was done: operations.
///
/// Every change that takes time (create, clone, start, stop, rename, rm, domains, swap, fetching images, growing the pool) is an
/// operation with an id. It goes on when the command that began it is gone, and over a restart of the daemon.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot op ls\n  \
    offshoot op show ID\n  \
    offshoot op show --timing ID       where the time and the freeze went\n  \
    offshoot op cancel ID")]
pub(crate) struct OpArgs {
    #[command(subcommand)]
    command: OpCommand,
}

#[derive(Debug, Subcommand)]
enum OpCommand {
    /// List operations, newest first
    #[command(after_help = "Examples:\n  offshoot op ls\n  offshoot op ls --limit 100 -o json")]
    Ls {
        /// At most this many
        #[arg(short = 'n', long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show one operation: its steps, what it measured, why it failed
    #[command(after_help = "Examples:\n  \
        offshoot op show ID\n  \
        offshoot op show --timing ID      draws where the time and the freeze went\n  \
        offshoot op show --follow ID      waits until it ends")]
    Show {
        /// Id of the operation, as `op ls` shows it
        #[arg(value_name = "ID")]
        id: String,
        /// Draw where the time and, for a clone, the freeze went
        #[arg(long)]
        timing: bool,
        /// Wait until it ends
        #[arg(short, long)]
        follow: bool,
    },
    /// Cancel an operation: it stops at its next safe point and takes back what it did
    #[command(after_help = "Examples:\n  offshoot op cancel ID")]
    Cancel {
        /// Id of the operation, as `op ls` shows it
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        wait: Wait,
    },
}

pub(crate) async fn run(context: &Context, args: OpArgs) -> Result<(), Failure> {
    match args.command {
        OpCommand::Ls { limit } => {
            let route = Route::to("operations").with("limit", &limit.to_string());
            let operations: Vec<Operation> = context.client.get(&route).await?;
            if context.is_quiet() && context.format == Format::Table {
                return context.print(
                    &operations
                        .iter()
                        .map(|op| format!("{}\n", op.id))
                        .collect::<String>(),
                );
            }
            context.answer(&operations, || {
                list(&operations, context.out_paint, Timestamp::now())
            })
        }
        OpCommand::Show { id, timing, follow } => {
            let mut operation = get(context, &id).await?;
            if follow && !operation.state.is_final() {
                operation = follow_only(context, operation).await?;
            }
            context.answer(&operation, || {
                if timing {
                    timing::draw(&operation, context.out_paint)
                } else {
                    details(&operation, context.out_paint, Timestamp::now())
                }
            })
        }
        OpCommand::Cancel { id, wait } => {
            let known = get(context, &id).await?;
            let operation = cancel(&context.client, known.id).await?;
            match complete(context, operation, wait).await {
                Ok(Some(operation)) => context.answer(&operation, || {
                    format!("{} had ended before it could be cancelled", operation.id)
                }),
                Ok(None) => Ok(()),
                Err(Failure::Problem(problem))
                    if problem.code == offshoot_model::Code::Cancelled =>
                {
                    let operation = get(context, &id).await?;
                    context.answer(&operation, || format!("{} was cancelled", operation.id))
                }
                Err(failure) => Err(failure),
            }
        }
    }
}

async fn get(context: &Context, id: &str) -> Result<Operation, Failure> {
    Ok(context
        .client
        .get(&Route::to("operations").then(id))
        .await?)
}

/// The operation's kind as the command that begins it.
pub(super) fn kind(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Create => "create",
        OperationKind::Clone => "clone",
        OperationKind::Rename => "rename",
        OperationKind::Start => "start",
        OperationKind::Stop => "stop",
        OperationKind::Remove => "rm",
        OperationKind::ImagePull => "image pull",
        OperationKind::PoolGrow => "pool grow",
        OperationKind::DomainAdd => "domain add",
        OperationKind::DomainRemove => "domain rm",
        OperationKind::Swap => "swap",
        OperationKind::DomainHttps => "domain https",
        OperationKind::CertificateAdd => "cert add",
        OperationKind::CertificateRemove => "cert rm",
        OperationKind::CertificateRenew => "cert renew",
        OperationKind::TrafficSet => "traffic set",
        OperationKind::TrafficRamp => "traffic ramp",
        OperationKind::Promote => "promote",
        OperationKind::Hold => "hold",
    }
}

/// The command and what it is about.
fn what(operation: &Operation) -> String {
    let with = operation
        .swap
        .as_ref()
        .map(|swap| format!(" {}", swap.with));
    format!(
        "{} {}{}",
        kind(operation.kind),
        operation.subject,
        with.unwrap_or_default()
    )
}

fn state_cell(of: OperationState) -> comfy_table::Cell {
    match of {
        OperationState::Waiting => state("waiting", Mood::Waiting),
        OperationState::Running => state("running", Mood::Waiting),
        OperationState::Undoing => state("undoing", Mood::Waiting),
        OperationState::Done => state("done", Mood::Good),
        OperationState::Failed => state("failed", Mood::Bad),
        OperationState::Cancelled => state("cancelled", Mood::Neutral),
    }
}

fn took(operation: &Operation, now: Timestamp) -> String {
    let end = operation.ended.unwrap_or(now);
    let us = end
        .as_microsecond()
        .saturating_sub(operation.created.as_microsecond())
        .max(0);
    human::duration(us.unsigned_abs())
}

fn list(operations: &[Operation], paint: Paint, now: Timestamp) -> String {
    let mut grid =
        Grid::new(&["ID", "WHAT", "STATE", "BEGAN", "TOOK", "FREEZE"], paint).right(&[4, 5]);
    for operation in operations {
        let what = match &operation.parent {
            Some(parent) => format!("{} {parent} as {}", kind(operation.kind), operation.subject),
            None => what(operation),
        };
        let freeze = operation
            .report
            .as_ref()
            .filter(|report| report.cut.is_some());
        grid.cells([
            text(operation.id.to_string()),
            text(what),
            state_cell(operation.state),
            text(human::age(operation.created, now)),
            text(took(operation, now)),
            text(freeze.map_or_else(
                || "-".to_owned(),
                |report| human::milliseconds(report.freeze_us),
            )),
        ]);
    }
    grid.render()
}

fn details(operation: &Operation, paint: Paint, now: Timestamp) -> String {
    let mut rows = vec![
        ("Id", operation.id.to_string()),
        ("What", what(operation)),
        ("State", state_cell(operation.state).content()),
        (
            "Began",
            format!(
                "{} ({:.0})",
                human::age(operation.created, now),
                operation.created
            ),
        ),
        (
            if operation.ended.is_some() {
                "Took"
            } else {
                "Runs for"
            },
            took(operation, now),
        ),
    ];
    if let Some(parent) = &operation.parent {
        rows.insert(2, ("Cloned from", parent.clone()));
    }
    if let Some(report) = &operation.report {
        rows.push(("Freeze", clone::freeze_line(report)));
        rows.push(("Memory copied", clone::memory_line(report)));
        if let Some(us) = report.ready_us {
            rows.push(("Answers after", human::duration(us)));
        }
    }
    if let Some(swap) = &operation.swap {
        rows.extend(swap::rows(swap));
    }
    if let Some(report) = &operation.traffic {
        if operation.kind == OperationKind::TrafficRamp {
            rows.push(("Share", format!("{} % to {}", report.percent, report.new)));
        }
        rows.extend(guard::rows(report));
    }
    let mut out = fields(&rows, paint);
    if let Some(swap) = operation
        .swap
        .as_ref()
        .filter(|swap| swap.switched.is_some())
    {
        out.push('\n');
        out.push_str(&swap::moved(swap, paint));
    }
    if !operation.steps.is_empty() {
        let mut steps = Grid::new(&["STEP", "STATE", "TOOK"], paint).right(&[2]);
        for step in &operation.steps {
            steps.cells([
                text(&step.name),
                match step.state {
                    StepState::Pending => state("pending", Mood::Neutral),
                    StepState::Running => state("running", Mood::Waiting),
                    StepState::Done => state("done", Mood::Good),
                    StepState::Failed => state("failed", Mood::Bad),
                    StepState::Undone => state("undone", Mood::Neutral),
                },
                text(step.us.map_or_else(|| "-".to_owned(), human::duration)),
            ]);
        }
        out.push('\n');
        out.push_str(&steps.render());
    }
    if let Some(report) = &operation.report {
        out.push('\n');
        out.push_str(&clone::nodes(report, paint));
    }
    for notice in &operation.notices {
        out.push_str(&format!("\n{} {}\n", paint.yellow("note:"), safe(notice)));
    }
    if let Some(problem) = &operation.problem {
        out.push('\n');
        out.push_str(&render(problem, paint));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn operations_for_people() {
        let operations = [fixtures::clone_operation(), fixtures::failed_operation()];
        insta::assert_snapshot!(list(&operations, Paint::Plain, fixtures::now()));
    }

    #[test]
    fn an_operation_that_failed() {
        insta::assert_snapshot!(details(
            &fixtures::failed_operation(),
            Paint::Plain,
            fixtures::now()
        ));
    }

    #[test]
    fn a_clone_that_is_done() {
        insta::assert_snapshot!(details(
            &fixtures::clone_operation(),
            Paint::Plain,
            fixtures::now()
        ));
    }
}
