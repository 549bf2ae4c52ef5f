//! How memory is taken: said before a clone is made, kept with it, and shown.

use std::time::Duration;

use offshoot_e2e::{TestDaemon, wait_for};
use serde_json::Value;

const NODE: &str = r#"
services:
  web:
    image: IMAGE
    environment: {PEER_PORT: "9000"}
    stop_grace_period: 200ms
    x-offshoot: {entry: 8080}
"#;

fn node_of(value: &Value) -> &Value {
    &value["nodes"][0]
}

#[test]
fn memory_is_taken_as_the_preflight_said() {
    let daemon = TestDaemon::start();
    daemon.create("shop", NODE);
    wait_for("the environment to answer", Duration::from_secs(10), || {
        daemon.node("shop", "/set?v=before").ok()
    });

    let doctor = daemon.json(&["doctor"]);
    let checks = doctor["checks"].as_array().expect("checks");
    let memory = checks.iter().find(|check| check["name"] == "memory");
    let found = memory.expect("a check of memory")["found"]
        .as_str()
        .expect("a text");
    println!("doctor: {found}");
    let plan = daemon.json(&["clone", "shop", "--dry-run"]);
    let planned = &node_of(&plan)["memory"];
    let way = planned["way"].as_str().expect("a way");
    assert!(found.starts_with(way), "{planned}");
    assert_eq!(planned["why"].is_null(), way == "tracked", "{planned}");

    let operation = daemon.json(&["clone", "shop"]);
    let node = node_of(&operation["report"]);
    println!("{node:#}");
    assert_eq!(node["rung"], "live", "{node}");
    assert_eq!(&node["memory"], planned, "{node}");
    let paused = node["paused_us"].as_u64().expect("a time");
    assert_eq!(paused > 0, way == "pre-dump", "{node}");
    assert_eq!(daemon.node("shop-clone", "/").unwrap()["value"], "before");

    let stages = node["stages"].as_array().expect("stages");
    let names: Vec<_> = stages
        .iter()
        .filter_map(|stage| stage["what"].as_str())
        .collect();
    for expected in ["CRIU: everything else", "letting go"] {
        assert!(names.contains(&expected), "{names:?}");
    }
    let id = operation["id"].as_str().expect("an id");
    let drawn = daemon.run(&["op", "show", "--timing", id]);
    println!("{drawn}");
    for shown in names.iter().chain([&way]) {
        assert!(drawn.contains(shown), "no {shown} in: {drawn}");
    }

    // What was copied ahead and not written since is in the clone of the clone too.
    daemon.run(&["clone", "shop-clone", "--name", "third"]);
    assert_eq!(daemon.node("third", "/").unwrap()["value"], "before");
    if way != "pre-dump" {
        println!("SKIPPED: that CRIU copies ahead: this kernel takes memory by: {way}");
    }
    daemon.finish(&["shop", "shop-clone", "third"]);
}
