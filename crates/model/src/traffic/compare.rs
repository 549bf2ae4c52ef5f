//! Whether one side does better than another: shares with how sure they are, and what is worse enough to go back.
//!
//! Only counts go in, so that people, the dashboard and what swaps back by itself judge alike.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::stats::{Histogram, OwnerStats, SideStats};
use crate::id::EnvId;

/// 0.975 quantile of the normal distribution: 95 % lie within this many deviations of the mean.
const Z95: f64 = 1.959_963_984_540_054;

/// A share of something counted, and within what it truly lies in 95 of 100 cases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Share {
    /// The share, 0 to 1.
    pub share: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How the share of one side differs from another's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// Its share less the other's, -1 to 1.
    pub difference: f64,
    /// Lower end of where the difference lies in 95 of 100 cases.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Probability that it is the higher one, 0 to 1.
    pub higher: f64,
}

impl Difference {
    /// Whether it is higher or lower; `None` while that is not sure: 95 of 100 cases have both.
    #[must_use]
    pub fn sure(&self) -> Option<bool> {
        if self.low > 0.0 {
            Some(true)
        } else if self.high < 0.0 {
            Some(false)
        } else {
            None
        }
    }
}

/// The share of `some` in `all` with Wilson's interval of 95 % (E. B. Wilson, 1927), which holds for few and for extreme
/// counts too. `None` when there is nothing.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts of requests")]
pub fn share(some: u64, all: u64) -> Option<Share> {
    if all == 0 {
        return None;
    }
    let (n, z2) = (all as f64, Z95 * Z95);
    let p = some.min(all) as f64 / n;
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    Some(Share {
        share: p,
        low: (middle - half).clamp(0.0, p),
        high: (middle + half).clamp(p, 1.0),
    })
}

/// How the share `some` of `all` differs from that of `other`, both as pairs of some and all: Newcombe's interval from
/// those of Wilson (R. G. Newcombe, 1998, method 10), and the probability by the normal approximation of both shares'
/// distributions after a uniform one before (Laplace). `None` when one of them has nothing.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts of requests")]
pub fn difference((some, all): (u64, u64), other: (u64, u64)) -> Option<Difference> {
    let (one, two) = (share(some, all)?, share(other.0, other.1)?);
    let difference = one.share - two.share;
    let down = (one.share - one.low).hypot(two.high - two.share);
    let up = (one.high - one.share).hypot(two.share - two.low);
    let believed = |(some, all): (u64, u64)| {
        let mean = (some.min(all) as f64 + 1.0) / (all as f64 + 2.0);
        (mean, mean * (1.0 - mean) / (all as f64 + 3.0))
    };
    let ((mean, variance), (mean2, variance2)) = (believed((some, all)), believed(other));
    Some(Difference {
        difference,
        low: difference - down,
        high: difference + up,
        higher: normal((mean - mean2) / (variance + variance2).sqrt()),
    })
}

/// The normal distribution's probability of less than `x`.
fn normal(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// What a side answered in some time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Requests.
    pub requests: u64,
    /// Of them those without a good answer.
    pub errors: u64,
    /// How long they took.
    pub latency: Histogram,
}

impl From<&SideStats> for Tally {
    fn from(side: &SideStats) -> Self {
        Self {
            requests: side.requests,
            errors: side.errors,
            latency: side.latency.clone(),
        }
    }
}

impl Tally {
    /// What came since `earlier`, a state of the same counter.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            errors: self.errors.saturating_sub(earlier.errors),
            latency: self.latency.since(&earlier.latency),
        }
    }

    /// The same for people.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            requests: self.requests,
            errors: self.errors,
            p95_ms: self.latency.quantile(0.95).map(milliseconds),
        }
    }
}

/// Counts at one moment, to tell what came after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    since: Option<Timestamp>,
    sides: Vec<(EnvId, Tally)>,
}

impl Mark {
    /// The counts as they are.
    #[must_use]
    pub fn of(stats: Option<&OwnerStats>) -> Self {
        let sides = stats.map_or(&[][..], |stats| &stats.sides);
        Self {
            since: stats.map(|stats| stats.since),
            sides: sides
                .iter()
                .map(|side| (side.environment.clone(), side.into()))
                .collect(),
        }
    }

    /// What a side answered in all that is counted.
    #[must_use]
    pub fn all(&self, side: &EnvId) -> Tally {
        let found = self.sides.iter().find(|(id, _)| id == side);
        found.map(|(_, tally)| tally.clone()).unwrap_or_default()
    }

    /// What a side answered since `earlier`; all that is counted when counting began anew after it.
    #[must_use]
    pub fn since(&self, earlier: &Self, side: &EnvId) -> Tally {
        let all = self.all(side);
        if self.since == earlier.since {
            all.since(&earlier.all(side))
        } else {
            all
        }
    }
}

/// What a side answered, for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// Requests.
    pub requests: u64,
    /// Of them those without an answer, or with a status of 500 and more.
    pub errors: u64,
    /// Milliseconds that 95 of 100 stayed within; absent when nothing was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_ms: Option<f64>,
}

/// A time in milliseconds, to a hundredth.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

/// From when on a new side is worse than the old.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    /// Its share of errors is higher by more than this many of a hundred, 0 to 100.
    pub errors_percent: f64,
    /// Its p95 is more than this many times as long, 1 to 1,000.
    pub latency_factor: f64,
    /// Nothing is judged before it has this many requests, 1 to 1,000,000.
    pub min_requests: u64,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            errors_percent: 1.0,
            latency_factor: 2.0,
            min_requests: 50,
        }
    }
}

impl Guard {
    /// Whether everything is within its bounds.
    ///
    /// # Errors
    /// What is not, in a sentence without a final dot.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=100.0).contains(&self.errors_percent) {
            return Err("errors are allowed within 0 and 100 percent".to_owned());
        }
        if !(1.0..=1_000.0).contains(&self.latency_factor) {
            return Err("a latency may be 1 to 1000 times the other's".to_owned());
        }
        if !(1..=1_000_000).contains(&self.min_requests) {
            return Err("between 1 and 1000000 requests are needed to judge".to_owned());
        }
        Ok(())
    }

    /// How `new` does beside `old`. An old side that answered nothing has no errors, and no latency to compare with.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    pub fn judge(&self, old: &Tally, new: &Tally) -> Verdict {
        if new.requests < self.min_requests {
            return Verdict::TooFew;
        }
        let percent = |tally: &Tally| match tally.requests {
            0 => 0.0,
            all => 100.0 * tally.errors.min(all) as f64 / all as f64,
        };
        let (before, after) = (percent(old), percent(new));
        if after - before > self.errors_percent {
            return Verdict::Worse(format!(
                "{after:.1} % of its requests failed, {before:.1} % of the old side's"
            ));
        }
        let p95 = |tally: &Tally| tally.latency.quantile(0.95);
        if old.requests >= self.min_requests
            && let (Some(before), Some(after)) = (p95(old), p95(new))
            && after.as_secs_f64() > before.as_secs_f64() * self.latency_factor
        {
            return Verdict::Worse(format!(
                "its p95 is {:.1} ms, the old side's {:.1} ms",
                milliseconds(after),
                milliseconds(before)
            ));
        }
        Verdict::Fine
    }
}

/// How a new side does beside the old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It answered too few requests to be judged.
    TooFew,
    /// It is not worse.
    Fine,
    /// It is, for this reason: a sentence without a final dot.
    Worse(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 5e-5, "{a} is not {b}");
    }

    fn tally(requests: u64, errors: u64, ms: u64) -> Tally {
        let mut latency = Histogram::default();
        for _ in 0..requests {
            latency.add(Duration::from_millis(ms));
        }
        Tally {
            requests,
            errors,
            latency,
        }
    }

    /// Newcombe 1998, Statistics in Medicine 17: the example of part I, table I (81 of 263, 15 of 148, 0 of 20, 1 of 29).
    #[test]
    fn wilson_s_intervals_are_those_in_the_literature() {
        for ((some, all), (low, high)) in [
            ((81, 263), (0.2553, 0.3662)),
            ((15, 148), (0.0624, 0.1605)),
            ((0, 20), (0.0, 0.1611)),
            ((1, 29), (0.0061, 0.1718)),
        ] {
            let found = share(some, all).unwrap();
            near(found.low, low);
            near(found.high, high);
        }
        assert_eq!(share(20, 20).unwrap().high, 1.0);
        assert_eq!(share(0, 0), None);
        assert_eq!(share(9, 3).unwrap().share, 1.0);
    }

    /// Newcombe 1998, part II, table II, method 10.
    #[test]
    fn differences_are_those_in_the_literature() {
        for (one, two, (low, high)) in [
            ((56, 70), (48, 80), (0.0524, 0.3339)),
            ((9, 10), (3, 10), (0.1705, 0.8090)),
            ((5, 56), (0, 29), (-0.0381, 0.1926)),
            ((0, 10), (0, 20), (-0.1611, 0.2775)),
        ] {
            let found = difference(one, two).unwrap();
            near(found.low, low);
            near(found.high, high);
        }
        let found = difference((56, 70), (48, 80)).unwrap();
        assert_eq!(found.sure(), Some(true));
        assert_eq!(difference((48, 80), (56, 70)).unwrap().sure(), Some(false));
        assert_eq!(difference((5, 56), (0, 29)).unwrap().sure(), None);
        assert_eq!(difference((1, 2), (0, 0)), None);
    }

    /// The exact probability that one Beta variable is above another, by its sum (E. Miller, 2015).
    #[test]
    fn the_probability_is_near_the_exact_one() {
        fn ln_beta(a: f64, b: f64) -> f64 {
            libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b)
        }
        for (one, two) in [
            ((12, 100), (10, 100)),
            ((60, 400), (40, 410)),
            ((30, 60), (30, 60)),
        ] {
            let beta =
                |(some, all): (u32, u32)| (f64::from(some) + 1.0, f64::from(all - some) + 1.0);
            let ((_, b), (a2, b2)) = (beta(one), beta(two));
            let exact: f64 = (0..=one.0)
                .map(f64::from)
                .map(|i| {
                    let top = ln_beta(a2 + i, b + b2);
                    (top - (b + i).ln() - ln_beta(1.0 + i, b) - ln_beta(a2, b2)).exp()
                })
                .sum();
            let wide = |(some, all): (u32, u32)| (u64::from(some), u64::from(all));
            let found = difference(wide(one), wide(two)).unwrap().higher;
            assert!((found - exact).abs() < 0.01, "{found} is not {exact}");
        }
    }

    #[test]
    fn the_normal_distribution_is_that_of_the_tables() {
        near(normal(0.0), 0.5);
        near(normal(Z95), 0.975);
        near(normal(-1.0), 0.158_655);
        assert!(normal(-40.0) >= 0.0 && normal(40.0) <= 1.0);
    }

    #[test]
    fn worse_is_worse_by_more_than_is_allowed_and_not_by_chance_of_few() {
        let guard = Guard::default();
        let old = tally(1_000, 10, 10);
        assert_eq!(guard.judge(&old, &tally(49, 49, 10)), Verdict::TooFew);
        assert_eq!(guard.judge(&old, &tally(50, 1, 10)), Verdict::Fine);
        assert_eq!(guard.judge(&old, &tally(100, 2, 19)), Verdict::Fine);
        let Verdict::Worse(why) = guard.judge(&old, &tally(100, 3, 10)) else {
            panic!("3 % is worse than 1 %");
        };
        assert_eq!(why, "3.0 % of its requests failed, 1.0 % of the old side's");
        let Verdict::Worse(why) = guard.judge(&old, &tally(100, 0, 25)) else {
            panic!("25 ms is worse than 10 ms");
        };
        assert!(why.contains("p95"), "{why}");
        // Nothing to compare with: errors count, latency does not.
        let none = Tally::default();
        assert_eq!(guard.judge(&none, &tally(100, 1, 2_500)), Verdict::Fine);
        assert!(matches!(
            guard.judge(&none, &tally(100, 2, 1)),
            Verdict::Worse(_)
        ));
    }

    #[test]
    fn what_came_since_is_all_when_counting_began_anew() {
        let id: EnvId = "aaaaaaaa".parse().unwrap();
        let stats = |second: i64, tally: Tally| OwnerStats {
            environment: id.clone(),
            since: Timestamp::from_second(second).unwrap(),
            sides: vec![SideStats {
                requests: tally.requests,
                errors: tally.errors,
                latency: tally.latency,
                ..SideStats::none(id.clone())
            }],
            refused: 0,
            mirror: None,
            changes: Vec::new(),
        };
        let mark = |second, tally: Tally| Mark::of(Some(&stats(second, tally)));
        let earlier = mark(1, tally(10, 1, 1));
        let since = |later: &Mark| later.since(&earlier, &id).requests;
        assert_eq!(since(&mark(1, tally(13, 1, 1))), 3);
        assert_eq!(since(&mark(2, tally(13, 1, 1))), 13);
        assert_eq!(since(&mark(2, tally(4, 1, 1))), 4);
        assert_eq!(since(&Mark::of(None)), 0);
        assert_eq!(
            mark(1, tally(5, 0, 1)).since(&Mark::of(None), &id).requests,
            5
        );
    }

    #[test]
    fn bounds_of_a_guard() {
        Guard::default().check().unwrap();
        for change in [
            (|guard: &mut Guard| guard.errors_percent = f64::NAN) as fn(&mut Guard),
            |guard| guard.errors_percent = -1.0,
            |guard| guard.latency_factor = 0.5,
            |guard| guard.min_requests = 0,
        ] {
            let mut guard = Guard::default();
            change(&mut guard);
            assert!(guard.check().is_err(), "{guard:?}");
        }
    }
}
