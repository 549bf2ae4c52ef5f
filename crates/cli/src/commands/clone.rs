//! `clone`.

use clap::{Args, ValueEnum};
use offshoot_model::quantity::parse_duration_ms;
use offshoot_model::view::{CloneRequest, EnvironmentView, PlanView};
use offshoot_model::{CloneReport, Hold, Operation, RungChoice};

use super::plan_view::{self, rung_cell, way, why_not_better};
use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::follow::{Wait, complete_and_show};
use crate::human;
use crate::table::{Grid, fields, optional, text};
use crate::term::Paint;

/// Bounds of `--max-freeze` in milliseconds, as the API's.
const MAX_FREEZE: std::ops::RangeInclusive<u64> = 10..=60_000;

/// Clone a running environment: its disks and its memory, as of one instant.
///
/// The original stands still for a moment, all nodes together, and goes on. The clone is complete and independent:
/// same layers, volumes, memory and addresses inside; a name and an address of its own outside. Connections between
/// its nodes stay open, connections that leave it are closed in the clone. If anything goes wrong the original runs
/// on and nothing of the clone is left.
#[derive(Debug, Args)]
#[command(after_help = "How each node comes along (its rung):\n  \
    live    with its memory: its processes go on where they were\n  \
    disk    with its disk; its processes start afresh\n  \
    image   from its image, as new\n\n\
    How the memory of a live node is taken (TAKEN), as the host's kernel allows:\n  \
    tracked   while it runs; in the freeze only what was written just then (Linux 6.7 or newer)\n  \
    pre-dump  ahead by CRIU, in rounds that stop the node for a moment; then what was written since\n  \
    dump      in the freeze, all of it\n\n\
    What --max-freeze promises: the freeze is predicted while everything runs. As long as it would be too long, and \
    that helps, memory is copied once more; then nodes come along with their disk only, those with most to copy \
    first. With --rung live nothing is touched instead, and the answer is freeze-timeout. So it is when a freeze \
    passes the time all the same: it is ended at once, the original runs on, and nothing of the clone is left.\n\n\
    Examples:\n  \
    offshoot clone shop                             makes shop-clone\n  \
    offshoot clone shop --name experiment\n  \
    offshoot clone shop --dry-run                   what would come along; touches nothing\n  \
    offshoot clone shop --hold                      it sends no mail and runs no jobs\n  \
    offshoot clone shop --no-start                  its disks; start it later\n  \
    offshoot clone shop --rung live                 with all memory or not at all\n  \
    offshoot clone shop --max-freeze 200ms          give up rather than hold it up for longer")]
pub(crate) struct CloneArgs {
    /// Environment to clone
    #[arg(value_name = "ENV")]
    environment: String,

    /// Name of the clone [default: ENV-clone, then ENV-clone2, ...]
    #[arg(long)]
    name: Option<String>,

    /// How nodes come along
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|live|disk|image"
    )]
    rung: RungArg,

    /// Longest time the original may stand still, 10ms to 60s [default: the daemon's setting, 5s]
    #[arg(long, value_name = "TIME", value_parser = freeze)]
    max_freeze: Option<u64>,

    /// Make it from disks and leave it stopped; `offshoot start` starts it
    #[arg(long)]
    no_start: bool,

    /// Keep it from sending mail and from running jobs, until `offshoot release`
    #[arg(long)]
    hold: bool,

    /// Keep it from sending mail: connections to where mail is taken outside of it are refused
    #[arg(long)]
    hold_mail: bool,

    /// Keep it from running jobs: layers with `jobs: true` do not run, known schedulers in other nodes stand still
    #[arg(long)]
    hold_jobs: bool,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    wait: Wait,
}

/// [`RungChoice`] on the command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum RungArg {
    /// The best each node allows.
    #[default]
    Auto,
    /// With memory, or fail before anything is touched.
    Live,
    /// Disks only.
    Disk,
    /// Images only.
    Image,
}

impl From<RungArg> for RungChoice {
    fn from(rung: RungArg) -> Self {
        match rung {
            RungArg::Auto => Self::Auto,
            RungArg::Live => Self::Live,
            RungArg::Disk => Self::Disk,
            RungArg::Image => Self::Image,
        }
    }
}

fn freeze(text: &str) -> Result<u64, String> {
    let ms = parse_duration_ms(text)?;
    if MAX_FREEZE.contains(&ms) {
        Ok(ms)
    } else {
        Err("write a time from 10ms to 60s".to_owned())
    }
}

pub(crate) async fn run(context: &Context, args: CloneArgs) -> Result<(), Failure> {
    let request = CloneRequest {
        name: args.name,
        rung: args.rung.into(),
        max_freeze_ms: args.max_freeze,
        start: !args.no_start,
        hold: Hold {
            mail: args.hold || args.hold_mail,
            jobs: args.hold || args.hold_jobs,
        },
    };
    let route = Route::environment(&args.environment).then("clone");
    if args.dry_run {
        let plan: PlanView = context
            .client
            .post(&route.with("dry_run", "true"), &request)
            .await?;
        return context.answer(&plan, || plan_view::render(&plan, context.out_paint));
    }
    let operation: Operation = context.client.post(&route, &request).await?;
    complete_and_show(context, operation, args.wait, |operation, view| {
        summary(operation, view, context.out_paint)
    })
    .await
}

/// What a person wants to know of a clone that was made.
fn summary(operation: &Operation, view: &EnvironmentView, paint: Paint) -> String {
    let mut rows = vec![
        ("Name", view.name.clone()),
        ("Address", optional(view.url.clone())),
    ];
    if let Some(parent) = &operation.parent {
        rows.push(("Cloned from", parent.clone()));
    }
    if let Some(words) = view.held.words() {
        let release = format!("{words}; offshoot release {} lets them go", view.name);
        rows.push(("Held", release));
    }
    let Some(report) = &operation.report else {
        return fields(&rows, paint);
    };
    rows.push(("Freeze", freeze_line(report)));
    rows.push(("Memory copied", memory_line(report)));
    rows.push((
        "Answers after",
        optional(report.ready_us.map(human::duration)),
    ));
    let mut out = fields(&rows, paint);
    out.push('\n');
    out.push_str(&nodes(report, paint));
    out.push_str(&format!(
        "\nWhere the time went: offshoot op show --timing {}\nThrow it away: offshoot rm {}\n",
        operation.id, view.name
    ));
    out
}

/// How much memory came along, and how much of it in the freeze.
pub(crate) fn memory_line(report: &CloneReport) -> String {
    format!(
        "{}, {} of it in the freeze",
        human::bytes(report.memory_bytes),
        human::bytes(report.frozen_bytes)
    )
}

/// The freeze of all nodes in milliseconds, with their skew.
pub(crate) fn freeze_line(report: &CloneReport) -> String {
    if report.cut.is_none() {
        return "none: nothing ran".to_owned();
    }
    let freeze = human::milliseconds(report.freeze_us);
    match report
        .nodes
        .iter()
        .filter(|node| node.freeze_us > 0)
        .count()
    {
        0 | 1 => freeze,
        _ => format!(
            "{freeze} for all nodes together (stopped within {} of each other)",
            human::milliseconds(report.skew_us)
        ),
    }
}

/// How every node was cloned.
pub(crate) fn nodes(report: &CloneReport, paint: Paint) -> String {
    let mut grid = Grid::new(
        &[
            "NODE",
            "RUNG",
            "FREEZE",
            "DUMP",
            "RESTORE",
            "MEMORY",
            "TAKEN",
            "PROCESSES",
            "WHY",
        ],
        paint,
    )
    .right(&[2, 3, 4, 5, 7]);
    let unless_zero = |us: u64| {
        if us == 0 {
            "-".to_owned()
        } else {
            human::duration(us)
        }
    };
    for node in &report.nodes {
        grid.cells([
            text(&node.node),
            rung_cell(node.rung),
            text(if node.freeze_us == 0 {
                "-".to_owned()
            } else {
                human::milliseconds(node.freeze_us)
            }),
            text(unless_zero(node.dump_us)),
            text(unless_zero(node.restore_us)),
            text(if node.memory_bytes == 0 {
                "-".to_owned()
            } else {
                human::bytes(node.memory_bytes)
            }),
            text(way(node.memory.as_ref())),
            text(if node.processes == 0 {
                "-".to_owned()
            } else {
                node.processes.to_string()
            }),
            text(node.why.as_deref().unwrap_or("")),
        ]);
    }
    let memory = report
        .nodes
        .iter()
        .filter_map(|node| Some((node.node.as_str(), node.memory.as_ref()?)));
    grid.render() + &why_not_better(memory, paint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn a_clone_for_people() {
        let text = summary(
            &fixtures::clone_operation(),
            &fixtures::clone(),
            Paint::Plain,
        );
        insta::assert_snapshot!(text);
    }

    #[test]
    fn freezes_have_bounds() {
        assert_eq!(freeze("200ms"), Ok(200));
        assert_eq!(freeze("60s"), Ok(60_000));
        for bad in ["9ms", "61s", "5", "", "-1s"] {
            assert!(freeze(bad).is_err(), "{bad:?}");
        }
    }
}
