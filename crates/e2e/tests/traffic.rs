//! Policies, ramps and promotions, as people and their browsers see them.

use std::collections::BTreeMap;
use std::time::Duration;

use offshoot_e2e::support::{ONE, SOON, answers, ended, refused_with};
use offshoot_e2e::{EDGE, TestDaemon, http, wait_for};
use serde_json::Value;

const HOST: &str = "shop.example.test";
const COOKIE: &str = "offshoot-visitor=";

/// Longest wait for an operation that watches.
const WATCHED: Duration = Duration::from_secs(120);

/// Status, who answered, and the cookie that was set.
fn ask_with(
    daemon: &TestDaemon,
    host: &str,
    cookie: Option<&str>,
) -> (u16, String, Option<String>) {
    let headers: Vec<_> = cookie.iter().map(|cookie| ("Cookie", *cookie)).collect();
    let answer = daemon.inside(|| http::send(EDGE, host, "GET", "/", &headers, b""));
    let answer = answer.expect("the edge answers");
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let value = body["value"].as_str().unwrap_or_default().to_owned();
    let cookie = answer.header("set-cookie").and_then(|text| {
        let pair = text.split(';').next()?;
        pair.starts_with(COOKIE).then(|| pair.to_owned())
    });
    (answer.status, value, cookie)
}

fn ask(daemon: &TestDaemon, host: &str) -> (u16, String) {
    let (status, value, _) = ask_with(daemon, host, None);
    (status, value)
}

fn answered_by(name: &str) -> (u16, String) {
    (200, name.to_owned())
}

/// How often who answers, of so many visitors who come for the first time.
fn seen(daemon: &TestDaemon, visitors: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..visitors {
        let (status, who) = ask(daemon, HOST);
        assert_eq!(status, 200);
        *seen.entry(who).or_default() += 1;
    }
    seen
}

/// A shop at [`HOST`] and its clone, which tell who they are.
fn shop_and_clone(daemon: &TestDaemon) {
    daemon.create("shop", ONE);
    answers(daemon, "shop");
    daemon.run(&["clone", "shop", "--name", "next"]);
    for name in ["shop", "next"] {
        answers(daemon, name);
        let set = format!("/set?v={name}");
        daemon.node(name, &set).expect("the environment answers");
    }
    daemon.run(&["domain", "add", "shop", HOST]);
}

/// Begins an operation and gives its id.
fn begin(daemon: &TestDaemon, args: &[&str]) -> String {
    let mut all = args.to_vec();
    all.push("--detach");
    let operation = daemon.json(&all);
    operation["id"].as_str().expect("an id").to_owned()
}

fn until_answered_by(daemon: &TestDaemon, name: &str) {
    wait_for(&format!("{name} to answer"), SOON, || {
        (ask(daemon, HOST) == answered_by(name)).then_some(())
    });
}

fn state(daemon: &TestDaemon, id: &str) -> Value {
    daemon.json(&["op", "show", id])
}

#[test]
fn shares_are_what_visitors_see_and_stay_with_them() {
    let daemon = TestDaemon::start();
    shop_and_clone(&daemon);
    daemon.run(&["traffic", "split", "shop", "next=50%"]);
    let both = seen(&daemon, 60);
    // 10 of 60 or fewer come by chance once in ten million.
    assert!(both["shop"] > 10 && both["next"] > 10, "{both:?}");

    for _ in 0..4 {
        let (_, who, cookie) = ask_with(&daemon, HOST, None);
        let cookie = cookie.expect("a cookie for a new visitor");
        for _ in 0..5 {
            let (status, again, _) = ask_with(&daemon, HOST, Some(&cookie));
            assert_eq!((status, &again), (200, &who));
        }
    }
    let view = daemon.json(&["traffic", "show", "shop"]);
    println!("{}", daemon.run(&["traffic", "show", "shop"]));
    let sides = view["sides"].as_array().expect("sides");
    let requests = |place: usize| sides[place]["requests"].as_u64().expect("a count");
    assert_eq!(sides[1]["environment"], "next");
    assert_eq!(requests(0) + requests(1), 60 + 4 * 6, "{view:#}");
    assert!(sides[0]["p95_ms"].as_f64().is_some_and(|ms| ms > 0.0));

    // A rule goes before weights, and whoever is named stays.
    let rule = "query:who=next -> next";
    daemon.run(&[
        "traffic", "set", "shop", "--rule", rule, "--sticky", "nothing",
    ]);
    for _ in 0..10 {
        let answer = daemon.inside(|| http::get(EDGE, HOST, "/?who=next"));
        assert!(
            answer
                .expect("an answer")
                .body
                .contains("\"value\":\"next\"")
        );
    }
    refused_with(&daemon, "environment-in-use", &["rm", "--force", "next"]);
    refused_with(&daemon, "wrong-state", &["swap", "shop", "next"]);
    let invalid = ["traffic", "set", "shop", "--side", "next=0"];
    refused_with(&daemon, "policy-invalid", &invalid);

    // A stopped side has nobody to answer; without a policy it is nobody's.
    daemon.run(&["traffic", "set", "shop", "--side", "next=1", "--rule", ""]);
    daemon.run(&["stop", "next"]);
    assert_eq!(ask(&daemon, HOST).0, 503);
    daemon.run(&["traffic", "clear", "shop"]);
    assert_eq!(ask(&daemon, HOST), answered_by("shop"));
    daemon.finish(&["shop", "next"]);
}

#[test]
fn a_ramp_ends_at_its_last_share_and_a_promotion_makes_it_final() {
    let mut daemon = TestDaemon::start();
    shop_and_clone(&daemon);
    let ramp = [
        "traffic", "ramp", "shop", "next", "--steps", "50,100", "--every", "1s",
    ];
    let operation = daemon.json(&ramp);
    assert_eq!(operation["traffic"]["percent"], 100, "{operation:#}");
    assert_eq!(seen(&daemon, 20), BTreeMap::from([("next".to_owned(), 20)]));
    assert_eq!(ask(&daemon, "shop.localhost"), answered_by("next"));

    // The daemon dies while it watches; the next one goes on.
    let id = begin(
        &daemon,
        &[
            "promote",
            "next",
            "--baseline",
            "0",
            "--watch",
            "6s",
            "--fence",
            "--keep",
            "24h",
        ],
    );
    wait_for("the watch", SOON, || {
        let steps = state(&daemon, &id)["steps"].clone();
        let mut steps = steps.as_array().expect("steps").iter();
        steps
            .any(|step| step["name"] == "watch" && step["state"] == "running")
            .then_some(())
    });
    daemon.kill();
    assert_eq!(ask(&daemon, HOST), answered_by("next"));
    daemon.restart();
    let operation = ended(&daemon, &id);
    assert_eq!(operation["state"], "done", "{operation:#}");
    assert!(operation["traffic"]["keep_until"].is_string());
    assert_eq!(seen(&daemon, 20), BTreeMap::from([("next".to_owned(), 20)]));
    assert_eq!(ask(&daemon, "shop.localhost").0, 503);
    let policy = &daemon.json(&["traffic", "show", "shop"])["policy"];
    assert_eq!(policy, &serde_json::json!({"fence": true}));

    refused_with(&daemon, "wrong-state", &["swap", "--back", "shop", "next"]);
    daemon.run(&["traffic", "set", "shop", "--fence", "off"]);
    daemon.run(&["swap", "--back", "shop", "next"]);
    assert_eq!(ask(&daemon, HOST), answered_by("shop"));
    daemon.finish(&["shop", "next"]);
}

#[test]
fn a_clone_that_breaks_after_its_promotion_gives_the_domains_back() {
    let daemon = TestDaemon::start();
    shop_and_clone(&daemon);
    assert_eq!(seen(&daemon, 30)["shop"], 30);
    let id = begin(
        &daemon,
        &[
            "promote",
            "next",
            "--baseline",
            "0",
            "--watch",
            "2m",
            "--min",
            "20",
        ],
    );
    until_answered_by(&daemon, "next");
    refused_with(&daemon, "wrong-state", &["domain", "add", "shop", "x.test"]);
    daemon.get("next", "/break").expect("it breaks");
    let operation = wait_for("the way back", WATCHED, || {
        ask(&daemon, HOST);
        let operation = state(&daemon, &id);
        operation["ended"].is_string().then_some(operation)
    });
    assert_eq!(operation["state"], "failed", "{operation:#}");
    assert_eq!(operation["problem"]["code"], "promote-worse");
    println!("{}", daemon.run(&["op", "show", &id]));
    assert_eq!(seen(&daemon, 20)["shop"], 20);

    // Nobody comes, but its entry ends: the same.
    daemon.get("next", "/mend").expect("it is mended");
    let id = begin(
        &daemon,
        &["promote", "next", "--baseline", "0", "--watch", "2m"],
    );
    until_answered_by(&daemon, "next");
    daemon.run(&["stop", "next"]);
    let operation = ended(&daemon, &id);
    assert_eq!(
        operation["problem"]["code"], "promote-worse",
        "{operation:#}"
    );
    assert_eq!(ask(&daemon, HOST), answered_by("shop"));

    // Cancelled while it watches.
    daemon.run(&["start", "next"]);
    answers(&daemon, "next");
    let id = begin(
        &daemon,
        &["promote", "next", "--baseline", "0", "--watch", "2m"],
    );
    wait_for("the switch", SOON, || {
        (ask(&daemon, HOST).0 == 200 && state(&daemon, &id)["swap"]["switched"].is_string())
            .then_some(())
    });
    daemon.run(&["op", "cancel", &id]);
    assert_eq!(ask(&daemon, HOST), answered_by("shop"));
    daemon.finish(&["shop", "next"]);
}
