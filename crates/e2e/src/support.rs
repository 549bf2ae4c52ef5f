//! What several of the tests need: manifests, questions to nodes, and what a refusal must look like.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::residue::Residue;
use crate::{TestDaemon, http, program, wait_for};
use serde_json::Value;

/// Long enough for anything that is to come at all on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Two layers that talk to each other without pause; `db` has a volume, and `web` waits for it.
pub const PAIR: &str = r#"
services:
  web:
    image: IMAGE
    environment: {PEER: "db:9000"}
    depends_on: {db: {condition: service_healthy}}
    stop_grace_period: 1s
    x-offshoot: {entry: 8080}
  db:
    image: IMAGE
    stop_grace_period: 1s
    environment: {PEER_PORT: "9000"}
    volumes: ["data:/data"]
    healthcheck: {test: ["CMD", "/bin/true"], interval: 1s}
volumes: {data: {}}
"#;

/// One small layer.
pub const ONE: &str = r#"
services:
  web:
    image: IMAGE
    stop_grace_period: 1s
    volumes: ["data:/data"]
    x-offshoot: {entry: 8080}
volumes: {data: {}}
"#;

/// A command of the command line, to be run in a way of one's own.
pub fn command(daemon: &TestDaemon, args: &[&str]) -> Command {
    let mut command = Command::new(program("offshoot"));
    command
        .arg("--config")
        .arg(daemon.path("offshoot.toml"))
        .args(args);
    command
}

/// Runs a command of the command line with this on its standard input.
pub fn run_with_input(daemon: &TestDaemon, args: &[&str], input: &[u8]) -> Output {
    let mut command = command(daemon, args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("offshoot can be started");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// What a shell script prints in a node.
#[track_caller]
pub fn sh(daemon: &TestDaemon, environment: &str, node: &str, script: &str) -> String {
    daemon
        .run(&["exec", environment, node, "--", "/bin/sh", "-c", script])
        .trim()
        .to_owned()
}

/// Puts the test tool at `/tmp/tool` of a node.
#[track_caller]
pub fn give_tool(daemon: &TestDaemon, environment: &str, node: &str) {
    let tool = program("offshoot-testtool");
    daemon.run(&[
        "cp",
        &tool.display().to_string(),
        &format!("{environment}/{node}:/tmp/tool"),
    ]);
}

/// What the test tool prints in a node.
#[track_caller]
pub fn tool(daemon: &TestDaemon, environment: &str, node: &str, args: &[&str]) -> String {
    let mut all = vec!["exec", environment, node, "--", "/tmp/tool"];
    all.extend(args);
    daemon.run(&all).trim().to_owned()
}

/// What the test node behind the entry says, once it answers.
#[track_caller]
pub fn answers(daemon: &TestDaemon, environment: &str) -> Value {
    wait_for(&format!("{environment} to answer"), SOON, || {
        daemon.node(environment, "/").ok()
    })
}

/// What a test node at this address says.
pub fn ask(daemon: &TestDaemon, address: &str) -> Option<Value> {
    ask_for(daemon, address, "/")
}

/// As [`ask`], with a path.
pub fn ask_for(daemon: &TestDaemon, address: &str, path: &str) -> Option<Value> {
    let address: SocketAddr = address.parse().expect("an address");
    let answer = daemon.inside(|| http::get(address, "any", path)).ok()?;
    serde_json::from_str(&answer.body).ok()
}

/// All nodes in what `show` says.
pub(crate) fn nodes(view: &Value) -> impl Iterator<Item = &Value> {
    let layers = view["layers"].as_array().expect("layers");
    layers
        .iter()
        .flat_map(|layer| layer["nodes"].as_array().expect("nodes"))
}

/// The node of this name in what `show` says.
#[track_caller]
pub fn node(daemon: &TestDaemon, environment: &str, name: &str) -> Value {
    let view = daemon.json(&["show", environment]);
    nodes(&view)
        .find(|node| node["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {view:#}"))
        .clone()
}

/// The numbers of the processes that a node's main processes have on this host, by node.
#[track_caller]
pub fn pids(daemon: &TestDaemon, environment: &str) -> Vec<(String, i64)> {
    let view = daemon.json(&["show", environment]);
    nodes(&view)
        .map(|node| {
            let pid = node["status"]["pid"]
                .as_i64()
                .unwrap_or_else(|| panic!("{node} does not run"));
            (node["name"].as_str().unwrap_or_default().to_owned(), pid)
        })
        .collect()
}

/// The id in what a command with `--detach -o json` printed.
#[track_caller]
pub fn id_of(operation: &Value) -> String {
    operation["id"]
        .as_str()
        .unwrap_or_else(|| panic!("no id in {operation}"))
        .to_owned()
}

/// Waits until an operation ended; gives it.
#[track_caller]
pub fn ended(daemon: &TestDaemon, id: &str) -> Value {
    wait_for(
        &format!("operation {id} to end"),
        Duration::from_secs(60),
        || {
            let operation = daemon.json(&["op", "show", id]);
            matches!(
                operation["state"].as_str(),
                Some("done" | "failed" | "cancelled")
            )
            .then_some(operation)
        },
    )
}

/// The rungs of the nodes of a clone, by node.
pub fn rungs(operation: &Value) -> BTreeMap<String, String> {
    let nodes = operation["report"]["nodes"]
        .as_array()
        .unwrap_or_else(|| panic!("no nodes in {operation:#}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    nodes
        .iter()
        .map(|node| (text(&node["node"]), text(&node["rung"])))
        .collect()
}

/// Runs a command that must fail with status 1, this code, and a hint; nothing on the host may have changed.
#[track_caller]
pub fn refused_with(daemon: &TestDaemon, code: &str, args: &[&str]) -> Value {
    let before = daemon.residue();
    let output = daemon.try_run(args).expect("offshoot can be run");
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    let people = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        people.contains(&format!("error[{code}]:")),
        "{args:?} printed {people}"
    );
    assert_eq!(
        people.matches("error[").count(),
        1,
        "{args:?}: one error, not several: {people}"
    );
    assert!(
        people.contains("next:"),
        "{args:?} does not say what to do: {people}"
    );
    let problem = daemon.refused(args);
    assert_eq!(problem["code"], code, "{args:?}: {problem:#}");
    for key in ["what", "next", "fault"] {
        assert!(
            problem[key].as_str().is_some_and(|text| !text.is_empty()),
            "{args:?} has no {key}: {problem:#}"
        );
    }
    nothing_new(daemon, &before);
    problem
}

/// Nothing is on the host that was not there before; health checks come and go.
#[track_caller]
pub fn nothing_new(daemon: &TestDaemon, before: &Residue) {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let left = new_in(&daemon.residue(), before);
        if left.is_empty() {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "left behind: {left:#?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn new_in(after: &Residue, before: &Residue) -> Residue {
    let new = |after: &std::collections::BTreeSet<PathBuf>,
               before: &std::collections::BTreeSet<PathBuf>| {
        after.difference(before).cloned().collect()
    };
    Residue {
        processes: after
            .processes
            .difference(&before.processes)
            .cloned()
            .collect(),
        mounts: new(&after.mounts, &before.mounts),
        cgroups: new(&after.cgroups, &before.cgroups),
        interfaces: after
            .interfaces
            .difference(&before.interfaces)
            .cloned()
            .collect(),
        directories: new(&after.directories, &before.directories),
    }
}
