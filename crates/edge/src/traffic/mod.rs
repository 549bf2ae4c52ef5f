//! Owners of domains, and which of their sides answers a request.
//!
//! An owner is an environment with routes. Its policy says who else answers there; without one it answers itself and
//! costs no more than its routes. What was counted, and whatever else must not begin anew with every table, is in its
//! [`OwnerState`].

mod bounds;
mod care;
mod counters;
mod facts;
mod rules;
pub(crate) mod saved;
mod share;
mod visitor;

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use offshoot_model::id::EnvId;
use offshoot_model::traffic::stats::OwnerStats;
use offshoot_model::traffic::{Bounds, Goal, Policy, Sticky};

use self::bounds::BoundsState;
pub(crate) use self::bounds::{Refusal, UnderWay};
use self::counters::Counters;
pub(crate) use self::facts::{Facts, take_cookie};
use self::rules::{Goals, Rules};
use self::saved::Saved;
pub(crate) use self::visitor::{COOKIE, Visitor};
use crate::checks::Health;
use crate::mirror::Mirror;
use crate::table::{Environment, Target};

/// An environment whose domains lead here.
pub(crate) struct Owner {
    pub(crate) environment: Arc<Environment>,
    /// What happens with requests for its domains.
    pub(crate) policy: Option<Box<Policy<EnvId>>>,
    /// Who may answer, in the policy's order. Empty: itself, where the route says.
    pub(crate) sides: Box<[Side]>,
    rules: Rules,
    goals: Goals,
    pub(crate) state: Arc<OwnerState>,
    /// Which sides and nodes are up, when the policy has them checked.
    pub(crate) health: Option<Arc<Health>>,
    /// Where copies of requests go.
    pub(crate) mirror: Option<Arc<Mirror>>,
}

/// Who may answer.
pub(crate) struct Side {
    pub(crate) target: Arc<Target>,
    pub(crate) weight: u32,
    /// Of its environment.
    hash: u64,
}

/// What stays from one table to the next as long as the policy's sides, `sticky` and goals do.
#[derive(Default)]
pub(crate) struct OwnerState {
    /// Only there once it is needed: most of many owners are never asked for.
    counters: OnceLock<Box<Counters>>,
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

/// What counting depends on: it begins anew when any of it changes.
#[derive(PartialEq)]
struct Ground<'a> {
    sides: Vec<&'a EnvId>,
    sticky: &'a Sticky,
    goals: &'a [Goal],
}

impl Side {
    pub(crate) fn new(target: Arc<Target>, weight: u32) -> Self {
        let hash = share::hash(target.environment.id.as_str().as_bytes());
        Self {
            target,
            weight,
            hash,
        }
    }
}

impl Owner {
    /// An owner with its sides. Its state is that of `former` or of `saved` when what counting depends on is the same.
    pub(crate) fn new(
        environment: Arc<Environment>,
        policy: Option<Policy<EnvId>>,
        sides: Box<[Side]>,
        former: Option<&Self>,
        saved: Option<&Saved>,
    ) -> Self {
        let mut owner = Self {
            environment,
            rules: policy.as_ref().map(Rules::of).unwrap_or_default(),
            goals: policy.as_ref().map(Goals::of).unwrap_or_default(),
            policy: policy.map(Box::new),
            sides,
            state: Arc::default(),
            health: None,
            mirror: None,
        };
        let ground = owner.ground();
        if let Some(former) = former.filter(|former| former.ground() == ground) {
            owner.state = Arc::clone(&former.state);
        } else if let Some(saved) = saved.filter(|saved| saved.ground() == ground) {
            let counters = OnceLock::from(Box::new(Counters::go_on(&saved.stats)));
            owner.state = Arc::new(OwnerState {
                counters,
                ..OwnerState::default()
            });
        }
        if owner.policy.is_some() {
            // counting begins with the policy, not with the first request
            owner.counters();
        }
        owner
    }

    fn ground(&self) -> Ground<'_> {
        Ground {
            sides: self.side_ids().collect(),
            sticky: self.sticky(),
            goals: self.policy.as_ref().map_or(&[], |policy| &policy.goals),
        }
    }

    fn side_ids(&self) -> impl Iterator<Item = &EnvId> {
        let itself = self.sides.is_empty().then_some(&self.environment.id);
        let sides = self.sides.iter();
        itself
            .into_iter()
            .chain(sides.map(|side| &side.target.environment.id))
    }

    fn sticky(&self) -> &Sticky {
        static DEFAULT: Sticky = Sticky::Visitor;
        self.policy
            .as_ref()
            .map_or(&DEFAULT, |policy| &policy.sticky)
    }

    /// Its counts, which begin now if they have not yet.
    pub(crate) fn counters(&self) -> &Counters {
        self.state.counters.get_or_init(|| {
            let sides = self.sides.len().max(1);
            let goals = self.policy.as_ref().map_or(0, |policy| policy.goals.len());
            Box::new(Counters::begin(&self.environment.id, sides, goals))
        })
    }

    /// Whether nobody is let in.
    pub(crate) fn is_fenced(&self) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.fence)
    }

    /// Its bounds, if it has a policy.
    pub(crate) fn bounds(&self) -> Option<&Bounds> {
        self.policy.as_ref().map(|policy| &policy.bounds)
    }

    /// Who asks, when visitors are told apart.
    pub(crate) fn visitor(&self, request: &Facts<'_>) -> Option<Visitor> {
        let apart = self.sides.len() > 1 && *self.sticky() == Sticky::Visitor;
        apart.then(|| Visitor::of(request)).flatten()
    }

    /// Who answers a request on a route with this target: by rules, then by weights, then the first that can. `None`:
    /// nobody takes any.
    pub(crate) fn choose(
        &self,
        request: &Facts<'_>,
        visitor: Option<&Visitor>,
        route: &Arc<Target>,
    ) -> Option<Choice> {
        if self.sides.is_empty() {
            let takes = !route.upstreams.is_empty() && self.is_well(&self.environment.id);
            return takes.then(|| Choice {
                side: 0,
                target: Arc::clone(route),
            });
        }
        let ruled = self.rules.decide(request).filter(|side| self.takes(*side));
        let side = ruled
            .or_else(|| self.by_weight(request, visitor))
            .or_else(|| (0..self.sides.len()).find(|side| self.takes(*side)))?;
        Some(Choice {
            side,
            target: Arc::clone(&self.sides.get(side)?.target),
        })
    }

    /// Whether a side takes requests now.
    fn takes(&self, side: usize) -> bool {
        self.sides.get(side).is_some_and(|side| {
            !side.target.upstreams.is_empty() && self.is_well(&side.target.environment.id)
        })
    }

    fn by_weight(&self, request: &Facts<'_>, visitor: Option<&Visitor>) -> Option<usize> {
        let sides = self.sides.iter().enumerate();
        let takers = sides.filter(|(at, _)| self.takes(*at));
        let takers = takers.map(|(at, side)| (at, side.hash, side.weight));
        share::winner(self.visitor_hash(request, visitor), takers)
    }

    /// The hash of what keeps the request's visitor on one side.
    fn visitor_hash(&self, request: &Facts<'_>, visitor: Option<&Visitor>) -> u64 {
        let kept = match self.sticky() {
            Sticky::Visitor => visitor.map(|visitor| Cow::Borrowed(visitor.id())),
            Sticky::Client => None,
            Sticky::Cookie(name) => request.cookies(name).next().map(Cow::Borrowed),
            Sticky::Header(name) => request.fields(name).next().map(Cow::Borrowed),
            Sticky::Query(name) => request.parameters(name).next().map(|value| match value {
                Cow::Borrowed(value) => Cow::Borrowed(value.as_bytes()),
                Cow::Owned(value) => Cow::Owned(value.into_bytes()),
            }),
            Sticky::Nothing => getrandom::u64()
                .ok()
                .map(|r| Cow::Owned(r.to_be_bytes().into())),
        };
        match kept.filter(|kept| !kept.is_empty()) {
            Some(kept) => share::hash(&kept),
            None => {
                let client = request.client.map(|client| client.to_string());
                share::hash(client.unwrap_or_default().as_bytes())
            }
        }
    }

    /// A side's answer has begun: counts a visitor who is new there, and goals. Returns the `Set-Cookie` that
    /// remembers them, if that is needed.
    pub(crate) fn answered(
        &self,
        side: usize,
        visitor: Option<&mut Visitor>,
        request: &Facts<'_>,
        status: u16,
        secure: bool,
    ) -> Option<String> {
        self.policy.as_ref()?;
        let reached = self.goals.reached(request, status);
        let counters = self.counters();
        let counts = counters.sides.get(side)?;
        let Some(visitor) = visitor else {
            counts.reached(reached);
            return None;
        };
        let new = visitor.note(counters.tag, side, reached);
        counts.reached(new.goals);
        if new.visitor {
            counts.came();
        }
        (new.visitor || new.goals != 0).then(|| visitor.set_cookie(secure))
    }

    /// A request that went to a side has ended.
    pub(crate) fn ended(&self, side: usize, ended: &Ended) {
        if let Some(side) = self.counters().sides.get(side) {
            side.ended(ended);
        }
    }

    /// Its bounds refused a request.
    pub(crate) fn refused(&self) {
        if self.policy.is_some() {
            self.counters().refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted; `None` when it has no policy and was never asked for.
    pub(crate) fn stats(&self) -> Option<OwnerStats> {
        let counters = self.state.counters.get()?;
        let goals = self.policy.iter().flat_map(|policy| &policy.goals);
        let goals: Vec<_> = goals.map(|goal| goal.name.as_str()).collect();
        let mut stats = counters.stats(&self.environment.id, self.side_ids(), &goals);
        self.add_care(&mut stats);
        Some(stats)
    }

    /// The same as it is kept for the next edge.
    pub(crate) fn saved(&self) -> Option<Saved> {
        Some(Saved {
            sticky: self.sticky().clone(),
            goals: self.ground().goals.to_vec(),
            mirror: self.mirrored().cloned(),
            stats: self.stats()?,
        })
    }
}

impl Saved {
    fn ground(&self) -> Ground<'_> {
        let sides = self.stats.sides.iter();
        Ground {
            sides: sides.map(|side| &side.environment).collect(),
            sticky: &self.sticky,
            goals: &self.goals,
        }
    }
}
