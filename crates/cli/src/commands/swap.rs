//! `swap`: two environments exchange their custom domains.

use clap::Args;
use offshoot_model::Operation;
use offshoot_model::domain::{Domain, SwapReport, Warm};
use offshoot_model::quantity::parse_duration_ms;
use offshoot_model::view::SwapRequest;

use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::follow::{Wait, complete};
use crate::human;
use crate::table::{Grid, fields, optional};
use crate::term::Paint;

/// Exchange the custom domains of two environments in one step.
///
/// When only one has any, they move. Each domain is first asked for, past all people, at the side that will get it; when
/// that does not answer well, nothing is switched. Requests on their way are answered by the side that they reached.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot swap shop next                               next answers for shop, shop for next\n  \
    offshoot swap shop next --warm / --warm /login        both pages must come first\n  \
    offshoot swap --back shop next                        and back again")]
pub(crate) struct SwapArgs {
    /// An environment, by name or id
    #[arg(value_name = "A")]
    one: String,
    /// The other, by name or id
    #[arg(value_name = "B")]
    other: String,
    /// Exchange again what the last swap of the two exchanged; refused when their domains changed since
    #[arg(long)]
    back: bool,
    /// A path to ask for before the switch; may be given several times [default: /]
    #[arg(long, value_name = "PATH")]
    warm: Vec<String>,
    /// Good answers (status below 500) in a row that each path must bring
    #[arg(long, value_name = "N", default_value_t = Warm::default().answers)]
    warm_answers: u32,
    /// How long all these answers together may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration_ms)]
    warm_timeout: u64,
    #[command(flatten)]
    wait: Wait,
}

pub(crate) async fn run(context: &Context, args: SwapArgs) -> Result<(), Failure> {
    let paths = if args.warm.is_empty() {
        Warm::default().paths
    } else {
        args.warm
    };
    let request = SwapRequest {
        with: args.other,
        back: args.back,
        warm: Warm {
            paths,
            answers: args.warm_answers,
            timeout_ms: args.warm_timeout,
        },
    };
    let route = Route::environment(&args.one).then("swap");
    let operation: Operation = context.client.post(&route, &request).await?;
    let Some(operation) = complete(context, operation, args.wait).await? else {
        return Ok(());
    };
    context.answer(&operation, || summary(&operation, context.out_paint))
}

fn summary(operation: &Operation, paint: Paint) -> String {
    let Some(swap) = &operation.swap else {
        return operation.subject.clone();
    };
    format!(
        "{}\n{}\nBack again: offshoot swap --back {} {}\n",
        moved(swap, paint),
        fields(&rows(swap), paint),
        operation.subject,
        swap.with
    )
}

/// When and how fast.
pub(super) fn rows(swap: &SwapReport) -> Vec<(&'static str, String)> {
    if swap.switched.is_none() {
        return Vec::new();
    }
    vec![
        (
            "Switched",
            optional(swap.switched.map(|at| format!("{at:.3}"))),
        ),
        ("Edge took", optional(swap.us.map(human::duration))),
        (
            "Routes version",
            optional(swap.version.map(|version| version.to_string())),
        ),
    ]
}

/// What is whose now.
pub(super) fn moved(swap: &SwapReport, paint: Paint) -> String {
    let mut grid = Grid::new(&["DOMAIN", "FROM", "TO"], paint);
    for moved in &swap.moved {
        let domain = Domain {
            host: moved.host.clone(),
            path: moved.path.clone(),
        };
        grid.row([domain.to_string(), moved.from.clone(), moved.to.clone()]);
    }
    grid.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn a_swap_for_people() {
        let operation = fixtures::swap_operation();
        insta::assert_snapshot!(summary(&operation, Paint::Plain), @r"
        DOMAIN             FROM   TO
        shop.example.com   shop   next
        next.example.com   next   shop

        Switched:        2026-03-01T11:56:59.000Z
        Edge took:       840 µs
        Routes version:  42

        Back again: offshoot swap --back shop next
        ");
    }
}
