//! Start and stop: order, conditions, and what a failure leaves.

use offshoot_engine::Reach;
use offshoot_model::manifest::Condition;
use offshoot_model::{Code, EnvironmentState, OperationState};

use super::*;

/// `web` after `app` after `db`.
fn three() -> Vec<Layer> {
    vec![
        after(layer("web"), "app", Condition::Started),
        after(layer("app"), "db", Condition::Healthy),
        checked(layer("db")),
    ]
}

fn starts_and_stops(calls: &[String]) -> Vec<&str> {
    let ours = |call: &&str| call.starts_with("start ") || call.starts_with("stop ");
    calls.iter().map(String::as_str).filter(ours).collect()
}

#[tokio::test(start_paused = true)]
async fn nodes_start_after_what_they_depend_on_and_stop_before_it() {
    let world = World::new();
    world.run(create("shop", three())).await;
    let calls = world.engine.calls();
    let wanted = ["start db-1", "start app-1", "start web-1"];
    assert_eq!(starts_and_stops(&calls), wanted);
    let place = |call: &str| calls.iter().position(|c| c == call);
    assert!(place("check db-1") < place("start app-1"), "{calls:?}");
    assert_eq!(calls.last().map(String::as_str), Some("expose"));
    assert_eq!(world.reach("shop"), Some(Reach::Open));

    world.run(Request::Stop("shop".into())).await;
    let calls = world.engine.calls();
    assert_eq!(calls[0], "expose", "people go before nodes do");
    let wanted = ["stop web-1", "stop app-1", "stop db-1"];
    assert_eq!(starts_and_stops(&calls), wanted);
    assert_eq!(calls.last().map(String::as_str), Some("halt"));
    assert_eq!(world.reach("shop"), Some(Reach::Closed));
    assert_eq!(world.state("shop"), Some(EnvironmentState::Stopped));
}

#[tokio::test(start_paused = true)]
async fn what_is_unhealthy_fails_those_that_wait_for_it_and_nothing_is_left() {
    let world = World::new();
    world.engine.host().checks.insert("db-1".into(), 1);
    let operation = world.run(create("shop", three())).await;
    let problem = operation.problem.unwrap();
    assert_eq!(problem.code, Code::Unhealthy, "{problem:?}");
    assert!(problem.what.contains("db-1"), "{problem:?}");
    assert_eq!(problem.details, ["db-1: last words"]);
    assert_eq!(world.named("shop"), None);
    let host = world.engine.host();
    assert!(host.nodes.is_empty() && host.made.is_empty() && host.exposed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_never_gets_healthy_is_waited_for_three_minutes() {
    let world = World::new();
    world.engine.host().checks.insert("db-1".into(), 1);
    let mut layers = three();
    layers[2].healthcheck.as_mut().unwrap().start_period_ms = 1_000_000;
    let begun = tokio::time::Instant::now();
    let operation = world.run(create("shop", layers)).await;
    assert_eq!(operation.problem.unwrap().code, Code::Unhealthy);
    assert_eq!(begun.elapsed().as_secs(), 180);
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_must_end_well_is_waited_for() {
    for (status, code) in [(0, None), (3, Some(Code::StartFailed))] {
        let world = World::new();
        world.engine.host().ends.insert("seed-1".into(), status);
        let layers = vec![
            after(layer("web"), "seed", Condition::CompletedSuccessfully),
            layer("seed"),
        ];
        let operation = world.run(create("shop", layers)).await;
        assert_eq!(operation.problem.map(|problem| problem.code), code);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_is_not_required_is_a_notice() {
    let world = World::new();
    world.engine.host().checks.insert("db-1".into(), 1);
    let mut layers = three();
    layers[1].depends_on[0].required = false;
    let operation = world.run(create("shop", layers)).await;
    assert_eq!(operation.state, OperationState::Done);
    assert!(operation.notices[0].contains("db-1"), "{operation:?}");
}

#[tokio::test(start_paused = true)]
async fn a_late_node_that_nobody_waits_for_is_a_notice() {
    let world = World::new();
    world.engine.host().checks.insert("db-1".into(), 1);
    let begun = tokio::time::Instant::now();
    let operation = world.run(create("shop", vec![checked(layer("db"))])).await;
    assert_eq!(operation.state, OperationState::Done);
    assert_eq!(
        operation.notices,
        ["node db-1 is not healthy yet; see its logs"]
    );
    assert_eq!(begun.elapsed().as_secs(), 120);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_leaves_stopped_what_was_stopped_and_running_what_ran() {
    let world = World::new();
    let shop = world.created("shop", vec![layer("web"), layer("db")]).await;
    world.engine.fail("start db-1");
    let operation = world.run(Request::Start("shop".into())).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert!(world.runs(&shop.id));
    assert_eq!(world.reach("shop"), Some(Reach::Open));
    assert_eq!(world.state("shop"), Some(EnvironmentState::Running));

    world.engine.go_on();
    world.run(Request::Stop("shop".into())).await;
    world.engine.fail("start db-1");
    let operation = world.run(Request::Start("shop".into())).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert!(world.engine.host().nodes.is_empty());
    assert_eq!(world.reach("shop"), Some(Reach::Closed));
    assert_eq!(world.state("shop"), Some(EnvironmentState::Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_fails_starts_again_what_it_stopped() {
    let world = World::new();
    let shop = world.created("shop", three()).await;
    world.engine.fail("stop db-1");
    let operation = world.run(Request::Stop("shop".into())).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert!(world.runs(&shop.id));
    assert_eq!(world.reach("shop"), Some(Reach::Open));
    assert_eq!(world.state("shop"), Some(EnvironmentState::Running));
}
