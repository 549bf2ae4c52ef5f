//! Everyday commands, as a person would use them, on whole daemons.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use offshoot_e2e::{TestDaemon, wait_for};
use support::{
    ONE, PAIR, SOON, answers, command, ended, give_tool, id_of, node, nothing_new, pids,
    run_with_input, sh, tool,
};

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
    let file = daemon.compose("compose.yaml", PAIR);
    daemon.run(&["create", "-f", &file, "--name", "shop"]);
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
    daemon.run(&["rm", "-f", "shop", "depot"]);
    assert!(daemon.residue().is_empty(), "{:#?}", daemon.residue());
}

#[test]
fn exec_and_logs_and_cp() {
    let daemon = TestDaemon::start();
    let file = daemon.compose("compose.yaml", PAIR);
    daemon.run(&["create", "-f", &file, "--name", "shop"]);
    exec(&daemon);
    logs(&daemon);
    copy(&daemon);
    daemon.run(&["rm", "-f", "shop"]);
    assert!(daemon.residue().is_empty(), "{:#?}", daemon.residue());
}

fn exec(daemon: &TestDaemon) {
    let run = |args: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(args);
        daemon.try_run(&all).expect("it runs")
    };
    let output = run(&[
        "shop",
        "web",
        "--",
        "/bin/sh",
        "-c",
        "echo out; echo err >&2; exit 42",
    ]);
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    assert_eq!(
        run(&["shop", "web-1", "--", "/bin/sh", "-c", "kill -9 $$"])
            .status
            .code(),
        Some(137)
    );

    let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
    let echoed = run_with_input(
        daemon,
        &["exec", "-i", "shop", "web", "--", "/bin/cat"],
        &bytes,
    );
    assert!(
        echoed.status.success(),
        "{}",
        String::from_utf8_lossy(&echoed.stderr)
    );
    assert!(
        echoed.stdout == bytes,
        "what goes in comes out: {} of {} bytes",
        echoed.stdout.len(),
        bytes.len()
    );
    // Without -i there is nothing to read.
    assert_eq!(
        run(&["shop", "web", "--", "/bin/cat"]).status.code(),
        Some(0)
    );

    assert_eq!(
        daemon
            .run(&["exec", "-u", "app", "shop", "web", "--", "id", "-u"])
            .trim(),
        "1000"
    );
    assert_eq!(
        daemon
            .run(&["exec", "-u", "1234:5678", "shop", "web", "--", "id", "-g"])
            .trim(),
        "5678"
    );
    assert_eq!(sh(daemon, "shop", "web", "id -u"), "0");
    let told = daemon.run(&[
        "exec",
        "-e",
        "A=b c",
        "-w",
        "/data",
        "shop",
        "web",
        "--",
        "/bin/sh",
        "-c",
        "echo $A $PEER; pwd",
    ]);
    assert_eq!(told, "b c db:9000\n/data\n");

    // A terminal, driven by script(1).
    let line = format!(
        "{} --config {} exec -it shop web -- /bin/sh -c 'test -t 0 && test -t 1 && stty size && exit 7'",
        support::program("offshoot").display(),
        daemon.path("offshoot.toml").display()
    );
    let mut script = std::process::Command::new("script");
    script
        .args([
            "-qec",
            &format!("stty rows 33 cols 99; {line}"),
            "/dev/null",
        ])
        .stdin(Stdio::null());
    let seen = script.output().expect("script(1) is there");
    assert!(
        String::from_utf8_lossy(&seen.stdout).contains("33 99"),
        "{seen:?}"
    );
    assert_eq!(seen.status.code(), Some(7), "{seen:?}");

    // A client that goes away takes its command with it.
    let mut client = command(
        daemon,
        &[
            "exec",
            "-i",
            "shop",
            "web",
            "--",
            "/bin/sh",
            "-c",
            "echo begun; exec /bin/sleep 98765",
        ],
    );
    let mut client = client
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut first = [0; 6];
    client
        .stdout
        .take()
        .expect("a pipe")
        .read_exact(&mut first)
        .expect("it begins");
    client.kill().expect("it is ours");
    client.wait().expect("it is ours");
    wait_for("the command to end with its client", SOON, || {
        (!sh(daemon, "shop", "web", "ps ax 2>/dev/null || ps").contains("98765")).then_some(())
    });
}

fn logs(daemon: &TestDaemon) {
    let say = |text: &str| {
        sh(
            daemon,
            "shop",
            "db",
            &format!("echo {text} > /proc/1/fd/1; echo {text}-err > /proc/1/fd/2"),
        );
    };
    (0..30).for_each(|number| say(&format!("line-{number}")));
    let all = wait_for("all lines", SOON, || {
        let all = daemon.run(&["logs", "shop"]);
        (all.contains("line-29") && all.contains("line-29-err")).then_some(all)
    });
    assert!(
        all.contains("listening on 8080") && all.contains("web-1") && all.contains("db-1"),
        "{all}"
    );
    let web = daemon.run(&["logs", "shop", "web"]);
    assert!(!web.contains("line-"), "{web}");
    let tail = daemon.run(&["logs", "--tail", "4", "--no-prefix", "shop", "db-1"]);
    let lines: Vec<_> = tail.lines().collect();
    assert_eq!(lines.len(), 4, "{tail}");
    assert!(
        lines.contains(&"line-29") && lines.contains(&"line-29-err"),
        "{tail}"
    );
    let json = daemon.run(&["-o", "json", "logs", "--tail", "2", "shop", "db"]);
    for line in json.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a document per line");
        assert_eq!(line["node"], "db-1");
        assert!(
            line["time"].is_string() && line["stream"].is_string(),
            "{line}"
        );
    }

    let mut follower = command(
        daemon,
        &["logs", "-f", "--tail", "1", "--no-prefix", "shop", "db"],
    );
    let mut follower = follower
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    lines.next().expect("a line").expect("text");
    say("and-on");
    let mut seen = vec![
        lines.next().expect("a line").expect("text"),
        lines.next().expect("a line").expect("text"),
    ];
    seen.sort();
    assert_eq!(seen, ["and-on", "and-on-err"]);
    follower.kill().expect("it is ours");
    follower.wait().expect("it is ours");
}

fn copy(daemon: &TestDaemon) {
    let here = daemon.path("here");
    fs::create_dir_all(here.join("tree/sub")).expect("a directory");
    fs::write(here.join("tree/one"), "one").expect("a file");
    fs::write(here.join("tree/sub/two"), "two").expect("a file");
    std::os::unix::fs::symlink("one", here.join("tree/link")).expect("a link");
    let local = |name: &str| here.join(name).display().to_string();

    daemon.run(&["cp", &local("tree"), "shop/web:/tmp"]);
    assert_eq!(
        sh(
            daemon,
            "shop",
            "web",
            "cat /tmp/tree/one /tmp/tree/sub/two /tmp/tree/link"
        ),
        "onetwoone"
    );
    daemon.run(&["cp", &format!("{}/.", local("tree")), "shop/web:/tmp"]);
    assert_eq!(sh(daemon, "shop", "web", "cat /tmp/one"), "one");
    assert_eq!(
        sh(daemon, "shop", "web", "ls -ln /tmp/one")
            .split_whitespace()
            .nth(2),
        Some("0"),
        "root's in the node"
    );
    daemon.run(&["cp", &local("tree/one"), "shop/web:/tmp/other"]);
    assert_eq!(sh(daemon, "shop", "web", "cat /tmp/other"), "one");

    // Into a volume, and out of it; owners as numbers of the node with -a.
    sh(
        daemon,
        "shop",
        "db",
        "mkdir /data/box; echo own > /data/box/file",
    );
    daemon.run(&["cp", &local("tree/one"), "shop/db:/data/one"]);
    assert_eq!(sh(daemon, "shop", "db", "cat /data/one"), "one");
    daemon.run(&["cp", "shop/db:/data", &local("data")]);
    assert_eq!(
        fs::read_to_string(here.join("data/box/file")).expect("a file"),
        "own\n"
    );
    assert_eq!(
        fs::read_to_string(here.join("data/seed")).expect("a file"),
        "from the image\n"
    );
    use std::os::unix::fs::{MetadataExt as _, chown};
    chown(here.join("tree/one"), Some(1000), Some(1000)).expect("root may");
    daemon.run(&["cp", "-a", &local("tree/one"), "shop/db:/data/owned"]);
    let owner = sh(daemon, "shop", "db", "ls -ln /data/owned");
    assert_eq!(owner.split_whitespace().nth(2), Some("1000"), "{owner}");
    daemon.run(&["cp", "-a", "shop/db:/data/owned", &local("owned")]);
    assert_eq!(
        fs::metadata(here.join("owned")).expect("a file").uid(),
        1000
    );

    // As an archive, through pipes.
    let archive = daemon
        .try_run(&["cp", "shop/db:/data/box", "-"])
        .expect("it runs");
    assert!(archive.status.success(), "{archive:?}");
    let back = run_with_input(daemon, &["cp", "-", "shop/web:/tmp"], &archive.stdout);
    assert!(back.status.success(), "{back:?}");
    assert_eq!(sh(daemon, "shop", "web", "cat /tmp/box/file"), "own");

    // A link inside the node that points out of it leads nowhere else.
    sh(
        daemon,
        "shop",
        "web",
        "cat /bin/sh > /dev/null; mkdir /tmp/trap",
    );
    std::os::unix::fs::symlink("/etc", here.join("trap-link")).expect("a link");
    daemon.run(&["cp", &local("trap-link"), "shop/web:/tmp/trap/out"]);
    fs::write(here.join("canary"), "x").expect("a file");
    daemon.run(&[
        "cp",
        &local("canary"),
        "shop/web:/tmp/trap/out/offshoot-canary",
    ]);
    assert!(
        !std::path::Path::new("/etc/offshoot-canary").exists(),
        "the host's own /etc was written"
    );
    assert_eq!(sh(daemon, "shop", "web", "cat /etc/offshoot-canary"), "x");
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
    daemon.run(&[
        "rm",
        "-f",
        "shop",
        "shop-clone",
        "shop-clone2",
        "shop-clone3",
    ]);
    assert!(daemon.residue().is_empty(), "{:#?}", daemon.residue());
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
