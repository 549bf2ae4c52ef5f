//! Owners of domains, and which of their sides answers a request.
//!
//! An owner is an environment with routes. Its policy says who else answers there; without one it answers itself and
//! costs no more than its routes. What was counted, and whatever else must not begin anew with every table, is in its
//! [`OwnerState`].

mod bounds;
mod counters;
mod facts;

use std::sync::Arc;
use std::time::Duration;

use offshoot_model::id::EnvId;
use offshoot_model::traffic::stats::OwnerStats;
use offshoot_model::traffic::{Bounds, Policy, Sticky};

use self::bounds::BoundsState;
pub(crate) use self::bounds::{Refusal, UnderWay};
use self::counters::Counters;
pub(crate) use self::facts::Facts;
use crate::table::{Environment, Target, Upstream};

/// An environment whose domains lead here.
pub(crate) struct Owner {
    pub(crate) environment: Arc<Environment>,
    /// What happens with requests for its domains.
    pub(crate) policy: Option<Box<Policy<EnvId>>>,
    /// Who may answer, in the policy's order. Empty: itself, where the route says.
    pub(crate) sides: Box<[Side]>,
    pub(crate) state: Arc<OwnerState>,
}

/// Who may answer.
pub(crate) struct Side {
    pub(crate) target: Arc<Target>,
    pub(crate) weight: u32,
}

/// What stays from one table to the next as long as the policy's sides, `sticky` and goals do.
#[derive(Default)]
pub(crate) struct OwnerState {
    counters: Counters,
    pub(crate) bounds: BoundsState,
}

/// Who answers a request.
pub(crate) struct Choice {
    /// Which side; 0 when the owner itself is the only one.
    pub(crate) side: usize,
    pub(crate) target: Arc<Target>,
}

/// How a request ended that went to a side.
pub(crate) struct Ended {
    /// The node that was asked last.
    pub(crate) upstream: Option<Upstream>,
    /// The status that the client got, if any.
    pub(crate) status: Option<u16>,
    /// Whether that was the node's answer, and not a page of the edge.
    pub(crate) own: bool,
    pub(crate) end: End,
    /// Whether it was a WebSocket or an event stream, which last as long as people like.
    pub(crate) stream: bool,
    /// From the request's header to the end.
    pub(crate) took: Duration,
}

/// How it came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The answer is complete.
    Complete,
    /// The client went away first.
    ClientLeft,
    /// There was no answer, or not all of it.
    Failed,
}

impl Owner {
    /// An owner without a policy that was not there before.
    pub(crate) fn plain(environment: Arc<Environment>) -> Self {
        Self {
            environment,
            policy: None,
            sides: Box::default(),
            state: Arc::default(),
        }
    }

    /// An owner with a policy. Its state is `former`'s as long as what is counted stays the same.
    pub(crate) fn with_policy(
        environment: Arc<Environment>,
        policy: Policy<EnvId>,
        sides: Box<[Side]>,
        former: Option<&Self>,
    ) -> Self {
        let state = former.filter(|former| former.counts_as(&policy));
        Self {
            environment,
            state: state.map_or_else(Arc::default, |former| Arc::clone(&former.state)),
            policy: Some(Box::new(policy)),
            sides,
        }
    }

    /// Whether counting goes on under another policy.
    fn counts_as(&self, policy: &Policy<EnvId>) -> bool {
        let same_sides = || {
            let now = self.sides.iter().map(|s| &s.target.environment.id);
            now.eq(policy.sides.iter().map(|side| &side.environment))
        };
        match &self.policy {
            Some(now) => now.sticky == policy.sticky && now.goals == policy.goals && same_sides(),
            None => policy.sticky == Sticky::default() && policy.goals.is_empty() && same_sides(),
        }
    }

    /// Whether nobody is let in.
    pub(crate) fn is_fenced(&self) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.fence)
    }

    /// Its bounds, if it has a policy.
    pub(crate) fn bounds(&self) -> Option<&Bounds> {
        self.policy.as_ref().map(|policy| &policy.bounds)
    }

    /// Who answers a request on a route with this target: by rules, then by weights. `None`: nobody takes any.
    pub(crate) fn choose(&self, _request: &Facts<'_>, route: &Arc<Target>) -> Option<Choice> {
        if self.sides.is_empty() {
            return (!route.upstreams.is_empty()).then(|| Choice {
                side: 0,
                target: Arc::clone(route),
            });
        }
        let side = (0..self.sides.len()).find(|side| self.takes(*side))?;
        Some(Choice {
            side,
            target: Arc::clone(&self.sides.get(side)?.target),
        })
    }

    /// Whether a side takes requests now.
    fn takes(&self, side: usize) -> bool {
        self.sides
            .get(side)
            .is_some_and(|side| !side.target.upstreams.is_empty())
    }

    /// A request that went to a side has ended.
    pub(crate) fn ended(&self, side: usize, ended: &Ended) {
        self.state.counters.ended(side, ended);
    }

    /// What was counted; `None` when it has never been asked for.
    pub(crate) fn stats(&self) -> Option<OwnerStats> {
        None
    }
}
