//! What is counted of an owner and its sides: atomics only, so that no request waits for another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use offshoot_model::id::EnvId;
use offshoot_model::traffic::stats::{BUCKETS, GoalStats, Histogram, OwnerStats, SideStats};

use super::share::hash;
use super::{End, Ended};

/// Counts of an owner.
pub(crate) struct Counters {
    /// When counting began.
    pub(super) since: Timestamp,
    /// Tells this counting from others in the visitors' cookies.
    pub(super) tag: u32,
    /// By place in the policy.
    pub(super) sides: Box<[SideCounters]>,
    /// Requests that bounds refused.
    pub(crate) refused: AtomicU64,
}

/// Counts of a side.
pub(super) struct SideCounters {
    requests: AtomicU64,
    errors: AtomicU64,
    classes: [AtomicU64; 5],
    latency: [AtomicU64; BUCKETS],
    visitors: AtomicU64,
    goals: Box<[AtomicU64]>,
}

fn one_more(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    /// All at 0, from now on.
    pub(super) fn begin(owner: &EnvId, sides: usize, goals: usize) -> Self {
        let side = || SideCounters::of(&SideStats::none(owner.clone()), goals);
        Self::with(
            owner,
            Timestamp::now(),
            (0..sides).map(|_| side()).collect(),
        )
    }

    /// Goes on from counts of the same sides and goals.
    pub(super) fn go_on(from: &OwnerStats) -> Self {
        let sides = from.sides.iter();
        let sides = sides.map(|side| SideCounters::of(side, side.goals.len()));
        let counters = Self::with(&from.environment, from.since, sides.collect());
        counters.refused.store(from.refused, Ordering::Relaxed);
        counters
    }

    fn with(owner: &EnvId, since: Timestamp, sides: Box<[SideCounters]>) -> Self {
        let tag = hash(format!("{owner} {since}").as_bytes());
        Self {
            since,
            // the last 32 bits do
            tag: tag as u32,
            sides,
            refused: AtomicU64::new(0),
        }
    }

    /// As they stand, with the names of sides and goals in their order.
    pub(super) fn stats<'a>(
        &self,
        owner: &EnvId,
        sides: impl Iterator<Item = &'a EnvId>,
        goals: &[&str],
    ) -> OwnerStats {
        let sides = sides.zip(&self.sides);
        OwnerStats {
            environment: owner.clone(),
            since: self.since,
            sides: sides.map(|(id, side)| side.stats(id, goals)).collect(),
            refused: value(&self.refused),
            mirror: None,
            changes: Vec::new(),
        }
    }
}

impl SideCounters {
    fn of(stats: &SideStats, goals: usize) -> Self {
        let reached = |at| {
            stats
                .goals
                .get(at)
                .map_or(0, |goal: &GoalStats| goal.reached)
        };
        let latency = stats.latency.counts();
        Self {
            requests: stats.requests.into(),
            errors: stats.errors.into(),
            classes: stats.classes.map(AtomicU64::new),
            latency: latency.map(AtomicU64::new),
            visitors: stats.visitors.into(),
            goals: (0..goals).map(|at| reached(at).into()).collect(),
        }
    }

    /// Counts a request that went to this side.
    pub(super) fn ended(&self, ended: &Ended) {
        one_more(&self.requests);
        let bad = ended.status.is_some_and(|status| status >= 500);
        let broken = ended.end == End::Failed && !(ended.own && ended.stream);
        if bad || broken {
            one_more(&self.errors);
        }
        let class = ended
            .status
            .map(|status| usize::from(status / 100).wrapping_sub(1));
        if let Some(class) = class.and_then(|class| self.classes.get(class)) {
            one_more(class);
        }
        if ended.own && ended.end == End::Complete && !ended.stream {
            self.took(ended.took);
        }
    }

    fn took(&self, took: Duration) {
        if let Some(bucket) = self.latency.get(Histogram::bucket(took)) {
            one_more(bucket);
        }
    }

    /// Counts a visitor who had not been here.
    pub(super) fn came(&self) {
        one_more(&self.visitors);
    }

    /// Counts goals that were reached, a bit for each.
    pub(super) fn reached(&self, goals: u32) {
        for (at, goal) in (0_u32..).zip(&self.goals) {
            if goals & 1_u32.checked_shl(at).unwrap_or(0) != 0 {
                one_more(goal);
            }
        }
    }

    fn stats(&self, side: &EnvId, goals: &[&str]) -> SideStats {
        let goals = goals.iter().zip(&self.goals);
        let goals = goals.map(|(name, reached)| GoalStats {
            name: (*name).to_owned(),
            reached: value(reached),
        });
        SideStats {
            environment: side.clone(),
            requests: value(&self.requests),
            errors: value(&self.errors),
            classes: self.classes.each_ref().map(value),
            latency: Histogram::from_counts(self.latency.each_ref().map(value)),
            visitors: value(&self.visitors),
            goals: goals.collect(),
            health: None,
        }
    }
}
