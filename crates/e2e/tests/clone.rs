//! A running environment is cloned alive, and both go on by themselves.

use std::time::Duration;

use offshoot_e2e::{TestDaemon, wait_for};
use serde_json::Value;

const TWO_NODES: &str = r#"
services:
  web:
    image: IMAGE
    environment: {PEER: "the_store.test:9000"}
    stop_grace_period: 200ms
    x-offshoot: {entry: 8080}
    healthcheck: {test: ["CMD", "/bin/true"], interval: 5s}
  db:
    image: IMAGE
    environment: {PEER_PORT: "9000"}
    stop_grace_period: 200ms
    volumes: ["data:/data"]
    networks: {default: {aliases: [the_store.test]}}
volumes: {data: {}}
"#;

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key} in {value}"))
}

#[test]
fn a_clone_goes_on_with_memory_disk_and_connections() {
    let daemon = TestDaemon::start();
    daemon.create("shop", TWO_NODES);
    daemon
        .node("shop", "/set?v=before")
        .expect("the environment answers");
    let before = wait_for("numbers to flow", Duration::from_secs(10), || {
        daemon
            .node("shop", "/")
            .ok()
            .filter(|now| number(now, "answered") > 20)
    });

    let operation = daemon.json(&["clone", "shop"]);
    println!("{operation:#}");
    for node in operation["report"]["nodes"].as_array().expect("nodes") {
        assert_eq!(node["rung"], "live", "{node}");
    }
    let parent = daemon.node("shop", "/").expect("the parent answers");
    let clone = daemon.node("shop-clone", "/").expect("the clone answers");

    assert_eq!(
        parent["boot"], before["boot"],
        "the parent's process went on"
    );
    assert_eq!(
        clone["boot"], before["boot"],
        "the clone's process is the parent's"
    );
    assert_eq!(clone["value"], "before");
    assert_eq!(clone["disk"], "before");
    assert_eq!(parent["hostname"], "web-1.shop");
    assert_eq!(clone["hostname"], "web-1.shop-clone");
    for name in ["shop", "shop-clone"] {
        let then = daemon.node(name, "/").unwrap();
        let now = wait_for("the connection to go on", Duration::from_secs(10), || {
            daemon
                .node(name, "/")
                .ok()
                .filter(|now| number(now, "answered") > number(&then, "answered") + 20)
        });
        assert_eq!(
            number(&now, "connects"),
            1,
            "{name} kept its connection: {now}"
        );
        assert_eq!(number(&now, "gaps"), 0, "{name} lost nothing: {now}");
    }

    daemon
        .node("shop-clone", "/set?v=after")
        .expect("the clone answers");
    assert_eq!(daemon.node("shop", "/").unwrap()["value"], "before");
    assert_eq!(daemon.node("shop", "/").unwrap()["disk"], "before");
    assert_eq!(daemon.node("shop-clone", "/").unwrap()["disk"], "after");

    // A clone of a clone, and the default names.
    daemon.run(&["clone", "shop-clone", "--name", "third"]);
    assert_eq!(daemon.node("third", "/").unwrap()["value"], "after");
    daemon.run(&["clone", "shop"]);
    assert_eq!(daemon.node("shop-clone2", "/").unwrap()["value"], "before");

    daemon.finish(&["shop", "shop-clone", "shop-clone2", "third"]);
}
