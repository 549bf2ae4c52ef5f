//! What a clone must not do: it sends no mail outside, runs no jobs, and goes on with both when it is let go; and clones that are not
//! started.

use std::net::TcpListener;
use std::time::Duration;

use offshoot_e2e::support::{SOON, answers, give_tool, node, refused_with, rungs, sh, tool};
use offshoot_e2e::{TestDaemon, wait_for};

/// `web` has a scheduler beside its server, `worker` runs jobs, `catcher` takes mail inside.
const SHOP: &str = r#"
services:
  web:
    image: IMAGE
    stop_grace_period: 1s
    x-offshoot: {entry: 8080}
    volumes: ["data:/data"]
    depends_on: [worker]
    entrypoint: ["/bin/sh", "-c", "(until test -x /tmp/cron; do /bin/sleep 0.05; done; exec /tmp/cron -c 'while :; do echo tick >> /data/ticks; /bin/sleep 0.02; done') & exec /bin/testnode"]
  worker:
    image: IMAGE
    stop_grace_period: 200ms
    restart: always
    x-offshoot: {jobs: true}
    volumes: ["done:/data"]
    entrypoint: ["/bin/sh", "-c", "while :; do echo job >> /data/jobs; /bin/sleep 0.02; done"]
  catcher:
    image: IMAGE
    stop_grace_period: 200ms
    environment: {PEER_PORT: "25"}
volumes: {data: {}, done: {}}
"#;

/// The shop with its scheduler at work, and a server on the host that takes mail.
fn shop() -> (TestDaemon, [TcpListener; 1]) {
    let daemon = TestDaemon::start();
    daemon.create("shop", SHOP);
    answers(&daemon, "shop");
    give_tool(&daemon, "shop", "web");
    let shell = std::fs::canonicalize("/bin/sh").expect("a shell");
    let shell = shell.to_str().expect("a plain name");
    daemon.run(&["cp", shell, "shop/web:/tmp/cron"]);
    more_ticks(&daemon, "shop");
    let server = daemon.inside(|| TcpListener::bind("0.0.0.0:25"));
    let server = server.expect("nobody takes mail in the test's namespace");
    (daemon, [server])
}

fn ticks(daemon: &TestDaemon, name: &str) -> usize {
    lines(daemon, name, "web", "/data/ticks")
}

fn lines(daemon: &TestDaemon, name: &str, node: &str, file: &str) -> usize {
    let text = sh(
        daemon,
        name,
        node,
        &format!("cat {file} 2> /dev/null || true"),
    );
    text.lines().count()
}

#[track_caller]
fn more_ticks(daemon: &TestDaemon, name: &str) {
    let before = ticks(daemon, name);
    wait_for(&format!("the scheduler of {name}"), SOON, || {
        (ticks(daemon, name) > before).then_some(())
    });
}

/// Waits until the parent's scheduler worked fifty times more.
fn time_passes(daemon: &TestDaemon) {
    let before = ticks(daemon, "shop");
    wait_for("time to pass", SOON, || {
        (ticks(daemon, "shop") >= before + 50).then_some(())
    });
}

/// How an attempt to hand mail over outside ends.
fn mail(daemon: &TestDaemon, name: &str) -> String {
    let outer = node(daemon, name, "web-1")["outer"]
        .as_str()
        .expect("an address")
        .to_owned();
    let host = format!("{}.1:25", outer.rsplit_once('.').expect("an address").0);
    tool(daemon, name, "web", &["connect", &host])
}

#[test]
fn a_clone_that_holds_sends_no_mail_and_runs_no_jobs_until_it_is_let_go() {
    let (mut daemon, _server) = shop();
    assert_eq!(mail(&daemon, "shop"), "connected");
    let plan = daemon.json(&["clone", "shop", "--hold", "--dry-run"]);
    let said = plan["notices"].to_string();
    for part in [
        "node web-1: jobs are held: cron (process",
        "node worker-1: it runs jobs",
        "mail is held",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    let operation = daemon.json(&["clone", "shop", "--hold"]);
    let rungs = rungs(&operation);
    assert_eq!(
        (rungs["web-1"].as_str(), rungs["worker-1"].as_str()),
        ("live", "disk"),
        "{operation:#}"
    );
    let begun = ticks(&daemon, "shop-clone");
    assert!(begun > 0, "there is something to go on with");
    assert_eq!(mail(&daemon, "shop-clone"), "ConnectionRefused");
    assert_eq!(mail(&daemon, "shop"), "connected");
    // It has nothing to keep, so it starts afresh and listens a moment later.
    wait_for("mail inside the clone", SOON, || {
        let met = tool(&daemon, "shop-clone", "web", &["connect", "catcher:25"]);
        (met == "connected").then_some(())
    });
    time_passes(&daemon);
    assert_eq!(
        ticks(&daemon, "shop-clone"),
        begun,
        "the scheduler does not go on"
    );
    let worker = node(&daemon, "shop-clone", "worker-1");
    assert_eq!(
        (&worker["status"]["state"], &worker["held"]),
        (&"stopped".into(), &true.into()),
        "{worker:#}"
    );
    let web = node(&daemon, "shop-clone", "web-1");
    assert!(
        web["held_processes"].to_string().contains("cron"),
        "{web:#}"
    );
    assert_eq!(daemon.json(&["show", "shop-clone"])["healthy"], true);

    // Neither a start nor a restart of the daemon, the router or the environment lets go.
    daemon.run(&["start", "shop-clone"]);
    daemon.kill();
    daemon.restart();
    assert_eq!(mail(&daemon, "shop-clone"), "ConnectionRefused");
    time_passes(&daemon);
    assert_eq!(ticks(&daemon, "shop-clone"), begun);
    daemon.run(&["stop", "shop-clone"]);
    daemon.run(&["start", "shop-clone"]);
    answers(&daemon, "shop-clone");
    wait_for("the scheduler to be started and held", SOON, || {
        let web = node(&daemon, "shop-clone", "web-1");
        web["held_processes"]
            .to_string()
            .contains("cron")
            .then_some(())
    });
    assert_eq!(
        ticks(&daemon, "shop-clone"),
        begun,
        "not one instruction of it ran"
    );
    assert_eq!(mail(&daemon, "shop-clone"), "ConnectionRefused");
    assert_eq!(
        node(&daemon, "shop-clone", "worker-1")["status"]["state"],
        "stopped"
    );

    // A clone of it holds too.
    daemon.run(&["clone", "shop-clone", "--name", "second"]);
    assert_eq!(mail(&daemon, "second"), "ConnectionRefused");
    assert_eq!(
        node(&daemon, "second", "worker-1")["status"]["state"],
        "stopped"
    );

    daemon.run(&["release", "second"]);
    more_ticks(&daemon, "second");

    daemon.run(&["release", "shop-clone", "--mail"]);
    assert_eq!(mail(&daemon, "shop-clone"), "connected");
    assert_eq!(ticks(&daemon, "shop-clone"), begun);
    daemon.run(&["release", "shop-clone"]);
    more_ticks(&daemon, "shop-clone");
    wait_for("the worker", SOON, || {
        (node(&daemon, "shop-clone", "worker-1")["status"]["state"] == "running").then_some(())
    });

    // What runs can be held as well, and both of its nodes notice.
    daemon.run(&["hold", "shop-clone", "--jobs"]);
    assert_eq!(
        node(&daemon, "shop-clone", "worker-1")["status"]["state"],
        "stopped"
    );
    let begun = wait_for("the scheduler to stand", Duration::from_secs(10), || {
        let then = ticks(&daemon, "shop-clone");
        time_passes(&daemon);
        (ticks(&daemon, "shop-clone") == then).then_some(then)
    });
    assert!(begun > 0);
    assert_eq!(mail(&daemon, "shop-clone"), "connected");
    daemon.finish(&["shop", "shop-clone", "second"]);
}

#[test]
fn a_clone_that_is_not_started_has_the_disks_and_waits() {
    let (daemon, _server) = shop();
    daemon.node("shop", "/set?v=kept").expect("it answers");
    refused_with(
        &daemon,
        "bad-request",
        &["clone", "shop", "--no-start", "--rung", "live"],
    );
    let operation = daemon.json(&["clone", "shop", "--no-start", "--hold-mail"]);
    let why = operation["report"]["nodes"][0]["why"]
        .as_str()
        .unwrap_or_default();
    assert_eq!(why, "the clone is not started", "{operation:#}");
    let view = daemon.json(&["show", "shop-clone"]);
    assert_eq!(view["state"], "stopped", "{view:#}");
    assert_eq!(
        node(&daemon, "shop-clone", "web-1")["status"]["state"],
        "stopped"
    );
    daemon.run(&["start", "shop-clone"]);
    assert_eq!(answers(&daemon, "shop-clone")["disk"], "kept");
    assert_eq!(mail(&daemon, "shop-clone"), "ConnectionRefused");
    daemon.run(&["release", "shop-clone"]);
    assert_eq!(mail(&daemon, "shop-clone"), "connected");
    daemon.finish(&["shop", "shop-clone"]);
}
