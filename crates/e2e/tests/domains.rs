//! Custom domains and swaps, as people and their browsers see them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use offshoot_e2e::support::{ONE, SOON, answers, ended, refused_with};
use offshoot_e2e::{EDGE, TestDaemon, http, wait_for};
use offshoot_load::{Pinger, Rate, Target};
use serde_json::Value;

const HOST: &str = "shop.example.test";

/// Status of an answer for this host, and the value that the node behind it holds.
fn ask(host: &str) -> (u16, String) {
    let answer = http::get(EDGE, host, "/").expect("the edge answers");
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let value = body["value"].as_str().unwrap_or_default();
    (answer.status, value.to_owned())
}

fn through_the_edge(daemon: &TestDaemon, host: &str) -> (u16, String) {
    daemon.inside(|| ask(host))
}

fn answered_by(name: &str) -> (u16, String) {
    (200, name.to_owned())
}

fn hosts(daemon: &TestDaemon, environment: &str) -> Vec<String> {
    let domains = daemon.json(&["domain", "ls", environment]);
    let domains = domains.as_array().expect("a list");
    let host = |domain: &Value| domain["host"].as_str().expect("a host").to_owned();
    domains.iter().map(host).collect()
}

/// Two environments that tell who they are.
fn two(daemon: &TestDaemon) {
    for name in ["shop", "next"] {
        daemon.create(name, ONE);
        answers(daemon, name);
        let set = format!("/set?v={name}");
        daemon.node(name, &set).expect("the environment answers");
    }
}

/// Asks again and again until told to stop: when each request began and who answered.
fn watch(stop: &AtomicBool) -> Vec<(Instant, String)> {
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let (status, value) = ask(HOST);
        assert_eq!(status, 200);
        seen.push((sent, value));
    }
    seen
}

/// Swaps under a steady load of requests. None fails; each is answered by one of the two, and by `to` once the
/// operation has ended.
fn swap_under_load(daemon: &TestDaemon, args: &[&str], from: &str, to: &str) -> Value {
    let target = Target {
        address: EDGE,
        host: HOST.to_owned(),
        path: "/".to_owned(),
    };
    let rate = Rate {
        interval: Duration::from_millis(4),
        ..Rate::EVERY_MILLISECOND
    };
    let pinger = daemon
        .inside(|| Pinger::start(&target, rate))
        .expect("a client");
    let stop = AtomicBool::new(false);
    let (operation, end, seen) = thread::scope(|scope| {
        let watching = scope.spawn(|| daemon.inside(|| watch(&stop)));
        let operation = daemon.json(args);
        let end = Instant::now();
        wait_for("requests after the swap", SOON, || {
            (end.elapsed() > Duration::from_millis(300)).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        (operation, end, watching.join().expect("who answers"))
    });
    let report = pinger.finish();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert!(report.whole().answered > 20, "{:?}", report.whole());
    let strangers = seen.iter().filter(|(_, who)| who != from && who != to);
    assert_eq!(strangers.count(), 0, "{seen:?}");
    assert!(
        seen.iter().any(|(_, who)| who == from),
        "it was asked before"
    );
    let after: Vec<_> = seen.iter().filter(|(sent, _)| *sent >= end).collect();
    assert!(!after.is_empty());
    assert!(after.iter().all(|(_, who)| who == to), "{after:?}");
    // Once the other side answers, the old one never does again.
    let first = seen.iter().position(|(_, who)| who == to).expect("it came");
    assert!(
        seen.iter().skip(first).all(|(_, who)| who == to),
        "{seen:?}"
    );
    operation
}

#[test]
fn a_domain_is_added_swapped_under_load_and_back_and_removed() {
    let daemon = TestDaemon::start();
    two(&daemon);
    assert_eq!(through_the_edge(&daemon, HOST).0, 404);
    let added = daemon.json(&["domain", "add", "shop", "Shop.Example.TEST."]);
    assert_eq!(added["state"], "done", "{added:#}");
    assert_eq!(through_the_edge(&daemon, HOST), answered_by("shop"));
    assert_eq!(hosts(&daemon, "shop"), [HOST]);
    assert_eq!(daemon.json(&["show", "shop"])["domains"][0]["host"], HOST);

    let problem = refused_with(&daemon, "domain-taken", &["domain", "add", "next", HOST]);
    assert!(
        problem["what"]
            .as_str()
            .unwrap_or_default()
            .contains("shop")
    );
    refused_with(
        &daemon,
        "domain-invalid",
        &["domain", "add", "next", "shop.localhost"],
    );
    refused_with(&daemon, "domain-unknown", &["domain", "rm", "next", HOST]);
    refused_with(&daemon, "wrong-state", &["swap", "--back", "shop", "next"]);
    daemon.run(&["domain", "add", "next", "next.example.test"]);

    // A part of one's host, and all names below a domain, may be another's.
    let parts = ["*.example.test", "shop.example.test/set"];
    daemon.run(&["domain", "add", "next", parts[0], parts[1]]);
    assert_eq!(
        through_the_edge(&daemon, "a.b.example.test"),
        answered_by("next")
    );
    assert_eq!(through_the_edge(&daemon, HOST), answered_by("shop"));
    for value in ["told", "next"] {
        let path = format!("/set?v={value}");
        let answer = daemon.inside(|| http::get(EDGE, HOST, &path));
        assert_eq!(answer.expect("the edge answers").status, 200);
        assert_eq!(
            through_the_edge(&daemon, "next.localhost"),
            answered_by(value)
        );
    }
    daemon.run(&["domain", "rm", "next", parts[0], parts[1]]);
    assert_eq!(through_the_edge(&daemon, "a.b.example.test").0, 404);

    let operation = swap_under_load(
        &daemon,
        &["swap", "shop", "next", "--warm", "/", "--warm", "/ballast"],
        "shop",
        "next",
    );
    println!("{operation:#}");
    let swap = &operation["swap"];
    assert_eq!(swap["with"], "next");
    assert_eq!(swap["moved"].as_array().map(Vec::len), Some(2));
    assert!(
        swap["us"].as_u64().is_some_and(|us| us < 5_000_000),
        "{swap:#}"
    );
    assert!(swap["version"].as_u64().is_some_and(|version| version > 0));
    assert!(swap["switched"].is_string());
    let other = through_the_edge(&daemon, "next.example.test");
    assert_eq!(other, answered_by("shop"));
    // Default domains stay.
    assert_eq!(
        through_the_edge(&daemon, "shop.localhost"),
        answered_by("shop")
    );

    swap_under_load(&daemon, &["swap", "--back", "shop", "next"], "next", "shop");
    assert_eq!(hosts(&daemon, "shop"), [HOST]);
    daemon.run(&["domain", "rm", "next", "next.example.test"]);
    assert_eq!(through_the_edge(&daemon, "next.example.test").0, 404);
    refused_with(&daemon, "wrong-state", &["swap", "--back", "shop", "next"]);

    daemon.run(&["domain", "rm", "shop", HOST]);
    assert_eq!(through_the_edge(&daemon, HOST).0, 404);
    daemon.finish(&["shop", "next"]);
}

#[test]
fn domains_outlive_the_daemon_and_a_cold_side_gets_none() {
    let mut daemon = TestDaemon::start();
    two(&daemon);
    daemon.run(&["domain", "add", "shop", HOST]);
    daemon.kill();
    assert_eq!(through_the_edge(&daemon, HOST), answered_by("shop"));
    daemon.restart();
    assert_eq!(through_the_edge(&daemon, HOST), answered_by("shop"));

    let operation = daemon.json(&["stop", "next"]);
    assert_eq!(operation["state"], "done");
    refused_with(&daemon, "wrong-state", &["swap", "shop", "next"]);
    // It runs, but nothing listens where its entry is.
    daemon.create("deaf", &ONE.replace("{entry: 8080}", "{entry: 8099}"));
    let problem = refused_with(
        &daemon,
        "warm-failed",
        &["swap", "shop", "deaf", "--warm-timeout", "500ms"],
    );
    let details = problem["details"].to_string();
    for part in ["GET /", HOST, "web-1", "accepts no connection"] {
        assert!(details.contains(part), "no {part} in {problem:#}");
    }
    assert_eq!(through_the_edge(&daemon, HOST), answered_by("shop"));

    // The clone of it is without; it stays with its environment, and goes with it.
    daemon.run(&["clone", "shop", "--name", "copy"]);
    assert!(hosts(&daemon, "copy").is_empty());
    let set = daemon.node("copy", "/set?v=copy");
    set.expect("the clone answers");
    daemon.run(&["stop", "shop"]);
    assert_eq!(through_the_edge(&daemon, HOST).0, 503);
    let removal = daemon.json(&["rm", "--force", "shop", "--detach"]);
    let id = removal["id"].as_str().expect("an id");
    assert_eq!(ended(&daemon, id)["state"], "done");
    assert_eq!(through_the_edge(&daemon, HOST).0, 404);
    daemon.run(&["domain", "add", "copy", HOST]);
    assert_eq!(through_the_edge(&daemon, HOST), answered_by("copy"));
    daemon.finish(&["next", "deaf", "copy"]);
}
