//! Which sides of a policy take requests, and which of their nodes are up.
//!
//! Requests only read what is atomic here; whatever changes something goes through one lock per owner, so that no two
//! changes decide on half of each other.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use offshoot_model::id::EnvId;
use offshoot_model::traffic::stats::{HealthChange, NodeHealth, SideHealth};
use offshoot_model::traffic::{Back, Failover};

use super::kept::{self, Kept};
use super::node::Judge;
use crate::table::Upstream;

/// Changes that are remembered.
const CHANGES: usize = 64;

/// The health of one owner's sides; stays while its policy has checks, whatever else of it changes.
pub(crate) struct Health {
    seen: ArcSwap<Seen>,
    state: Mutex<State>,
}

/// What requests look at.
#[derive(Default)]
struct Seen {
    sides: Vec<(EnvId, Arc<AtomicBool>)>,
    nodes: HashMap<u64, Arc<SeenNode>>,
}

struct SeenNode {
    up: AtomicBool,
    /// Visitors' requests that failed, in a row.
    failed: AtomicU32,
}

#[derive(Default)]
struct State {
    failover: Failover,
    sides: Vec<Side>,
    changes: VecDeque<HealthChange>,
}

struct Side {
    environment: EnvId,
    nodes: Vec<Node>,
    up: bool,
    /// It was down, and nobody has brought it back yet. Only with [`Back::ByHand`].
    out: bool,
    takes: Arc<AtomicBool>,
}

struct Node {
    upstream: Upstream,
    judge: Judge,
    since: Timestamp,
    last: String,
    seen: Arc<SeenNode>,
}

impl Health {
    /// Of a policy that had no checks before.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            seen: ArcSwap::default(),
            state: Mutex::default(),
        })
    }

    /// Whether a side takes requests. One that is not known here yet does: it is as good as new.
    pub(crate) fn takes(&self, side: &EnvId) -> bool {
        let seen = self.seen.load();
        let side = seen.sides.iter().find(|(id, _)| id == side);
        side.is_none_or(|(_, takes)| takes.load(Ordering::Relaxed))
    }

    /// Whether a node is up.
    pub(crate) fn is_up(&self, node: &Upstream) -> bool {
        let seen = self.seen.load();
        let node = seen.nodes.get(&node.key);
        node.is_none_or(|node| node.up.load(Ordering::Relaxed))
    }

    /// A visitor's request was answered by a node.
    pub(crate) fn answered(&self, node: &Upstream) {
        if let Some(node) = self.seen.load().nodes.get(&node.key)
            && node.failed.load(Ordering::Relaxed) > 0
        {
            node.failed.store(0, Ordering::Relaxed);
        }
    }

    /// A visitor's request failed at a node: it may be one too many.
    pub(crate) fn failed(&self, node: &Upstream, why: &str) {
        let seen = self.seen.load();
        let Some(seen) = seen.nodes.get(&node.key) else {
            return;
        };
        let failed = seen
            .failed
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        let mut state = self.lock();
        let limit = state.failover.passive.as_ref().map(|p| p.failures);
        if limit.is_some_and(|limit| failed >= limit) {
            let why = format!("{failed} failed requests in a row: {why}");
            state.judged(node.key, why, Judge::put_down);
        }
    }

    /// What a check brought: in a few words, as [`Ok`] when it was good.
    pub(super) fn checked(&self, node: u64, outcome: Result<String, String>) {
        let mut state = self.lock();
        let (rise, fall) = (state.failover.check.rise, state.failover.check.fall);
        let good = outcome.is_ok();
        let (Ok(last) | Err(last)) = outcome;
        state.judged(node, last, |judge| judge.checked(good, rise, fall));
    }

    /// Takes over a policy as it is now. Sides and nodes that stay are as well as they were. New nodes of a side that was down
    /// (its environment was stopped, say) have to be well first, unless nobody else is up.
    pub(super) fn set(&self, failover: &Failover, sides: &[(EnvId, Vec<Upstream>)], kept: Kept) {
        let mut state = self.lock();
        let mut nodes: HashMap<u64, Node> = HashMap::new();
        let mut former = HashMap::new();
        for side in std::mem::take(&mut state.sides) {
            former.insert(side.environment, (side.up, side.out, side.takes));
            nodes.extend(side.nodes.into_iter().map(|node| (node.upstream.key, node)));
        }
        let out: HashSet<EnvId> = kept.out.into_iter().collect();
        for (environment, upstreams) in sides {
            let waits = out.contains(environment);
            let new = || (true, waits, Arc::new(AtomicBool::new(!waits)));
            let (up, out, takes) = former.remove(environment).unwrap_or_else(new);
            let judge = if up { Judge::new() } else { Judge::returning() };
            let nodes = upstreams.iter().map(|upstream| {
                nodes
                    .remove(&upstream.key)
                    .unwrap_or_else(|| Node::new(upstream, judge.clone()))
            });
            state.sides.push(Side {
                environment: environment.clone(),
                nodes: nodes.collect(),
                up,
                out,
                takes,
            });
        }
        state.let_in_who_returns();
        state.failover = failover.clone();
        state.changes.extend(kept.changes);
        state.decide("its nodes changed");
        self.seen.store(Arc::new(state.seen()));
    }

    /// Lets every side that is up take requests again.
    pub(crate) fn back(&self) {
        let mut state = self.lock();
        for side in state.sides.iter_mut().filter(|side| side.up) {
            side.out = false;
        }
        state.decide("brought back by hand");
    }

    /// What the checks say of a side.
    pub(crate) fn side(&self, side: &EnvId) -> Option<SideHealth> {
        let state = self.lock();
        let side = state.sides.iter().find(|s| s.environment == *side)?;
        let nodes = side.nodes.iter().map(|node| NodeHealth {
            address: node.upstream.address,
            up: node.judge.is_up(),
            since: node.since,
            last: node.last.clone(),
        });
        Some(SideHealth {
            up: side.up,
            takes: side.takes.load(Ordering::Relaxed),
            nodes: nodes.collect(),
        })
    }

    /// The last changes, the newest last.
    pub(crate) fn changes(&self) -> Vec<HealthChange> {
        self.lock().changes.iter().cloned().collect()
    }

    /// What must not be forgotten with the process.
    pub(super) fn kept(&self) -> Kept {
        let state = self.lock();
        let out = state.sides.iter().filter(|side| side.out);
        Kept {
            out: out.map(|side| side.environment.clone()).collect(),
            changes: state.changes.iter().cloned().collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    fn new(upstream: &Upstream, judge: Judge) -> Self {
        let up = judge.is_up();
        Self {
            upstream: *upstream,
            judge,
            since: Timestamp::now(),
            last: "not checked yet".to_owned(),
            seen: Arc::new(SeenNode {
                up: up.into(),
                failed: 0.into(),
            }),
        }
    }
}

impl State {
    fn seen(&self) -> Seen {
        let sides = self.sides.iter();
        let nodes = self.sides.iter().flat_map(|side| &side.nodes);
        Seen {
            sides: sides
                .map(|s| (s.environment.clone(), Arc::clone(&s.takes)))
                .collect(),
            nodes: nodes
                .map(|n| (n.upstream.key, Arc::clone(&n.seen)))
                .collect(),
        }
    }

    /// When no node is up, those that return and were not asked yet are better than nothing.
    fn let_in_who_returns(&mut self) {
        let nodes = || self.sides.iter().flat_map(|side| &side.nodes);
        if nodes().any(|node| node.judge.is_up()) {
            return;
        }
        let nodes = self.sides.iter_mut().flat_map(|side| &mut side.nodes);
        let returning = Judge::returning();
        for node in nodes.filter(|node| node.judge == returning) {
            node.judge = Judge::new();
            node.seen.up.store(true, Ordering::Relaxed);
        }
    }

    /// Applies what came of a node; when it went up or down by it, so may its side.
    fn judged(&mut self, node: u64, last: String, judge: impl FnOnce(&mut Judge) -> bool) {
        let mut nodes = self.sides.iter_mut().flat_map(|side| &mut side.nodes);
        let Some(node) = nodes.find(|n| n.upstream.key == node) else {
            // it left the policy while it was asked
            return;
        };
        let changed = judge(&mut node.judge);
        node.last = last;
        if changed {
            let up = node.judge.is_up();
            node.since = Timestamp::now();
            node.seen.failed.store(0, Ordering::Relaxed);
            node.seen.up.store(up, Ordering::Relaxed);
            let why = format!("{}: {}", node.upstream.address, node.last);
            self.decide(&why);
        }
    }

    /// Which sides take requests, after something changed. A side that was down and is to come back by hand stays out,
    /// unless no other side is left: then the first that is up is brought back, and keeps its place.
    fn decide(&mut self, why: &str) {
        let by_hand = self.failover.back == Back::ByHand;
        let before: Vec<_> = self.sides.iter().map(|side| (side.up, side.out)).collect();
        for side in &mut self.sides {
            side.up = side.nodes.iter().any(|node| node.judge.is_up());
            side.out = by_hand && (side.out || !side.up);
        }
        let mut alone = None;
        if !self.sides.iter().any(|side| side.up && !side.out)
            && let Some(side) = self.sides.iter_mut().find(|side| side.up)
        {
            side.out = false;
            alone = Some(side.environment.clone());
        }
        let mut news = Vec::new();
        for (side, (was_up, was_out)) in self.sides.iter().zip(before) {
            let takes = side.up && !side.out;
            let took = side.takes.swap(takes, Ordering::Relaxed);
            if (side.up, side.out, takes) != (was_up, was_out, took) {
                kept::changed();
            }
            if (side.up, takes) != (was_up, took) {
                let note = match (side.up, takes) {
                    (true, false) => "; waits to be brought back",
                    (true, true) if alone.as_ref() == Some(&side.environment) => {
                        "; no other side takes requests"
                    }
                    _ => "",
                };
                news.push(HealthChange {
                    at: Timestamp::now(),
                    environment: side.environment.clone(),
                    takes,
                    why: format!("{why}{note}"),
                });
            }
        }
        for change in news {
            tracing::info!(side = %change.environment, takes = change.takes, why = change.why, "health");
            self.changes.push_back(change);
        }
        let over = self.changes.len().saturating_sub(CHANGES);
        self.changes.drain(..over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaa";
    const B: &str = "bbbbbbbb";

    /// Two sides of one node each, with the keys 1 and 2.
    fn health(back: Back, kept: Kept) -> Arc<Health> {
        let health = Health::new();
        set(&health, back, kept);
        health
    }

    fn set(health: &Health, back: Back, kept: Kept) {
        set_with(health, back, kept, &[1], &[2]);
    }

    /// With nodes of these keys.
    fn set_with(health: &Health, back: Back, kept: Kept, a: &[u64], b: &[u64]) {
        let mut failover = Failover {
            back,
            ..Failover::default()
        };
        (failover.check.rise, failover.check.fall) = (1, 1);
        failover.passive = Some(offshoot_model::traffic::Passive { failures: 2 });
        let nodes = |keys: &[u64]| keys.iter().map(|key| node(*key)).collect();
        let side = |id: &str, keys| (id.parse().unwrap(), nodes(keys));
        health.set(&failover, &[side(A, a), side(B, b)], kept);
    }

    fn node(key: u64) -> Upstream {
        Upstream {
            address: "127.0.0.1:1".parse().unwrap(),
            key,
        }
    }

    fn check(health: &Health, node: u64, good: bool) {
        let outcome = if good { Ok } else { Err };
        health.checked(node, outcome("said".to_owned()));
    }

    fn takes(health: &Health) -> (bool, bool) {
        let takes = |id: &str| health.takes(&id.parse().unwrap());
        (takes(A), takes(B))
    }

    #[test]
    fn a_side_comes_back_by_itself() {
        let health = health(Back::Auto, Kept::default());
        assert_eq!(takes(&health), (true, true));
        check(&health, 1, false);
        assert_eq!(takes(&health), (false, true));
        assert!(!health.is_up(&node(1)) && health.is_up(&node(2)));
        check(&health, 2, false);
        assert_eq!(takes(&health), (false, false));
        check(&health, 1, true);
        assert_eq!(takes(&health), (true, false));
        assert_eq!(health.changes().len(), 3);
    }

    #[test]
    fn a_side_waits_for_a_person() {
        let one = health(Back::ByHand, Kept::default());
        check(&one, 1, false);
        check(&one, 1, true);
        assert_eq!(takes(&one), (false, true));
        assert!(one.side(&A.parse().unwrap()).unwrap().up);
        // the same policy again, and the same after a restart
        set(&one, Back::ByHand, Kept::default());
        assert_eq!(takes(&one), (false, true));
        let two = health(Back::ByHand, one.kept());
        assert_eq!(takes(&two), (false, true));
        assert_eq!(two.changes(), one.changes());
        two.back();
        assert_eq!(takes(&two), (true, true));
        assert!(two.kept().out.is_empty());
        assert_eq!(two.changes().last().unwrap().why, "brought back by hand");
        // a policy that asks for nobody any more
        set(&one, Back::Auto, Kept::default());
        assert_eq!(takes(&one), (true, true));
    }

    #[test]
    fn the_last_one_left_is_better_than_nothing_and_stays() {
        let health = health(Back::ByHand, Kept::default());
        check(&health, 1, false);
        check(&health, 1, true);
        check(&health, 2, false);
        assert_eq!(takes(&health), (true, false));
        check(&health, 1, false);
        check(&health, 2, true);
        assert_eq!(takes(&health), (false, true));
        check(&health, 1, true);
        assert_eq!(takes(&health), (false, true), "it was not alone any more");
        health.back();
        assert_eq!(takes(&health), (true, true));
    }

    #[test]
    fn a_side_that_was_stopped_has_to_be_well_before_it_is_used() {
        let health = health(Back::Auto, Kept::default());
        check(&health, 1, true);
        set_with(&health, Back::Auto, Kept::default(), &[], &[2]);
        assert_eq!(takes(&health), (false, true));
        // it is started: a node that nobody knows
        set_with(&health, Back::Auto, Kept::default(), &[3], &[2]);
        assert_eq!(takes(&health), (false, true));
        assert!(!health.is_up(&node(3)));
        check(&health, 3, true);
        assert_eq!(takes(&health), (true, true));
        // another one beside it is as good as new
        set_with(&health, Back::Auto, Kept::default(), &[3, 4], &[2]);
        assert!(health.is_up(&node(4)));
        // nobody else is there
        set_with(&health, Back::Auto, Kept::default(), &[], &[]);
        set_with(&health, Back::Auto, Kept::default(), &[5], &[]);
        assert_eq!(takes(&health), (true, false));
        assert!(health.is_up(&node(5)));
        check(&health, 5, false);
        assert_eq!(takes(&health), (false, false));
    }

    #[test]
    fn visitors_failures_count_in_a_row() {
        let health = health(Back::Auto, Kept::default());
        check(&health, 1, true);
        health.failed(&node(1), "502");
        health.answered(&node(1));
        health.failed(&node(1), "502");
        assert_eq!(takes(&health), (true, true));
        health.failed(&node(1), "502");
        assert_eq!(takes(&health), (false, true));
        let side = health.side(&A.parse().unwrap()).unwrap();
        assert_eq!(side.nodes[0].last, "2 failed requests in a row: 502");
        check(&health, 1, true);
        assert_eq!(takes(&health), (true, true));
    }

    #[test]
    fn changes_are_bounded_and_other_nodes_are_unknown() {
        let health = health(Back::Auto, Kept::default());
        for number in 0..100 {
            check(&health, 1, number % 2 == 1);
        }
        assert_eq!(health.changes().len(), CHANGES);
        check(&health, 3, false);
        health.failed(&node(3), "x");
        assert!(health.is_up(&node(3)) && health.takes(&"cccccccc".parse().unwrap()));
    }
}
