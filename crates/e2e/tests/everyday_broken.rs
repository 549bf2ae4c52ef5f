//! Parts of what runs are ended or taken away from under the daemon: it puts them back, or removes the rest.

use std::fs;
use std::path::{Path, PathBuf};

use offshoot_e2e::support::{self, ONE, PAIR, SOON, answers, pids};
use offshoot_e2e::{TestDaemon, wait_for};
use offshoot_sys::process;
use serde_json::Value;

/// Processes of this daemon whose arguments have this in them.
fn find(daemon: &TestDaemon, wanted: &[&str]) -> Vec<i32> {
    let dir = daemon.path("").display().to_string();
    let has = |pid: i32| {
        let words = process::arguments(pid).unwrap_or_default();
        let words: Vec<_> = words
            .iter()
            .map(|word| String::from_utf8_lossy(word))
            .collect();
        let text = words.join(" ");
        text.contains(&dir) && wanted.iter().all(|part| text.contains(part))
    };
    let all = process::all().expect("processes");
    all.into_iter().filter(|pid| has(*pid)).collect()
}

#[track_caller]
fn end(daemon: &TestDaemon, wanted: &[&str]) {
    let found = find(daemon, wanted);
    assert!(!found.is_empty(), "{wanted:?} runs");
    for pid in found {
        let process = process::Process::open(pid).expect("it is there");
        process.signal(9).expect("it can be ended");
    }
}

/// A daemon that may notice what is broken while the test breaks it.
fn watchful() -> TestDaemon {
    let daemon = TestDaemon::start();
    for noticed in [
        "the edge does not run",
        "its network is not whole",
        "its nodes could not be looked at",
        "it could not be started again",
        "an environment could not be brought back",
    ] {
        daemon.may_complain(noticed);
    }
    daemon
}

fn id_of(daemon: &TestDaemon, name: &str) -> String {
    let view = daemon.json(&["show", name]);
    view["id"].as_str().expect("an id").to_owned()
}

/// Removes subvolumes and all below, as a person with a shovel would.
fn shovel(dir: &Path) {
    let done = std::process::Command::new("btrfs")
        .args(["subvolume", "delete"])
        .arg(dir)
        .output();
    let gone = done.is_ok_and(|output| output.status.success());
    assert!(gone || fs::remove_dir_all(dir).is_ok(), "{}", dir.display());
}

#[test]
fn rm_of_anything_half_broken_works() {
    let mut daemon = watchful();
    let file = daemon.create("good", PAIR);
    let before = answers(&daemon, "good");
    let residue = daemon.residue();
    let env_dirs = |daemon: &TestDaemon, id: &str| -> Vec<PathBuf> {
        ["run/envs", "state/envs", "state/pool/envs"]
            .iter()
            .map(|place| daemon.path(place).join(id))
            .collect()
    };

    type Break<'a> = (&'a str, &'a dyn Fn(&TestDaemon, &str));
    let breaks: &[Break<'_>] = &[
        ("its router is gone", &|daemon, id| {
            end(daemon, &["router --spec", id]);
        }),
        ("its shims are gone", &|daemon, id| {
            end(daemon, &["node --spec", id]);
        }),
        ("its run-time directory is gone", &|daemon, id| {
            fs::remove_dir_all(daemon.path("run/envs").join(id)).expect("it is there");
        }),
        ("its specifications are rubbish", &|daemon, id| {
            let nodes = daemon.path("run/envs").join(id).join("nodes");
            for node in fs::read_dir(nodes).expect("nodes").flatten() {
                fs::write(node.path().join("spec.json"), "rubbish").expect("it can be written");
            }
        }),
        ("its state directory is gone", &|daemon, id| {
            fs::remove_dir_all(daemon.path("state/envs").join(id)).expect("it is there");
        }),
        ("a volume is gone", &|daemon, id| {
            shovel(&daemon.path("state/pool/envs").join(id).join("volumes/data"));
        }),
    ];
    for (what, breakage) in breaks {
        println!("{what}");
        for way in ["at once", "after the daemon's restart"] {
            daemon.run(&["create", "-f", &file, "--name", "bad"]);
            let id = id_of(&daemon, "bad");
            breakage(&daemon, &id);
            if way != "at once" {
                daemon.restart();
            }
            daemon.run(&["rm", "-f", "bad"]);
            for dir in env_dirs(&daemon, &id) {
                assert!(!dir.exists(), "{what}, {way}: {}", dir.display());
            }
            support::nothing_new(&daemon, &residue);
        }
    }
    let after = answers(&daemon, "good");
    assert_eq!(after["boot"], before["boot"]);
    assert_eq!((&after["connects"], &after["gaps"]), (&1.into(), &0.into()));
    daemon.finish(&["good"]);
}

#[test]
fn what_ends_is_put_back() {
    let mut daemon = watchful();
    daemon.create("shop", PAIR);
    let before = answers(&daemon, "shop");
    let processes = pids(&daemon, "shop");

    // The edge, while the daemon runs and while it does not.
    end(&daemon, &["offshoot-edge"]);
    wait_for("the edge to be back", SOON, || {
        daemon.node("shop", "/").ok()
    });
    daemon.kill();
    end(&daemon, &["offshoot-edge"]);
    daemon.launch(&[]);
    daemon.wait_up();
    let seen = answers(&daemon, "shop");
    assert_eq!(seen["boot"], before["boot"]);

    // A router: the nodes' connections outlive it.
    let id = id_of(&daemon, "shop");
    let talks = |daemon: &TestDaemon, then: &Value| {
        wait_for("the nodes to talk", SOON, || {
            let now = daemon.node("shop", "/").ok()?;
            (now["answered"].as_u64() > then["answered"].as_u64().map(|n| n + 20)).then_some(now)
        })
    };
    for way in ["while the daemon is gone", "while it runs"] {
        if way == "while it runs" {
            end(&daemon, &["router --spec", &id]);
        } else {
            daemon.kill();
            end(&daemon, &["router --spec", &id]);
            daemon.launch(&[]);
            daemon.wait_up();
        }
        let now = talks(&daemon, &answers(&daemon, "shop"));
        assert_eq!(now["boot"], before["boot"], "{way}");
        assert_eq!(pids(&daemon, "shop"), processes, "{way}");
        println!("{way}: {now}");
    }
    daemon.run(&["clone", "shop"]);
    assert_eq!(answers(&daemon, "shop-clone")["boot"], before["boot"]);

    // A shim whose restart policy asks for it: the node comes back, and can be stopped and started.
    let second = daemon.compose(
        "second.yaml",
        &ONE.replace(
            "stop_grace_period: 1s",
            "stop_grace_period: 1s\n    restart: always",
        ),
    );
    daemon.run(&["create", "-f", &second, "--name", "second"]);
    let boot = answers(&daemon, "second")["boot"].clone();
    end(&daemon, &["node --spec", &id_of(&daemon, "second")]);
    let now = wait_for("the node to be back", SOON, || {
        let now = daemon.node("second", "/").ok()?;
        (now["boot"] != boot).then_some(now)
    });
    println!("a shim was ended: {now}");
    daemon.run(&["stop", "second"]);
    daemon.run(&["start", "second"]);
    answers(&daemon, "second");
    daemon.finish(&["shop", "shop-clone", "second"]);
}
