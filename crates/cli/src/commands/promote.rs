//! `promote`: a clone gets its parent's domains.

use clap::Args;
use offshoot_model::Operation;
use offshoot_model::domain::Warm;
use offshoot_model::quantity::parse_duration_ms;
use offshoot_model::traffic::view::PromoteRequest;

use super::guard::{GuardArgs, rows};
use super::swap;
use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::follow::{Wait, complete};
use crate::table::fields;
use crate::term::Paint;

/// Give a clone its parent's domains, watch it, and give them back when it is worse.
///
/// A swap with care: the clone is asked first, as `swap` does; the traffic policies of the two that lead to each other end
/// with the switch; afterwards what the clone answers is compared with what its parent answered before. When it is
/// worse, its entry dies, or you cancel, the domains go back by themselves. The parent is kept; nothing removes it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot promote next                                 5 minutes, then it is final\n  \
    offshoot promote next --of shop --watch 1h --errors 0.5%\n  \
    offshoot promote next --fence                         nobody is let in to the old side\n  \
    offshoot promote next --watch 0                       switch and be done")]
pub(crate) struct PromoteArgs {
    /// The clone, by name or id
    #[arg(value_name = "CLONE")]
    environment: String,
    /// Whose domains it gets [default: its parent's]
    #[arg(long, value_name = "ENV")]
    of: Option<String>,
    /// How long it is watched after the switch; 0 for not at all
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration_ms)]
    watch: u64,
    /// How long the old side is counted before the switch, to compare with
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration_ms)]
    baseline: u64,
    #[command(flatten)]
    guard: GuardArgs,
    /// A path to ask for before the switch; may be given several times [default: /]
    #[arg(long, value_name = "PATH")]
    warm: Vec<String>,
    /// Nobody is let in to the old side afterwards, so that nothing is written there unseen
    #[arg(long)]
    fence: bool,
    /// Note until when the old side should be kept; it is not removed then either
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    keep: Option<u64>,
    #[command(flatten)]
    wait: Wait,
}

pub(crate) async fn run(context: &Context, args: PromoteArgs) -> Result<(), Failure> {
    let mut warm = Warm::default();
    if !args.warm.is_empty() {
        warm.paths = args.warm;
    }
    let request = PromoteRequest {
        of: args.of,
        warm,
        baseline_ms: args.baseline,
        watch_ms: args.watch,
        guard: args.guard.into(),
        keep_ms: args.keep,
        fence: args.fence,
    };
    let route = Route::environment(&args.environment).then("promote");
    let operation: Operation = context.client.post(&route, &request).await?;
    let Some(operation) = complete(context, operation, args.wait).await? else {
        return Ok(());
    };
    context.answer(&operation, || summary(&operation, context.out_paint))
}

fn summary(operation: &Operation, paint: Paint) -> String {
    let (Some(swap), Some(report)) = (&operation.swap, &operation.traffic) else {
        return operation.subject.clone();
    };
    let mut all = swap::rows(swap);
    all.extend(rows(report));
    format!(
        "{}\n{}\n{old} is kept; remove it when you need it no more: offshoot rm {old}\nBack again: offshoot swap --back {old} {}\n",
        swap::moved(swap, paint),
        fields(&all, paint),
        report.new,
        old = report.old,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn a_promotion_for_people() {
        let operation = fixtures::promote_operation();
        insta::assert_snapshot!(summary(&operation, Paint::Plain), @r"
        DOMAIN             FROM   TO
        shop.example.com   shop   next
        next.example.com   next   shop

        Switched:            2026-03-01T11:56:59.000Z
        Edge took:           840 µs
        Routes version:      42
        New side:            34000 requests, 12 errors, p95 19.1 ms
        Old side:            1200 requests, 3 errors, p95 21.5 ms
        Keep the old until:  2026-03-02T12:00:00Z

        shop is kept; remove it when you need it no more: offshoot rm shop
        Back again: offshoot swap --back shop next
        ");
    }
}
