//! Verdicts of health checks, and their pause.

use offshoot_model::environment::Health;
use offshoot_model::{Node, manifest::HealthCheck};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::health::check_if_due;

const SECOND: Duration = Duration::from_secs(1);

/// An environment of one node with a check.
struct Patient {
    world: World,
    shop: Environment,
    check: HealthCheck,
}

impl Patient {
    async fn new(check: HealthCheck) -> Self {
        let world = World::new();
        let shop = world.created("shop", vec![layer("web")]).await;
        Self { world, shop, check }
    }

    fn node(&self) -> &Node {
        &self.shop.nodes[0]
    }

    /// Looks ten times a second for this long; says how many checks ran.
    async fn look_for(&self, time: Duration) -> usize {
        let end = Instant::now() + time;
        while Instant::now() < end {
            check_if_due(&self.world.shared, &self.shop, self.node(), &self.check).await;
            sleep(SECOND / 10).await;
        }
        self.world.engine.calls().len()
    }

    fn verdict(&self) -> Health {
        let health = &self.world.shared.health;
        health.verdict(&self.node().id, Some(&self.check))
    }

    fn status(&self, status: i32) {
        let mut host = self.world.engine.host();
        host.checks.insert("web-1".into(), status);
    }
}

#[tokio::test(start_paused = true)]
async fn one_success_makes_healthy_and_failures_in_a_row_unhealthy() {
    let patient = Patient::new(check()).await;
    assert_eq!(patient.verdict(), Health::Starting);
    patient.look_for(SECOND).await;
    assert_eq!(patient.verdict(), Health::Healthy);

    patient.status(1);
    assert_eq!(patient.look_for(61 * SECOND).await, 2, "every 30 s");
    assert_eq!(patient.verdict(), Health::Healthy, "two failures of three");
    patient.look_for(30 * SECOND).await;
    assert_eq!(patient.verdict(), Health::Unhealthy);

    patient.status(0);
    patient.look_for(30 * SECOND).await;
    assert_eq!(patient.verdict(), Health::Healthy);

    patient.world.shared.health.reset(&patient.node().id);
    assert_eq!(patient.verdict(), Health::Starting);
    let none = patient
        .world
        .shared
        .health
        .verdict(&patient.node().id, None);
    assert_eq!(none, Health::None);
}

#[tokio::test(start_paused = true)]
async fn failures_in_the_start_period_do_not_count() {
    let slow = HealthCheck {
        start_period_ms: 20_000,
        ..check()
    };
    let patient = Patient::new(slow).await;
    patient.status(1);
    let often = patient.look_for(19 * SECOND).await;
    assert!(often >= 30, "looked at twice a second: {often}");
    assert_eq!(patient.verdict(), Health::Starting);
    patient.look_for(3 * SECOND).await;
    assert_eq!(patient.verdict(), Health::Unhealthy);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_does_not_end_in_time_has_failed() {
    let patient = Patient::new(check()).await;
    patient.world.engine.hang("check web-1");
    let begun = Instant::now();
    check_if_due(
        &patient.world.shared,
        &patient.shop,
        patient.node(),
        &patient.check,
    )
    .await;
    assert_eq!(begun.elapsed(), 5 * SECOND);
    patient.look_for(15 * SECOND).await;
    assert_eq!(patient.verdict(), Health::Unhealthy);
}

#[tokio::test(start_paused = true)]
async fn a_pause_waits_for_running_checks_and_keeps_new_ones_out() {
    let patient = Patient::new(check()).await;
    let shared = &patient.world.shared;
    patient.world.engine.hang("check web-1");
    let running = {
        let (shared, shop, check) = (
            Arc::clone(shared),
            patient.shop.clone(),
            patient.check.clone(),
        );
        tokio::spawn(async move { check_if_due(&shared, &shop, &shop.nodes[0], &check).await })
    };
    patient.world.engine.hangs.notified().await;
    let pausing = timeout(SECOND, shared.health.pause(&patient.shop.id)).await;
    assert!(pausing.is_err(), "a check runs");
    patient.world.engine.go_on();
    running.await.unwrap();

    let paused = timeout(SECOND, shared.health.pause(&patient.shop.id))
        .await
        .unwrap();
    patient.world.engine.calls();
    assert_eq!(patient.look_for(60 * SECOND).await, 0);
    assert_eq!(patient.verdict(), Health::Healthy, "a pause is no failure");
    drop(paused);
    assert_eq!(patient.look_for(31 * SECOND).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_pause_does_not_wait_for_ever() {
    let endless = HealthCheck {
        timeout_ms: 1_000_000,
        ..check()
    };
    let patient = Patient::new(endless).await;
    patient.world.engine.hang("check web-1");
    let (shared, shop, check) = (
        Arc::clone(&patient.world.shared),
        patient.shop.clone(),
        patient.check.clone(),
    );
    let running =
        tokio::spawn(async move { check_if_due(&shared, &shop, &shop.nodes[0], &check).await });
    patient.world.engine.hangs.notified().await;
    let begun = Instant::now();
    let _paused = patient.world.shared.health.pause(&patient.shop.id).await;
    assert_eq!(begun.elapsed(), 5 * SECOND);
    running.abort();
}
