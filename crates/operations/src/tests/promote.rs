//! Promotions: what moves, who is watched by what, and what a worse clone, a cancel or a failure leaves.

use offshoot_model::traffic::view::PromoteRequest;
use offshoot_model::traffic::{Bounds, Policy};
use offshoot_model::{Code, OperationState};

use super::domains::{add, swap, web};
use super::engine::{Act, exited};
use super::traffic::{problem, promote, ramp, set, split, tally};
use super::*;

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
