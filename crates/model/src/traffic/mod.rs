//! How requests for an environment's domains are spread over several environments, watched, copied and bounded: what
//! people write, what is stored, and what the edge carries out.
//!
//! `E` is how an environment is named: by whatever people type in requests ([`String`]), by [`EnvId`] in the store
//! and in the edge's file.

mod check;
pub mod compare;
pub mod stats;
pub mod view;

use std::convert::Infallible;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::EnvId;

pub use check::network;

/// Most sides of a policy, and most rules, goals and order entries.
pub const TRAFFIC_MAX: usize = 32;
/// Largest weight of a side.
pub const WEIGHT_MAX: u32 = 1_000_000;

/// What happens with requests for an environment's domains. An empty policy is none: the environment answers all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy<E = String> {
    /// Who may answer, the best first: where checks are on, the first that is up takes over from one that is down.
    /// Empty: the environment itself.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub sides: Vec<Side<E>>,
    /// What keeps a visitor on one side.
    #[serde(default, skip_serializing_if = "Sticky::is_default")]
    pub sticky: Sticky,
    /// Asked in turn before weights; the first that fits decides.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule<E>>,
    /// Whether sides are checked, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Failover>,
    /// Who gets a copy of requests.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror<E>>,
    /// What counts as a success of a side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub goals: Vec<Goal>,
    /// Bounds for clients of these domains.
    #[serde(default, skip_serializing_if = "Bounds::is_default")]
    pub bounds: Bounds,
    /// Which version of the PROXY protocol begins connections to its nodes; the entry layer must understand it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_proxy: Option<ProxyVersion>,
    /// Nobody is let in: every request is answered 503 (what a promoted clone's old side gets, so that nothing is
    /// written there unseen).
    #[serde(default, skip_serializing_if = "is_false")]
    pub fence: bool,
}

impl<E> Default for Policy<E> {
    fn default() -> Self {
        Self {
            sides: Vec::new(),
            sticky: Sticky::default(),
            rules: Vec::new(),
            failover: None,
            mirror: None,
            goals: Vec::new(),
            bounds: Bounds::default(),
            send_proxy: None,
            fence: false,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// An environment that answers a share of the requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Side<E = String> {
    /// The environment.
    pub environment: E,
    /// Its share: its weight of the sum of all weights, at most [`WEIGHT_MAX`]. With 0 it answers only by rules or when
    /// others are down.
    pub weight: u32,
}

/// What keeps a visitor on the side where the first request went: a hash of this, so that it is the same after a
/// restart and in every edge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Sticky {
    /// A cookie that the edge sets; the only one that tells visitors apart, so that goals are counted by visitor.
    #[default]
    Visitor,
    /// The client's address.
    Client,
    /// A cookie of the application's. Without it: the client's address.
    Cookie(String),
    /// A header field. Without it: the client's address.
    Header(String),
    /// A query parameter. Without it: the client's address.
    Query(String),
    /// Nothing: each request for itself.
    Nothing,
}

impl Sticky {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Requests that go to one side whatever the weights are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule<E = String> {
    /// What a request must have, all of it.
    pub when: Vec<When>,
    /// Who answers: one of the sides.
    pub to: E,
}

/// What a request has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum When {
    /// A path below this one, in whole segments.
    Path(String),
    /// One of the methods.
    Method(Vec<String>),
    /// A header field (a country that a CDN names, for instance) with one of the values.
    Header(Field),
    /// A cookie with one of the values.
    Cookie(Field),
    /// A query parameter with one of the values.
    Query(Field),
    /// An address within one of the networks (`192.0.2.0/24`), an address alone being a network too.
    Client(Vec<String>),
}

/// A name and the values it may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// Name; of a header field without regard to case.
    pub name: String,
    /// Values, compared as they are; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How sides are checked, and how one that was down comes back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Failover {
    /// The request that every entry node of every side is asked.
    pub check: Check,
    /// Whether failures of visitors' requests count too; absent: only checks do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passive: Option<Passive>,
    /// How a side that was down gets its requests back.
    pub back: Back,
}

/// A request that tells whether a node is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Check {
    /// Path and query.
    pub path: String,
    /// `Host` of the request; absent: a domain of the environment that the policy is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Milliseconds from one check to the next, 100 to 600,000.
    pub interval_ms: u64,
    /// Milliseconds that an answer may take, 10 to 60,000.
    pub timeout_ms: u64,
    /// Good answers in a row until one that was down is up, 1 to 100.
    pub rise: u32,
    /// Bad answers in a row until one that was up is down, 1 to 100.
    pub fall: u32,
    /// Good statuses, both ends included.
    #[schema(value_type = Vec<Vec<u16>>)]
    pub statuses: Vec<(u16, u16)>,
    /// What must be in the first 64 KiB of the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            path: "/".to_owned(),
            host: None,
            interval_ms: 2_000,
            timeout_ms: 1_000,
            rise: 2,
            fall: 3,
            statuses: vec![(200, 399)],
            body: None,
        }
    }
}

/// Failures of visitors' requests that count as failures of a node: no connection, no answer, 502, 503, 504.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Passive {
    /// Failures in a row until the node is down, 1 to 1,000; it is up again by the checks.
    pub failures: u32,
}

impl Default for Passive {
    fn default() -> Self {
        Self { failures: 5 }
    }
}

/// How a side that was down gets its requests back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Back {
    /// As soon as its checks are good.
    #[default]
    Auto,
    /// When a person says so (`offshoot traffic back`): what was written elsewhere meanwhile may have to be brought home.
    ByHand,
}

/// Who gets a copy of requests: the visitor does not wait for it, and its answers go nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror<E = String> {
    /// The environment that gets the copies; no side.
    pub environment: E,
    /// Share of requests in a thousand, 1 to 1,000.
    #[serde(default = "thousand")]
    pub permille: u32,
    /// Requests with a longer body are not copied, bytes, at most 16 MiB.
    #[serde(default = "mirror_body")]
    pub body_bytes: u64,
    /// Header fields of answers that are not compared (`date`, `set-cookie` ... are left out anyway).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

fn thousand() -> u32 {
    1_000
}

fn mirror_body() -> u64 {
    256 << 10
}

/// Requests that count as a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// What it is called, unique in its policy: 1 to 32 letters, digits, `-`.
    pub name: String,
    /// Path below which it is reached; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Method; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Statuses that count, both ends included.
    #[serde(default = "answered_well")]
    #[schema(value_type = Vec<u16>)]
    pub statuses: (u16, u16),
}

fn answered_well() -> (u16, u16) {
    (200, 399)
}

/// Bounds for clients; 0 is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Requests per second of one client (an IPv4 address, an IPv6 /64); more are answered 429.
    pub client_requests_per_second: u32,
    /// Requests that one client may make at once above that; 0: as many as in one second.
    pub client_burst: u32,
    /// Requests that one client may have under way at a time; more are answered 429.
    pub client_requests: u32,
    /// Requests per second of all clients of these domains together; more are answered 503.
    pub requests_per_second: u32,
    /// Bytes of a request's body; longer ones are answered 413.
    pub body_bytes: u64,
}

impl Bounds {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Version of the PROXY protocol (HAProxy's `proxy-protocol.txt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl<E> Policy<E> {
    /// The same policy with environments named in another way.
    ///
    /// # Errors
    /// The first that `name` gives.
    pub fn try_name<F, X>(self, mut name: impl FnMut(E) -> Result<F, X>) -> Result<Policy<F>, X> {
        let mut sides = Vec::with_capacity(self.sides.len());
        for Side {
            environment,
            weight,
        } in self.sides
        {
            sides.push(Side {
                environment: name(environment)?,
                weight,
            });
        }
        let mut rules = Vec::with_capacity(self.rules.len());
        for Rule { when, to } in self.rules {
            rules.push(Rule {
                when,
                to: name(to)?,
            });
        }
        let mirror = match self.mirror {
            Some(mirror) => Some(Mirror {
                environment: name(mirror.environment)?,
                permille: mirror.permille,
                body_bytes: mirror.body_bytes,
                ignore: mirror.ignore,
            }),
            None => None,
        };
        Ok(Policy {
            sides,
            rules,
            mirror,
            sticky: self.sticky,
            failover: self.failover,
            goals: self.goals,
            bounds: self.bounds,
            send_proxy: self.send_proxy,
            fence: self.fence,
        })
    }
}

impl<E> Policy<E> {
    /// The same policy with environments named by what `name` makes of them.
    #[must_use]
    pub fn named<F>(self, mut name: impl FnMut(&E) -> F) -> Policy<F> {
        let named = self.try_name(|environment| Ok::<_, Infallible>(name(&environment)));
        match named {
            Ok(policy) => policy,
            Err(never) => match never {},
        }
    }

    /// Whether it has other environments answer, be checked or get copies.
    #[must_use]
    pub fn leads(&self) -> bool {
        !self.sides.is_empty() || self.failover.is_some() || self.mirror.is_some()
    }

    /// What holds wherever the domains lead: goals, bounds and how nodes are spoken to.
    #[must_use]
    pub fn without_sides(self) -> Self {
        Self {
            goals: self.goals,
            bounds: self.bounds,
            send_proxy: self.send_proxy,
            ..Self::default()
        }
    }
}

impl Policy<EnvId> {
    /// Every environment that it names.
    pub fn environments(&self) -> impl Iterator<Item = &EnvId> {
        let sides = self.sides.iter().map(|side| &side.environment);
        let rules = self.rules.iter().map(|rule| &rule.to);
        sides
            .chain(rules)
            .chain(self.mirror.iter().map(|mirror| &mirror.environment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_policy_is_an_empty_object() {
        let empty = Policy::<String>::default();
        assert_eq!(serde_json::to_string(&empty).unwrap(), "{}");
        assert_eq!(serde_json::from_str::<Policy>("{}").unwrap(), empty);
    }

    #[test]
    fn policies_are_written_as_documented() {
        let text = r#"{"sides":[{"environment":"shop","weight":90},{"environment":"next","weight":10}],
            "sticky":{"cookie":"session"},
            "rules":[{"when":[{"header":{"name":"x-country","values":["AT","CH"]}},{"path":"/new"}],"to":"next"}],
            "failover":{"check":{"path":"/health"},"passive":{},"back":"by-hand"},
            "mirror":{"environment":"copy"},
            "goals":[{"name":"paid","path":"/thanks"}],
            "bounds":{"client_requests_per_second":50},"send_proxy":"v2"}"#;
        let policy: Policy = serde_json::from_str(text).unwrap();
        assert_eq!(policy.sticky, Sticky::Cookie("session".into()));
        let failover = policy.failover.as_ref().unwrap();
        assert_eq!((failover.check.fall, failover.back), (3, Back::ByHand));
        let again = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&again).unwrap(), policy);
        let named = policy
            .try_name(|name| match name.as_str() {
                "shop" => "aaaaaaaa".parse::<EnvId>(),
                "next" => "bbbbbbbb".parse(),
                _ => "cccccccc".parse(),
            })
            .unwrap();
        let all: Vec<_> = named.environments().map(ToString::to_string).collect();
        assert_eq!(all, ["aaaaaaaa", "bbbbbbbb", "bbbbbbbb", "cccccccc"]);
        let unknown = r#"{"sides":[],"side":[]}"#;
        assert!(serde_json::from_str::<Policy>(unknown).is_err());
    }
}
