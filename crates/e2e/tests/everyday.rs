//! Everyday commands, as a person would use them, on whole daemons.

use offshoot_e2e::support::{
    ONE, PAIR, SOON, answers, ended, give_tool, id_of, node, nothing_new, pids, sh, tool,
};
use offshoot_e2e::{TestDaemon, wait_for};

#[test]
fn an_environment_lives_from_create_to_rm() {
    let daemon = TestDaemon::start();
    let file = daemon.compose("compose.yaml", PAIR);

    let plan = daemon.json(&["plan", "-f", &file, "--name", "shop"]);
    assert_eq!(plan["name"], "shop");
    assert_eq!(plan["url"], "http://shop.localhost:8080/");
    assert_eq!(plan["nodes"].as_array().map(Vec::len), Some(2));
    assert!(daemon.residue().is_empty(), "plan makes nothing");
    assert!(
        daemon
            .run(&["plan", "-f", &file, "--name", "shop"])
            .contains("web-1")
    );
    assert_eq!(daemon.json(&["ls"]).as_array().map(Vec::len), Some(0));

    daemon.run(&["create", "-f", &file, "--name", "shop"]);
    daemon.node("shop", "/set?v=kept").expect("it answers");
    let show = daemon.json(&["show", "shop"]);
    assert_eq!(show["state"], "running");
    assert_eq!(show["healthy"], true, "{show:#}");
    assert_eq!(show["url"], plan["url"]);
    for planned in plan["nodes"].as_array().expect("nodes") {
        let name = planned["name"].as_str().expect("a name");
        let made = node(&daemon, "shop", name);
        assert_eq!(made["status"]["state"], "running");
        assert_eq!(made["inner"], planned["inner"]);
        assert!(
            made["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0),
            "{made}"
        );
        assert!(made["pids"].as_u64().is_some_and(|pids| pids > 0), "{made}");
    }
    assert_eq!(node(&daemon, "shop", "db-1")["status"]["health"], "healthy");
    let ls = daemon.json(&["ls"]);
    assert_eq!(
        (&ls[0]["name"], &ls[0]["state"]),
        (&"shop".into(), &"running".into())
    );
    assert!(daemon.run(&["ls"]).contains("shop"));
    assert_eq!(daemon.run(&["ls", "-q"]).trim(), "shop");
    let people = daemon.run(&["ps", "shop"]);
    assert!(
        people.contains("web-1") && people.contains("db-1"),
        "{people}"
    );
    assert!(daemon.json(&["ps"]).to_string().contains("db-1"));
    assert!(
        daemon
            .run(&["show", "shop"])
            .contains("http://shop.localhost:8080/")
    );
    assert!(
        daemon
            .json(&["show", "shop", "--manifest"])
            .to_string()
            .contains("PEER_PORT")
    );

    let boot = answers(&daemon, "shop")["boot"].clone();
    daemon.run(&["stop", "shop"]);
    let show = daemon.json(&["show", "shop"]);
    assert_eq!(show["state"], "stopped");
    assert!(
        daemon
            .get("shop", "/")
            .map_or(true, |answer| answer.status >= 400),
        "a stopped environment does not answer"
    );
    let stopped = daemon.residue();
    assert!(
        stopped.mounts.is_empty() && stopped.interfaces.is_empty(),
        "{stopped:#?}"
    );
    assert!(stopped.processes.is_empty(), "{stopped:#?}");
    daemon.run(&["start", "shop"]);
    let seen = answers(&daemon, "shop");
    assert_ne!(seen["boot"], boot, "the process is a new one");
    assert_eq!(seen["disk"], "kept", "the disk is the old one");
    wait_for("the peers to talk", SOON, || {
        daemon
            .node("shop", "/")
            .ok()
            .filter(|now| now["answered"].as_u64() > Some(5))
    });

    // Several at once; rm of a running and of a stopped one.
    daemon.run(&["clone", "shop"]);
    daemon.run(&["stop", "shop", "shop-clone"]);
    daemon.run(&["start", "shop"]);
    daemon.run(&["rm", "-f", "shop", "shop-clone"]);
    assert_eq!(daemon.json(&["ls"]).as_array().map(Vec::len), Some(0));
    assert!(daemon.residue().is_empty(), "{:#?}", daemon.residue());
}

#[test]
fn rename_changes_the_address_and_disturbs_nothing() {
    let daemon = TestDaemon::start();
    daemon.create("shop", PAIR);
    daemon.node("shop", "/set?v=kept").expect("it answers");
    give_tool(&daemon, "shop", "web");
    let before = answers(&daemon, "shop");
    let processes = pids(&daemon, "shop");
    let inner = node(&daemon, "shop", "db-1")["inner"]
        .as_str()
        .expect("an address")
        .to_owned();
    for name in ["db", "db-1", "db-1.shop"] {
        assert_eq!(
            tool(&daemon, "shop", "web", &["resolve", name]),
            inner,
            "{name}"
        );
    }

    let operation = daemon.json(&["rename", "shop", "store"]);
    assert_eq!(operation["state"], "done");
    assert_eq!(
        daemon.json(&["show", "store"])["url"],
        "http://store.localhost:8080/"
    );
    let after = answers(&daemon, "store");
    assert_eq!(after["boot"], before["boot"]);
    assert_eq!(after["value"], "kept");
    assert_eq!(after["connects"], 1);
    assert_eq!(after["gaps"], 0);
    assert_eq!(after["hostname"], "web-1.store");
    assert_eq!(pids(&daemon, "store"), processes);
    assert!(
        daemon
            .get("shop", "/")
            .map_or(true, |answer| answer.status == 404),
        "the old address is gone"
    );
    for (host, name) in [("web-1.store", "web"), ("db-1.store", "db")] {
        assert_eq!(
            sh(&daemon, "store", name, "cat /proc/sys/kernel/hostname"),
            host
        );
        assert_eq!(sh(&daemon, "store", name, "cat /etc/hostname"), host);
        assert_eq!(
            node(&daemon, "store", &format!("{name}-1"))["hostname"],
            host
        );
    }
    for name in ["db", "db-1", "db-1.store"] {
        assert_eq!(
            tool(&daemon, "store", "web", &["resolve", name]),
            inner,
            "{name}"
        );
    }
    let own = node(&daemon, "store", "web-1")["inner"]
        .as_str()
        .expect("an address")
        .to_owned();
    assert_eq!(
        tool(&daemon, "store", "web", &["resolve", "web-1.store"]),
        own,
        "also from /etc/hosts"
    );
    let old = daemon
        .try_run(&[
            "exec",
            "store",
            "web",
            "--",
            "/tmp/tool",
            "resolve",
            "db-1.shop",
        ])
        .expect("it runs");
    assert!(
        !old.status.success(),
        "the old name is gone: {}",
        String::from_utf8_lossy(&old.stdout)
    );

    // The old name is free again, a clone remembers its parent, and the names survive stop and start.
    daemon.run(&["clone", "store", "--name", "shop"]);
    assert_eq!(daemon.json(&["show", "shop"])["parent"]["name"], "store");
    assert_eq!(answers(&daemon, "shop")["hostname"], "web-1.shop");
    daemon.run(&["stop", "store"]);
    daemon.run(&["rename", "store", "depot"]);
    daemon.run(&["start", "depot"]);
    assert_eq!(answers(&daemon, "depot")["hostname"], "web-1.depot");
    assert_eq!(answers(&daemon, "shop")["value"], "kept");
    daemon.finish(&["shop", "depot"]);
}

#[test]
fn operations_are_listed_shown_and_cancelled() {
    let daemon = TestDaemon::start();
    let file = daemon.compose("compose.yaml", ONE);
    let nothing = daemon.residue();
    // Its health check never passes: it can be cancelled while it waits.
    let stuck = daemon.compose(
        "stuck.yaml",
        "services:\n  web:\n    image: IMAGE\n    healthcheck: {test: [\"CMD\", \"/bin/false\"], interval: 1s, start_period: 1m}\n  \
         late:\n    image: IMAGE\n    depends_on: {web: {condition: service_healthy}}\n",
    );
    let id = id_of(&daemon.json(&["create", "-f", &stuck, "--name", "stuck", "--detach"]));
    wait_for("it to wait for the health check", SOON, || {
        let view = daemon.try_run(&["-o", "json", "show", "stuck"]).ok()?;
        String::from_utf8_lossy(&view.stdout)
            .contains("\"starting\"")
            .then_some(())
    });
    let shown = daemon.json(&["op", "show", &id]);
    assert_eq!(
        (&shown["kind"], &shown["state"]),
        (&"create".into(), &"running".into())
    );
    daemon.run(&["op", "cancel", &id]);
    assert_eq!(ended(&daemon, &id)["state"], "cancelled");
    nothing_new(&daemon, &nothing);
    assert_eq!(daemon.json(&["ls"]).as_array().map(Vec::len), Some(0));

    // The name is free at once; rm of what is being made ends the making.
    let id = id_of(&daemon.json(&["create", "-f", &stuck, "--name", "stuck", "--detach"]));
    daemon.run(&["rm", "-f", "stuck"]);
    assert_ne!(ended(&daemon, &id)["state"], "done");
    nothing_new(&daemon, &nothing);

    daemon.run(&["create", "-f", &file, "--name", "shop"]);
    let clone = daemon.json(&["clone", "shop"]);
    let id = id_of(&clone);
    let shown = daemon.json(&["op", "show", &id]);
    assert_eq!(shown["state"], "done");
    assert!(
        shown["report"]["freeze_us"]
            .as_u64()
            .is_some_and(|us| us > 0),
        "{shown:#}"
    );
    assert!(
        shown["steps"]
            .as_array()
            .is_some_and(|steps| steps.iter().all(|step| step["us"].is_u64())),
        "{shown:#}"
    );
    assert!(daemon.run(&["op", "show", "--timing", &id]).contains("cut"));
    let ls = daemon.json(&["op", "ls"]);
    assert_eq!(ls[0]["id"], id.as_str(), "the newest first");
    assert!(daemon.run(&["op", "ls"]).contains("clone"));
    // One after the other: both clones of one parent, detached, then wait.
    let ids: Vec<_> = (0..2)
        .map(|_| id_of(&daemon.json(&["clone", "shop", "--detach"])))
        .collect();
    for id in ids {
        let waited = daemon.json(&["op", "show", "--follow", &id]);
        assert_eq!(waited["state"], "done", "{waited:#}");
    }
    daemon.finish(&["shop", "shop-clone", "shop-clone2", "shop-clone3"]);
}

#[test]
fn images_pool_doctor_and_completions() {
    let daemon = TestDaemon::start();
    let archive = format!("docker-archive:{}", daemon.path("image.tar").display());
    assert_eq!(
        daemon.json(&["image", "ls"]).as_array().map(Vec::len),
        Some(0)
    );
    daemon.run(&["image", "import", &archive]);
    let images = daemon.json(&["image", "ls"]);
    assert_eq!(images.as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&images[0]["source"], &images[0]["used_by"]),
        (&archive.as_str().into(), &0.into())
    );
    assert!(daemon.run(&["image", "ls"]).contains("docker-archive:"));
    let id = images[0]["id"]
        .as_str()
        .expect("an id")
        .trim_start_matches("sha256:")
        .to_owned();
    daemon.run(&["image", "import", &archive]);
    assert_eq!(
        daemon.json(&["image", "ls"]).as_array().map(Vec::len),
        Some(1),
        "the same content once"
    );
    daemon.run(&["image", "rm", &id[..12]]);
    assert_eq!(
        daemon.json(&["image", "ls"]).as_array().map(Vec::len),
        Some(0)
    );
    assert!(
        !offshoot_e2e::daemon::has_entries(&daemon.path("state/pool/images")),
        "its files are gone"
    );

    let before = daemon.json(&["pool", "status"]);
    let size = before["size"].as_u64().expect("a size");
    assert!(
        before["free"]
            .as_u64()
            .is_some_and(|free| free > 0 && free < size),
        "{before}"
    );
    daemon.run(&["pool", "grow", "+1GiB"]);
    let after = daemon.json(&["pool", "status"]);
    assert_eq!(after["size"].as_u64(), Some(size + (1 << 30)));
    assert!(
        after["free"].as_u64() > before["free"].as_u64(),
        "{before} {after}"
    );
    assert!(daemon.run(&["pool", "status"]).contains("GiB"));

    let report = daemon.json(&["doctor"]);
    assert_eq!(report["fit"], true, "{report:#}");
    assert!(
        report["checks"]
            .as_array()
            .is_some_and(|checks| checks.len() > 5),
        "{report:#}"
    );
    assert!(daemon.run(&["doctor"]).to_lowercase().contains("criu"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(
            daemon.run(&["completion", shell]).contains("offshoot"),
            "{shell}"
        );
    }
    assert!(daemon.json(&["version"]).to_string().contains("0."));
}

#[test]
fn several_files_make_one_environment() {
    let daemon = TestDaemon::start();
    let first = daemon.compose(
        "first.yaml",
        "include: [part.yaml]\nservices:\n  web:\n    image: IMAGE\n    environment: {A: first, B: first}\n    \
         x-offshoot: {entry: 8080}\n  tools:\n    image: IMAGE\n    profiles: [debug]\n  \
         more:\n    extends: {file: base.yaml, service: base}\n",
    );
    let second = daemon.compose(
        "second.yaml",
        "services:\n  web:\n    environment: {B: second}\n    deploy: {replicas: 2}\n",
    );
    let _ = daemon.compose("part.yaml", "services:\n  part:\n    image: IMAGE\n");
    let _ = daemon.compose(
        "base.yaml",
        "services:\n  base:\n    image: IMAGE\n    environment: {BASE: \"yes\"}\n",
    );
    let nodes = |args: &[&str]| -> Vec<String> {
        let mut all = vec!["plan", "--name", "shop", "-f", &first, "-f", &second];
        all.extend(args);
        let plan = daemon.json(&all);
        let nodes = plan["nodes"].as_array().expect("nodes").iter();
        let mut names: Vec<_> = nodes
            .map(|node| node["name"].as_str().expect("a name").to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(nodes(&[]), ["more-1", "part-1", "web-1", "web-2"]);
    assert_eq!(
        nodes(&["--profile", "debug"]),
        ["more-1", "part-1", "tools-1", "web-1", "web-2"]
    );
    daemon.run(&["create", "--name", "shop", "-f", &first, "-f", &second]);
    assert_eq!(sh(&daemon, "shop", "web-2", "echo $A $B"), "first second");
    assert_eq!(sh(&daemon, "shop", "more", "echo $BASE"), "yes");

    // Changes of one environment wait for each other.
    let stop = id_of(&daemon.json(&["stop", "shop", "--detach"]));
    let start = id_of(&daemon.json(&["start", "shop", "--detach"]));
    let clone = id_of(&daemon.json(&["clone", "shop", "--detach"]));
    for id in [stop, start, clone] {
        let operation = ended(&daemon, &id);
        assert_eq!(operation["state"], "done", "{operation:#}");
    }
    assert_eq!(daemon.json(&["show", "shop"])["state"], "running");
    answers(&daemon, "shop-clone");
    daemon.finish(&["shop", "shop-clone"]);
}
