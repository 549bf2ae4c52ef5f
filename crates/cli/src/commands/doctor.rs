//! `doctor`.

use clap::Args;
use offshoot_model::view::{DoctorReport, Verdict};
use offshoot_model::{Code, Problem};

use crate::api::Route;
use crate::context::{Context, Format};
use crate::failure::{Failure, STATUS_PROBLEM};
use crate::table::{Grid, Mood, state, text};
use crate::term::{Paint, safe};

/// Check what this host has and lacks to run and clone environments.
///
/// Says for everything that is missing what it costs and what to do. Works without a running daemon. Exit status 0
/// when environments can be run, 1 when not.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot doctor\n  \
    offshoot doctor -o json")]
pub(crate) struct DoctorArgs {}

pub(crate) async fn run(context: &Context, _args: DoctorArgs) -> Result<(), Failure> {
    let report: DoctorReport = match context.client.get(&Route::to("doctor")).await {
        Ok(report) => report,
        Err(problem) if problem.code == Code::DaemonUnreachable => {
            crate::serve::host_doctor(context).await?
        }
        Err(problem) => return Err(Problem::into(problem)),
    };
    context.answer(&report, || render(&report, context.out_paint))?;
    if report.fit {
        return Ok(());
    }
    if context.format == Format::Table {
        context.say("This host cannot run environments yet; see what is missing above.");
    }
    Err(Failure::Status(STATUS_PROBLEM))
}

fn render(report: &DoctorReport, paint: Paint) -> String {
    let mut grid = Grid::new(&["CHECK", "VERDICT", "FOUND"], paint);
    for check in &report.checks {
        let (word, mood) = verdict(check.verdict);
        grid.cells([text(&check.name), state(word, mood), text(&check.found)]);
    }
    let mut out = grid.render();
    for check in report
        .checks
        .iter()
        .filter(|check| check.verdict != Verdict::Good)
    {
        let (word, _) = verdict(check.verdict);
        out.push_str(&format!("\n{} is {word}\n", paint.bold(&safe(&check.name))));
        if let Some(cost) = &check.cost {
            out.push_str(&format!("  without it: {}\n", safe(cost)));
        }
        if let Some(next) = &check.next {
            out.push_str(&format!("  {}       {}\n", paint.cyan("next:"), safe(next)));
        }
    }
    out
}

fn verdict(verdict: Verdict) -> (&'static str, Mood) {
    match verdict {
        Verdict::Good => ("good", Mood::Good),
        Verdict::Lacking => ("lacking", Mood::Waiting),
        Verdict::Missing => ("missing", Mood::Bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn a_host_that_lacks_something() {
        insta::assert_snapshot!(render(&fixtures::doctor(), Paint::Plain));
    }
}
