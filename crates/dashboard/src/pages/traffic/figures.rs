//! What was counted, for people: how each side does, and how sure it is that one does better.

use jiff::Timestamp;
use offshoot_model::traffic::compare::Difference;
use offshoot_model::traffic::stats::{Histogram, MirrorStats, SideHealth};
use offshoot_model::traffic::view::{ChangeView, GoalView, SideView, TrafficView};

use crate::format::{When, duration, encode};
use crate::pages::{Mark, mark};

/// Changes of health that are shown.
const CHANGES: usize = 10;
/// Width of a drawn scale.
const SCALE: f64 = 1_000.0;

/// A side in the table of sides.
pub(super) struct Side {
    pub(super) name: String,
    pub(super) href: String,
    pub(super) share: String,
    pub(super) requests: String,
    pub(super) visitors: String,
    pub(super) errors: String,
    /// Whether more than one request in a hundred failed.
    pub(super) failing: bool,
    pub(super) p50: String,
    pub(super) p95: String,
    pub(super) p99: String,
    pub(super) health: Option<Health>,
}

/// What the checks say of a side.
pub(super) struct Health {
    pub(super) mark: Mark,
    pub(super) nodes: Vec<Node>,
}

pub(super) struct Node {
    pub(super) address: String,
    pub(super) mark: Mark,
    pub(super) since: When,
    pub(super) last: String,
}

/// A goal, and how often each side reached it.
pub(super) struct Goal {
    pub(super) name: String,
    /// Where the drawn scale ends.
    pub(super) scale: String,
    pub(super) lines: Vec<GoalLine>,
}

pub(super) struct GoalLine {
    pub(super) name: String,
    pub(super) reached: String,
    pub(super) share: String,
    pub(super) within: String,
    pub(super) bar: Option<Interval>,
    /// Nothing for the first, beside which the others are.
    pub(super) verdict: Option<Verdict>,
}

/// Where a share lies, in thousandths of the drawn scale.
pub(super) struct Interval {
    pub(super) from: u32,
    pub(super) length: u32,
    pub(super) at: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) sentence: String,
    /// A class of the style sheet.
    pub(super) mood: &'static str,
    pub(super) difference: String,
}

/// What came of copies.
pub(super) struct Mirror {
    pub(super) compared: String,
    pub(super) same: String,
    pub(super) counts: Vec<(&'static str, String)>,
    pub(super) live: String,
    pub(super) copy: String,
    pub(super) differences: Vec<Differs>,
}

/// A request that was answered in two ways.
pub(super) struct Differs {
    pub(super) at: When,
    pub(super) request: String,
    pub(super) statuses: (u16, u16),
    pub(super) same_status: bool,
    pub(super) parts: String,
    pub(super) times: String,
}

/// A side that went down or came up.
pub(super) struct Change {
    pub(super) at: When,
    pub(super) name: String,
    pub(super) mark: Mark,
    pub(super) why: String,
}

pub(super) fn sides(view: &TrafficView, now: Timestamp) -> Vec<Side> {
    view.sides
        .iter()
        .map(|side| self::side(side, now))
        .collect()
}

fn side(side: &SideView, now: Timestamp) -> Side {
    let time = |ms: Option<f64>| ms.map_or_else(dash, milliseconds);
    let failed = of(side.errors, side.requests);
    Side {
        name: side.environment.clone(),
        href: format!("/environments/{}/traffic", encode(&side.environment)),
        share: percent(side.share),
        requests: count(side.requests),
        visitors: if side.visitors > 0 {
            count(side.visitors)
        } else {
            dash()
        },
        errors: match side.requests {
            0 => dash(),
            _ => format!("{} ({})", count(side.errors), percent(failed)),
        },
        failing: failed > 0.01,
        p50: time(side.p50_ms),
        p95: time(side.p95_ms),
        p99: time(side.p99_ms),
        health: side.health.as_ref().map(|of| health(of, now)),
    }
}

fn health(of: &SideHealth, now: Timestamp) -> Health {
    let nodes = of.nodes.iter().map(|node| Node {
        address: node.address.to_string(),
        mark: up(node.up),
        since: When::new(node.since, now),
        last: node.last.clone(),
    });
    Health {
        mark: match (of.up, of.takes) {
            (_, true) => mark("up", "good"),
            (true, false) => mark("up, not brought back", "warn"),
            (false, false) => mark("down", "bad"),
        },
        nodes: nodes.collect(),
    }
}

fn up(up: bool) -> Mark {
    if up {
        mark("up", "good")
    } else {
        mark("down", "bad")
    }
}

/// Goals in the order of the policy, each with the sides that have counted it.
pub(super) fn goals(view: &TrafficView) -> Vec<Goal> {
    let Some(first) = view.sides.first() else {
        return Vec::new();
    };
    let goals = view.policy.goals.iter();
    goals
        .map(|goal| {
            let found = view.sides.iter().filter_map(|side| {
                let counted = side
                    .goals
                    .iter()
                    .find(|counted| counted.name == goal.name)?;
                Some((side.environment.as_str(), counted))
            });
            let found: Vec<_> = found.collect();
            let highest = found.iter().filter_map(|(_, goal)| Some(goal.share?.high));
            let scale = highest.fold(0.0, f64::max).max(0.001);
            let lines = found
                .iter()
                .map(|(name, goal)| goal_line(name, goal, &first.environment, scale));
            Goal {
                name: goal.name.clone(),
                scale: percent(scale),
                lines: lines.collect(),
            }
        })
        .filter(|goal| !goal.lines.is_empty())
        .collect()
}

fn goal_line(name: &str, goal: &GoalView, first: &str, scale: f64) -> GoalLine {
    let on_scale = |share: f64| (share / scale * SCALE).round().clamp(0.0, SCALE) as u32;
    GoalLine {
        name: name.to_owned(),
        reached: format!("{} of {}", count(goal.reached), count(goal.of)),
        share: goal.share.map_or_else(dash, |share| percent(share.share)),
        within: goal.share.map_or_else(String::new, |share| {
            format!("{} to {}", percent(share.low), percent(share.high))
        }),
        bar: goal.share.map(|share| {
            let (from, to) = (on_scale(share.low), on_scale(share.high));
            Interval {
                from,
                length: to.saturating_sub(from).max(4),
                at: on_scale(share.share),
            }
        }),
        verdict: (name != first).then(|| verdict(name, first, goal.beside_first)),
    }
}

/// Who does better, and how sure that is.
fn verdict(name: &str, first: &str, beside: Option<Difference>) -> Verdict {
    let Some(by) = beside else {
        return Verdict {
            sentence: "not sure yet".to_owned(),
            mood: "off",
            difference: String::new(),
        };
    };
    // Nothing that is counted is quite sure.
    let probability = |share: f64| {
        let percent = (share * 100.0).clamp(0.1, 99.9);
        if (1.0..99.0).contains(&percent) {
            format!("{percent:.0} %")
        } else {
            format!("{percent:.1} %")
        }
    };
    let (sentence, mood) = match by.sure() {
        Some(true) => (
            format!("{name} is better: {}", probability(by.higher)),
            "good",
        ),
        Some(false) => (
            format!("{first} is better: {}", probability(1.0 - by.higher)),
            "bad",
        ),
        None => ("not sure yet".to_owned(), "off"),
    };
    let points = |share: f64| format!("{:+.1}", share * 100.0);
    let mut difference = format!(
        "{} points, within {} to {}",
        points(by.difference),
        points(by.low),
        points(by.high)
    );
    if by.sure().is_none() {
        let probability = probability(by.higher);
        difference.push_str(&format!("; better with a probability of {probability}"));
    }
    Verdict {
        sentence,
        mood,
        difference,
    }
}

pub(super) fn changes(changes: &[ChangeView], now: Timestamp) -> Vec<Change> {
    let newest = changes.iter().rev().take(CHANGES);
    newest
        .map(|change| Change {
            at: When::new(change.at, now),
            name: change.environment.clone(),
            mark: if change.takes {
                mark("takes requests", "good")
            } else {
                mark("takes none", "bad")
            },
            why: change.why.clone(),
        })
        .collect()
}

pub(super) fn mirror(stats: &MirrorStats, now: Timestamp) -> Mirror {
    let counted = |number: u64| {
        format!(
            "{} ({})",
            count(number),
            percent(of(number, stats.compared))
        )
    };
    let p95 = |times: &Histogram| {
        let time = times.quantile(0.95);
        time.map_or_else(dash, |time| milliseconds(time.as_secs_f64() * 1e3))
    };
    let differences = stats.differences.iter().rev().map(|differs| {
        let mut parts = differs.headers.clone();
        parts.extend(
            differs
                .bodies
                .map(|(live, copy)| format!("body ({live} and {copy} bytes)")),
        );
        Differs {
            at: When::new(differs.at, now),
            request: format!("{} {}{}", differs.method, differs.host, differs.path),
            statuses: differs.statuses,
            same_status: differs.statuses.0 == differs.statuses.1,
            parts: parts.join(", "),
            times: format!(
                "{} and {}",
                milliseconds(differs.ms.0),
                milliseconds(differs.ms.1)
            ),
        }
    });
    Mirror {
        compared: count(stats.compared),
        same: percent(of(stats.same, stats.compared)),
        counts: vec![
            ("The same", counted(stats.same)),
            ("Another status", counted(stats.status)),
            ("Other header fields", counted(stats.headers)),
            ("Another body", counted(stats.body)),
            ("Without an answer", count(stats.failed)),
            ("Not copied", count(stats.skipped)),
        ],
        live: p95(&stats.live),
        copy: p95(&stats.copy),
        differences: differences.collect(),
    }
}

fn dash() -> String {
    "–".to_owned()
}

fn of(some: u64, all: u64) -> f64 {
    some as f64 / all.max(1) as f64
}

/// Milliseconds as a time.
fn milliseconds(ms: f64) -> String {
    duration((ms * 1e3).round().max(0.0) as u64)
}

/// A number in groups of three digits.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A share of 1 as a percentage.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 0.95 || percent > 99.0 && percent < 100.0 {
        // What is not none, or not all, does not look as if it were.
        format!("{percent:.2} %")
    } else if percent > 0.0 && percent < 9.95 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    }
}

#[cfg(test)]
mod tests {
    use offshoot_model::traffic::compare::difference;

    use super::*;

    #[test]
    fn who_is_better_is_said_only_when_it_is_sure() {
        let clear = verdict("next", "shop", difference((140, 900), (480, 8_000)));
        assert_eq!(
            (clear.sentence.as_str(), clear.mood),
            ("next is better: 99.9 %", "good")
        );
        let worse = verdict("next", "shop", difference((20, 900), (480, 8_000)));
        assert_eq!(
            (worse.sentence.as_str(), worse.mood),
            ("shop is better: 99.9 %", "bad")
        );
        let open = verdict("next", "shop", difference((60, 900), (480, 8_000)));
        assert_eq!(open.sentence, "not sure yet");
        assert!(open.difference.starts_with("+0.7 points"), "{open:?}");
        assert!(
            open.difference.contains("with a probability of"),
            "{open:?}"
        );
        assert!(!clear.difference.contains("probability"), "{clear:?}");
        assert_eq!(verdict("next", "shop", None).difference, "");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(percent(0.0), "0 %");
        assert_eq!(percent(0.001_25), "0.12 %");
        assert_eq!(percent(0.065), "6.5 %");
        assert_eq!(percent(0.996_6), "99.66 %");
        assert_eq!(percent(0.9), "90 %");
        assert_eq!(milliseconds(4.2), "4.2 ms");
    }
}
