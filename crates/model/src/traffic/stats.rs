//! What the edge counts: answers by owner of the domain and by who answered, checks, and copies of requests.
//!
//! An owner is the environment whose domain was asked for; without a policy it is its only side. Counts begin with the
//! edge or with the owner's policy (a policy that changes in its sides, `sticky` or goals begins anew), and survive a
//! restart of the edge.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::id::EnvId;

/// All that the edge counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// One for every owner that has routes, and a policy or was asked for.
    pub owners: Vec<OwnerStats>,
}

/// What was answered at one environment's domains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OwnerStats {
    /// Whose domains.
    #[schema(value_type = String)]
    pub environment: EnvId,
    /// When counting began.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Who answered, in the policy's order.
    pub sides: Vec<SideStats>,
    /// Requests refused by bounds: 413, 429, 503.
    #[serde(default)]
    pub refused: u64,
    /// What came of copied requests; absent without a mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorStats>,
    /// The last changes of sides' health, the newest last, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<HealthChange>,
}

/// What one side answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SideStats {
    /// The side.
    #[schema(value_type = String)]
    pub environment: EnvId,
    /// Requests that went to it and ended.
    pub requests: u64,
    /// Of them those without an answer of its own, or with a status of 500 and more. A client that went away is none.
    pub errors: u64,
    /// Answers by class: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub classes: [u64; 5],
    /// From the request's header to the last byte of the answer. WebSockets and event streams are not in it.
    #[schema(value_type = Vec<Vec<u64>>)]
    pub latency: Histogram,
    /// Visitors: with [`super::Sticky::Visitor`] those that came here, otherwise 0.
    #[serde(default)]
    pub visitors: u64,
    /// How often each goal was reached: with visitors told apart, once for each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub goals: Vec<GoalStats>,
    /// Whether it is up; absent when nobody checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<SideHealth>,
}

impl SideStats {
    /// A side of which nothing was counted.
    #[must_use]
    pub fn none(environment: EnvId) -> Self {
        Self {
            environment,
            requests: 0,
            errors: 0,
            classes: [0; 5],
            latency: Histogram::default(),
            visitors: 0,
            goals: Vec::new(),
            health: None,
        }
    }
}

/// How often a goal was reached on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoalStats {
    /// Its name.
    pub name: String,
    /// Times, or visitors.
    pub reached: u64,
}

/// What the checks say of a side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SideHealth {
    /// Whether at least one of its nodes is up.
    pub up: bool,
    /// Whether it gets requests by its weight: it is up, and was brought back if that is by hand.
    pub takes: bool,
    /// Its nodes.
    pub nodes: Vec<NodeHealth>,
}

/// What the checks say of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeHealth {
    /// Where it answers.
    #[schema(value_type = String)]
    pub address: SocketAddr,
    /// Whether it is up.
    pub up: bool,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// What the last check brought, in a few words: `200 in 3 ms`, `connection refused`.
    pub last: String,
}

/// A side that went down or came up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthChange {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Which.
    #[schema(value_type = String)]
    pub environment: EnvId,
    /// Whether it takes requests from then on.
    pub takes: bool,
    /// Why, in a few words.
    pub why: String,
}

/// What came of copied requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MirrorStats {
    /// Copies that were sent and compared.
    pub compared: u64,
    /// Of them those that were answered the same: status, header fields that are compared, body.
    pub same: u64,
    /// Of them those with another status.
    pub status: u64,
    /// Of them those with the same status and other header fields.
    pub headers: u64,
    /// Of them those with the same status and another body.
    pub body: u64,
    /// Copies without an answer.
    pub failed: u64,
    /// Requests that were to be copied and were not: too long, or too many under way.
    pub skipped: u64,
    /// The visitors' answers to what was compared, to the last byte.
    #[schema(value_type = Vec<Vec<u64>>)]
    pub live: Histogram,
    /// The copies' answers.
    #[schema(value_type = Vec<Vec<u64>>)]
    pub copy: Histogram,
    /// The last differences, the newest last, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// A request that was answered in two ways.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Method.
    pub method: String,
    /// Host name.
    pub host: String,
    /// Path without the query, at most 256 bytes.
    pub path: String,
    /// What the visitor got, and what the copy.
    #[schema(value_type = Vec<u16>)]
    pub statuses: (u16, u16),
    /// Names of header fields that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Lengths of the bodies, when these differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u64>>)]
    pub bodies: Option<(u64, u64)>,
    /// Milliseconds of both.
    #[schema(value_type = Vec<f64>)]
    pub ms: (f64, f64),
}

/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = 128;
/// Upper end of the first bucket, microseconds.
const FIRST_US: f64 = 50.0;
/// Buckets from one time to its double: each goes 15 % further than the one before.
const PER_DOUBLE: f64 = 5.0;

/// How long things took, in buckets of growing width: 50 us to half an hour, 15 % apart. Written as the pairs of bucket
/// and count that are not 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
        }
    }
}

impl Histogram {
    /// The bucket of a time.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 127"
    )]
    pub fn bucket(took: Duration) -> usize {
        let steps = (took.as_secs_f64() * 1e6 / FIRST_US).log2() * PER_DOUBLE;
        steps.ceil().clamp(0.0, (BUCKETS - 1) as f64) as usize
    }

    /// The longest time that is in a bucket; the last one holds longer ones too.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "at most 127")]
    pub fn longest(bucket: usize) -> Duration {
        let bucket = bucket.min(BUCKETS - 1) as f64;
        Duration::from_secs_f64(FIRST_US * (bucket / PER_DOUBLE).exp2() / 1e6)
    }

    /// A histogram with these counts, from the first bucket.
    #[must_use]
    pub fn from_counts(counts: [u64; BUCKETS]) -> Self {
        Self { counts }
    }

    /// Counts by bucket, from the first.
    #[must_use]
    pub fn counts(&self) -> &[u64; BUCKETS] {
        &self.counts
    }

    /// Counts one.
    pub fn add(&mut self, took: Duration) {
        if let Some(count) = self.counts.get_mut(Self::bucket(took)) {
            *count += 1;
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What came since `earlier`, a state of the same counter; nothing is ever less than none.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts;
        for (count, before) in counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(before);
        }
        Self { counts }
    }

    /// The time that a share (0 to 1) of all stayed within, at most 15 % too long; `None` when nothing was counted.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let total = self.total();
        let wanted = (share.clamp(0.0, 1.0) * total as f64).ceil().max(1.0);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if total > 0 && seen as f64 >= wanted {
                let us = FIRST_US * (bucket as f64 / PER_DOUBLE).exp2();
                return Some(Duration::from_secs_f64(us / 1e6));
            }
        }
        None
    }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts = self.counts.iter().enumerate();
        serializer.collect_seq(counts.filter(|(_, count)| **count > 0))
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut histogram = Self::default();
        for (bucket, count) in Vec::<(usize, u64)>::deserialize(deserializer)? {
            let place = histogram.counts.get_mut(bucket);
            *place.ok_or_else(|| serde::de::Error::custom(format!("no bucket {bucket}")))? = count;
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    #[test]
    fn quantiles_are_at_most_a_bucket_too_long() {
        let mut all = Histogram::default();
        assert_eq!(all.quantile(0.5), None);
        for tenth in 1..=10_000 {
            all.add(ms(f64::from(tenth) / 10.0));
        }
        assert_eq!(all.total(), 10_000);
        for share in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let exact = share * 1e3;
            let found = all.quantile(share).unwrap().as_secs_f64() * 1e3;
            assert!(
                found >= exact * 0.999 && found < exact * 1.16,
                "{share}: {found}"
            );
        }
        let earlier = all.clone();
        all.add(ms(5_000.0));
        assert_eq!(all.since(&earlier).total(), 1);
        assert!(all.since(&earlier).quantile(0.5).unwrap() >= ms(5_000.0));
    }

    #[test]
    fn every_time_has_a_bucket() {
        assert_eq!(Histogram::bucket(Duration::ZERO), 0);
        assert_eq!(Histogram::bucket(Duration::from_micros(50)), 0);
        assert_eq!(Histogram::bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn only_what_was_counted_is_written() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::ZERO);
        histogram.add(ms(1.0));
        histogram.add(ms(1.0));
        let text = serde_json::to_string(&histogram).unwrap();
        assert_eq!(text, "[[0,1],[22,2]]");
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
        assert!(serde_json::from_str::<Histogram>("[[128,1]]").is_err());
    }
}
