//! A daemon that dies at any call of any change, before and after it took effect; the next one finishes or undoes it.

use offshoot_engine::Reach;
use offshoot_model::{EnvironmentState, Hold, OperationState};
use tokio::runtime::{Builder, Runtime};

use super::engine::{Act, exited};
use super::*;
use crate::recover::recover;

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

/// What is done, and to an environment in which state.
struct Change {
    request: fn() -> Request,
    stopped: bool,
    /// Custom domains that it has before; with any, there is an environment `next` beside it.
    domains: &'static [&'static str],
    /// Looks at the end: the operation is done, or not.
    settled: fn(&World, bool),
}

fn layers() -> Vec<Layer> {
    let jobs = Layer {
        jobs: true,
        ..checked(layer("db"))
    };
    vec![layer("web"), jobs]
}

/// The environment holds everything, and of its nodes only `web-1` runs.
fn all_held(world: &World, name: &str) {
    let environment = world.named(name).unwrap();
    let host = world.engine.host();
    assert_eq!(
        (environment.held, host.held.get(&environment.id)),
        (Hold::ALL, Some(&Hold::ALL))
    );
    let running: Vec<_> = host
        .nodes
        .keys()
        .filter(|node| *node.env() == environment.id)
        .map(NodeId::name)
        .collect();
    assert_eq!(running, ["web-1"]);
}

/// Kills the daemon at call number `at`; says whether it came so far.
fn die_at(change: &Change, at: usize, act: Act) -> bool {
    let first = runtime();
    let (dir, engine, id) = first.block_on(async {
        let engine: Arc<Pretend> = Arc::default();
        engine.host().https = !change.domains.is_empty();
        let world = World::on(Arc::new(tempfile::tempdir().unwrap()), engine);
        if change.domains.is_empty() {
            world.created("shop", layers()).await;
        } else {
            world.created("shop", domains::web()).await;
            world.created("next", domains::web()).await;
            world.run(domains::add("shop", change.domains)).await;
            world.engine.calls();
        }
        if change.stopped {
            world.run(Request::Stop("shop".into())).await;
            world.engine.calls();
        }
        world.engine.host().act_at = Some((at, act));
        let id = world.submit((change.request)()).await;
        tokio::select! {
            biased;
            () = world.engine.hangs.notified() => {}
            _ = world.ended(id) => {}
        }
        (world.dir, world.engine, id)
    });
    // The tasks end where they are, as a process that is killed.
    drop(first);
    let died = engine.host().calls.len() > at;
    engine.calls();
    engine.host().act_at = None;
    runtime().block_on(async {
        let world = World::on(dir, engine);
        recover(&world.shared).await.unwrap();
        let operation = world.ended(id).await;
        let what = format!("{:?} {act:?} at {at}: {operation:?}", operation.kind);
        println!("{what}");
        assert!(operation.state.is_final(), "{what}");
        world
            .until("nothing to be under way", || {
                let environments = world.shared.store.environments().unwrap();
                let free = |env: &Environment| world.shared.locks.try_hold(&env.id).is_some();
                environments.iter().all(free).then_some(())
            })
            .await;
        (change.settled)(&world, operation.state == OperationState::Done);
        let known: Vec<EnvId> = world
            .shared
            .store
            .environments()
            .unwrap()
            .into_iter()
            .map(|environment| environment.id)
            .collect();
        let host = world.engine.host();
        assert!(host.made.iter().all(|id| known.contains(id)), "{what}");
        assert!(
            host.nodes.keys().all(|id| known.contains(id.env())),
            "{what}"
        );
        assert!(host.cuts.is_empty(), "{what}");
    });
    died
}

fn die_everywhere(change: &Change, at_least: usize) {
    let mut calls = 0;
    while die_at(change, calls, Act::Hang) {
        die_at(change, calls, Act::HangLate);
        calls += 1;
    }
    assert!(calls >= at_least, "only {calls} calls");
}

fn shop_runs(world: &World, name: &str) {
    assert_eq!(world.state(name), Some(EnvironmentState::Running));
    assert!(world.runs(&world.named(name).unwrap().id));
    assert_eq!(world.reach(name), Some(Reach::Open));
}

#[test]
fn create() {
    let change = Change {
        request: || super::create("blog", layers()),
        stopped: false,
        domains: &[],
        settled: |world, done| {
            assert!(done);
            shop_runs(world, "blog");
        },
    };
    die_everywhere(&change, 7);
}

#[test]
fn hold() {
    let change = Change {
        request: || Request::Hold("shop".into(), Hold::ALL),
        stopped: false,
        domains: &[],
        settled: |world, done| {
            assert!(done);
            all_held(world, "shop");
        },
    };
    die_everywhere(&change, 2);
}

#[test]
fn clone_that_holds() {
    let change = Change {
        request: || {
            let hold = Hold::ALL;
            Request::Clone(
                "shop".into(),
                CloneRequest {
                    hold,
                    ..CloneRequest::default()
                },
            )
        },
        stopped: false,
        domains: &[],
        settled: |world, done| {
            shop_runs(world, "shop");
            match done {
                true => all_held(world, "shop-clone"),
                false => assert_eq!(world.named("shop-clone"), None),
            }
        },
    };
    die_everywhere(&change, 8);
}

#[test]
fn clone_that_is_not_started() {
    let change = Change {
        request: || {
            let start = false;
            Request::Clone(
                "shop".into(),
                CloneRequest {
                    start,
                    ..CloneRequest::default()
                },
            )
        },
        stopped: false,
        domains: &[],
        settled: |world, done| {
            shop_runs(world, "shop");
            match done {
                true => assert_eq!(world.state("shop-clone"), Some(EnvironmentState::Stopped)),
                false => assert_eq!(world.named("shop-clone"), None),
            }
        },
    };
    die_everywhere(&change, 5);
}

#[test]
fn clone() {
    let change = Change {
        request: || clone_of("shop"),
        stopped: false,
        domains: &[],
        settled: |world, done| {
            shop_runs(world, "shop");
            match done {
                true => shop_runs(world, "shop-clone"),
                false => assert_eq!(
                    (world.named("shop-clone"), world.reach("shop-clone")),
                    (None, None)
                ),
            }
        },
    };
    die_everywhere(&change, 10);
}

#[test]
fn rename() {
    let change = Change {
        request: || super::rename("shop", "store"),
        stopped: false,
        domains: &[],
        settled: |world, done| {
            assert!(done);
            shop_runs(world, "store");
            assert_eq!((world.named("shop"), world.reach("shop")), (None, None));
        },
    };
    die_everywhere(&change, 2);
}

#[test]
fn start() {
    let change = Change {
        request: || Request::Start("shop".into()),
        stopped: true,
        domains: &[],
        settled: |world, done| {
            assert!(done);
            shop_runs(world, "shop");
        },
    };
    die_everywhere(&change, 4);
}

#[test]
fn stop() {
    let change = Change {
        request: || Request::Stop("shop".into()),
        stopped: false,
        domains: &[],
        settled: |world, done| {
            assert!(done && world.engine.host().nodes.is_empty());
            assert_eq!(world.state("shop"), Some(EnvironmentState::Stopped));
            assert_eq!(world.reach("shop"), Some(Reach::Closed));
        },
    };
    die_everywhere(&change, 4);
}

#[test]
fn remove() {
    let change = Change {
        request: || Request::Remove("shop".into()),
        stopped: false,
        domains: &[],
        settled: |world, done| {
            assert!(done);
            assert_eq!((world.named("shop"), world.reach("shop")), (None, None));
        },
    };
    die_everywhere(&change, 4);
}

#[test]
fn domain_add() {
    let change = Change {
        request: || domains::add("shop", &["a.test", "b.test"]),
        stopped: false,
        domains: &["a.test"],
        settled: |world, done| {
            assert!(done);
            assert_eq!(world.has("shop"), ["a.test", "b.test"]);
            world.edge_is_right();
        },
    };
    die_everywhere(&change, 1);
}

#[test]
fn domain_remove() {
    let change = Change {
        request: || domains::remove("shop", "a.test"),
        stopped: false,
        domains: &["a.test", "b.test"],
        settled: |world, done| {
            assert!(done);
            assert_eq!(world.has("shop"), ["b.test"]);
            world.edge_is_right();
            let gone = offshoot_model::Domain::of_host("a.test");
            assert_eq!(world.shared.store.domain_holder(&gone).unwrap(), None);
        },
    };
    die_everywhere(&change, 1);
}

#[test]
fn swap() {
    let change = Change {
        request: || domains::swap("shop", "next"),
        stopped: false,
        domains: &["a.test", "b.test"],
        settled: |world, done| {
            assert!(done);
            assert!(world.has("shop").is_empty());
            assert_eq!(world.has("next"), ["a.test", "b.test"]);
            world.edge_is_right();
        },
    };
    die_everywhere(&change, 7);
}

#[test]
fn a_domain_stays_when_its_removal_cannot_be_understood_any_more() {
    let first = runtime();
    let (dir, engine, id) = first.block_on(async {
        let world = World::new();
        world.created("shop", domains::web()).await;
        world.run(domains::add("shop", &["a.test"])).await;
        world.engine.host().acts.insert("expose".into(), Act::Hang);
        let id = world.submit(domains::remove("shop", "a.test")).await;
        world.engine.hangs.notified().await;
        assert!(world.has("shop").is_empty());
        let (operation, _) = world.shared.store.operation(id).unwrap().unwrap();
        let unknown = json!({"saga": "of-another-version"});
        world
            .shared
            .store
            .save_operation(&operation, &unknown)
            .unwrap();
        (world.dir, world.engine, id)
    });
    drop(first);
    engine.go_on();
    runtime().block_on(async {
        let world = World::on(dir, engine);
        recover(&world.shared).await.unwrap();
        assert_eq!(world.ended(id).await.state, OperationState::Failed);
        assert_eq!(world.has("shop"), ["a.test"]);
        world.edge_is_right();
    });
}

/// As the next daemon finds it when a cancel was asked for and the switch had been made, but not been recorded.
#[test]
fn a_swap_cancelled_at_its_switch_is_taken_back_by_the_next_daemon() {
    let first = runtime();
    let (dir, engine, id) = first.block_on(async {
        let world = World::new();
        world.created("shop", domains::web()).await;
        world.created("next", domains::web()).await;
        world.run(domains::add("shop", &["a.test"])).await;
        world
            .engine
            .host()
            .acts
            .insert("expose".into(), Act::HangLate);
        let id = world.submit(domains::swap("shop", "next")).await;
        world.engine.hangs.notified().await;
        assert_eq!(world.leads("a.test").as_deref(), Some("next"));
        world.shared.store.request_cancel(id).unwrap();
        (world.dir, world.engine, id)
    });
    drop(first);
    engine.go_on();
    runtime().block_on(async {
        let world = World::on(dir, engine);
        recover(&world.shared).await.unwrap();
        let operation = world.ended(id).await;
        assert_eq!(operation.state, OperationState::Cancelled);
        assert_eq!(operation.swap.unwrap().switched, None);
        assert_eq!(world.has("shop"), ["a.test"]);
        world.edge_is_right();
    });
}

#[test]
fn changes_that_waited_are_done_in_their_order() {
    let first = runtime();
    let (dir, engine, ids) = first.block_on(async {
        let world = World::new();
        world.created("shop", layers()).await;
        world.engine.hang("stop web-1");
        let mut ids = vec![world.submit(Request::Stop("shop".into())).await];
        world.engine.hangs.notified().await;
        for request in [
            Request::Start("shop".into()),
            super::rename("shop", "store"),
            Request::Stop("shop".into()),
        ] {
            ids.push(world.submit(request).await);
        }
        (world.dir, world.engine, ids)
    });
    drop(first);
    engine.go_on();
    runtime().block_on(async {
        let world = World::on(dir, engine);
        recover(&world.shared).await.unwrap();
        let mut ends = Vec::new();
        for id in ids {
            let operation = world.ended(id).await;
            assert_eq!(operation.state, OperationState::Done, "{operation:?}");
            ends.push(operation.ended.unwrap());
        }
        assert!(ends.is_sorted(), "{ends:?}");
        assert_eq!(world.state("store"), Some(EnvironmentState::Stopped));
        assert!(world.engine.host().nodes.is_empty());
    });
}

#[test]
fn after_a_reboot_what_ran_runs_and_what_ended_by_itself_is_left_to_its_policy() {
    let first = runtime();
    let (dir, engine) = first.block_on(async {
        let world = World::new();
        for name in ["shop", "rests", "ended"] {
            world.created(name, layers()).await;
        }
        world.run(Request::Stop("rests".into())).await;
        let ended = world.named("ended").unwrap();
        {
            let mut host = world.engine.host();
            host.nodes.clear();
            host.exposed.clear();
            for node in &ended.nodes {
                host.nodes.insert(node.id.clone(), exited(1));
            }
        }
        (world.dir, world.engine)
    });
    drop(first);
    runtime().block_on(async {
        let world = World::on(dir, engine);
        recover(&world.shared).await.unwrap();
        let id = |name| world.named(name).unwrap().id;
        world
            .until("the shop to run", || world.runs(&id("shop")).then_some(()))
            .await;
        assert!(!world.runs(&id("ended")));
        let nodes = world.engine.host().nodes.len();
        assert_eq!(nodes, 2 + 2, "of two environments");
        assert_eq!(world.reach("shop"), Some(Reach::Open));
        assert_eq!(world.reach("rests"), Some(Reach::Closed));
    });
}

/// The host has a certificate by its authority or the one before, and nothing else is left.
fn certified(world: &World, done: bool) {
    assert!(done);
    world.edge_is_right();
    world.https_is_right();
    assert!(world.certified("a.test"));
}

#[test]
fn certificate_by_acme() {
    let change = Change {
        request: || super::https::acme(&["a.test"]),
        stopped: false,
        domains: &["a.test"],
        settled: certified,
    };
    die_everywhere(&change, 6);
}

#[test]
fn certificate_that_is_brought() {
    let change = Change {
        request: || super::https::upload(super::https::bought(&["a.test"]), &[]),
        stopped: false,
        domains: &["a.test"],
        settled: certified,
    };
    die_everywhere(&change, 1);
}

#[test]
fn certificate_removed() {
    let change = Change {
        request: || Request::CertificateRemove("shop.localhost".into()),
        stopped: false,
        domains: &["a.test"],
        settled: |world, done| {
            assert!(done);
            world.edge_is_right();
            world.https_is_right();
            // It is a default domain's, so there is another at once.
            assert!(world.certified("shop.localhost"));
        },
    };
    die_everywhere(&change, 1);
}

#[test]
fn rename_with_redirect() {
    let change = Change {
        request: || super::https::renamed("shop", "store"),
        stopped: false,
        domains: &["a.test"],
        settled: |world, done| {
            assert!(done);
            world.edge_is_right();
            world.https_is_right();
            let host = world.engine.host();
            let to = host.redirects.get("shop.localhost").map(String::as_str);
            assert_eq!(to, Some("http://store.localhost"));
        },
    };
    die_everywhere(&change, 2);
}

/// With `next` before it, the operation's environment is `shop`.
#[test]
fn a_policy() {
    let change = Change {
        request: || traffic::set("shop", traffic::split(&[("shop", 1), ("next", 1)])),
        stopped: false,
        domains: &["a.test"],
        settled: |world, done| {
            assert!(done);
            assert_eq!(world.share(), Some(1));
        },
    };
    die_everywhere(&change, 1);
}

#[test]
fn promote() {
    let change = Change {
        request: || {
            traffic::promote(|request| (request.watch_ms, request.baseline_ms) = (2_000, 10))
        },
        stopped: false,
        domains: &["a.test", "b.test"],
        settled: |world, done| {
            assert!(done);
            assert!(world.has("shop").is_empty());
            assert_eq!(world.has("next"), ["a.test", "b.test"]);
            world.edge_is_right();
        },
    };
    die_everywhere(&change, 7);
}

#[test]
fn ramp() {
    let change = Change {
        request: || traffic::ramp(|request| request.every_ms = 2_000),
        stopped: false,
        domains: &["a.test"],
        settled: |world, done| {
            assert!(done);
            assert_eq!(world.share(), Some(100));
        },
    };
    die_everywhere(&change, 4);
}
