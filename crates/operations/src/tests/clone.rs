//! Clone: its order, and what is left when it fails.

use offshoot_engine::Reach;
use offshoot_model::environment::Health;
use offshoot_model::{Code, EnvironmentState, OperationState, RungChoice};

use super::engine::Act;
use super::*;
use crate::health::check_if_due;

/// A parent of a node that is cloned alive and one that starts from its image.
async fn parent(world: &World) -> Environment {
    let mut fresh = layer("web");
    fresh.scaling = offshoot_model::manifest::Scaling::Stateless;
    world
        .created("shop", vec![checked(layer("db")), fresh])
        .await
}

/// What a clone does, in order.
const CALLS: [&str; 11] = [
    "preflight",
    "room",
    "renew web-1",
    "network closed",
    "prepare cut",
    "cut",
    "restore db-1",
    "open",
    "forget cut",
    "start web-1",
    "expose",
];

#[tokio::test(start_paused = true)]
async fn a_clone_is_made_in_order() {
    let world = World::new();
    let shop = parent(&world).await;
    let operation = world.run(clone_of("shop")).await;
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
    assert_eq!(world.engine.calls(), CALLS);
    let clone = world.named("shop-clone").unwrap();
    assert!(world.runs(&clone.id) && world.runs(&shop.id));
    assert_eq!(clone.lineage.unwrap().parent, shop.id);
    assert_eq!(world.reach("shop-clone"), Some(Reach::Open));
    assert!(operation.report.unwrap().ready_us.is_some());
}

#[tokio::test(start_paused = true)]
async fn where_all_nodes_live_tidying_up_comes_last() {
    let world = World::new();
    world.created("shop", vec![layer("db")]).await;
    world.engine.calls();
    let operation = world.run(clone_of("shop")).await;
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
    let calls = world.engine.calls();
    let end = ["restore db-1", "open", "expose", "forget cut"];
    assert_eq!(calls[calls.len() - end.len()..], end);
}

#[tokio::test(start_paused = true)]
async fn a_live_node_is_as_well_as_it_was_in_the_parent_until_its_own_check() {
    let world = World::new();
    parent(&world).await;
    world.run(clone_of("shop")).await;
    let clone = world.named("shop-clone").unwrap();
    let node = clone.nodes.iter().find(|n| n.name() == "db-1").unwrap();
    let verdict = || world.shared.health.verdict(&node.id, Some(&check()));
    let look = async || {
        world.engine.calls();
        check_if_due(&world.shared, &clone, node, &check()).await;
        world.engine.calls()
    };
    assert_eq!(verdict(), Health::Healthy);
    assert!(look().await.is_empty());
    tokio::time::sleep(Duration::from_millis(check().interval_ms)).await;
    assert_eq!(look().await, ["check db-1"]);
    assert_eq!(verdict(), Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_the_parent_is_let_go_first_and_nothing_is_left() {
    for act in [Act::Fail, Act::FailLate] {
        for (number, call) in CALLS.into_iter().enumerate() {
            // A node whose memory does not come back falls back to its disk.
            if call.starts_with("restore") {
                continue;
            }
            let world = World::new();
            let shop = parent(&world).await;
            world.engine.host().act_at = Some((number, act));
            let id = world.submit(clone_of("shop")).await;
            let clone = world.named("shop-clone").unwrap().id;
            let operation = world.ended(id).await;
            let what = format!("{call} {act:?}: {operation:?}");
            assert_eq!(operation.state, OperationState::Failed, "{what}");
            let problem = operation.problem.clone().unwrap();
            assert_eq!(problem.what, format!("{call} fails as asked"), "{what}");

            let calls = world.engine.calls();
            assert_eq!(calls[..=number], CALLS[..=number], "{what}");
            let undone = ["expose", "forget cut", "remove"];
            assert_eq!(calls[number + 1..], undone, "{what}");
            assert_eq!(world.named("shop-clone"), None, "{what}");
            assert!(
                world.engine.nothing_of(&clone, "shop-clone.localhost"),
                "{what}"
            );

            assert!(world.runs(&shop.id), "{what}");
            assert_eq!(world.reach("shop"), Some(Reach::Open), "{what}");
            let paused = world.shared.health.pause(&shop.id);
            let free = tokio::time::timeout(Duration::from_secs(1), paused).await;
            assert!(
                free.is_ok(),
                "checks of the parent are still paused: {what}"
            );
            assert!(world.shared.locks.try_hold(&shop.id).is_some(), "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_cannot_be_undone_is_marked_and_can_be_removed() {
    let world = World::new();
    parent(&world).await;
    world.engine.fail("open");
    world.engine.fail("remove");
    let operation = world.run(clone_of("shop")).await;
    let problem = operation.problem.unwrap();
    assert!(
        problem.details[0].contains("could not be undone"),
        "{problem:?}"
    );
    assert_eq!(world.state("shop-clone"), Some(EnvironmentState::Broken));
    let id = world.named("shop-clone").unwrap().id;
    world.engine.go_on();
    world.run(Request::Remove("shop-clone".into())).await;
    assert!(world.engine.nothing_of(&id, "shop-clone.localhost"));
    assert_eq!(world.named("shop-clone"), None);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_ends_it_at_every_step() {
    for call in CALLS {
        let world = World::new();
        let shop = parent(&world).await;
        world.engine.hang(call);
        let id = world.submit(clone_of("shop")).await;
        world.engine.hangs.notified().await;
        let clone = world.named("shop-clone").unwrap().id;
        world.shared.live_of(id).unwrap().cancel();
        world.engine.go_on();
        let operation = world.ended(id).await;
        assert!(world.runs(&shop.id), "{call}");
        assert_eq!(operation.state, OperationState::Cancelled, "{call}");
        assert!(
            world.engine.nothing_of(&clone, "shop-clone.localhost"),
            "{call}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn memory_that_does_not_come_back_is_a_fresh_start_unless_live_was_asked_for() {
    for choice in [RungChoice::Auto, RungChoice::Live] {
        let world = World::new();
        parent(&world).await;
        world.engine.fail("restore db-1");
        let request = offshoot_model::view::CloneRequest {
            rung: choice,
            ..Default::default()
        };
        let operation = world.run(Request::Clone("shop".into(), request)).await;
        let calls = world.engine.calls();
        if choice == RungChoice::Auto {
            assert_eq!(operation.state, OperationState::Done);
            let starts = |call: &&String| call.starts_with("start");
            let mut started: Vec<_> = calls.iter().filter(starts).collect();
            started.sort();
            assert_eq!(started, ["start db-1", "start web-1"]);
        } else {
            assert_eq!(operation.state, OperationState::Failed);
            assert_eq!(world.named("shop-clone"), None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_cut_the_parent_is_free_for_the_next_change() {
    let world = World::new();
    parent(&world).await;
    world.engine.hang("cut");
    let clone = world.submit(clone_of("shop")).await;
    world.engine.hangs.notified().await;
    let stop = world.submit(Request::Stop("shop".into())).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.shared.live_of(stop).is_some(), "it waits for the cut");
    world.engine.go_on();
    world.engine.hang("restore db-1");
    assert_eq!(world.ended(stop).await.state, OperationState::Done);
    assert!(world.shared.live_of(clone).is_some());
    world.engine.go_on();
    assert_eq!(world.ended(clone).await.state, OperationState::Done);
}

#[tokio::test(start_paused = true)]
async fn a_clone_of_what_is_stopped_is_stopped() {
    let world = World::new();
    parent(&world).await;
    world.run(Request::Stop("shop".into())).await;
    let operation = world.run(clone_of("shop")).await;
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
    assert_eq!(world.state("shop-clone"), Some(EnvironmentState::Stopped));
    assert!(world.engine.host().nodes.is_empty());
    let calls = world.engine.calls();
    assert!(
        !calls.iter().any(|call| call.starts_with("start")),
        "{calls:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bound_on_the_freeze_is_taken_within_limits_only() {
    let world = World::new();
    parent(&world).await;
    for (bound, good) in [(9, false), (10, true), (60_000, true), (60_001, false)] {
        let request = offshoot_model::view::CloneRequest {
            max_freeze_ms: Some(bound),
            ..Default::default()
        };
        let answer = world
            .shared
            .submit(Request::Clone("shop".into(), request))
            .await;
        match answer {
            Ok(_) => assert!(good, "{bound}"),
            Err(problem) => assert!(!good && problem.code == Code::BadRequest, "{problem:?}"),
        }
    }
}
