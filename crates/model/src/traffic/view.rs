//! A policy and what came of it, as people and the API see it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::compare::{Difference, Figures, Guard, Share, difference, milliseconds, share};
use super::stats::{MirrorStats, OwnerStats, SideHealth, SideStats};
use super::{Policy, Sticky};
use crate::domain::Warm;
use crate::id::EnvId;

/// A policy and what was counted at the environment's domains.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrafficView {
    /// The policy; empty when there is none.
    pub policy: Policy<String>,
    /// When counting began; absent when nobody asked yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// Who may answer, in the policy's order; the environment itself without sides.
    pub sides: Vec<SideView>,
    /// Requests refused by bounds.
    pub refused: u64,
    /// What came of copied requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorStats>,
    /// The last changes of sides' health, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<ChangeView>,
    /// Why there are no counts, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncounted: Option<String>,
}

/// What one side answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SideView {
    /// Its name.
    pub environment: String,
    /// Its weight of the sum of all weights, 0 to 1.
    pub share: f64,
    /// Requests that went to it and ended.
    pub requests: u64,
    /// Of them those without an answer, or with a status of 500 and more.
    pub errors: u64,
    /// Answers by class: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub classes: [u64; 5],
    /// Milliseconds that half of the answers stayed within; absent when nothing was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// Milliseconds that 95 of 100 stayed within.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_ms: Option<f64>,
    /// Milliseconds that 99 of 100 stayed within.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// Visitors, where they are told apart.
    pub visitors: u64,
    /// How often each goal was reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub goals: Vec<GoalView>,
    /// Whether it is up; absent when nobody checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<SideHealth>,
}

/// How often a side reached a goal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GoalView {
    /// Its name.
    pub name: String,
    /// Times, or visitors.
    pub reached: u64,
    /// Of how many requests, or visitors.
    pub of: u64,
    /// The share, and how sure it is; absent when nobody came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
    /// Beside the first side; absent for the first and while one has nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside_first: Option<Difference>,
}

/// A side that went down or came up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeView {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Which.
    pub environment: String,
    /// Whether it takes requests from then on.
    pub takes: bool,
    /// Why, in a few words.
    pub why: String,
}

impl TrafficView {
    /// Puts together what `owner`'s policy is and what was counted, environments named by `name`.
    #[must_use]
    pub fn of(
        owner: &EnvId,
        policy: Policy<EnvId>,
        stats: Option<OwnerStats>,
        name: impl Fn(&EnvId) -> String,
    ) -> Self {
        let weights = if policy.sides.is_empty() {
            vec![(owner.clone(), 1)]
        } else {
            let side = |side: &super::Side<EnvId>| (side.environment.clone(), side.weight);
            policy.sides.iter().map(side).collect()
        };
        let sum: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let visitors = policy.sticky == Sticky::Visitor && !policy.sides.is_empty();
        let counts = |id: &EnvId| {
            let sides = stats.iter().flat_map(|stats| &stats.sides);
            sides.into_iter().find(|side| side.environment == *id)
        };
        let first = weights.first().and_then(|(id, _)| counts(id));
        let sides = weights.iter().enumerate().map(|(place, (id, weight))| {
            let beside = first.filter(|_| place > 0);
            let share = f64::from(*weight) / sum.max(1.0);
            match counts(id) {
                Some(counts) => SideView::of(name(id), share, counts, beside, visitors),
                None => SideView {
                    environment: name(id),
                    share,
                    ..SideView::default()
                },
            }
        });
        let sides = sides.collect();
        let stats = stats.as_ref();
        let change = |change: &super::stats::HealthChange| ChangeView {
            at: change.at,
            environment: name(&change.environment),
            takes: change.takes,
            why: change.why.clone(),
        };
        Self {
            sides,
            since: stats.map(|stats| stats.since),
            refused: stats.map_or(0, |stats| stats.refused),
            mirror: stats.and_then(|stats| stats.mirror.clone()),
            changes: stats
                .map(|stats| stats.changes.iter().map(change).collect())
                .unwrap_or_default(),
            policy: policy.named(name),
            uncounted: None,
        }
    }
}

impl SideView {
    fn of(
        environment: String,
        share_of_all: f64,
        counts: &SideStats,
        first: Option<&SideStats>,
        by_visitor: bool,
    ) -> Self {
        let of = |side: &SideStats| {
            if by_visitor {
                side.visitors
            } else {
                side.requests
            }
        };
        let goal = |goal: &super::stats::GoalStats| {
            let other = first.and_then(|first| {
                let same = first.goals.iter().find(|other| other.name == goal.name)?;
                Some((same.reached, of(first)))
            });
            GoalView {
                name: goal.name.clone(),
                reached: goal.reached,
                of: of(counts),
                share: share(goal.reached, of(counts)),
                beside_first: other.and_then(|other| difference((goal.reached, of(counts)), other)),
            }
        };
        let ms = |share| counts.latency.quantile(share).map(milliseconds);
        Self {
            environment,
            share: share_of_all,
            requests: counts.requests,
            errors: counts.errors,
            classes: counts.classes,
            p50_ms: ms(0.5),
            p95_ms: ms(0.95),
            p99_ms: ms(0.99),
            visitors: counts.visitors,
            goals: counts.goals.iter().map(goal).collect(),
            health: counts.health.clone(),
        }
    }
}

/// Make a clone what people reach at its parent's domains, and go back when it is worse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromoteRequest {
    /// Whose domains it gets; absent: its parent's.
    pub of: Option<String>,
    /// What it is asked before the switch.
    pub warm: Warm,
    /// Milliseconds in which the old side is counted before the switch, at most an hour.
    pub baseline_ms: u64,
    /// Milliseconds in which the new side is watched after it, at most a day; 0: not at all.
    pub watch_ms: u64,
    /// From when on it is worse.
    pub guard: Guard,
    /// Milliseconds for which the old side should be kept, at most a year; it is not removed after that either.
    pub keep_ms: Option<u64>,
    /// Nobody is let in to the old side, so that nothing is written there unseen.
    pub fence: bool,
}

impl Default for PromoteRequest {
    fn default() -> Self {
        Self {
            of: None,
            warm: Warm::default(),
            baseline_ms: 10_000,
            watch_ms: 300_000,
            guard: Guard::default(),
            keep_ms: None,
            fence: false,
        }
    }
}

/// Send more and more of an environment's requests to another, as long as that is not worse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RampRequest {
    /// Who gets them.
    pub to: String,
    /// Its shares one after the other, in a hundred, growing, 1 to 100; at most 32.
    #[serde(default = "ramp_steps")]
    pub steps: Vec<u32>,
    /// Milliseconds at each share before the next, 1 s to 7 days.
    #[serde(default = "ramp_every")]
    pub every_ms: u64,
    /// From when on it is worse.
    #[serde(default)]
    pub guard: Guard,
}

/// 1, 10, 50 and 100 percent.
fn ramp_steps() -> Vec<u32> {
    vec![1, 10, 50, 100]
}

/// 10 minutes.
fn ramp_every() -> u64 {
    600_000
}

/// How a promotion or a ramp goes; kept with the operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrafficReport {
    /// Name of the environment whose requests are led elsewhere.
    pub old: String,
    /// Name of the environment that gets them.
    pub new: String,
    /// Its share now, in a hundred.
    pub percent: u32,
    /// What the old side answered: before the switch, or in the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_figures: Option<Figures>,
    /// What the new side answered: since the switch, or since it has its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_figures: Option<Figures>,
    /// Until when the old side should be kept; nothing removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub keep_until: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::stats::{GoalStats, Histogram};
    use crate::traffic::{Goal, Side};

    fn id(text: &str) -> EnvId {
        text.parse().unwrap()
    }

    fn counts(environment: &str, visitors: u64, reached: u64) -> SideStats {
        SideStats {
            environment: id(environment),
            requests: 5 * visitors,
            errors: 1,
            classes: [0, 5 * visitors - 1, 0, 0, 1],
            latency: Histogram::default(),
            visitors,
            goals: vec![GoalStats {
                name: "paid".to_owned(),
                reached,
            }],
            health: None,
        }
    }

    fn stats(sides: Vec<SideStats>) -> OwnerStats {
        OwnerStats {
            environment: id("aaaaaaaa"),
            since: Timestamp::UNIX_EPOCH,
            sides,
            refused: 3,
            mirror: None,
            changes: Vec::new(),
        }
    }

    #[test]
    fn goals_are_compared_with_the_first_side_s_by_visitor() {
        let side = |environment: &str, weight| Side {
            environment: id(environment),
            weight,
        };
        let policy = Policy {
            sides: vec![side("aaaaaaaa", 90), side("bbbbbbbb", 10)],
            goals: vec![Goal {
                name: "paid".to_owned(),
                path: None,
                method: None,
                statuses: (200, 399),
            }],
            ..Policy::default()
        };
        let counted = stats(vec![counts("bbbbbbbb", 70, 56), counts("aaaaaaaa", 80, 48)]);
        let view = TrafficView::of(&id("aaaaaaaa"), policy.clone(), Some(counted), |id| {
            id.to_string().to_uppercase()
        });
        assert_eq!(view.policy.sides[1].environment, "BBBBBBBB");
        let [first, second] = view.sides.as_slice() else {
            panic!("{view:?}");
        };
        assert_eq!((first.share, second.share), (0.9, 0.1));
        assert_eq!((first.goals[0].of, second.goals[0].of), (80, 70));
        assert_eq!(first.goals[0].beside_first, None);
        let beside = second.goals[0].beside_first.unwrap();
        assert_eq!(beside.sure(), Some(true));
        assert!((beside.difference - 0.2).abs() < 1e-9 && beside.higher > 0.99);

        // Nothing counted yet, and by request.
        let view = TrafficView::of(&id("aaaaaaaa"), policy, None, ToString::to_string);
        assert_eq!((view.sides.len(), view.sides[1].requests), (2, 0));
        let counted = stats(vec![counts("aaaaaaaa", 80, 48)]);
        let none = Policy::default();
        let view = TrafficView::of(&id("aaaaaaaa"), none, Some(counted), ToString::to_string);
        assert_eq!((view.sides[0].share, view.sides[0].goals[0].of), (1.0, 400));
        assert_eq!(view.refused, 3);
    }

    #[test]
    fn what_is_left_out_of_a_request_has_a_default() {
        let promote: PromoteRequest = serde_json::from_str("{}").unwrap();
        assert_eq!(promote, PromoteRequest::default());
        let ramp: RampRequest = serde_json::from_str(r#"{"to": "next"}"#).unwrap();
        assert_eq!((ramp.steps, ramp.every_ms), (vec![1, 10, 50, 100], 600_000));
    }
}
