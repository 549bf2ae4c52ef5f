//! A clone answers while most of its memory is still on its way, and never sees anything but what its parent had.

use std::time::{Duration, Instant};

use offshoot_e2e::support::{node, pids, rungs};
use offshoot_e2e::{TestDaemon, wait_for};
use offshoot_sys::process::Process;

const HEAVY: &str = r#"
services:
  web:
    image: IMAGE
    environment: {BALLAST_MIB: "256"}
    stop_grace_period: 200ms
    x-offshoot: {entry: 8080}
"#;

/// An environment with that much memory, which answers.
fn filled() -> TestDaemon {
    let daemon = TestDaemon::start();
    daemon.create("shop", HEAVY);
    // It fills its memory before it listens.
    wait_for("the parent", Duration::from_secs(60), || {
        daemon.node("shop", "/set?v=kept").ok()
    });
    daemon
}

/// The clone gets its memory from the parent's process; so the parent waits until it has all.
#[test]
fn a_parent_is_stopped_right_after_it_was_cloned() {
    let daemon = filled();
    // The twin for the first one still stands beside its parent when the other is cut.
    for name in ["first", "second"] {
        let operation = daemon.json(&["clone", "shop", "--name", name]);
        assert_eq!(rungs(&operation)["web-1"], "live", "{operation:#}");
    }
    daemon.run(&["stop", "shop"]);
    for name in ["first", "second"] {
        let answer = daemon.node(name, "/ballast").expect("it answers");
        assert_eq!(answer["ballast"], true, "{name}: {answer}");
    }
    daemon.run(&["start", "shop"]);
    daemon.json(&["clone", "second", "--name", "third"]);
    daemon.run(&["rm", "--force", "second"]);
    let answer = daemon.node("third", "/ballast").expect("it answers");
    assert_eq!(answer["ballast"], true, "{answer}");
    daemon.finish(&["shop", "first", "third"]);
}

/// What a clone's process has is right, or it has ended.
#[test]
fn a_parent_dies_right_after_it_was_cloned() {
    let daemon = filled();
    daemon.may_complain("its memory cannot arrive any more");
    daemon.json(&["clone", "shop", "--name", "second"]);
    for (_, pid) in pids(&daemon, "shop") {
        let parent = Process::open(pid.try_into().expect("a number")).expect("it runs");
        parent.signal(9).expect("it is there");
    }
    wait_for("memory, or the node's end", Duration::from_secs(30), || {
        if let Ok(answer) = daemon.node("second", "/ballast") {
            assert_eq!(answer["ballast"], true, "{answer}");
            return Some(());
        }
        (node(&daemon, "second", "web-1")["status"]["state"] != "running").then_some(())
    });
    println!("{}", node(&daemon, "second", "web-1")["status"]);
    daemon.finish(&["shop", "second"]);
}

#[test]
fn a_clone_of_a_clone_whose_memory_still_comes() {
    let daemon = filled();
    let boot = daemon.node("shop", "/").expect("it answers")["boot"].clone();
    let names = ["shop", "second", "third", "fourth"];
    for pair in names.windows(2) {
        let began = Instant::now();
        let operation = daemon.json(&["clone", pair[0], "--name", pair[1]]);
        println!("{} after {:?}", pair[1], began.elapsed());
        assert_eq!(rungs(&operation)["web-1"], "live", "{operation:#}");
    }
    for name in names {
        let answer = daemon.node(name, "/ballast").expect("it answers");
        assert_eq!(answer["ballast"], true, "{name}: {answer}");
        assert_eq!((&answer["value"], &answer["boot"]), (&"kept".into(), &boot));
    }
    daemon.finish(&names);
}
