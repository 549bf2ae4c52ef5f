//! Everyday commands that go into nodes: exec, logs, cp.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use offshoot_e2e::support::{PAIR, SOON, command, run_with_input, sh};
use offshoot_e2e::{TestDaemon, wait_for};

#[test]
fn exec_and_logs_and_cp() {
    let daemon = TestDaemon::start();
    daemon.create("shop", PAIR);
    exec(&daemon);
    logs(&daemon);
    copy(&daemon);
    daemon.finish(&["shop"]);
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
        offshoot_e2e::program("offshoot").display(),
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
