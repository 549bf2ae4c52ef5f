//! Environments that check themselves: two nodes of `checker/`, which fill memory with patterns, change it without pause,
//! and exchange numbers.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::support::{node, nodes};
use crate::{TestDaemon, http, image, residue, stretch};
use offshoot_sys::process;

/// The nodes of an environment.
pub const NODES: [&str; 2] = ["app-1", "db-1"];

/// What the processes are called in lists; a child that looks at its memory has its parent's name for a moment.
const NAMES: [&str; 5] = ["testnode", "big", "small", "churn", "exchange"];
/// Parts that know nothing but their own memory.
const MEMORY: [&str; 3] = ["big", "small", "churn"];
/// Numbers of the exchange that may be on their way (`WINDOW` in checker/exchange.c).
const WINDOW: u64 = 256;
/// A node that answers at all answers in this time: its parts have a minute each.
const ANSWER_MAX: Duration = Duration::from_secs(120);

const COMPOSE: &str = r#"
services:
  app:
    image: docker-archive:CHECKER
    environment: {PEER: "db:9000"}
    stop_grace_period: 100ms
    x-offshoot: {entry: 8080}
  db:
    image: docker-archive:CHECKER
    environment: {PEER_PORT: "9000"}
    stop_grace_period: 100ms
"#;

/// Creates an environment and waits until all its parts work.
///
/// # Errors
/// When it does not come to work.
///
/// # Panics
/// When it cannot be created.
pub fn create(daemon: &TestDaemon, name: &str) -> Result<()> {
    let image = daemon.path("checker.tar");
    image::write(&image, concat!(env!("OUT_DIR"), "/checker").as_ref())?;
    let text = COMPOSE.replace("CHECKER", &image.display().to_string());
    daemon.create(name, &text);
    goes_on(daemon, name)
}

/// What a node said, or that it is not there (any more).
#[derive(Debug)]
pub enum Said {
    /// Its answer: see checker/main.c.
    Alive(Value),
    /// The environment's view of a node that does not run.
    Gone(Value),
}

/// Asks a node: `/verify` has it verify every page, `/state` only tells what it knows.
///
/// # Errors
/// When it runs and does not answer.
///
/// # Panics
/// When the environment cannot be shown.
pub fn ask(daemon: &TestDaemon, environment: &str, name: &str, path: &str) -> Result<Said> {
    let deadline = Instant::now() + ANSWER_MAX * stretch();
    loop {
        let view = node(daemon, environment, name);
        if view["status"]["pid"].is_null() {
            return Ok(Said::Gone(view));
        }
        let outer = view["outer"].as_str().context("an outer address")?;
        let address: SocketAddr = format!("{outer}:8080").parse()?;
        let answer = daemon.inside(|| http::get(address, name, path));
        match answer.and_then(|answer| Ok(serde_json::from_str(&answer.body)?)) {
            Ok(said) => return Ok(Said::Alive(said)),
            Err(e) if Instant::now() > deadline => {
                bail!("{environment}: {name} runs and does not answer {path}: {e:#}\n{view:#}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn ask_alive(daemon: &TestDaemon, environment: &str, name: &str, path: &str) -> Result<Value> {
    match ask(daemon, environment, name, path)? {
        Said::Alive(said) => Ok(said),
        Said::Gone(view) => bail!("{environment}: {name} does not run: {view:#}"),
    }
}

/// Whether the parts of a node that know nothing but their own memory found all of it right.
///
/// # Errors
/// What they found.
pub fn memory_is_right(environment: &str, name: &str, said: &Value) -> Result<()> {
    parts_are_right(environment, name, said, &MEMORY)?;
    let exchange = said["exchange"]["said"].as_str().unwrap_or_default();
    ensure!(
        exchange == "ok" || exchange.starts_with("the connection of the exchange ended"),
        "{environment}, {name}: {exchange}"
    );
    Ok(())
}

fn parts_are_right(environment: &str, name: &str, said: &Value, parts: &[&str]) -> Result<()> {
    for part in parts {
        let text = said[part]["said"].as_str().unwrap_or_default();
        ensure!(text == "ok", "{environment}, {name}, {part}: {text}");
    }
    Ok(())
}

/// Verifies every page of all nodes, and the exchange between them, which is the one that `boots` (of [`boots`]) began.
///
/// # Errors
/// What is wrong.
pub fn verify(daemon: &TestDaemon, environment: &str, boots: &[Value; 2]) -> Result<()> {
    let [app, db] = NODES;
    // The numbers go on between two answers: each is compared with the other side's before and after.
    let before = ask_alive(daemon, environment, app, "/verify")?;
    let peer = ask_alive(daemon, environment, db, "/verify")?;
    let after = ask_alive(daemon, environment, app, "/state")?;
    for (name, said) in [(app, &before), (db, &peer), (app, &after)] {
        parts_are_right(environment, name, said, &MEMORY)?;
        parts_are_right(environment, name, said, &["exchange"])?;
        ensure!(
            said["exchange"]["connects"] == 1,
            "{environment}, {name}: another connection: {said}"
        );
    }
    ensure!(
        [&before["boot"], &peer["boot"]] == [&boots[0], &boots[1]],
        "{environment}: nodes were started anew: {before} {peer}"
    );
    let number = |said: &Value, key: &str| said["exchange"][key].as_u64().unwrap_or(0);
    for (sent, received) in [
        (number(&after, "sent"), number(&peer, "received")),
        (number(&peer, "sent"), number(&before, "received")),
    ] {
        ensure!(
            received <= sent,
            "{environment}: {received} was received of {sent} sent: {before} {peer} {after}"
        );
    }
    for (sent, received) in [
        (number(&before, "sent"), number(&peer, "received")),
        (number(&peer, "sent"), number(&after, "received")),
    ] {
        ensure!(
            sent.saturating_sub(received) <= WINDOW,
            "{environment}: {sent} was sent, and only {received} received: {before} {peer} {after}"
        );
    }
    Ok(())
}

/// Which start of the checker each node's memory is from; the same in a live clone.
///
/// # Errors
/// When a node does not answer.
pub fn boots(daemon: &TestDaemon, environment: &str) -> Result<[Value; 2]> {
    let boot = |name| -> Result<Value> {
        Ok(ask_alive(daemon, environment, name, "/state")?["boot"].clone())
    };
    Ok([boot(NODES[0])?, boot(NODES[1])?])
}

/// Waits until every part of every node got on: no token, no number and no thread is stuck.
///
/// # Errors
/// What stands still, or what a part found meanwhile.
pub fn goes_on(daemon: &TestDaemon, environment: &str) -> Result<()> {
    for name in NODES {
        let first = ask_alive(daemon, environment, name, "/state")?;
        let deadline = Instant::now() + ANSWER_MAX * stretch();
        loop {
            let now = ask_alive(daemon, environment, name, "/state")?;
            parts_are_right(environment, name, &now, &MEMORY)?;
            parts_are_right(environment, name, &now, &["exchange"])?;
            let still = standing_still(&first, &now);
            if still.is_empty() {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "{environment}, {name}: {still:?} stand still: {first}, then {now}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn standing_still(first: &Value, now: &Value) -> Vec<String> {
    let counters = [
        ("big", "laps"),
        ("big", "tokens"),
        ("small", "laps"),
        ("small", "tokens"),
        ("churn", "operations"),
        ("exchange", "sent"),
        ("exchange", "received"),
    ];
    let still = |(part, key): &(&str, &str)| {
        let number = |said: &Value| said[*part][*key].as_u64().unwrap_or(0);
        number(now) <= number(first)
    };
    let still = counters.into_iter().filter(still);
    still.map(|(part, key)| format!("{part}/{key}")).collect()
}

/// The processes of an environment, without those that are about to end; pid and name.
///
/// # Panics
/// When the environment cannot be shown.
#[must_use]
pub fn processes(daemon: &TestDaemon, environment: &str) -> BTreeSet<(i32, String)> {
    let view = daemon.json(&["show", environment]);
    let ids: BTreeSet<_> = nodes(&view)
        .filter_map(|node| node["status"]["pid"].as_i64())
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok())
        .collect();
    let member = |pid: i32| -> Option<(i32, String)> {
        let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let name = name.trim().to_owned();
        (ids.contains(&group) && NAMES.contains(&name.as_str())).then_some((pid, name))
    };
    let all = process::all().unwrap_or_default();
    all.into_iter().filter_map(member).collect()
}

/// Somebody whom a test kills while a clone is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The daemon.
    Daemon,
    /// The shim of a node of the clone.
    Shim,
    /// Who brings late memory into a node of the clone.
    Source,
    /// A CRIU, of the dump or of the restore.
    Criu,
}

impl Victim {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Daemon, Self::Shim, Self::Source, Self::Criu];

    /// Processes of this kind that run now for an environment other than `parent` (an id); for CRIU, for any.
    #[must_use]
    pub fn find(self, daemon: &TestDaemon, parent: &str) -> Vec<process::Process> {
        let all = residue::family(&daemon.path(""), &daemon.instance);
        let wanted = |(_, argv): &&(i32, String)| {
            let of_clone = !argv.contains(parent);
            match self {
                Self::Daemon => false,
                Self::Shim => of_clone && argv.contains("offshoot-shim node "),
                Self::Source => of_clone && argv.contains("offshoot-shim memory "),
                Self::Criu => is_criu(argv),
            }
        };
        let found = all.iter().filter(wanted);
        found
            .filter_map(|(pid, _)| process::Process::open(*pid).ok())
            .collect()
    }
}

/// Whether this is a CRIU and not who starts it; it may be started by a loader of its own (packaging/setup.sh).
fn is_criu(argv: &str) -> bool {
    let mut words = argv.split(' ').map(|word| word.rsplit('/').next());
    let first = words.next().flatten();
    first != Some("sh") && first != Some("runc") && {
        let mut begin = [first].into_iter().chain(words.take(3));
        begin.any(|word| word == Some("criu"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criu_is_told_from_who_starts_it() {
        for criu in [
            "/usr/sbin/criu swrk 4",
            "/opt/x/ld-linux-x86-64.so.2 --library-path /opt/x/lib /opt/x/usr/sbin/criu swrk 4",
        ] {
            assert!(is_criu(criu), "{criu}");
        }
        for other in [
            "/bin/sh /opt/x/criu swrk 4",
            "/usr/bin/runc --criu /x/criu",
            "",
        ] {
            assert!(!is_criu(other), "{other}");
        }
    }
}
