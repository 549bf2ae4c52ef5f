//! Restart policies and their back-off, and what is mended.

use offshoot_model::manifest::RestartPolicy;
use offshoot_model::{Node, NodeState};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::engine::exited;
use super::*;
use crate::supervise::supervise;

const SECOND: Duration = Duration::from_secs(1);

struct Looked {
    world: World,
    node: Node,
    supervisor: JoinHandle<()>,
}

impl Drop for Looked {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

/// A supervised environment of one node.
async fn looked_after(policy: RestartPolicy) -> Looked {
    let world = World::new();
    let mut layer = layer("web");
    layer.restart = policy;
    let shop = world.created("shop", vec![layer]).await;
    let supervisor = tokio::spawn(supervise(Arc::clone(&world.shared)));
    Looked {
        world,
        node: shop.nodes[0].clone(),
        supervisor,
    }
}

impl Looked {
    fn set(&self, state: NodeState) {
        let mut host = self.world.engine.host();
        host.nodes.insert(self.node.id.clone(), state);
    }

    /// Times of the starts since the last time this was asked.
    fn starts(&self) -> Vec<Instant> {
        let calls = std::mem::take(&mut self.world.engine.host().calls);
        let starts = calls.into_iter().filter(|(_, call)| call == "start web-1");
        starts.map(|(at, _)| at).collect()
    }
}

const ALWAYS: RestartPolicy = RestartPolicy::Always;
const THRICE: RestartPolicy = RestartPolicy::OnFailure {
    max_attempts: Some(3),
};

#[tokio::test(start_paused = true)]
async fn a_node_that_ends_is_started_again_as_its_policy_says() {
    let on_failure = RestartPolicy::OnFailure { max_attempts: None };
    for (policy, state, again) in [
        (RestartPolicy::No, exited(1), false),
        (RestartPolicy::No, NodeState::Stopped, false),
        (ALWAYS, exited(0), true),
        (ALWAYS, NodeState::Stopped, true),
        (RestartPolicy::UnlessStopped, exited(0), true),
        (on_failure, exited(0), false),
        (on_failure, exited(1), true),
        // Its shim was killed: nobody saw it end.
        (on_failure, NodeState::Stopped, true),
    ] {
        let looked = looked_after(policy).await;
        looked.set(state.clone());
        sleep(3 * SECOND).await;
        assert_eq!(
            looked.starts().len(),
            usize::from(again),
            "{policy:?} {state:?}"
        );
        let store = &looked.world.shared.store;
        let counted = store.node_restarts(looked.node.id.env(), "web-1").unwrap();
        assert_eq!(counted, u32::from(again));
    }
}

#[tokio::test(start_paused = true)]
async fn waits_between_restarts_double_up_to_a_minute() {
    let looked = looked_after(ALWAYS).await;
    looked.world.engine.host().ends.insert("web-1".into(), 0);
    looked.set(exited(0));
    sleep(400 * SECOND).await;
    let starts = looked.starts();
    let waits: Vec<_> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mut wanted = Duration::from_millis(100);
    for wait in &waits {
        assert!(*wait >= wanted && *wait <= wanted + SECOND, "{waits:?}");
        wanted = (wanted * 2).min(60 * SECOND);
    }
    assert_eq!(wanted, 60 * SECOND, "{waits:?}");
    assert!(waits.len() > 12, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_ran_for_a_while_begins_again_with_the_first_wait() {
    let looked = looked_after(ALWAYS).await;
    looked.world.engine.host().ends.insert("web-1".into(), 0);
    looked.set(exited(0));
    sleep(30 * SECOND).await;
    assert!(looked.starts().len() > 5);
    looked.world.engine.host().ends.clear();
    sleep(60 * SECOND).await;
    looked.set(exited(0));
    let ended = Instant::now();
    sleep(2 * SECOND).await;
    assert!(looked.starts()[1] - ended <= SECOND);
}

#[tokio::test(start_paused = true)]
async fn attempts_in_a_row_are_counted_and_a_person_or_a_steady_run_begins_anew() {
    let looked = looked_after(THRICE).await;
    looked.world.engine.host().ends.insert("web-1".into(), 1);
    looked.set(exited(1));
    sleep(300 * SECOND).await;
    assert_eq!(looked.starts().len(), 3);

    looked.world.run(Request::Start("shop".into())).await;
    sleep(300 * SECOND).await;
    assert_eq!(looked.starts().len(), 1 + 3);

    looked.world.engine.host().ends.clear();
    looked.world.run(Request::Start("shop".into())).await;
    for _ in 0..5 {
        sleep(20 * SECOND).await;
        looked.set(exited(1));
    }
    sleep(2 * SECOND).await;
    assert_eq!(looked.starts().len(), 1 + 5, "never more than one in a row");
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_fails_is_tried_again() {
    let looked = looked_after(ALWAYS).await;
    looked.world.engine.fail("start web-1");
    looked.set(exited(0));
    sleep(5 * SECOND).await;
    assert!(looked.starts().len() > 2);
    looked.world.engine.go_on();
    sleep(10 * SECOND).await;
    assert!(looked.world.runs(looked.node.id.env()));
}

#[tokio::test(start_paused = true)]
async fn what_is_stopped_or_being_changed_is_left_alone() {
    let looked = looked_after(ALWAYS).await;
    let world = &looked.world;
    world.engine.hang("stop web-1");
    let stop = world.submit(Request::Stop("shop".into())).await;
    world.engine.hangs.notified().await;
    looked.set(exited(0));
    sleep(10 * SECOND).await;
    assert!(looked.starts().is_empty(), "it is being stopped");
    world.engine.go_on();
    world.ended(stop).await;
    sleep(10 * SECOND).await;
    assert!(looked.starts().is_empty(), "it is stopped");
}

#[tokio::test(start_paused = true)]
async fn edge_and_networks_are_mended_every_five_seconds_also_when_one_cannot_be() {
    let looked = looked_after(RestartPolicy::No).await;
    looked.world.created("other", vec![layer("web")]).await;
    looked.world.engine.calls();
    looked.world.engine.fail("network open");
    sleep(10 * SECOND).await;
    let calls = looked.world.engine.calls();
    let count = |wanted: &str| calls.iter().filter(|call| *call == wanted).count();
    assert_eq!(
        (count("entrance"), count("network open")),
        (2, 4),
        "{calls:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_edge_that_ends_is_told_everything_at_once_but_not_without_pause() {
    let looked = looked_after(RestartPolicy::No).await;
    let engine = &looked.world.engine;
    sleep(SECOND).await;
    engine.calls();
    let began = Instant::now();
    for _ in 0..4 {
        engine.edge_ends.notify_one();
        sleep(SECOND / 10).await;
    }
    sleep(SECOND).await;
    let calls = std::mem::take(&mut engine.host().calls);
    let told: Vec<_> = calls.iter().filter(|(_, call)| call == "expose").collect();
    assert!((2..=4).contains(&told.len()), "{calls:?}");
    assert_eq!(told[0].0, began, "at once");
    assert!(
        told.windows(2).all(|two| two[1].0 - two[0].0 >= SECOND / 2),
        "{calls:?}"
    );

    // What could not be told is told until it is.
    engine.fail("expose");
    engine.edge_ends.notify_one();
    sleep(7 * SECOND).await;
    engine.go_on();
    engine.calls();
    sleep(6 * SECOND).await;
    assert!(engine.calls().contains(&"expose".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_was_removed_while_others_were_mended_stays_removed() {
    let looked = looked_after(RestartPolicy::No).await;
    let world = &looked.world;
    world.created("other", vec![layer("web")]).await;
    world.engine.hang("network open");
    world.engine.hangs.notified().await;
    // One of the two is being mended; the other goes.
    let both = ["shop", "other"].map(|name| world.named(name).unwrap());
    let free = |env: &&Environment| world.shared.locks.try_hold(&env.id).is_some();
    let gone = both.iter().find(free).unwrap();
    let removed = world.run(Request::Remove(gone.name.to_string())).await;
    assert_eq!(removed.state, OperationState::Done);
    world.engine.go_on();
    sleep(SECOND / 2).await;
    assert!(
        world
            .engine
            .nothing_of(&gone.id, &format!("{}.localhost", gone.name))
    );
}
