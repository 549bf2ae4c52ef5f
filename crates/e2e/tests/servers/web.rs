//! Servers with their state in memory, under requests from outside: Node.js, PHP-FPM behind nginx, a Java virtual machine.
//! `/` counts and makes work for the memory management; `/check` gives the count, how much of that work was done, and how many
//! objects in memory are not what they should be.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use offshoot_e2e::TestDaemon;
use serde_json::Value;

use super::{PATIENCE, clone_under_load, compose, create, wait_for};

/// As many as PHP-FPM has workers, so that all of them are at work when they are cloned.
const CLIENTS: u64 = 4;

pub(crate) fn node_is_whole(daemon: &TestDaemon) {
    create(daemon, "node");
    whole(daemon, "node");
}

pub(crate) fn php_is_whole(daemon: &TestDaemon) {
    create(daemon, "php");
    whole(daemon, "php");
}

pub(crate) fn jvm_is_whole(daemon: &TestDaemon) {
    let create = ["create", "-f", &compose("jvm"), "--name", "jvm"];
    let made = daemon.try_run(&create).expect("offshoot can be run");
    if !made.status.success() {
        // A hundred megabytes, which not every mirror of the archive has.
        let why = String::from_utf8_lossy(&made.stderr);
        let missing = ["Unable to locate package", "Failed to fetch"];
        assert!(missing.iter().any(|text| why.contains(text)), "{why}");
        return println!("SKIPPED: no Java virtual machine: {why}");
    }
    whole(daemon, "jvm");
}

/// Requests without pause.
#[derive(Default)]
struct Requests {
    leave: AtomicBool,
    answered: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Requests {
    fn send(&self, daemon: &TestDaemon, environment: &str) {
        while !self.leave.load(Ordering::Relaxed) {
            match daemon.node(environment, "/") {
                Ok(_) => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
                Err(e) => self
                    .failures
                    .lock()
                    .expect("not poisoned")
                    .push(format!("{e:#}")),
            }
        }
    }
}

/// Lets the clients leave, also when the test fails in between.
struct Leave<'a>(&'a AtomicBool);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn check(daemon: &TestDaemon, environment: &str) -> Option<Value> {
    let told = daemon.node(environment, "/check").ok()?;
    assert_eq!(told["wrong"], 0, "{environment}: {told}");
    Some(told)
}

fn whole(daemon: &TestDaemon, parent: &str) {
    let count = |name: &str| check(daemon, name)?["count"].as_u64();
    wait_for("the server to answer", PATIENCE, || count(parent));
    let requests = Requests::default();
    let clones = std::thread::scope(|scope| {
        let _leave = Leave(&requests.leave);
        for _ in 0..CLIENTS {
            scope.spawn(|| requests.send(daemon, parent));
        }
        [1, 2].map(|number| {
            let clone = clone_under_load(daemon, parent, number, &count);
            // Nobody asks the clone; the requests that it came with are counted in the parent, too.
            let counted = count(&clone.name).expect("it answers");
            assert!(
                clone.between.contains(&counted),
                "{}: {counted} of {:?}",
                clone.name,
                clone.between
            );
            clone
        })
    });
    let failures = requests.failures.into_inner().expect("not poisoned");
    assert!(failures.is_empty(), "{failures:#?}");
    let answered = requests.answered.into_inner();
    assert_eq!(count(parent), Some(answered), "each request once");
    for (name, further) in [(parent, 20), (&clones[0].name, 30), (&clones[1].name, 10)] {
        let before = check(daemon, name).expect("it answers");
        for _ in 0..further {
            daemon.node(name, "/").expect("it answers");
        }
        let after = wait_for("more to be done for its memory", PATIENCE, || {
            check(daemon, name).filter(|now| now["work"].as_u64() > before["work"].as_u64())
        });
        assert_eq!(
            after["count"].as_u64(),
            before["count"].as_u64().map(|count| count + further),
            "{name}: on its own from here"
        );
        println!("{name}: {after}");
    }
}
