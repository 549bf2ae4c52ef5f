//! Policies and ramps: who answers when, and what a worse side, a cancel or an end of the daemon leaves.

use offshoot_model::operation::StepState;
use offshoot_model::traffic::compare::Tally;
use offshoot_model::traffic::view::{PromoteRequest, RampRequest};
use offshoot_model::traffic::{Bounds, Failover, Mirror, Policy, Rule, Side, When};
use offshoot_model::{Code, OperationState, Problem};
use tokio::runtime::{Builder, Runtime};

use super::domains::{swap, web};
use super::engine::Act;
use super::*;
use crate::recover::recover;

pub(super) fn split(sides: &[(&str, u32)]) -> Policy<String> {
    let side = |(name, weight): &(&str, u32)| Side {
        environment: (*name).to_owned(),
        weight: *weight,
    };
    Policy {
        sides: sides.iter().map(side).collect(),
        ..Policy::default()
    }
}

pub(super) fn set(owner: &str, policy: Policy<String>) -> Request {
    Request::TrafficSet(owner.to_owned(), policy)
}

pub(super) fn promote(change: impl FnOnce(&mut PromoteRequest)) -> Request {
    let mut request = PromoteRequest {
        of: Some("shop".to_owned()),
        watch_ms: 30_000,
        ..PromoteRequest::default()
    };
    change(&mut request);
    Request::Promote("next".to_owned(), request)
}

pub(super) fn ramp(change: impl FnOnce(&mut RampRequest)) -> Request {
    let mut request = RampRequest {
        to: "next".to_owned(),
        steps: vec![1, 10, 50, 100],
        every_ms: 10_000,
        guard: offshoot_model::traffic::compare::Guard::default(),
    };
    change(&mut request);
    Request::TrafficRamp("shop".to_owned(), request)
}

pub(super) fn tally(requests: u64, errors: u64, ms: u64) -> Tally {
    let mut tally = Tally {
        requests,
        errors,
        ..Tally::default()
    };
    tally.latency.add(Duration::from_millis(ms));
    tally
}

impl World {
    /// What comes to a side at somebody's domains from one look to the next.
    pub(super) fn comes(&self, owner: &str, side: &str, more: Tally) {
        let (owner, side) = (self.id(owner), self.id(side));
        self.engine.host().more.insert((owner, side), more);
    }

    pub(super) fn id(&self, name: &str) -> EnvId {
        self.named(name).unwrap().id
    }

    /// An environment's policy by the store, which is the edge's too.
    pub(super) fn policy(&self, name: &str) -> Option<Policy<String>> {
        let id = self.id(name);
        let policy = self.shared.store.policy(&id).unwrap();
        assert_eq!(self.engine.host().policies.get(&id), policy.as_ref());
        let name = |id: &EnvId| self.shared.by_id(id).unwrap().name.to_string();
        policy.map(|policy| policy.named(name))
    }

    /// The share of `next` in the policy of `shop`.
    pub(super) fn share(&self) -> Option<u32> {
        let policy = self.policy("shop")?;
        let side = policy
            .sides
            .iter()
            .find(|side| side.environment == "next")?;
        Some(side.weight)
    }

    pub(super) async fn step_runs(&self, id: OperationId, step: &str) {
        self.until(step, || {
            let operation = self.shared.live_of(id)?.snapshot();
            let step = operation.steps.iter().find(|record| record.name == step)?;
            (step.state == StepState::Running).then_some(())
        })
        .await;
    }

    /// Everything is as [`World::with_domains`] left it.
    pub(super) fn as_before(&self) {
        assert_eq!(self.has("shop"), ["a.test", "b.test"]);
        assert_eq!(self.has("next"), ["c.test"]);
        self.edge_is_right();
    }
}

pub(super) fn problem(operation: Operation) -> Problem {
    operation.problem.unwrap()
}

#[tokio::test(start_paused = true)]
async fn of_two_who_change_the_same_policy_the_second_is_told() {
    let world = World::with_domains().await;
    let replace = |before, after| Request::TrafficReplace {
        environment: "shop".to_owned(),
        before: Box::new(before),
        after,
    };
    let (first, second) = (
        split(&[("shop", 90), ("next", 10)]),
        split(&[("shop", 50), ("next", 50)]),
    );
    // Both saw that there was none, and sent theirs before either was set.
    let ids = [
        world
            .submit(replace(Policy::default(), first.clone()))
            .await,
        world
            .submit(replace(Policy::default(), second.clone()))
            .await,
    ];
    assert_eq!(world.ended(ids[0]).await.state, OperationState::Done);
    let late = world.ended(ids[1]).await;
    assert_eq!(late.state, OperationState::Failed);
    let why = problem(late);
    assert_eq!(why.code, Code::WrongState);
    assert!(why.what.contains("of shop was changed meanwhile"), "{why}");
    assert_eq!(world.policy("shop"), Some(first.clone()));
    world.done(replace(first, second.clone())).await;
    assert_eq!(world.policy("shop"), Some(second));
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_in_use_when_it_is_set_and_follows_names() {
    let world = World::with_domains().await;
    world
        .done(set("shop", split(&[("shop", 90), ("next", 10)])))
        .await;
    assert_eq!(world.engine.calls(), ["expose"]);
    assert_eq!(world.share(), Some(10));
    world.done(super::rename("next", "beta")).await;
    let view = world.shared.traffic_view("shop").await.unwrap();
    assert_eq!(view.policy, split(&[("shop", 90), ("beta", 10)]));
    assert_eq!(
        (view.sides[1].environment.as_str(), view.sides[1].share),
        ("beta", 0.1)
    );
    world.done(clone_of("shop")).await;
    assert_eq!(world.policy("shop-clone"), None);

    // Who is named stays, and may be stopped.
    let problem = world.refused(Request::Remove("beta".into())).await;
    assert_eq!(problem.code, Code::EnvironmentInUse);
    assert!(problem.what.contains("policy of shop"), "{problem}");
    world.done(Request::Stop("beta".into())).await;
    world.done(Request::TrafficClear("shop".into())).await;
    assert_eq!(world.policy("shop"), None);
    world.done(Request::Remove("beta".into())).await;

    // The owner takes its policy along.
    world.done(set("shop", split(&[("shop-clone", 1)]))).await;
    world.refused(Request::Remove("shop-clone".into())).await;
    world.done(Request::Remove("shop".into())).await;
    world.done(Request::Remove("shop-clone".into())).await;
    assert!(world.engine.host().policies.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_carried_out_is_refused() {
    let world = World::with_domains().await;
    world.created("bare", vec![layer("db")]).await;
    let mirror = |name: &str| Policy {
        mirror: Some(Mirror {
            environment: name.to_owned(),
            permille: 1_000,
            body_bytes: 1,
            ignore: Vec::new(),
        }),
        ..Policy::default()
    };
    let rule = Policy {
        rules: vec![Rule {
            when: vec![When::Path("/".into())],
            to: "next".into(),
        }],
        ..Policy::default()
    };
    for (owner, policy, code) in [
        ("shop", split(&[("shop", 0)]), Code::PolicyInvalid),
        (
            "shop",
            split(&[("shop", 1), ("shop", 1)]),
            Code::PolicyInvalid,
        ),
        ("shop", split(&[("nobody", 1)]), Code::EnvironmentUnknown),
        ("shop", split(&[("bare", 1)]), Code::WrongState),
        ("bare", split(&[("shop", 1)]), Code::WrongState),
        ("shop", mirror("shop"), Code::PolicyInvalid),
        ("shop", rule, Code::PolicyInvalid),
        ("nobody", Policy::default(), Code::EnvironmentUnknown),
    ] {
        let problem = world.refused(set(owner, policy)).await;
        assert_eq!(problem.code, code, "{problem}");
    }
    world.done(set("shop", mirror("next"))).await;
    let back = world.shared.traffic_back("shop").await.unwrap_err();
    assert_eq!(back.code, Code::WrongState);
    let checked = Policy {
        failover: Some(Failover::default()),
        ..split(&[("shop", 1), ("next", 0)])
    };
    world.done(set("shop", checked)).await;
    world.engine.calls();
    world.shared.traffic_back("shop").await.unwrap();
    assert_eq!(world.engine.calls(), ["back"]);

    // Counts that are not to be had keep nobody from the policy.
    world.engine.fail("stats");
    let view = world.shared.traffic_view("shop").await.unwrap();
    assert!(view.uncounted.is_some() && view.policy.failover.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_failure_leaves_the_policy_as_it_was() {
    for act in [Act::Fail, Act::FailLate] {
        let world = World::with_domains().await;
        world
            .done(set("shop", split(&[("shop", 1), ("next", 2)])))
            .await;
        world.engine.calls();
        world.engine.host().act_at = Some((0, act));
        world.failed(set("shop", split(&[("next", 3)]))).await;
        assert_eq!(world.share(), Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_with_sides_is_in_the_way_of_a_swap() {
    let world = World::with_domains().await;
    world.done(set("next", split(&[("shop", 1)]))).await;
    let problem = world.failed(swap("shop", "next")).await;
    assert_eq!(problem.code, Code::WrongState);
    assert!(problem.next.contains("traffic clear next"), "{problem:?}");
    let bounds = Policy {
        bounds: Bounds {
            body_bytes: 5,
            ..Bounds::default()
        },
        ..Policy::default()
    };
    world.done(set("next", bounds)).await;
    world.done(swap("shop", "next")).await;
}

#[tokio::test(start_paused = true)]
async fn a_ramp_grows_share_by_share() {
    let world = World::with_domains().await;
    world.comes("shop", "shop", tally(10, 0, 10));
    world.comes("shop", "next", tally(10, 0, 10));
    let before = Policy {
        bounds: Bounds {
            body_bytes: 5,
            ..Bounds::default()
        },
        ..Policy::default()
    };
    world.done(set("shop", before)).await;
    let begun = tokio::time::Instant::now();
    let id = world.submit(ramp(|_| ())).await;
    for (percent, second) in [(1, 0), (10, 10), (50, 20), (100, 30)] {
        world
            .until("the share", || {
                (world.share() == Some(percent)).then_some(())
            })
            .await;
        assert_eq!(begun.elapsed().as_secs(), second);
    }
    let operation = world.ended(id).await;
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
    assert_eq!(operation.traffic.unwrap().percent, 100);
    let policy = world.policy("shop").unwrap();
    assert_eq!(policy.bounds.body_bytes, 5);
    assert_eq!(policy.sides, split(&[("shop", 0), ("next", 100)]).sides);
    world.as_before();
}

#[tokio::test(start_paused = true)]
async fn a_ramp_goes_back_when_the_side_is_worse_or_it_is_cancelled() {
    for cancel in [false, true] {
        let world = World::with_domains().await;
        let before = split(&[("next", 1), ("shop", 3)]);
        world.done(set("shop", before.clone())).await;
        world.comes("shop", "shop", tally(10, 0, 10));
        let id = world.submit(ramp(|_| ())).await;
        world
            .until("10 %", || (world.share() == Some(10)).then_some(()))
            .await;
        if cancel {
            world.shared.live_of(id).unwrap().cancel();
        } else {
            world.comes("shop", "next", tally(10, 10, 10));
        }
        let operation = world.ended(id).await;
        assert_eq!(world.policy("shop"), Some(before));
        assert_eq!(operation.traffic.as_ref().unwrap().percent, 25);
        if cancel {
            assert_eq!(operation.state, OperationState::Cancelled);
        } else {
            let problem = problem(operation);
            assert_eq!(problem.code, Code::RampWorse);
            assert_eq!(problem.details.len(), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_ramp_with_too_few_requests_goes_on_and_says_so() {
    let world = World::with_domains().await;
    let operation = world
        .done(ramp(|request| request.steps = vec![5, 20]))
        .await;
    assert_eq!(world.share(), Some(20));
    assert!(
        operation.notices[0].contains("too few requests"),
        "{operation:?}"
    );
    for change in [
        (|request| request.steps = vec![10, 5]) as fn(&mut RampRequest),
        |request| request.steps = vec![0, 5],
        |request| request.steps = vec![101],
        |request| request.steps.clear(),
        |request| request.every_ms = 1,
        |request| request.to = "shop".into(),
    ] {
        assert_eq!(world.refused(ramp(change)).await.code, Code::BadRequest);
    }
    world.created("third", web()).await;
    world.done(set("shop", split(&[("third", 1)]))).await;
    world.failed(ramp(|_| ())).await;
}

fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

/// Ends the daemon while the operation is in `step`, and has the next one take it up.
fn ended_within(
    request: Request,
    step: &'static str,
    before: fn(&World),
    between: fn(&World),
    after: fn(&World, Operation),
) {
    let first = runtime();
    let (dir, engine, id) = first.block_on(async {
        let world = World::with_domains().await;
        before(&world);
        let id = world.submit(request).await;
        world.step_runs(id, step).await;
        // Well within it.
        tokio::time::sleep(Duration::from_secs(15)).await;
        between(&world);
        (world.dir, world.engine, id)
    });
    drop(first);
    runtime().block_on(async {
        let world = World::on(dir, engine);
        recover(&world.shared).await.unwrap();
        let operation = world.ended(id).await;
        after(&world, operation);
        world
            .until("both to be free", || {
                let free = |name| world.shared.locks.try_hold(&world.id(name)).is_some();
                (free("shop") && free("next")).then_some(())
            })
            .await;
    });
}

#[test]
fn a_watch_goes_on_after_a_restart() {
    ended_within(
        promote(|_| ()),
        "watch",
        |_| (),
        |_| (),
        |world, operation| {
            assert_eq!(operation.state, OperationState::Done, "{operation:?}");
            assert_eq!(world.has("next"), ["a.test", "b.test"]);
            world.edge_is_right();
        },
    );
    ended_within(
        promote(|_| ()),
        "watch",
        |_| (),
        |world| world.comes("next", "next", tally(100, 100, 1)),
        |world, operation| {
            assert_eq!(problem(operation).code, Code::PromoteWorse);
            world.as_before();
        },
    );
}

#[test]
fn a_ramp_goes_on_at_its_share_after_a_restart() {
    ended_within(
        ramp(|_| ()),
        "ramp",
        |_| (),
        |world| assert_eq!(world.share(), Some(10)),
        |world, operation| {
            assert_eq!(operation.state, OperationState::Done, "{operation:?}");
            assert_eq!(world.share(), Some(100));
        },
    );
    ended_within(
        ramp(|_| ()),
        "ramp",
        |_| (),
        |world| world.comes("shop", "next", tally(100, 100, 1)),
        |world, operation| {
            assert_eq!(problem(operation).code, Code::RampWorse);
            assert_eq!(world.policy("shop"), None);
        },
    );
}
