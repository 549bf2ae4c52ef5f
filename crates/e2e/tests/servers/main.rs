//! Real servers from a distribution's packages are cloned while they work hard; afterwards each looks over what it holds, in
//! the parent and in the clones.

mod mariadb;
mod postgres;
mod redis;
mod web;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use offshoot_e2e::support::{rungs, sh};
use offshoot_e2e::{TestDaemon, wait_for};

/// Starting up, filling a database, going on after a clone: all on a machine that is busy with it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Creates a server's environment, clones it, and looks it over.
type Whole = fn(&TestDaemon);

const SERVERS: [(&str, Whole); 6] = [
    ("postgres", postgres::whole),
    ("mariadb", mariadb::whole),
    ("redis", redis::whole),
    ("node", web::node_is_whole),
    ("php", web::php_is_whole),
    ("jvm", web::jvm_is_whole),
];

/// All of them in one test: their images share a base, which takes longest to make. `OFFSHOOT_TEST_SERVERS` names those to
/// try, for instance `redis,node`, and `OFFSHOOT_TEST_ROUNDS` says how often. A server that fails does not keep the others from
/// their turn.
#[test]
fn servers_under_load_are_whole_in_parent_and_clones() {
    let told = std::env::var("OFFSHOOT_TEST_SERVERS").unwrap_or_default();
    let wanted: BTreeSet<_> = told.split(',').filter(|name| !name.is_empty()).collect();
    let turns = SERVERS
        .into_iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.contains(name));
    let rounds = std::env::var("OFFSHOOT_TEST_ROUNDS").ok();
    let rounds = rounds.and_then(|text| text.parse().ok()).unwrap_or(1);
    let daemon = TestDaemon::start_with_packages();
    // All images at once, side by side. What cannot be made is told by the server that misses it.
    let files: Vec<_> = turns.clone().map(|(name, _)| compose(name)).collect();
    let mut import = vec!["image", "import"];
    import.extend(files.iter().map(String::as_str));
    let begun = Instant::now();
    drop(daemon.try_run(&import));
    println!("images: {:.1} s", begun.elapsed().as_secs_f64());
    let mut failed = Vec::new();
    for (round, (name, whole)) in
        (1..=rounds).flat_map(|round| turns.clone().map(move |turn| (round, turn)))
    {
        let begun = Instant::now();
        if catch_unwind(AssertUnwindSafe(|| whole(&daemon))).is_err() {
            failed.push((round, name));
            show_logs(&daemon);
        }
        println!(
            "{name}, round {round}: {:.1} s",
            begun.elapsed().as_secs_f64()
        );
        let all = environments(&daemon);
        if !all.is_empty() {
            daemon.finish(&all.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
    assert!(failed.is_empty(), "not whole: {failed:?}; see above");
}

fn environments(daemon: &TestDaemon) -> Vec<String> {
    let all = daemon.json(&["ls"]);
    let all = all.as_array().expect("a list").iter();
    all.map(|one| one["name"].as_str().expect("a name").to_owned())
        .collect()
}

fn show_logs(daemon: &TestDaemon) {
    for name in environments(daemon) {
        let logs = daemon.run(&["logs", &name, "--tail", "30"]);
        eprintln!("--- end of the logs of {name}:\n{logs}");
    }
}

/// The Compose file of a server, beside this one.
fn compose(server: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers");
    dir.join(format!("{server}.yaml")).display().to_string()
}

/// The environment of a server, by its name.
#[track_caller]
fn create(daemon: &TestDaemon, server: &str) {
    daemon.run(&["create", "-f", &compose(server), "--name", server]);
}

/// A clone that was made under load.
struct Clone {
    name: String,
    /// How far the parent's load had come before the clone was asked for, and when it was there.
    between: RangeInclusive<u64>,
}

/// Clones `parent` while its load goes on, which `progress` tells of an environment. Every node has to come along live, however
/// long that takes on a machine that all this keeps busy.
fn clone_under_load(
    daemon: &TestDaemon,
    parent: &str,
    number: usize,
    progress: &impl Fn(&str) -> Option<u64>,
) -> Clone {
    let name = format!("{parent}-{number}");
    let before = reached(parent, 100, progress);
    let operation = daemon.json(&["clone", parent, "--name", &name, "--max-freeze", "60s"]);
    let after = reached(parent, before, progress);
    println!(
        "{name}: frozen for {} ms, between {before} and {after}",
        operation["report"]["freeze_us"].as_u64().unwrap_or(0) / 1000
    );
    for (node, rung) in rungs(&operation) {
        assert_eq!(rung, "live", "{node}: {operation:#}");
    }
    Clone {
        name,
        between: before..=after,
    }
}

/// Two clones in a row of an environment whose load is cloned with it; then it has to go on in all three.
fn clone_twice(
    daemon: &TestDaemon,
    parent: &str,
    progress: impl Fn(&str) -> Option<u64>,
) -> [Clone; 2] {
    let clones = [1, 2].map(|number| clone_under_load(daemon, parent, number, &progress));
    for name in [parent, &clones[0].name, &clones[1].name] {
        let now = reached(name, 0, &progress);
        reached(name, now + 100, &progress);
    }
    clones
}

/// How far an environment's load came, once that is as far as `goal`.
#[track_caller]
fn reached(name: &str, goal: u64, progress: &impl Fn(&str) -> Option<u64>) -> u64 {
    wait_for(&format!("{name} to come to {goal}"), PATIENCE, || {
        progress(name).filter(|now| *now >= goal)
    })
}

/// What a script prints in a node that may not be ready for it, as a number.
fn number(daemon: &TestDaemon, environment: &str, node: &str, script: &str) -> Option<u64> {
    let output = daemon.try_run(&["exec", environment, node, "--", "/bin/sh", "-c", script]);
    let text = output.ok()?.stdout;
    String::from_utf8_lossy(&text).trim().parse().ok()
}

/// What a load wrote, once it ended with this status.
#[track_caller]
fn report(daemon: &TestDaemon, environment: &str, node: &str, status: u8) -> String {
    let text = wait_for(
        &format!("the end of {node} in {environment}"),
        PATIENCE,
        || {
            let text = sh(daemon, environment, node, "cat /tmp/report");
            text.contains("ended with ").then_some(text)
        },
    );
    assert!(
        text.ends_with(&format!("ended with {status}")),
        "{environment}: {text}"
    );
    text
}

/// The sum of the numbers that stand behind this label in a load's report.
#[track_caller]
fn told(report: &str, label: &str) -> u64 {
    let numbers: Vec<u64> = report
        .lines()
        .filter_map(|line| line.trim().strip_prefix(label))
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .collect();
    assert!(!numbers.is_empty(), "no {label:?} in {report}");
    numbers.iter().sum()
}

/// A server's log has none of these words.
#[track_caller]
fn log_without(daemon: &TestDaemon, environment: &str, words: &[&str]) {
    let log = daemon.run(&["logs", environment, "server"]);
    let bad = |line: &&str| words.iter().any(|word| line.contains(word));
    let found: Vec<_> = log.lines().filter(bad).collect();
    assert!(found.is_empty(), "{environment} logged {found:#?}");
}
