//! `op show --timing`: bars that show where the time went.

use offshoot_model::{CloneReport, NodeCloneReport, Operation, Rung};

use super::op::kind;
use super::plan_view::way;
use crate::human;
use crate::term::{Paint, safe};

/// Length of the longest bar in characters.
const BAR: usize = 40;

/// One bar: what, when it began, how long.
struct Span {
    what: String,
    from: u64,
    us: u64,
}

/// The steps of an operation one after the other and, for a clone, the parts of its freeze and what each node took.
pub(super) fn draw(operation: &Operation, paint: Paint) -> String {
    let mut out = format!(
        "{}\n",
        paint.bold(&format!(
            "{} {}",
            kind(operation.kind),
            safe(&operation.subject)
        ))
    );
    let steps = in_a_row(
        operation
            .steps
            .iter()
            .filter_map(|step| Some((step.name.as_str(), step.us?))),
    );
    if steps.is_empty() {
        out.push_str("  no step has ended yet\n");
    }
    out.push_str(&bars(&steps, paint));
    if let Some(report) = &operation.report {
        out.push_str(&of_clone(report, paint));
    }
    out
}

fn of_clone(report: &CloneReport, paint: Paint) -> String {
    let mut out = String::new();
    if !report.parts.is_empty() {
        let predicted = report.predicted_us.map_or(String::new(), |us| {
            format!(" (expected: {})", human::milliseconds(us))
        });
        let title = format!(
            "cut: the nodes stood still for {}{predicted}",
            human::milliseconds(report.freeze_us)
        );
        out.push_str(&format!("\n{}\n", paint.bold(&title)));
        let parts = in_a_row(
            report
                .parts
                .iter()
                .map(|part| (part.what.as_str(), part.us)),
        );
        out.push_str(&bars(&parts, paint));
    }
    let of_nodes = |us: fn(&NodeCloneReport) -> u64| -> Vec<Span> {
        let live = report.nodes.iter().filter(|node| node.rung == Rung::Live);
        live.map(|node| Span {
            what: node.node.clone(),
            from: 0,
            us: us(node),
        })
        .filter(|span| span.us > 0)
        .collect()
    };
    let mut section = |title: &str, spans: &[Span]| {
        if !spans.is_empty() {
            out.push_str(&format!("\n{}\n", paint.bold(title)));
            out.push_str(&bars(spans, paint));
        }
    };
    section(
        "each node stood still by itself before, while memory was copied ahead",
        &of_nodes(|node| node.paused_us),
    );
    section("each node stood still", &of_nodes(|node| node.freeze_us));
    section(
        "each node's memory was written in",
        &of_nodes(|node| node.dump_us),
    );
    for node in &report.nodes {
        section(&stages_title(node), &stages(node));
    }
    section(
        "each node was restored in",
        &of_nodes(|node| node.restore_us),
    );
    out
}

fn stages_title(node: &NodeCloneReport) -> String {
    let way = way(node.memory.as_ref());
    format!("{}: its memory ({way}), in the freeze", safe(&node.node))
}

fn stages(node: &NodeCloneReport) -> Vec<Span> {
    node.stages
        .iter()
        .map(|stage| Span {
            what: stage.what.clone(),
            from: stage.from_us,
            us: stage.us,
        })
        .collect()
}

fn in_a_row<'a>(spans: impl Iterator<Item = (&'a str, u64)>) -> Vec<Span> {
    let mut from = 0u64;
    spans
        .map(|(what, us)| {
            let span = Span {
                what: what.to_owned(),
                from,
                us,
            };
            from = from.saturating_add(us);
            span
        })
        .collect()
}

fn bars(spans: &[Span], paint: Paint) -> String {
    let end = spans
        .iter()
        .map(|span| span.from.saturating_add(span.us))
        .max()
        .unwrap_or(0)
        .max(1);
    let names = spans
        .iter()
        .map(|span| span.what.chars().count())
        .max()
        .unwrap_or(0);
    // u128: the product of two times does not fit.
    let scale =
        |us: u64| usize::try_from(u128::from(us) * BAR as u128 / u128::from(end)).unwrap_or(BAR);
    spans
        .iter()
        .map(|span| {
            let from = scale(span.from).min(BAR - 1);
            let length =
                (scale(span.from.saturating_add(span.us)) - scale(span.from)).clamp(1, BAR - from);
            let bar = format!(
                "{}{}{}",
                " ".repeat(from),
                "█".repeat(length),
                " ".repeat(BAR - from - length)
            );
            let name = format!("{:names$}", safe(&span.what));
            format!(
                "  {name}  {}  {:>10}\n",
                paint.cyan(&bar),
                human::duration(span.us)
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn where_the_time_of_a_clone_went() {
        insta::assert_snapshot!(draw(&fixtures::clone_operation(), Paint::Plain));
    }

    proptest! {
        #[test]
        fn any_times_can_be_drawn(times in prop::collection::vec(any::<u64>(), 0..10)) {
            let spans = in_a_row(times.iter().map(|us| ("step", *us)));
            for line in bars(&spans, Paint::Plain).lines() {
                prop_assert!(line.chars().filter(|c| *c == '█').count() >= 1);
            }
        }
    }
}
