//! A policy and what came of it, for people.

use jiff::Timestamp;
use offshoot_model::traffic::compare::{Difference, Share};
use offshoot_model::traffic::stats::{MirrorStats, SideHealth};
use offshoot_model::traffic::view::{GoalView, SideView, TrafficView};
use offshoot_model::traffic::{
    Back, Bounds, Failover, Field, Policy, ProxyVersion, Rule, Sticky, When,
};

use crate::human;
use crate::table::{Grid, Mood, fields, optional, state, text};
use crate::term::Paint;

/// Changes of health that are shown; `-o json` has all.
const CHANGES: usize = 5;
/// Differences of copies that are shown.
const DIFFERENCES: usize = 5;

/// All of it, part by part.
pub(super) fn details(view: &TrafficView, paint: Paint, now: Timestamp) -> String {
    let mut parts = vec![fields(&policy_rows(view, now), paint), sides(view, paint)];
    if view.sides.iter().any(|side| !side.goals.is_empty()) {
        parts.push(goals(view, paint));
    }
    if let Some(mirror) = &view.mirror {
        parts.push(mirrored(mirror, paint));
    }
    if !view.changes.is_empty() {
        let mut grid = Grid::new(&["WHEN", "SIDE", "REQUESTS", "WHY"], paint);
        for change in view.changes.iter().rev().take(CHANGES) {
            grid.row([
                human::age(change.at, now),
                change.environment.clone(),
                if change.takes { "takes" } else { "none" }.to_owned(),
                change.why.clone(),
            ]);
        }
        parts.push(grid.render());
    }
    if let Some(why) = &view.uncounted {
        parts.push(format!(
            "{} there are no counts: {why}\n",
            paint.yellow("note:")
        ));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

fn policy_rows(view: &TrafficView, now: Timestamp) -> Vec<(&'static str, String)> {
    let policy = &view.policy;
    if *policy == Policy::default() && view.since.is_none() {
        return vec![("Policy", "none: the environment answers all".to_owned())];
    }
    let mut rows = Vec::new();
    if policy.sides.len() > 1 {
        rows.push(("Sticky", sticky(&policy.sticky)));
    }
    for rule in &policy.rules {
        rows.push(("Rule", rule_text(rule)));
    }
    if let Some(failover) = &policy.failover {
        rows.push(("Checks", checks(failover)));
    }
    if let Some(mirror) = &policy.mirror {
        let share = f64::from(mirror.permille) / 10.0;
        rows.push(("Copies", format!("{share} % to {}", mirror.environment)));
    }
    let bounds = bounds(&policy.bounds);
    if !bounds.is_empty() {
        rows.push(("Bounds", format!("{bounds}; {} refused", view.refused)));
    }
    match policy.send_proxy {
        Some(ProxyVersion::V1) => rows.push(("PROXY protocol", "v1".to_owned())),
        Some(ProxyVersion::V2) => rows.push(("PROXY protocol", "v2".to_owned())),
        None => {}
    }
    if policy.fence {
        rows.push(("Fence", "nobody is let in".to_owned()));
    }
    if let Some(since) = view.since {
        rows.push(("Counted since", human::age(since, now)));
    }
    rows
}

fn sticky(sticky: &Sticky) -> String {
    match sticky {
        Sticky::Visitor => "visitor, by a cookie of the edge's".to_owned(),
        Sticky::Client => "client's address".to_owned(),
        Sticky::Cookie(name) => format!("cookie {name}"),
        Sticky::Header(name) => format!("header {name}"),
        Sticky::Query(name) => format!("query parameter {name}"),
        Sticky::Nothing => "nothing".to_owned(),
    }
}

/// As it is typed.
fn rule_text(rule: &Rule) -> String {
    let field = |kind: &str, field: &Field| match field.values.as_slice() {
        [] => format!("{kind}:{}", field.name),
        values => format!("{kind}:{}={}", field.name, values.join(",")),
    };
    let conditions = rule.when.iter().map(|when| match when {
        When::Path(path) => format!("path:{path}"),
        When::Method(methods) => format!("method:{}", methods.join(",")),
        When::Client(networks) => format!("client:{}", networks.join(",")),
        When::Header(of) => field("header", of),
        When::Cookie(of) => field("cookie", of),
        When::Query(of) => field("query", of),
    });
    let conditions: Vec<_> = conditions.collect();
    format!("{} -> {}", conditions.join(" & "), rule.to)
}

fn checks(failover: &Failover) -> String {
    let check = &failover.check;
    let every = human::duration(check.interval_ms.saturating_mul(1_000));
    let passive = failover
        .passive
        .as_ref()
        .map_or_else(String::new, |passive| {
            format!(", or {} failed requests", passive.failures)
        });
    let back = match failover.back {
        Back::Auto => "back by itself",
        Back::ByHand => "back by hand",
    };
    format!(
        "{} every {every}; down after {}{passive}, up after {}; {back}",
        check.path, check.fall, check.rise
    )
}

fn bounds(bounds: &Bounds) -> String {
    let rows = [
        (
            u64::from(bounds.client_requests_per_second),
            "/s of a client",
        ),
        (u64::from(bounds.client_requests), " of a client under way"),
        (u64::from(bounds.requests_per_second), "/s in all"),
    ];
    let mut parts: Vec<_> = rows
        .iter()
        .filter(|(bound, _)| *bound > 0)
        .map(|(bound, what)| format!("{bound}{what}"))
        .collect();
    if bounds.body_bytes > 0 {
        parts.push(format!("bodies to {}", human::bytes(bounds.body_bytes)));
    }
    parts.join(", ")
}

fn sides(view: &TrafficView, paint: Paint) -> String {
    let headings = [
        "SIDE", "SHARE", "REQUESTS", "ERRORS", "P50", "P95", "P99", "HEALTH",
    ];
    let mut grid = Grid::new(&headings, paint).right(&[1, 2, 3, 4, 5, 6]);
    for side in &view.sides {
        let ms = |ms: Option<f64>| text(optional(ms.map(milliseconds)));
        grid.cells([
            text(&side.environment),
            text(percent(side.share)),
            text(side.requests.to_string()),
            text(errors(side)),
            ms(side.p50_ms),
            ms(side.p95_ms),
            ms(side.p99_ms),
            health(side.health.as_ref()),
        ]);
    }
    grid.render()
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests")]
fn errors(side: &SideView) -> String {
    match side.requests {
        0 => side.errors.to_string(),
        all => format!(
            "{} ({})",
            side.errors,
            percent(side.errors as f64 / all as f64)
        ),
    }
}

fn health(health: Option<&SideHealth>) -> comfy_table::Cell {
    match health {
        None => text("-"),
        Some(health) if health.takes => state("up", Mood::Good),
        Some(health) if health.up => state("up, not back", Mood::Waiting),
        Some(health) => {
            let last = health.nodes.iter().find(|node| !node.up);
            let last = last.map_or_else(String::new, |node| format!(": {}", node.last));
            state(format!("down{last}"), Mood::Bad)
        }
    }
}

/// Every goal of every side, with where the share truly lies and how it differs from the first side's.
fn goals(view: &TrafficView, paint: Paint) -> String {
    let headings = [
        "GOAL",
        "SIDE",
        "REACHED",
        "OF",
        "SHARE",
        "95 % WITHIN",
        "BESIDE FIRST",
        "BETTER",
    ];
    let mut grid = Grid::new(&headings, paint).right(&[2, 3, 4]);
    let Some(first) = view.sides.first() else {
        return String::new();
    };
    let names = view.sides.iter().flat_map(|side| &side.goals);
    let mut names: Vec<_> = names.map(|goal| goal.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        for side in &view.sides {
            let Some(goal) = side.goals.iter().find(|goal| goal.name == name) else {
                continue;
            };
            let is_first = side.environment == first.environment;
            grid.row([
                goal.name.clone(),
                side.environment.clone(),
                goal.reached.to_string(),
                goal.of.to_string(),
                optional(goal.share.map(|share| percent(share.share))),
                optional(goal.share.map(within)),
                optional(goal.beside_first.map(beside)),
                if is_first {
                    "-".to_owned()
                } else {
                    verdict(goal)
                },
            ]);
        }
    }
    grid.render()
}

fn within(share: Share) -> String {
    format!("{} to {}", percent(share.low), percent(share.high))
}

fn beside(by: Difference) -> String {
    let points = |share: f64| format!("{:+.1}", share * 100.0);
    format!(
        "{} points ({} to {})",
        points(by.difference),
        points(by.low),
        points(by.high)
    )
}

fn verdict(goal: &GoalView) -> String {
    let Some(by) = goal.beside_first else {
        return "not sure yet".to_owned();
    };
    let sure = match by.sure() {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not sure yet",
    };
    format!("{sure}, {}", probability(by.higher))
}

/// Nothing that is counted is quite sure.
fn probability(share: f64) -> String {
    format!("{:.1} %", (share * 100.0).clamp(0.1, 99.9))
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests")]
fn mirrored(mirror: &MirrorStats, paint: Paint) -> String {
    let of = |count: u64| match mirror.compared {
        0 => count.to_string(),
        all => format!("{count} ({})", percent(count as f64 / all as f64)),
    };
    let p95 = |of: &offshoot_model::traffic::stats::Histogram| {
        let time = of.quantile(0.95);
        optional(time.map(|time| milliseconds(time.as_secs_f64() * 1e3)))
    };
    let mut out = fields(
        &[
            ("Copies compared", mirror.compared.to_string()),
            ("The same", of(mirror.same)),
            ("Other status", of(mirror.status)),
            ("Other header fields", of(mirror.headers)),
            ("Other body", of(mirror.body)),
            ("No answer", mirror.failed.to_string()),
            ("Left out", mirror.skipped.to_string()),
            (
                "p95 of visitors, of copies",
                format!("{}, {}", p95(&mirror.live), p95(&mirror.copy)),
            ),
        ],
        paint,
    );
    if !mirror.differences.is_empty() {
        let mut grid = Grid::new(&["REQUEST", "STATUS", "COPY'S", "DIFFERS IN"], paint);
        for differs in mirror.differences.iter().rev().take(DIFFERENCES) {
            let mut parts = differs.headers.clone();
            parts.extend(
                differs
                    .bodies
                    .map(|(live, copy)| format!("body ({live}, {copy} bytes)")),
            );
            grid.row([
                format!("{} {}{}", differs.method, differs.host, differs.path),
                differs.statuses.0.to_string(),
                differs.statuses.1.to_string(),
                optional((!parts.is_empty()).then(|| parts.join(", "))),
            ]);
        }
        out.push('\n');
        out.push_str(&grid.render());
    }
    out
}

fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 10_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1e3),
    }
}

/// A share of 1 as a percentage.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 10.0 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn a_policy_and_what_came_of_it_for_people() {
        let view = fixtures::traffic();
        insta::assert_snapshot!(details(&view, Paint::Plain, fixtures::now()));
    }

    #[test]
    fn no_policy_for_people() {
        let view = TrafficView {
            sides: vec![SideView {
                environment: "shop".to_owned(),
                share: 1.0,
                ..SideView::default()
            }],
            ..TrafficView::default()
        };
        insta::assert_snapshot!(details(&view, Paint::Plain, fixtures::now()), @r"
        Policy:  none: the environment answers all

        SIDE   SHARE   REQUESTS   ERRORS   P50   P95   P99   HEALTH
        shop   100 %          0        0     -     -     -   -
        ");
    }
}
