//! How clones come about: modes of layers and volumes, rungs, and parents in every condition.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use offshoot_e2e::support::{
    self, ONE, PAIR, SOON, answers, command, give_tool, id_of, node, nothing_new, pids, rungs, sh,
    tool,
};
use offshoot_e2e::{TestDaemon, program, wait_for};

#[test]
fn layers_and_volumes_are_cloned_as_their_modes_say() {
    let daemon = TestDaemon::start();
    daemon.create(
        "shop",
        r#"
x-node: &node {image: IMAGE, stop_grace_period: 1s}
services:
  each: {<<: *node, deploy: {replicas: 2}}
  lead: {<<: *node, deploy: {replicas: 2}, x-offshoot: {clone: master}}
  fresh: {<<: *node, x-offshoot: {clone: image}}
  light: {<<: *node, x-offshoot: {scaling: stateless}}
  web:
    <<: *node
    x-offshoot: {entry: 8080}
    volumes: ["kept:/data", "bare:/bare", "both:/both"]
volumes:
  kept: {}
  bare: {x-offshoot: {clone: empty}}
  both: {x-offshoot: {clone: shared}}
"#,
    );
    let nodes = [
        "each-1", "each-2", "lead-1", "lead-2", "fresh-1", "light-1", "web-1",
    ];
    for name in nodes {
        sh(&daemon, "shop", name, &format!("echo {name} > /tmp/mark"));
    }
    sh(
        &daemon,
        "shop",
        "web",
        "echo one > /data/file; echo one > /bare/file; echo one > /both/file",
    );
    daemon.node("shop", "/set?v=kept").expect("it answers");
    let before = answers(&daemon, "shop");
    let processes = pids(&daemon, "shop");

    let plan = daemon.json(&["clone", "shop", "--dry-run"]);
    assert_eq!(plan["name"], "shop-clone");
    assert_eq!(plan["nodes"].as_array().map(Vec::len), Some(7), "{plan:#}");
    assert_eq!(
        daemon.json(&["ls"]).as_array().map(Vec::len),
        Some(1),
        "a dry run makes nothing"
    );
    let operation = daemon.json(&["clone", "shop"]);
    let expected = plan["predicted_freeze_us"].as_u64();
    assert!(expected.is_some_and(|us| us > 10_000), "{plan:#}");
    println!(
        "freeze: {expected:?} us by the dry run, {} by the cut, {} measured",
        operation["report"]["predicted_us"], operation["report"]["freeze_us"]
    );
    let rungs = rungs(&operation);
    for planned in plan["nodes"].as_array().expect("nodes") {
        let name = planned["name"].as_str().expect("a name");
        assert_eq!(
            planned["rung"],
            rungs[name].as_str(),
            "the dry run told the truth about {name}: {operation:#}"
        );
    }
    assert!(
        operation["notices"].to_string().contains("light"),
        "{operation:#}"
    );
    for (name, rung) in [
        ("each-1", "live"),
        ("each-2", "live"),
        ("lead-1", "live"),
        ("fresh-1", "image"),
        ("light-1", "image"),
        ("web-1", "live"),
    ] {
        assert_eq!(rungs[name], rung, "{name}: {operation:#}");
    }
    println!(
        "the second node of a layer that is cloned from its master: {}",
        rungs["lead-2"]
    );
    let mark = |name: &str| {
        sh(
            &daemon,
            "shop-clone",
            name,
            "cat /tmp/mark 2> /dev/null || echo none",
        )
    };
    for (name, expected) in [
        ("each-1", "each-1"),
        ("each-2", "each-2"),
        ("lead-1", "lead-1"),
        ("lead-2", "lead-1"),
        ("fresh-1", "none"),
        ("light-1", "none"),
    ] {
        assert_eq!(mark(name), expected, "{name}");
    }
    assert_eq!(answers(&daemon, "shop-clone")["boot"], before["boot"]);
    assert_eq!(
        sh(
            &daemon,
            "shop-clone",
            "web",
            "cat /data/file; cat /bare/file 2> /dev/null || echo none; cat /both/file"
        ),
        "one\nnone\none"
    );
    sh(
        &daemon,
        "shop-clone",
        "web",
        "echo two > /data/file; echo two > /bare/file; echo two > /both/file",
    );
    assert_eq!(
        sh(
            &daemon,
            "shop",
            "web",
            "cat /data/file /bare/file /both/file"
        ),
        "one\none\ntwo"
    );
    sh(&daemon, "shop", "web", "echo three > /both/file");
    assert_eq!(sh(&daemon, "shop-clone", "web", "cat /both/file"), "three");
    assert_eq!(pids(&daemon, "shop"), processes, "the parent goes on");
    // The clone outlives stop and start with what it has, and its sharing keeps the parent's volume from going away.
    daemon.run(&["stop", "shop-clone"]);
    daemon.run(&["start", "shop-clone"]);
    assert_eq!(
        sh(
            &daemon,
            "shop-clone",
            "web",
            "cat /data/file /bare/file /both/file"
        ),
        "two\ntwo\nthree"
    );
    support::refused_with(&daemon, "wrong-state", &["rm", "-f", "shop"]);
    daemon.run(&["rm", "-f", "shop-clone"]);
    assert_eq!(sh(&daemon, "shop", "web", "cat /both/file"), "three");
    daemon.finish(&["shop"]);
}

#[test]
fn rungs_can_be_forced_and_what_cannot_be_cloned_alive_is_told() {
    let daemon = TestDaemon::start();
    daemon.create("shop", r#"
services:
  web:
    image: IMAGE
    stop_grace_period: 1s
    x-offshoot: {entry: 8080}
    volumes: ["data:/data"]
  odd:
    image: IMAGE
    stop_grace_period: 1s
    entrypoint: ["/bin/sh", "-c", "until test -e /tmp/go; do /bin/sleep 0.05; done; exec /tmp/tool xdp"]
volumes: {data: {}}
"#);
    daemon.node("shop", "/set?v=kept").expect("it answers");
    sh(&daemon, "shop", "web", "echo root > /tmp/mark");
    let before = answers(&daemon, "shop");
    for (rung, boot, value, mark) in [
        ("live", true, "kept", "root"),
        ("disk", false, "kept", "root"),
        ("image", false, "kept", "none"),
    ] {
        let operation = daemon.json(&["clone", "shop", "--rung", rung]);
        assert!(
            rungs(&operation).values().all(|seen| seen == rung),
            "{rung}: {operation:#}"
        );
        let seen = answers(&daemon, "shop-clone");
        assert_eq!(seen["boot"] == before["boot"], boot, "{rung}");
        assert_eq!(
            sh(
                &daemon,
                "shop-clone",
                "web",
                "cat /tmp/mark 2> /dev/null || echo none"
            ),
            mark,
            "{rung}"
        );
        println!(
            "{rung}: the volume holds {}, expected {value}",
            seen["disk"]
        );
        daemon.run(&["rm", "-f", "shop-clone"]);
    }

    give_tool(&daemon, "shop", "odd");
    sh(
        &daemon,
        "shop",
        "odd",
        "echo odd > /tmp/mark; touch /tmp/go",
    );
    let begun = wait_for("the socket that cannot be cloned", SOON, || {
        let logs = daemon.run(&["logs", "shop", "odd"]);
        (logs.contains("holding") || logs.contains("Error")).then_some(logs)
    });
    if begun.contains("Error") {
        println!("SKIPPED: this kernel has no AF_XDP ({begun})");
        return;
    }
    let processes = pids(&daemon, "shop");
    let plan = daemon.json(&["clone", "shop", "--dry-run"]);
    let planned = plan["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .find(|n| n["name"] == "odd-1")
        .expect("the node")
        .clone();
    assert_eq!(planned["rung"], "disk", "{planned}");
    let problem = support::refused_with(
        &daemon,
        "not-checkpointable",
        &["clone", "shop", "--rung", "live"],
    );
    assert!(
        problem.to_string().contains("odd-1") && problem.to_string().contains("address family 44"),
        "{problem:#}"
    );
    assert_eq!(pids(&daemon, "shop"), processes);
    let operation = daemon.json(&["clone", "shop"]);
    assert_eq!(rungs(&operation)["odd-1"], "disk", "{operation:#}");
    assert_eq!(rungs(&operation)["web-1"], "live", "{operation:#}");
    let row = operation["report"]["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .find(|n| n["node"] == "odd-1")
        .expect("it")
        .clone();
    assert!(
        row["why"]
            .as_str()
            .is_some_and(|why| why.contains("address family 44")),
        "{row}"
    );
    assert_eq!(sh(&daemon, "shop-clone", "odd", "cat /tmp/mark"), "odd");
    assert_eq!(answers(&daemon, "shop-clone")["boot"], before["boot"]);
    assert_eq!(pids(&daemon, "shop"), processes);
    daemon.finish(&["shop", "shop-clone"]);
}

#[test]
fn stopped_parents_short_freezes_and_two_at_once() {
    let daemon = TestDaemon::start();
    daemon.create("shop", PAIR);
    daemon.node("shop", "/set?v=kept").expect("it answers");
    let before = answers(&daemon, "shop");

    // Two clones of one parent, asked for at the same time.
    let mut both: Vec<_> = ["left", "right"]
        .iter()
        .map(|name| {
            let mut clone = command(&daemon, &["-q", "clone", "shop", "--name", name]);
            clone
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("it starts")
        })
        .collect();
    for clone in both.drain(..) {
        let output = clone.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}\n{}", daemon.log());
    }
    for name in ["shop", "left", "right"] {
        let then = answers(&daemon, name);
        assert_eq!(
            (&then["boot"], &then["value"]),
            (&before["boot"], &"kept".into())
        );
        let now = wait_for("its peers to go on talking", SOON, || {
            daemon
                .node(name, "/")
                .ok()
                .filter(|now| now["answered"].as_u64() > then["answered"].as_u64().map(|n| n + 20))
        });
        assert_eq!(
            (&now["connects"], &now["gaps"]),
            (&1.into(), &0.into()),
            "{name}: {now}"
        );
    }
    daemon.run(&["rm", "-f", "left", "right"]);

    // A clone of a stopped environment is stopped, and runs when asked to.
    daemon.run(&["stop", "shop"]);
    let operation = daemon.json(&["clone", "shop", "--name", "idle"]);
    assert_eq!(operation["state"], "done");
    assert_eq!(daemon.json(&["show", "idle"])["state"], "stopped");
    daemon.run(&["start", "idle"]);
    assert_eq!(answers(&daemon, "idle")["disk"], "kept");
    daemon.run(&["rm", "-f", "idle", "shop"]);

    // A bound on the freeze that cannot be kept: nothing of the clone, and the parent goes on; or its disk only, where that will do.
    daemon.create("large", "services:\n  web:\n    image: IMAGE\n    stop_grace_period: 1s\n    environment: {BALLAST_MIB: \"700\"}\n    x-offshoot: {entry: 8080}\n");
    answers(&daemon, "large");
    daemon.node("large", "/set?v=kept").expect("it answers");
    let before = answers(&daemon, "large");
    let residue = daemon.residue();
    let problem = daemon.refused(&["clone", "large", "--rung", "live", "--max-freeze", "20ms"]);
    assert_eq!(problem["code"], "freeze-timeout", "{problem:#}");
    nothing_new(&daemon, &residue);
    let after = answers(&daemon, "large");
    assert_eq!(
        (&after["boot"], &after["value"]),
        (&before["boot"], &"kept".into())
    );
    let operation = daemon.json(&["clone", "large", "--max-freeze", "60s"]);
    println!(
        "700 MiB: frozen for {} ms",
        operation["report"]["freeze_us"].as_u64().unwrap_or(0) / 1000
    );
    assert_eq!(answers(&daemon, "large-clone")["boot"], before["boot"]);

    // Cancelled in the cut or beside it: whichever it was, the parent runs and the clone is whole or gone.
    let id = id_of(&daemon.json(&[
        "clone",
        "large",
        "--max-freeze",
        "60s",
        "--name",
        "late",
        "--detach",
    ]));
    wait_for("the cut", SOON, || {
        let operation = daemon.json(&["op", "show", &id]);
        let steps = operation["steps"].as_array().expect("steps");
        steps
            .iter()
            .any(|step| step["name"] == "cut" && step["state"] != "pending")
            .then_some(())
    });
    daemon.try_run(&["op", "cancel", &id]).expect("it runs");
    let operation = support::ended(&daemon, &id);
    println!("cancelled during the cut: {}", operation["state"]);
    assert_eq!(answers(&daemon, "large")["boot"], before["boot"]);
    if operation["state"] == "done" {
        daemon.run(&["rm", "-f", "late"]);
    }
    daemon.finish(&["large", "large-clone"]);
}

#[test]
fn disk_and_memory_are_of_one_instant_under_hard_writing() {
    let daemon = TestDaemon::start();
    daemon.create("shop", r#"
services:
  web:
    image: IMAGE
    stop_grace_period: 1s
    x-offshoot: {entry: 8080}
    entrypoint: ["/bin/sh", "-c", "until test -e /tmp/go; do /bin/sleep 0.05; done; /tmp/tool write /data/log & exec /bin/testnode"]
    volumes: ["data:/data"]
volumes: {data: {}}
"#);
    give_tool(&daemon, "shop", "web");
    sh(&daemon, "shop", "web", "touch /tmp/go");
    let count = |name: &str| -> u64 {
        tool(&daemon, name, "web", &["check", "/data/log"])
            .parse()
            .expect("a number")
    };
    answers(&daemon, "shop");
    wait_for("numbers to be written", SOON, || {
        (count("shop") > 10_000).then_some(())
    });
    for round in 0..3 {
        let name = format!("copy-{round}");
        let operation = daemon.json(&["clone", "shop", "--name", &name]);
        assert_eq!(rungs(&operation)["web-1"], "live", "{operation:#}");
        // The writer goes on in both where it was: what it remembers and what the disk holds fit together.
        for each in ["shop", name.as_str()] {
            let then = count(each);
            wait_for("the writer to go on", SOON, || {
                (count(each) > then).then_some(())
            });
        }
        println!(
            "frozen for {} ms while writing",
            operation["report"]["freeze_us"].as_u64().unwrap_or(0) / 1000
        );
        daemon.run(&["rm", "-f", &name]);
    }
    daemon.finish(&["shop"]);
}

#[test]
fn what_a_volume_holds_does_not_make_a_clone_slower() {
    let daemon = TestDaemon::start();
    let file = daemon.compose("compose.yaml", ONE);
    for name in ["empty", "full"] {
        daemon.run(&["create", "-f", &file, "--name", name]);
    }
    give_tool(&daemon, "full", "web");
    tool(&daemon, "full", "web", &["files", "/data/many", "200000"]);
    tool(
        &daemon,
        "full",
        "web",
        &["sparse", "/data/sparse", "1099511627776"],
    );
    // The first clone of the full one pays for what was just written (the sync before its freeze).
    let mut times: BTreeMap<&str, Vec<(Duration, u64)>> = BTreeMap::new();
    for round in 0..4 {
        for name in ["empty", "full"] {
            let begun = Instant::now();
            let operation = daemon.json(&["clone", name, "--name", "copy"]);
            let took = begun.elapsed();
            assert_eq!(rungs(&operation)["web-1"], "live");
            let freeze = operation["report"]["freeze_us"].as_u64().expect("a freeze");
            println!(
                "{name} {round}: clone {} ms, freeze {} ms",
                took.as_millis(),
                freeze / 1000
            );
            if round > 0 {
                times.entry(name).or_default().push((took, freeze));
            }
            if name == "full" && round == 0 {
                assert_eq!(sh(&daemon, "copy", "web", "ls /data/many/199 | tail -n 1 2> /dev/null || ls /data/many/199 > /tmp/list; test -e /data/many/199/199999 && echo there").lines().last(), Some("there"));
            }
            daemon.run(&["rm", "-f", "copy"]);
        }
    }
    let best = |name: &str| times[name].iter().copied().min().expect("rounds");
    let (empty, full) = (best("empty"), best("full"));
    // A copy of 200,000 files takes many seconds; noise does not.
    assert!(
        full.0 < empty.0 * 3 + Duration::from_secs(1),
        "the content costs time: {times:?}"
    );
    daemon.finish(&["empty", "full"]);
}

#[test]
fn thirty_environments_on_one_host() {
    let daemon = TestDaemon::start();
    let file = daemon.compose("compose.yaml", ONE);
    assert!(program("offshoot").is_file());
    let begun = Instant::now();
    daemon.run(&["create", "-f", &file, "--name", "e0"]);
    daemon.node("e0", "/set?v=first").expect("it answers");
    // Half are made, half are cloned, three at a time.
    let names: Vec<String> = (1..30).map(|n| format!("e{n}")).collect();
    for some in names.chunks(3) {
        let ids: Vec<_> = some
            .iter()
            .enumerate()
            .map(|(n, name)| {
                let args = match n {
                    0 => vec!["clone", "e0", "--name", name, "--detach"],
                    _ => vec!["create", "-f", &file, "--name", name, "--detach"],
                };
                id_of(&daemon.json(&args))
            })
            .collect();
        for id in ids {
            let operation = support::ended(&daemon, &id);
            assert_eq!(
                operation["state"],
                "done",
                "{operation:#}\n{}",
                daemon.log()
            );
        }
    }
    println!("30 environments after {} s", begun.elapsed().as_secs());
    let begun = Instant::now();
    let list = daemon.json(&["ls"]);
    println!("ls of them: {} ms", begun.elapsed().as_millis());
    assert_eq!(list.as_array().map(Vec::len), Some(30));
    let mut outer = std::collections::BTreeSet::new();
    for name in names.iter().map(String::as_str).chain(["e0"]) {
        let seen = answers(&daemon, name);
        assert_eq!(seen["hostname"], format!("web-1.{name}"));
        outer.insert(node(&daemon, name, "web-1")["outer"].to_string());
    }
    assert_eq!(outer.len(), 30, "each has an address of its own");
    let begun = Instant::now();
    let operation = daemon.json(&["clone", "e29", "--name", "one-more"]);
    println!(
        "a clone beside 30: {} ms, frozen for {} ms",
        begun.elapsed().as_millis(),
        operation["report"]["freeze_us"].as_u64().unwrap_or(0) / 1000
    );
    let begun = Instant::now();
    let mut all = vec!["one-more", "e0"];
    all.extend(names.iter().map(String::as_str));
    daemon.finish(&all);
    println!("removed after {} s", begun.elapsed().as_secs());
}
