//! Traffic: what is read, what is sent, and what is told at the end.

use std::sync::{Arc, Mutex};

use axum::routing::{get, post};
use axum::{Json, Router};
use offshoot_model::traffic::Policy;
use offshoot_model::traffic::view::{PromoteRequest, RampRequest, TrafficReport, TrafficView};
use offshoot_model::{Code, OperationKind, OperationState};

use crate::fake::{Fake, operation};
use crate::operations::accepted;
use crate::reading::environment;

type Seen<T> = Arc<Mutex<Vec<T>>>;

/// A shop with a policy; notes the policies that are put in its place.
fn shop(seen: &Seen<Policy>) -> Router {
    let policy: Policy = serde_json::from_str(
        r#"{"sides":[{"environment":"shop","weight":1}],"bounds":{"body_bytes":9}}"#,
    )
    .unwrap();
    let view = TrafficView {
        policy,
        ..TrafficView::default()
    };
    let seen = Arc::clone(seen);
    let done = operation(OperationKind::TrafficSet, "shop", OperationState::Done);
    Router::new()
        .route(
            "/environments/shop",
            get(|| async { Json(environment("shop", "aaaaaaaa", None)) }),
        )
        .route(
            "/environments/shop/traffic",
            get(move || async move { Json(view) }).put(
                move |Json(policy): Json<Policy>| async move {
                    seen.lock().unwrap().push(policy);
                    accepted(&done)
                },
            ),
        )
}

#[test]
fn a_part_is_changed_and_the_rest_is_put_back() {
    let seen = Seen::default();
    let fake = Fake::start(shop(&seen));
    fake.run(&["traffic", "split", "shop", "next=10%"])
        .expect(0);
    fake.run(&["traffic", "failover", "shop", "spare", "--check", "/up"])
        .expect(0);
    fake.run(&["traffic", "mirror", "shop", "next", "--share", "5%"])
        .expect(0);
    let policies = seen.lock().unwrap().clone();
    assert!(policies.iter().all(|policy| policy.bounds.body_bytes == 9));
    let weights =
        |policy: &Policy| -> Vec<u32> { policy.sides.iter().map(|side| side.weight).collect() };
    assert_eq!(weights(&policies[0]), [9_000, 1_000]);
    assert_eq!(weights(&policies[1]), [1, 0]);
    assert_eq!(policies[2].mirror.as_ref().unwrap().permille, 50);

    // Nothing is asked for what is only printed, or cannot be.
    let printed = fake.run(&["traffic", "set", "shop", "--dry-run", "--fence", "on"]);
    assert_eq!(printed.expect(0).json()["fence"], true);
    let wrong = fake.run(&["traffic", "set", "shop", "--side", "shop=0", "-o", "json"]);
    assert_eq!(wrong.expect(1).problem().code, Code::PolicyInvalid);
    std::fs::write(fake.dir().join("bad.json"), r#"{"side": []}"#).unwrap();
    let wrong = fake.run(&["traffic", "set", "shop", "-f", "bad.json", "-o", "json"]);
    assert!(
        wrong
            .expect(1)
            .problem()
            .what
            .contains("unknown field `side`")
    );
    std::fs::write(fake.dir().join("good.json"), r#"{"fence": true}"#).unwrap();
    fake.run(&["traffic", "set", "shop", "-f", "good.json"])
        .expect(0);
    let policies = seen.lock().unwrap();
    assert_eq!(policies.len(), 4);
    assert!(policies[3].fence && policies[3].bounds.body_bytes == 0);
}

#[test]
fn a_ramp_and_a_promotion_say_what_they_were_asked_and_what_to_do_next() {
    let (ramps, promotions) = (
        Seen::<RampRequest>::default(),
        Seen::<PromoteRequest>::default(),
    );
    let (ramped, promoted) = (Arc::clone(&ramps), Arc::clone(&promotions));
    let mut done = operation(OperationKind::TrafficRamp, "shop", OperationState::Done);
    done.traffic = Some(TrafficReport {
        old: "shop".to_owned(),
        new: "next".to_owned(),
        percent: 100,
        ..TrafficReport::default()
    });
    let also = done.clone();
    let routes = Router::new()
        .route(
            "/environments/shop/traffic/ramp",
            post(move |Json(request): Json<RampRequest>| async move {
                ramped.lock().unwrap().push(request);
                accepted(&done)
            }),
        )
        .route(
            "/environments/next/promote",
            post(move |Json(request): Json<PromoteRequest>| async move {
                promoted.lock().unwrap().push(request);
                accepted(&also)
            }),
        );
    let fake = Fake::start(routes);
    let args =
        "traffic ramp shop next --steps 5,100 --every 1h --errors 0.5% --latency 1.5x --min 9";
    let told = fake.run(&args.split(' ').collect::<Vec<_>>()).expect(0);
    assert!(
        told.text().contains("offshoot promote next --of shop"),
        "{}",
        told.text()
    );
    let ramps = ramps.lock().unwrap();
    assert_eq!(
        (&ramps[0].steps[..], ramps[0].every_ms),
        (&[5, 100][..], 3_600_000)
    );
    let guard = ramps[0].guard;
    assert_eq!(
        (
            guard.errors_percent,
            guard.latency_factor,
            guard.min_requests
        ),
        (0.5, 1.5, 9)
    );

    fake.run(&["promote", "next"]).expect(0);
    fake.run(&[
        "promote", "next", "--watch", "0", "--fence", "--keep", "24h",
    ])
    .expect(0);
    let promotions = promotions.lock().unwrap();
    assert_eq!(promotions[0], PromoteRequest::default());
    assert!(promotions[1].fence && promotions[1].watch_ms == 0);
    assert_eq!(promotions[1].keep_ms, Some(86_400_000));
}
