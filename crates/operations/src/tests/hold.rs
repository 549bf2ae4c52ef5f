//! What environments are kept from: clones that hold, clones that are not started, and letting go.

use offshoot_engine::Reach;
use offshoot_model::manifest::RestartPolicy;
use offshoot_model::{Code, EnvironmentState, Hold, NodeState, OperationState, RungChoice};

use super::domains::swap;
use super::engine::Act;
use super::traffic::promote;
use super::*;

const JOBS: Hold = Hold {
    mail: false,
    jobs: true,
};

fn worker() -> Layer {
    Layer {
        jobs: true,
        restart: RestartPolicy::Always,
        ..layer("worker")
    }
}

async fn parent(world: &World) -> Environment {
    let web = after(layer("web"), "worker", Condition::Started);
    world.created("shop", vec![web, worker()]).await
}

fn clone_with(change: impl FnOnce(&mut CloneRequest)) -> Request {
    let mut request = CloneRequest::default();
    change(&mut request);
    Request::Clone("shop".into(), request)
}

fn hold(name: &str, held: Hold) -> Request {
    Request::Hold(name.to_owned(), held)
}

impl World {
    fn node(&self, environment: &str, node: &str) -> Option<NodeState> {
        let environment = self.named(environment).unwrap();
        let id = environment.node(node).unwrap().id.clone();
        self.engine.host().nodes.get(&id).cloned()
    }

    fn works(&self, environment: &str) -> bool {
        matches!(
            self.node(environment, "worker-1"),
            Some(NodeState::Running { .. })
        )
    }

    fn held(&self, environment: &str) -> (Hold, Hold) {
        let environment = self.named(environment).unwrap();
        let told = self.engine.host().held.get(&environment.id).copied();
        (environment.held, told.unwrap_or_default())
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_holds_is_made_without_what_runs_jobs() {
    let world = World::new();
    parent(&world).await;
    let schedulers = vec!["cron (process 7)".to_owned()];
    world
        .engine
        .host()
        .schedulers
        .insert("web-1".into(), schedulers);
    let request = clone_with(|request| {
        request.hold = Hold::ALL;
        request.rung = RungChoice::Live;
    });
    let operation = world.run(request).await;
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
    let calls = world.engine.calls();
    assert!(calls.contains(&"restore web-1".to_owned()), "{calls:?}");
    assert!(
        !calls.iter().any(|call| call.ends_with("worker-1")),
        "{calls:?}"
    );
    assert!(world.works("shop") && !world.works("shop-clone"));
    // Its network knew before anything ran.
    assert_eq!(world.held("shop-clone"), (Hold::ALL, Hold::ALL));
    let said = operation.notices.join("\n");
    for part in [
        "node web-1: jobs are held: cron (process 7) does not go on",
        "node worker-1: it runs jobs",
        "mail is held",
    ] {
        assert!(said.contains(part), "{said}");
    }

    // A clone of it holds the same, without being asked.
    let again = Request::Clone("shop-clone".into(), CloneRequest::default());
    assert_eq!(world.run(again).await.state, OperationState::Done);
    assert_eq!(world.held("shop-clone-clone"), (Hold::ALL, Hold::ALL));
    assert!(!world.works("shop-clone-clone"));

    // Nothing starts it but letting go: no start, no restart policy, no daemon after a reboot.
    world.run(Request::Stop("shop-clone".into())).await;
    world.run(Request::Start("shop-clone".into())).await;
    let clone = world.named("shop-clone").unwrap();
    let supervisor = tokio::spawn(crate::supervise::supervise(world.shared.clone()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    supervisor.abort();
    assert!(!world.works("shop-clone"));
    world.engine.host().nodes.clear();
    crate::recover::bring_back(&world.shared, &clone)
        .await
        .unwrap();
    assert!(!world.works("shop-clone"));
    assert!(matches!(
        world.node("shop-clone", "web-1"),
        Some(NodeState::Running { .. })
    ));

    let view = world
        .shared
        .view(&clone, crate::view::Detail::List)
        .await
        .unwrap();
    assert!(view.healthy, "what is held is well: {view:?}");
    assert_eq!(view.held, Hold::ALL);
    let held: Vec<bool> = view
        .layers
        .iter()
        .map(|layer| layer.nodes[0].held)
        .collect();
    assert_eq!(held, [false, true]);

    world.engine.calls();
    let operation = world.run(hold("shop-clone", Hold::default())).await;
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
    assert_eq!(world.engine.calls(), ["hold nothing", "start worker-1"]);
    assert!(world.works("shop-clone"));
    assert_eq!(world.held("shop-clone"), (Hold::default(), Hold::default()));
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_held_and_let_go_and_a_change_of_mail_starts_nothing() {
    let world = World::new();
    parent(&world).await;
    world.run(hold("shop", Hold::ALL)).await;
    assert_eq!(
        world.engine.calls(),
        ["hold mail and jobs", "stop worker-1"]
    );
    world.run(hold("shop", JOBS)).await;
    assert_eq!(world.engine.calls(), ["hold jobs", "stop worker-1"]);
    world.run(hold("shop", Hold::default())).await;
    assert_eq!(world.engine.calls(), ["hold nothing", "start worker-1"]);
    // A job that is done is not done again.
    let node = world
        .named("shop")
        .unwrap()
        .node("worker-1")
        .unwrap()
        .id
        .clone();
    world.engine.host().nodes.remove(&node);
    let mail = Hold {
        mail: true,
        jobs: false,
    };
    world.run(hold("shop", mail)).await;
    world.run(hold("shop", Hold::default())).await;
    assert_eq!(world.engine.calls(), ["hold mail", "hold nothing"]);

    // What is stopped is only told.
    world.run(Request::Stop("shop".into())).await;
    world.engine.calls();
    world.run(hold("shop", JOBS)).await;
    assert_eq!(world.engine.calls(), Vec::<String>::new());
    world.run(Request::Start("shop".into())).await;
    assert!(!world.works("shop"));
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_fails_or_is_cancelled_changes_nothing() {
    for (from, to) in [(Hold::default(), Hold::ALL), (Hold::ALL, Hold::default())] {
        for act in [Act::Fail, Act::FailLate, Act::Hang, Act::HangLate] {
            for at in 0..2 {
                let world = World::new();
                parent(&world).await;
                world.run(hold("shop", from)).await;
                world.engine.calls();
                world.engine.host().act_at = Some((at, act));
                let id = world.submit(hold("shop", to)).await;
                let state = match act {
                    Act::Fail | Act::FailLate => OperationState::Failed,
                    Act::Hang | Act::HangLate => {
                        world.engine.hangs.notified().await;
                        world.shared.live_of(id).unwrap().cancel();
                        world.engine.go_on();
                        OperationState::Cancelled
                    }
                };
                let what = format!("{from:?} {act:?} {at}");
                let operation = world.ended(id).await;
                // A cancel in the last step comes too late.
                if operation.state == OperationState::Done {
                    assert_eq!(state, OperationState::Cancelled, "{what}");
                    assert_eq!(world.held("shop"), (to, to), "{what}");
                    continue;
                }
                assert_eq!(operation.state, state, "{what}: {operation:?}");
                assert_eq!(world.held("shop"), (from, from), "{what}");
                assert_eq!(world.works("shop"), !from.jobs, "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_is_cancelled_before_it_did_anything_is_taken_back() {
    let world = World::new();
    parent(&world).await;
    world.engine.fail("stop worker-1");
    let id = world.submit(hold("shop", Hold::ALL)).await;
    world.shared.live_of(id).unwrap().cancel();
    let operation = world.ended(id).await;
    assert!(operation.state.is_final() && operation.state != OperationState::Done);
    assert_eq!(world.held("shop").0, Hold::default(), "{operation:?}");
    assert!(world.works("shop"));
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_is_not_started_has_disks_and_waits() {
    let world = World::new();
    parent(&world).await;
    let operation = world.run(clone_with(|request| request.start = false)).await;
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
    let calls = world.engine.calls();
    assert_eq!(
        calls,
        [
            "preflight",
            "room",
            "prepare cut",
            "cut",
            "expose",
            "forget cut"
        ]
    );
    assert_eq!(world.state("shop-clone"), Some(EnvironmentState::Stopped));
    assert_eq!(world.reach("shop-clone"), Some(Reach::Closed));
    let clone = world.named("shop-clone").unwrap();
    assert!(
        world
            .engine
            .host()
            .nodes
            .keys()
            .all(|node| *node.env() != clone.id)
    );
    world.run(Request::Start("shop-clone".into())).await;
    assert!(world.runs(&clone.id));

    let live = clone_with(|request| {
        request.start = false;
        request.rung = RungChoice::Live;
    });
    let problem = world.shared.submit(live).await.unwrap_err();
    assert_eq!(problem.code, Code::BadRequest);
    assert!(problem.next.contains("--rung live"), "{problem:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_of_a_clone_that_is_not_started_leaves_nothing() {
    for call in ["preflight", "room", "prepare cut", "cut", "expose"] {
        let world = World::new();
        parent(&world).await;
        world.engine.hang(call);
        let request = clone_with(|request| (request.start, request.hold) = (false, Hold::ALL));
        let id = world.submit(request).await;
        world.engine.hangs.notified().await;
        let clone = world.named("shop-clone").unwrap().id;
        world.shared.live_of(id).unwrap().cancel();
        world.engine.go_on();
        assert_eq!(
            world.ended(id).await.state,
            OperationState::Cancelled,
            "{call}"
        );
        assert!(
            world.engine.nothing_of(&clone, "shop-clone.localhost"),
            "{call}"
        );
        assert!(world.works("shop"), "{call}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_promotion_lets_go_and_a_swap_warns() {
    let world = World::with_domains().await;
    world.run(hold("next", Hold::ALL)).await;
    let operation = world.done(swap("shop", "next")).await;
    let said = operation.notices.join("\n");
    assert!(said.contains("mail and jobs of next are held"), "{said}");
    assert_eq!(world.held("next"), (Hold::ALL, Hold::ALL));
    world.done(swap("shop", "next")).await;

    let operation = world.done(promote(|_| ())).await;
    assert_eq!(world.held("next"), (Hold::default(), Hold::default()));
    let said = operation.notices.join("\n");
    for part in [
        "mail and jobs of next were held and were let go with the switch",
        "mail and jobs of shop go on too: `offshoot hold shop`",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_promotion_that_goes_back_holds_again() {
    let world = World::with_domains().await;
    world.run(hold("next", Hold::ALL)).await;
    let id = world.submit(promote(|_| ())).await;
    world.step_runs(id, "watch").await;
    assert_eq!(world.held("next"), (Hold::default(), Hold::default()));
    world.shared.live_of(id).unwrap().cancel();
    assert_eq!(world.ended(id).await.state, OperationState::Cancelled);
    assert_eq!(world.held("next"), (Hold::ALL, Hold::ALL));
    world.as_before();
}
