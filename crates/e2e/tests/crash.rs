//! The daemon is killed at every step of every change. After its restart the change is finished or undone, the
//! parent runs, and nothing is left over.

use std::time::Duration;

use offshoot_e2e::residue::Residue;
use offshoot_e2e::{TestDaemon, wait_for};
use serde_json::Value;

const PAIR: &str = r#"
services:
  web:
    image: IMAGE
    environment: {PEER: "db:9000"}
    stop_grace_period: 200ms
    x-offshoot: {entry: 8080}
    ports: ["127.0.0.1::8080"]
  db:
    image: IMAGE
    environment: {PEER_PORT: "9000"}
    stop_grace_period: 200ms
    volumes: ["data:/data"]
volumes: {data: {}}
"#;

/// A daemon with an environment `shop`, to be killed again and again.
struct Victim {
    daemon: TestDaemon,
    file: String,
    settled: Residue,
}

impl Victim {
    fn new() -> Self {
        let daemon = TestDaemon::start();
        let file = daemon.create("shop", PAIR);
        daemon
            .node("shop", "/set?v=kept")
            .expect("the environment answers");
        let settled = daemon.residue();
        Self {
            daemon,
            file,
            settled,
        }
    }

    /// Runs `args` on a daemon that dies at `point`, then starts another and waits until nothing is under way. Gives
    /// the names of the environments that are there then.
    fn die_at(&mut self, point: &str, args: &[&str]) -> Vec<String> {
        println!("dying at {point}");
        self.daemon.kill();
        self.daemon.launch(&[("OFFSHOOT_FAILPOINT", point)]);
        self.daemon.wait_up();
        let mut all = args.to_vec();
        all.push("--detach");
        // The daemon may die before it answers.
        let _ = self.daemon.try_run(&all);
        self.daemon.wait_dead();
        self.daemon.launch(&[]);
        self.daemon.wait_up();
        wait_for("operations to end", Duration::from_secs(60), || {
            let operations = self.daemon.json(&["op", "ls"]);
            let open = |op: &&Value| {
                !matches!(op["state"].as_str(), Some("done" | "failed" | "cancelled"))
            };
            operations
                .as_array()
                .expect("a list")
                .iter()
                .find(open)
                .is_none()
                .then_some(())
        });
        let list = self.daemon.json(&["ls"]);
        let list = list.as_array().expect("a list");
        for environment in list {
            assert!(
                matches!(environment["state"].as_str(), Some("running" | "stopped")),
                "{point}: {environment:#}"
            );
        }
        list.iter()
            .filter_map(|environment| environment["name"].as_str().map(str::to_owned))
            .collect()
    }

    /// The parent runs with its memory, and answers.
    fn parent_is_well(&self, point: &str, name: &str) {
        let seen = wait_for("the parent to answer", Duration::from_secs(20), || {
            self.daemon.node(name, "/").ok()
        });
        assert_eq!(
            seen["value"], "kept",
            "{point}: the parent lost its memory: {seen}"
        );
        assert_eq!(seen["gaps"], 0, "{point}: {seen}");
        assert_eq!(seen["connects"], 1, "{point}: {seen}");
    }

    /// Nothing is there beside what was there when `shop` was created.
    fn nothing_is_left(&self, point: &str) {
        let mut left = self.daemon.residue();
        // The parent's own processes may have been started anew; only what is new counts.
        left.processes
            .retain(|process| !self.settled.processes.contains(process));
        left.mounts
            .retain(|mount| !self.settled.mounts.contains(mount));
        left.cgroups
            .retain(|group| !self.settled.cgroups.contains(group));
        left.interfaces
            .retain(|interface| !self.settled.interfaces.contains(interface));
        left.directories
            .retain(|directory| !self.settled.directories.contains(directory));
        assert!(
            left.is_empty(),
            "{point} left {left:#?}\n{}",
            self.daemon.log()
        );
    }
}

fn points(kind: &str, steps: &[&str]) -> Vec<String> {
    let each = |step: &&str| {
        [
            format!("{kind}.{step}.before"),
            format!("{kind}.{step}.after"),
        ]
    };
    steps.iter().flat_map(each).collect()
}

#[test]
fn create_survives_the_daemons_death_at_every_step() {
    let mut victim = Victim::new();
    let file = victim.file.clone();
    let mut all = points(
        "create",
        &["images", "disks", "network", "start", "ready", "route"],
    );
    all.insert(0, "submit.recorded".into());
    for point in all {
        let names = victim.die_at(&point, &["create", "-f", &file, "--name", "new"]);
        victim.parent_is_well(&point, "shop");
        if names.contains(&"new".to_owned()) {
            wait_for(
                "the new environment to answer",
                Duration::from_secs(20),
                || victim.daemon.node("new", "/").ok(),
            );
            victim.daemon.run(&["rm", "--yes", "new"]);
        }
        victim.nothing_is_left(&point);
    }
}

#[test]
fn clone_survives_the_daemons_death_at_every_step() {
    let mut victim = Victim::new();
    let mut all = points(
        "clone",
        &[
            "preflight",
            "prepare",
            "cut",
            "restore",
            "open",
            "start",
            "route",
            "ready",
        ],
    );
    all.push("clone.cut.frozen".into());
    for point in all {
        let names = victim.die_at(&point, &["clone", "shop", "--name", "copy"]);
        victim.parent_is_well(&point, "shop");
        if names.contains(&"copy".to_owned()) {
            let seen = wait_for("the clone to answer", Duration::from_secs(20), || {
                victim.daemon.node("copy", "/").ok()
            });
            assert_eq!(seen["value"], "kept", "{point}: {seen}");
            victim.daemon.run(&["rm", "--yes", "copy"]);
        }
        victim.nothing_is_left(&point);
    }
}

#[test]
fn rename_stop_and_start_survive_the_daemons_death_at_every_step() {
    let mut victim = Victim::new();
    let (mut name, mut other) = ("shop", "store");
    for point in points("rename", &["record", "names", "route"]) {
        let names = victim.die_at(&point, &["rename", name, other]);
        if names.contains(&other.to_owned()) {
            std::mem::swap(&mut name, &mut other);
        }
        assert_eq!(names, [name], "{point}");
        victim.parent_is_well(&point, name);
        let seen = victim.daemon.node(name, "/").expect("it answers");
        assert_eq!(seen["hostname"], format!("web-1.{name}"), "{point}");
        victim.nothing_is_left(&point);
    }
    let steps = [
        ("stop", vec!["unroute", "stop", "halt"]),
        ("start", vec!["network", "start", "ready", "route"]),
    ];
    for (kind, steps) in steps {
        for point in points(kind, &steps) {
            if kind == "start" {
                victim.daemon.run(&["stop", name]);
            }
            victim.die_at(&point, &[kind, name]);
            let state = victim.daemon.json(&["show", name])["state"].clone();
            if state == "stopped" {
                victim.daemon.run(&["start", name]);
            }
            let seen = wait_for("it to answer", Duration::from_secs(20), || {
                victim.daemon.node(name, "/").ok()
            });
            assert_eq!(seen["hostname"], format!("web-1.{name}"), "{point}");
            victim.nothing_is_left(&point);
        }
    }
}

#[test]
fn remove_survives_the_daemons_death_at_every_step() {
    let mut victim = Victim::new();
    let file = victim.file.clone();
    for point in points("remove", &["mark", "unroute", "halt", "disks"]) {
        victim.daemon.run(&["create", "-f", &file, "--name", "new"]);
        let names = victim.die_at(&point, &["rm", "--yes", "new"]);
        assert_eq!(names, ["shop"], "{point}");
        victim.parent_is_well(&point, "shop");
        victim.nothing_is_left(&point);
    }
}
