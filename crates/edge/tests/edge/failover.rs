//! Sides that are down give way to others, and come back as their policy says.

use std::time::{Duration, Instant};

use hyper::{Method, Request, StatusCode};
use offshoot_edge_api::{EdgeControl, EdgeError, RoutesFile, Traffic};
use offshoot_model::traffic::stats::{OwnerStats, SideHealth};
use serde_json::{Value, json};

use crate::backend::{Backend, CHECK, Reply};
use crate::kit::{A, B, C, TestEdge, ask, full, get, http1, route, signal, until, with_policy};

const INTERVAL: u64 = 100;
const TIMEOUT: u64 = 200;
const FALL: u64 = 3;

/// What a side that fell within its bound took at most: its checks, and one second.
const BOUND: Duration = Duration::from_millis(INTERVAL * FALL + TIMEOUT + 1_000);

/// Two environments behind one name: all goes to the first as long as it is up.
struct Pair {
    edge: TestEdge,
    first: Backend,
    second: Backend,
}

fn failover() -> Value {
    json!({"check": {"path": CHECK, "interval_ms": INTERVAL, "timeout_ms": TIMEOUT, "rise": 2, "fall": FALL, "body": "is well"}})
}

/// Checks that come once and then not for long.
fn rare(more: Value) -> Value {
    let mut failover = json!({"check": {"path": CHECK, "interval_ms": 600_000}});
    failover
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    failover
}

impl Pair {
    async fn start(failover: Value) -> Self {
        let pair = Self {
            edge: TestEdge::start(),
            first: Backend::start("first").await,
            second: Backend::start("second").await,
        };
        pair.edge.serve(&pair.file(1, (100, 0), failover));
        until("all nodes were checked", || {
            [A, B].iter().all(|id| {
                pair.health(id)
                    .nodes
                    .iter()
                    .all(|n| n.last != "not checked yet")
            })
        })
        .await;
        pair
    }

    fn file(&self, version: u64, weights: (u32, u32), failover: Value) -> RoutesFile {
        let policy = json!({
            "sides": [{"environment": A, "weight": weights.0}, {"environment": B, "weight": weights.1}],
            "failover": failover,
        });
        with_policy(
            version,
            vec![route("a.localhost", A, &[self.first.address])],
            A,
            &policy.to_string(),
            &[(A, &[self.first.address]), (B, &[self.second.address])],
        )
    }

    fn stats(&self) -> OwnerStats {
        let mut stats = self.edge.control().stats(vec![A.parse().unwrap()]).unwrap();
        stats.owners.remove(0)
    }

    fn health(&self, id: &str) -> SideHealth {
        let sides = self.stats().sides;
        let side = sides
            .into_iter()
            .find(|side| side.environment.as_str() == id);
        side.unwrap().health.unwrap()
    }

    async fn who(&self) -> String {
        self.send(get("a.localhost", "/")).await.1
    }

    async fn send(&self, request: Request<crate::kit::Body>) -> (StatusCode, String) {
        let answer = ask(self.edge.http(), request).await;
        (answer.status, answer.text().to_owned())
    }

    /// Waits until this one answers; returns how long that took.
    async fn wait_for(&self, name: &str) -> Duration {
        let began = Instant::now();
        while self.who().await != name {
            assert!(
                began.elapsed() < crate::kit::SOON,
                "{name} does not answer: {:?}",
                self.stats()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        began.elapsed()
    }
}

fn with_method(method: Method, body: &'static [u8]) -> Request<crate::kit::Body> {
    Request::builder()
        .method(method)
        .uri("/x")
        .header("host", "a.localhost")
        .body(full(body))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_falls_gives_way_within_its_bound_and_comes_back() {
    let mut pair = Pair::start(failover()).await;
    assert_eq!(pair.who().await, "first");
    let well = || Reply::new(200, "all is well");
    for (reply, why) in [
        (Reply::new(500, "all is well"), "500 in "),
        (Reply::new(200, "not quite"), "without the text"),
        (well().hanging(), "no answer in 200 ms"),
        (well().closing(), "the connection ended"),
    ] {
        pair.first.check(reply);
        let took = pair.wait_for("second").await;
        assert!(took < BOUND, "{why}: {took:?}");
        let health = pair.health(A);
        assert!(
            !health.up && !health.takes && health.nodes[0].last.contains(why),
            "{health:?}"
        );
        let change = pair.stats().changes.pop().unwrap();
        assert!(
            change.environment.as_str() == A && !change.takes && change.why.contains(why),
            "{change:?}"
        );
        pair.first.check(well());
        pair.wait_for("first").await;
        assert!(pair.stats().changes.pop().unwrap().takes);
    }
    pair.first.kill().await;
    let took = pair.wait_for("second").await;
    assert!(took < BOUND, "{took:?}");
    until("it is down", || !pair.health(A).up).await;
    assert_eq!(pair.health(A).nodes[0].last, "connection refused");
    pair.first.revive().await;
    pair.wait_for("first").await;
    let check = pair.first.checks().pop().unwrap();
    assert_eq!(
        (check.method, &check.headers["host"]),
        (Method::GET, &"a.localhost".parse().unwrap())
    );
    // what is kept of it is not the only copy of it: an edge that ends now knows it all
    assert_eq!(pair.stats().changes.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_alternate_change_nothing() {
    let pair = Pair::start(failover()).await;
    let twenty_more = async |why| {
        let before = pair.first.checks().len();
        until(why, || pair.first.checks().len() >= before + 20).await;
    };
    pair.first
        .check(Reply::new(200, "all is well").alternating());
    twenty_more("checks of one that is up").await;
    assert!(pair.health(A).up);
    assert_eq!(pair.stats().changes, []);
    pair.first.check(Reply::new(500, ""));
    pair.wait_for("second").await;
    pair.first
        .check(Reply::new(200, "all is well").alternating());
    twenty_more("checks of one that is down").await;
    assert!(!pair.health(A).up);
    assert_eq!(pair.stats().changes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_failures_count() {
    let pair = Pair::start(rare(json!({"passive": {"failures": 3}}))).await;
    let post = async || pair.send(with_method(Method::POST, b"")).await.1;
    pair.first.reply(Reply::new(503, "first"));
    assert_eq!(post().await, "first");
    assert_eq!(post().await, "first");
    pair.first.reply(Reply::new(404, "first"));
    assert_eq!(post().await, "first");
    pair.first.reply(Reply::new(502, "first"));
    // counted too when the visitor does not see it
    assert_eq!(pair.who().await, "second");
    assert_eq!(post().await, "first");
    assert_eq!(post().await, "first");
    assert_eq!(post().await, "second");
    assert_eq!(pair.first.asked().len(), 6);
    let health = pair.health(A);
    assert!(!health.up);
    assert_eq!(health.nodes[0].last, "3 failed requests in a row: 502");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_waits_to_be_brought_back_also_across_a_crash() {
    let mut by_hand = failover();
    by_hand["back"] = json!("by-hand");
    let mut pair = Pair::start(by_hand.clone()).await;
    pair.first.kill().await;
    pair.wait_for("second").await;
    until("it is down", || !pair.health(A).up).await;
    pair.first.revive().await;
    until("it is up", || pair.health(A).up).await;
    assert!(!pair.health(A).takes);
    assert_eq!(pair.who().await, "second");
    // weights and checks may change meanwhile
    by_hand["check"]["rise"] = json!(1);
    pair.edge.serve(&pair.file(2, (100, 1), by_hand));
    assert_eq!(pair.who().await, "second");
    let changes = pair.stats().changes;

    let kept = pair.edge.config.control.with_extension("health.json");
    until("it is kept", || {
        std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("waits to be brought back"))
    })
    .await;
    pair.edge.kill().await;
    assert_eq!(pair.who().await, "second");
    until("it was checked", || {
        pair.health(A).nodes[0].last.starts_with("200 in")
    })
    .await;
    assert_eq!(pair.who().await, "second");
    assert_eq!(pair.stats().changes, changes);

    let stats = pair.edge.control().back(A.parse().unwrap()).unwrap();
    assert!(stats.owners[0].sides[0].health.as_ref().unwrap().takes);
    assert_eq!(
        pair.stats().changes.last().unwrap().why,
        "brought back by hand"
    );
    pair.wait_for("first").await;
    let refused = pair.edge.control().back(B.parse().unwrap()).unwrap_err();
    assert!(matches!(refused, EdgeError::Refused(why) if why.contains("no policy with checks")));
}

/// A host that shuts down stops its environments too.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_stops_finds_nobody_down() {
    let mut by_hand = failover();
    by_hand["back"] = json!("by-hand");
    let mut pair = Pair::start(by_hand.clone()).await;
    // a request that is waited for, for longer than a side takes to fall
    let slow = Backend::start("slow").await;
    slow.reply(Reply::new(200, "").hanging());
    let mut file = pair.file(2, (100, 0), by_hand);
    file.routes.push(route("c.localhost", C, &[slow.address]));
    pair.edge.serve(&file);
    let mut client = http1(pair.edge.http()).await;
    let answer = tokio::spawn(client.send_request(get("c.localhost", "/")));
    until("it is asked", || slow.asked().len() == 1).await;
    let began = Instant::now();
    signal("TERM", pair.edge.status.pid);
    until("it stops", || {
        EdgeControl::connect(&pair.edge.config.control).is_err()
    })
    .await;
    pair.first.kill().await;
    answer.await.unwrap().unwrap_err();
    assert!(began.elapsed() > BOUND - Duration::from_secs(1));
    pair.first.revive().await;
    pair.edge.ensure();
    assert_eq!(pair.who().await, "first");
    assert_eq!(pair.stats().changes, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_may_be_sent_twice_is() {
    const LONG: &[u8] = &[7; 256 << 10];
    let mut pair = Pair::start(rare(json!({}))).await;
    pair.first.reply(Reply::new(200, "").closing());
    let sent = |backend: &Backend| backend.asked().len();

    assert_eq!(
        pair.send(with_method(Method::GET, b"")).await,
        (StatusCode::OK, "second".into())
    );
    assert_eq!((sent(&pair.first), sent(&pair.second)), (1, 1));
    assert_eq!(
        pair.send(with_method(Method::PUT, b"content")).await.1,
        "second"
    );
    assert_eq!((sent(&pair.first), sent(&pair.second)), (2, 2));
    assert_eq!(pair.second.asked().pop().unwrap().body, "content");
    // may have been carried out
    assert_eq!(
        pair.send(with_method(Method::POST, b"content")).await.0,
        StatusCode::BAD_GATEWAY
    );
    assert_eq!((sent(&pair.first), sent(&pair.second)), (3, 2));
    // longer than what is kept for this
    assert_eq!(
        pair.send(with_method(Method::PUT, LONG)).await.0,
        StatusCode::BAD_GATEWAY
    );
    assert_eq!((sent(&pair.first), sent(&pair.second)), (4, 2));
    // the other one closes too: no third time
    pair.second.reply(Reply::new(200, "").closing());
    assert_eq!(
        pair.send(with_method(Method::GET, b"")).await.0,
        StatusCode::BAD_GATEWAY
    );
    assert_eq!((sent(&pair.first), sent(&pair.second)), (5, 3));
    // nothing was sent: whatever it is may go to the other side
    pair.second.reply(Reply::new(200, "second"));
    pair.first.kill().await;
    assert_eq!(
        pair.send(with_method(Method::POST, LONG)).await,
        (StatusCode::OK, "second".into())
    );
    assert_eq!(pair.second.asked().pop().unwrap().body, LONG);
}

/// A gateway whose application is gone says so: where another side is there, nobody sees that who may ask twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateways_own_error_sends_a_request_to_the_other_side() {
    let pair = Pair::start(rare(json!({}))).await;
    let counted = || {
        let sides = pair.stats().sides;
        [0, 1].map(|side| (sides[side].requests, sides[side].errors))
    };
    for status in [502, 504, 503] {
        pair.first.reply(Reply::new(status, "first"));
        assert_eq!(
            pair.send(with_method(Method::GET, b"")).await,
            (StatusCode::OK, "second".into())
        );
    }
    assert_eq!(
        pair.send(with_method(Method::PUT, b"content")).await.1,
        "second"
    );
    assert_eq!(pair.second.asked().pop().unwrap().body, "content");
    until("each side has what it did", || {
        counted() == [(4, 4), (4, 0)]
    })
    .await;
    // may have been carried out
    let post = pair.send(with_method(Method::POST, b"content")).await;
    assert_eq!(post, (StatusCode::SERVICE_UNAVAILABLE, "first".into()));
    // an error of the application's own
    pair.first.reply(Reply::new(500, "first"));
    assert_eq!(pair.who().await, "first");
    assert_eq!(pair.second.asked().len(), 4);
    // the other one's answer is the last, whatever it is
    pair.first.reply(Reply::new(502, "first"));
    pair.second.reply(Reply::new(503, "second"));
    let asked = pair.first.asked().len();
    assert_eq!(
        pair.send(with_method(Method::GET, b"")).await,
        (StatusCode::SERVICE_UNAVAILABLE, "second".into())
    );
    assert_eq!(pair.first.asked().len(), asked + 1);
    // nobody else is there: a node's own answer is better than none
    let mut file = pair.file(2, (100, 0), rare(json!({})));
    let sides = &mut file.traffic[0].upstreams;
    sides.insert(B.parse().unwrap(), Vec::new());
    pair.edge.serve(&file);
    assert_eq!(
        pair.send(with_method(Method::GET, b"")).await,
        (StatusCode::BAD_GATEWAY, "first".into())
    );
}

/// Its environment was stopped and is started: what it answers first is not for visitors.
#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_returns_is_used_after_enough_good_checks() {
    let pair = Pair::start(failover()).await;
    pair.wait_for("first").await;
    let mut stopped = pair.file(2, (100, 0), failover());
    let sides = &mut stopped.traffic[0].upstreams;
    sides.insert(A.parse().unwrap(), Vec::new());
    pair.edge.serve(&stopped);
    pair.wait_for("second").await;
    pair.first
        .check(Reply::new(200, "all is well").alternating());
    let (asked, checks) = (pair.first.asked().len(), pair.first.checks().len());
    pair.edge.serve(&pair.file(3, (100, 0), failover()));
    until("ten checks", || pair.first.checks().len() >= checks + 10).await;
    assert_eq!(pair.who().await, "second");
    assert_eq!(pair.first.asked().len(), asked);
    pair.first.check(Reply::new(200, "all is well"));
    pair.wait_for("first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_checks_each_side_keeps_its_requests() {
    let mut pair = Pair::start(failover()).await;
    let mut file = pair.file(2, (100, 0), failover());
    file.traffic[0].policy.failover = None;
    pair.edge.serve(&file);
    pair.first.kill().await;
    assert_eq!(
        pair.send(with_method(Method::GET, b"")).await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(pair.second.asked().len(), 0);
    assert_eq!(pair.stats().sides[0].health, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_are_down_people_are_told() {
    let mut pair = Pair::start(failover()).await;
    pair.first.kill().await;
    pair.second.kill().await;
    until("both are down", || !pair.health(A).up && !pair.health(B).up).await;
    let answer = ask(pair.edge.http(), get("a.localhost", "/")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key("retry-after"));
    pair.second.revive().await;
    pair.wait_for("second").await;
    pair.first.revive().await;
    pair.wait_for("first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_down_are_passed_over() {
    let mut pair = Pair::start(failover()).await;
    let third = Backend::start("third").await;
    let mut file = pair.file(2, (100, 0), failover());
    let nodes = vec![pair.first.address, third.address];
    file.traffic[0].upstreams.insert(A.parse().unwrap(), nodes);
    pair.edge.serve(&file);
    pair.wait_for("third").await;
    pair.wait_for("first").await;
    pair.first.check(Reply::new(500, ""));
    until("one is down", || !pair.health(A).nodes[0].up).await;
    assert!(pair.health(A).takes);
    for _ in 0..6 {
        assert_eq!(pair.who().await, "third");
    }
    pair.first.kill().await;
    third.check(Reply::new(500, ""));
    pair.wait_for("second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn load_does_not_notice_a_failover() {
    let mut pair = Pair::start(failover()).await;
    let address = pair.edge.http();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let stopped = stopped.clone();
        clients.spawn(async move {
            let mut answers = Vec::new();
            while !*stopped.borrow() {
                let answer = ask(address, get("a.localhost", "/")).await;
                answers.push((Instant::now(), answer.status, answer.text().to_owned()));
            }
            answers
        });
    }
    until("there is load", || pair.first.asked().len() > 100).await;
    pair.first.kill().await;
    pair.wait_for("second").await;
    let switched = Instant::now();
    let before = pair.second.asked().len();
    until("there is load", || pair.second.asked().len() > before + 200).await;
    stop.send_replace(true);
    let answers: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
    for (at, status, who) in &answers {
        assert!(
            *status == StatusCode::OK || *at < switched,
            "{status} from {who} after the switch"
        );
    }
    let failed = answers
        .iter()
        .filter(|(_, status, _)| *status != StatusCode::OK)
        .count();
    println!("{failed} of {} failed before the switch", answers.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_outlives_a_reload_and_ends_with_its_policy() {
    let pair = Pair::start(failover()).await;
    pair.first.check(Reply::new(500, ""));
    pair.wait_for("second").await;
    let asked = pair.first.asked().len();
    pair.edge.serve(&pair.file(2, (50, 50), failover()));
    for _ in 0..20 {
        assert_eq!(pair.who().await, "second");
    }
    assert_eq!(pair.first.asked().len(), asked);
    // another owner's checks are the clock: ten of these later nobody has asked any more
    let mut file = pair.file(3, (50, 50), failover());
    file.traffic[0].policy.failover = None;
    let clock = Backend::start("clock").await;
    file.routes
        .push(route("*.c.localhost", C, &[clock.address]));
    file.traffic.push(Traffic {
        environment: C.parse().unwrap(),
        policy: serde_json::from_value(json!({"failover": failover()})).unwrap(),
        upstreams: [].into(),
    });
    pair.edge.serve(&file);
    let checks = pair.first.checks().len();
    until("ten checks of the other", || clock.checks().len() >= 10).await;
    assert!(pair.first.checks().len() <= checks + 1);
    assert_eq!(clock.checks()[0].headers["host"], "www.c.localhost");
    // without sides an environment is its own
    clock.check(Reply::new(500, ""));
    let status = async || {
        ask(pair.edge.http(), get("any.c.localhost", "/"))
            .await
            .status
    };
    let began = Instant::now();
    while status().await != StatusCode::SERVICE_UNAVAILABLE {
        assert!(began.elapsed() < BOUND);
    }
}
