//! The daemon goes and comes back: restarted, killed, or with the whole host.

use std::fs;
use std::process::Command;

use offshoot_e2e::support::{self, PAIR, SOON, answers, pids, sh};
use offshoot_e2e::{TestDaemon, residue, wait_for};
use serde_json::Value;

fn talks(daemon: &TestDaemon, name: &str, before: &Value) -> Value {
    wait_for("the numbers to flow", SOON, || {
        daemon
            .node(name, "/")
            .ok()
            .filter(|now| now["answered"].as_u64() > before["answered"].as_u64().map(|n| n + 20))
    })
}

#[test]
fn nothing_stops_while_the_daemon_is_gone() {
    let mut daemon = TestDaemon::start();
    daemon.create("shop", PAIR);
    daemon.run(&["clone", "shop"]);
    daemon.node("shop", "/set?v=parent").expect("it answers");
    daemon
        .node("shop-clone", "/set?v=child")
        .expect("it answers");
    let processes = [pids(&daemon, "shop"), pids(&daemon, "shop-clone")];
    let before = answers(&daemon, "shop");
    let residue = daemon.residue();

    for (round, end) in [
        TestDaemon::terminate as fn(&mut TestDaemon),
        TestDaemon::kill,
    ]
    .into_iter()
    .enumerate()
    {
        end(&mut daemon);
        let alone = talks(&daemon, "shop", &answers(&daemon, "shop"));
        assert_eq!(
            alone["boot"], before["boot"],
            "the edge and the nodes go on without a daemon"
        );
        daemon.launch(&[]);
        daemon.wait_up();
        for (name, value) in [("shop", "parent"), ("shop-clone", "child")] {
            let now = talks(&daemon, name, &answers(&daemon, name));
            assert_eq!(
                (&now["boot"], &now["value"]),
                (&before["boot"], &value.into())
            );
            assert_eq!(
                (&now["connects"], &now["gaps"]),
                (&1.into(), &0.into()),
                "{name}: {now}"
            );
        }
        assert_eq!(
            [pids(&daemon, "shop"), pids(&daemon, "shop-clone")],
            processes
        );
        support::nothing_new(&daemon, &residue);
        assert_eq!(sh(&daemon, "shop", "web", "echo $PEER"), "db:9000");
        assert!(daemon.run(&["logs", "shop", "web"]).contains("listening"));
        let name = format!("later-{round}");
        let operation = daemon.json(&["clone", "shop-clone", "--name", &name]);
        assert!(
            support::rungs(&operation)
                .iter()
                .all(|(_, rung)| rung == "live"),
            "{operation:#}"
        );
        assert_eq!(answers(&daemon, &name)["value"], "child");
        daemon.run(&["rm", "-f", &name]);
    }
    daemon.finish(&["shop", "shop-clone"]);
}

#[test]
fn a_reboot_brings_back_what_ran() {
    let mut daemon = TestDaemon::start();
    daemon.create("shop", PAIR);
    daemon.node("shop", "/set?v=kept").expect("it answers");
    daemon.run(&["clone", "shop"]);
    daemon.run(&["clone", "shop", "--name", "idle"]);
    daemon
        .node("shop-clone", "/set?v=other")
        .expect("it answers");
    daemon.run(&["stop", "idle"]);
    let before = answers(&daemon, "shop");
    // What a reboot leaves of written files is what was synced.
    sh(&daemon, "shop", "db", "echo marked > /data/mark");

    daemon.kill();
    residue::remove(&daemon.path(""), &daemon.instance);
    fs::remove_dir_all(daemon.path("run")).expect("the run directory is there");
    daemon
        .inside(|| Command::new("nft").args(["flush", "ruleset"]).status())
        .expect("nft is there");
    let gone = daemon.residue();
    assert!(
        gone.processes.is_empty() && gone.mounts.is_empty() && gone.interfaces.is_empty(),
        "{gone:#?}"
    );

    daemon.launch(&[]);
    daemon.wait_up();
    for (name, value) in [("shop", "kept"), ("shop-clone", "other")] {
        let seen = answers(&daemon, name);
        assert_ne!(seen["boot"], before["boot"], "{name} started anew");
        assert_eq!(seen["disk"], value);
        talks(&daemon, name, &seen);
        assert_eq!(daemon.json(&["show", name])["state"], "running");
    }
    assert_eq!(sh(&daemon, "shop", "db", "cat /data/mark"), "marked");
    assert_eq!(daemon.json(&["show", "idle"])["state"], "stopped");
    assert!(
        daemon
            .get("idle", "/")
            .map_or(true, |answer| answer.status >= 400)
    );
    daemon.run(&["start", "idle"]);
    assert_eq!(answers(&daemon, "idle")["disk"], "kept");
    daemon.run(&["clone", "shop", "--name", "fresh"]);
    assert_eq!(answers(&daemon, "fresh")["disk"], "kept");
    daemon.finish(&["shop", "shop-clone", "idle", "fresh"]);
}
