//! Policies, promotions and ramps: who answers when, and what a worse side, a cancel or an end of the daemon leaves.

use offshoot_model::operation::StepState;
use offshoot_model::traffic::compare::Tally;
use offshoot_model::traffic::view::{PromoteRequest, RampRequest};
use offshoot_model::traffic::{Bounds, Failover, Mirror, Policy, Rule, Side, When};
use offshoot_model::{Code, OperationState, Problem};
use tokio::runtime::{Builder, Runtime};

use super::domains::{add, swap, web};
use super::engine::{Act, exited};
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

fn tally(requests: u64, errors: u64, ms: u64) -> Tally {
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
    fn comes(&self, owner: &str, side: &str, more: Tally) {
        let (owner, side) = (self.id(owner), self.id(side));
        self.engine.host().more.insert((owner, side), more);
    }

    fn id(&self, name: &str) -> EnvId {
        self.named(name).unwrap().id
    }

    /// An environment's policy by the store, which is the edge's too.
    fn policy(&self, name: &str) -> Option<Policy<String>> {
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

    async fn step_runs(&self, id: OperationId, step: &str) {
        self.until(step, || {
            let operation = self.shared.live_of(id)?.snapshot();
            let step = operation.steps.iter().find(|record| record.name == step)?;
            (step.state == StepState::Running).then_some(())
        })
        .await;
    }

    /// Everything is as [`World::with_domains`] left it.
    fn as_before(&self) {
        assert_eq!(self.has("shop"), ["a.test", "b.test"]);
        assert_eq!(self.has("next"), ["c.test"]);
        self.edge_is_right();
    }
}

fn problem(operation: Operation) -> Problem {
    operation.problem.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_in_use_when_it_is_set_and_follows_names() {
    let world = World::with_domains().await;
    world
        .done(set("shop", split(&[("shop", 90), ("next", 10)])))
        .await;
    assert_eq!(world.engine.calls(), ["expose"]);
    assert_eq!(world.share(), Some(10));
    world
        .done(Request::Rename("next".into(), "beta".into()))
        .await;
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
async fn a_promotion_moves_domains_and_what_holds_for_them_and_watches() {
    let world = World::with_domains().await;
    let policy = Policy {
        bounds: Bounds {
            body_bytes: 5,
            ..Bounds::default()
        },
        ..split(&[("shop", 0), ("next", 100)])
    };
    let bounds = policy.clone().without_sides();
    world.done(set("shop", policy)).await;
    world.comes("shop", "shop", tally(100, 1, 10));
    world.comes("next", "next", tally(10, 0, 11));
    let begun = tokio::time::Instant::now();
    let request = promote(|request| {
        request.fence = true;
        request.keep_ms = Some(86_400_000);
    });
    let operation = world.done(request).await;
    assert_eq!(begun.elapsed().as_secs(), 40);
    assert_eq!(operation.notices, Vec::<String>::new());
    assert_eq!(world.has("next"), ["a.test", "b.test"]);
    assert_eq!(world.has("shop"), ["c.test"]);
    world.edge_is_right();
    assert_eq!(world.policy("next"), Some(bounds.clone()));
    let fenced = Policy {
        fence: true,
        ..bounds
    };
    assert_eq!(world.policy("shop"), Some(fenced));
    let report = operation.traffic.unwrap();
    assert_eq!((report.old.as_str(), report.new.as_str()), ("shop", "next"));
    assert!(report.keep_until.is_some() && report.percent == 100);
    let (old, new) = (report.old_figures.unwrap(), report.new_figures.unwrap());
    assert_eq!((old.requests, old.errors), (100, 1));
    assert_eq!((new.requests, new.errors), (310, 0));
    assert!(operation.swap.unwrap().switched.is_some());

    // Its way back is that of a swap.
    let problem = world.failed(swap_back()).await;
    assert!(problem.next.contains("--fence off"), "{problem:?}");
    world.done(Request::TrafficClear("shop".into())).await;
    world.done(swap_back()).await;
    world.as_before();
}

#[tokio::test(start_paused = true)]
async fn a_worse_clone_gives_the_domains_back_by_itself() {
    for (more, part) in [
        (tally(10, 3, 10), "30.0 % of its requests failed"),
        (tally(10, 0, 40), "its p95 is"),
    ] {
        let world = World::with_domains().await;
        let policy = split(&[("shop", 50), ("next", 50)]);
        world.done(set("shop", policy.clone())).await;
        world.comes("shop", "shop", tally(100, 1, 10));
        world.comes("next", "next", more);
        let begun = tokio::time::Instant::now();
        let operation = world.run(promote(|request| request.fence = true)).await;
        assert_eq!(operation.state, OperationState::Failed);
        // 50 requests are there at the fifth look.
        assert_eq!(begun.elapsed().as_secs(), 14);
        assert_eq!(operation.swap.as_ref().unwrap().switched, None);
        let problem = problem(operation);
        assert_eq!(problem.code, Code::PromoteWorse);
        assert!(problem.what.contains(part), "{problem}");
        assert!(
            problem.details[0].starts_with("new side: 50 requests"),
            "{problem:?}"
        );
        assert!(problem.details[1].starts_with("old side: 100 requests, 1 errors"));
        world.as_before();
        assert_eq!(world.policy("shop"), Some(policy));
        assert_eq!(world.policy("next"), None);
        let back = world.failed(swap_back()).await;
        assert!(back.what.contains("never swapped"), "{back}");
    }
}

fn swap_back() -> Request {
    let request = offshoot_model::view::SwapRequest {
        with: "next".to_owned(),
        back: true,
        warm: offshoot_model::domain::Warm::default(),
    };
    Request::Swap("shop".to_owned(), request)
}

#[tokio::test(start_paused = true)]
async fn a_clone_whose_entry_dies_gives_the_domains_back() {
    let world = World::with_domains().await;
    let id = world.submit(promote(|_| ())).await;
    world.step_runs(id, "watch").await;
    let node = world.named("next").unwrap().nodes[0].id.clone();
    world.engine.host().nodes.insert(node, exited(1));
    let operation = world.ended(id).await;
    assert_eq!(problem(operation).code, Code::PromoteWorse);
    world.as_before();
}

#[tokio::test(start_paused = true)]
async fn too_few_requests_are_said_and_no_reason_to_go_back() {
    let world = World::with_domains().await;
    world.engine.fail("stats");
    let id = world
        .submit(promote(|request| request.watch_ms = 5_000))
        .await;
    world.step_runs(id, "watch").await;
    world.engine.go_on();
    let counts = (world.id("next"), world.id("next"));
    world.engine.host().counts.insert(counts, tally(49, 49, 9));
    let operation = world.ended(id).await;
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
    assert!(
        operation.notices[0].contains("there were 49, 50 are needed"),
        "{operation:?}"
    );
    assert_eq!(world.has("next"), ["a.test", "b.test"]);

    // Not watched at all.
    let world = World::with_domains().await;
    let begun = tokio::time::Instant::now();
    world.done(promote(|request| request.watch_ms = 0)).await;
    assert_eq!(begun.elapsed().as_secs(), 0);
}

#[tokio::test(start_paused = true)]
async fn while_it_watches_others_may_work_and_nobody_changes_the_way() {
    let world = World::with_domains().await;
    let id = world.submit(promote(|_| ())).await;
    world.step_runs(id, "watch").await;
    for request in [
        add("shop", &["d.test"]),
        swap("shop", "next"),
        set("next", split(&[("shop", 1)])),
        ramp(|_| ()),
        promote(|_| ()),
        Request::Remove("shop".into()),
    ] {
        let problem = world.refused(request).await;
        assert_eq!(problem.code, Code::WrongState);
        assert!(problem.next.contains(&id.to_string()), "{problem:?}");
    }
    world.done(clone_of("next")).await;
    world.shared.live_of(id).unwrap().cancel();
    assert_eq!(world.ended(id).await.state, OperationState::Cancelled);
    world.as_before();
    world.done(add("shop", &["d.test"])).await;
}

#[tokio::test(start_paused = true)]
async fn a_promotion_that_cannot_be_is_refused() {
    let world = World::with_domains().await;
    world.created("third", web()).await;
    let none = Request::Promote("next".into(), PromoteRequest::default());
    let problem = world.refused(none).await;
    assert!(problem.what.contains("is no clone"), "{problem}");
    for change in [
        (|request| request.of = Some("next".into())) as fn(&mut PromoteRequest),
        |request| request.watch_ms = 86_400_001,
        |request| request.guard.min_requests = 0,
        |request| request.warm.answers = 0,
    ] {
        let problem = world.refused(promote(change)).await;
        assert_eq!(problem.code, Code::BadRequest, "{problem}");
    }
    // A policy that leads to others is a person's to clear.
    world
        .done(set("shop", split(&[("shop", 1), ("third", 1)])))
        .await;
    let problem = world.failed(promote(|_| ())).await;
    assert!(problem.next.contains("traffic clear shop"), "{problem:?}");
    world.as_before();

    // By lineage.
    world.done(Request::TrafficClear("shop".into())).await;
    world.done(clone_of("shop")).await;
    let request = PromoteRequest {
        watch_ms: 0,
        ..PromoteRequest::default()
    };
    world
        .done(Request::Promote("shop-clone".into(), request))
        .await;
    assert_eq!(world.has("shop-clone"), ["a.test", "b.test"]);
}

#[tokio::test(start_paused = true)]
async fn a_promotion_that_fails_or_is_cancelled_at_any_call_changes_nothing() {
    for act in [Act::Fail, Act::FailLate] {
        let world = World::with_domains().await;
        world.engine.host().act_at = Some((9, act));
        let operation = world.run(promote(|_| ())).await;
        assert_eq!(operation.state, OperationState::Failed, "{act:?}");
        world.as_before();
    }
    for at in 0..9 {
        let world = World::with_domains().await;
        world.engine.host().act_at = Some((at, Act::Hang));
        let id = world.submit(promote(|_| ())).await;
        world.engine.hangs.notified().await;
        world.shared.live_of(id).unwrap().cancel();
        assert_eq!(world.ended(id).await.state, OperationState::Cancelled);
        world.as_before();
    }
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
