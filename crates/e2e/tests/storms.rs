//! The way in while its processes are killed and its files are damaged, under load.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use offshoot_e2e::support::{ONE, SOON, answers};
use offshoot_e2e::{EDGE, TestDaemon, http, program, stretch, wait_for};
use offshoot_edge_api::{EdgeControl, EdgeStatus, ensure_edge};
use offshoot_load::{PingReport, Pinger, Rate, Target};
use offshoot_sys::process;
use serde_json::Value;

const HOST: &str = "shop.example.test";
/// Nobody may wait for longer when the edge alone is killed. A look every few seconds would be too late.
const GAP: Duration = Duration::from_secs(2);
/// Nor for longer when the daemon is killed with it and started at once.
const GAP_OF_BOTH: Duration = Duration::from_secs(15);

/// Status of an answer for this host, and the value that the node behind it holds; `None` when nobody answers.
fn ask(host: &str) -> Option<(u16, String)> {
    let answer = http::get(EDGE, host, "/").ok()?;
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let value = body["value"].as_str().unwrap_or_default();
    Some((answer.status, value.to_owned()))
}

fn leads_to(daemon: &TestDaemon, host: &str) -> Option<String> {
    let (status, value) = daemon.inside(|| ask(host))?;
    (status == 200).then_some(value)
}

fn hosts(daemon: &TestDaemon, environment: &str) -> Vec<String> {
    let domains = daemon.json(&["domain", "ls", environment]);
    let domains = domains.as_array().expect("a list").iter();
    let host = |domain: &Value| domain["host"].as_str().expect("a host").to_owned();
    let mut hosts: Vec<_> = domains.map(host).collect();
    hosts.sort();
    hosts
}

/// Two environments that tell who they are; the first has a domain.
fn two() -> TestDaemon {
    let daemon = TestDaemon::start();
    daemon.may_complain("the edge does not run");
    for name in ["shop", "next"] {
        daemon.create(name, ONE);
        answers(&daemon, name);
        daemon
            .node(name, &format!("/set?v={name}"))
            .expect("it answers");
    }
    daemon.run(&["domain", "add", "shop", HOST]);
    daemon
}

fn control(daemon: &TestDaemon) -> PathBuf {
    daemon.path("run/edge/control.sock")
}

fn status(daemon: &TestDaemon) -> Option<EdgeStatus> {
    EdgeControl::connect(&control(daemon)).ok()?.status().ok()
}

/// Requests that were counted at the first environment's domains.
fn counted(daemon: &TestDaemon) -> u64 {
    let stats = EdgeControl::connect(&control(daemon)).and_then(|mut edge| edge.stats(Vec::new()));
    let owners = stats.expect("the edge answers").owners;
    let sides = owners.iter().flat_map(|owner| &owner.sides);
    sides.map(|side| side.requests).sum()
}

fn kill(pid: u32) {
    let process = process::Process::open(i32::try_from(pid).expect("a pid"));
    process
        .expect("it is there")
        .signal(9)
        .expect("it can be ended");
}

/// Waits until an edge that is not this process serves; gives it.
fn another(daemon: &TestDaemon, than: u32) -> EdgeStatus {
    wait_for("another edge", SOON, || {
        status(daemon).filter(|status| status.pid != than && status.routes > 0)
    })
}

/// No panic, in nobody's log.
fn nobody_panicked(daemon: &TestDaemon) {
    for log in ["daemon.log", "run/edge/control.log"] {
        let text = fs::read_to_string(daemon.path(log)).unwrap_or_default();
        let panics: Vec<_> = text
            .lines()
            .filter(|line| line.contains("panicked"))
            .collect();
        assert!(panics.is_empty(), "{log}: {panics:?}");
    }
}

/// Two kinds of clients: some keep their connections, one has a new one for each request.
struct Load {
    pinger: Pinger,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    anew: JoinHandle<Vec<(Instant, bool)>>,
}

impl Load {
    fn start(daemon: &TestDaemon) -> Self {
        let target = Target {
            address: EDGE,
            host: HOST.to_owned(),
            path: "/".to_owned(),
        };
        let rate = Rate {
            interval: Duration::from_millis(2),
            connections: 4,
            timeout: Duration::from_secs(10),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let (told, count) = (Arc::clone(&stop), Arc::clone(&answered));
        // threads are in the namespace of the thread that starts them
        let (pinger, anew) = daemon.inside(|| {
            let pinger = Pinger::start(&target, rate).expect("a client");
            (pinger, thread::spawn(move || connect_anew(&told, &count)))
        });
        let load = Self {
            pinger,
            stop,
            answered,
            anew,
        };
        load.goes_on();
        load
    }

    /// Waits until new clients were answered again and again.
    fn goes_on(&self) {
        let goal = self.answered.load(Ordering::Relaxed) + 50;
        wait_for("answers", SOON, || {
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    fn finish(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        Seen {
            kept: self.pinger.finish(),
            anew: self.anew.join().expect("a client"),
        }
    }
}

fn connect_anew(stop: &AtomicBool, answered: &AtomicUsize) -> Vec<(Instant, bool)> {
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let good = ask(HOST) == Some((200, "shop".to_owned()));
        seen.push((Instant::now(), good));
        if good {
            answered.fetch_add(1, Ordering::Relaxed);
        }
        // at most some hundred a second, also when they are refused
        thread::sleep(Duration::from_millis(2));
    }
    seen
}

/// What clients saw.
struct Seen {
    kept: PingReport,
    anew: Vec<(Instant, bool)>,
}

impl Seen {
    /// The longest time in which no new client was answered.
    fn gap(&self) -> Duration {
        let good: Vec<_> = self
            .anew
            .iter()
            .filter(|(_, good)| *good)
            .map(|(at, _)| *at)
            .collect();
        let between = good.windows(2).map(|two| two[1] - two[0]);
        between.max().unwrap_or(Duration::MAX)
    }

    fn failed(&self) -> usize {
        self.kept.failures.len() + self.anew.iter().filter(|(_, good)| !good).count()
    }

    fn print(&self, what: &str) {
        let kept = self.kept.whole();
        println!(
            "figures: {what}: {} requests on kept connections ({:.0}/s), {} failed, no answer for {:.0?}; \
             {} on new ones, {} failed, no answer for {:.0?}",
            kept.answered,
            kept.per_second,
            self.kept.failures.len(),
            kept.longest_stall,
            self.anew.len(),
            self.anew.iter().filter(|(_, good)| !good).count(),
            self.gap(),
        );
    }
}

#[test]
fn kills_under_load() {
    let mut daemon = two();
    let first = status(&daemon).expect("an edge");

    let load = Load::start(&daemon);
    let before = counted(&daemon);
    assert!(before > 0);
    // what is kept of the counts is written every five seconds
    let now = std::time::SystemTime::now();
    let kept = daemon.path("run/edge/control.stats.json");
    wait_for("the counts to be written", SOON, || {
        let written = fs::metadata(&kept).and_then(|file| file.modified());
        (written.ok()? > now).then_some(())
    });
    kill(first.pid);
    let second = another(&daemon, first.pid);
    load.goes_on();
    let seen = load.finish();
    seen.print("kill -9 of the edge");
    assert!(seen.gap() < GAP * stretch(), "{:?}", seen.gap());
    assert!(seen.failed() > 0, "a kill that nobody sees is none");
    assert!(counted(&daemon) > before, "counts went back");
    as_before(&daemon, &first);

    let load = Load::start(&daemon);
    daemon.kill();
    load.goes_on();
    daemon.restart();
    load.goes_on();
    let seen = load.finish();
    seen.print("kill -9 of the daemon");
    assert_eq!(seen.failed(), 0, "{:?}", seen.kept.failures);
    assert_eq!(status(&daemon).expect("an edge").pid, second.pid);
    as_before(&daemon, &first);

    let load = Load::start(&daemon);
    daemon.kill();
    kill(second.pid);
    daemon.launch(&[]);
    another(&daemon, second.pid);
    load.goes_on();
    daemon.wait_up();
    let seen = load.finish();
    seen.print("kill -9 of both, the daemon started at once");
    assert!(seen.gap() < GAP_OF_BOTH * stretch(), "{:?}", seen.gap());
    as_before(&daemon, &first);
    nobody_panicked(&daemon);
    daemon.finish(&["shop", "next"]);
}

/// What is served is what was served, or what came later.
fn as_before(daemon: &TestDaemon, then: &EdgeStatus) {
    let now = status(daemon).expect("an edge");
    assert!(
        now.version >= then.version,
        "{} {}",
        now.version,
        then.version
    );
    assert_eq!((now.routes, &now.config), (then.routes, &then.config));
    assert_eq!(hosts(daemon, "shop"), [HOST]);
    for (host, name) in [
        (HOST, "shop"),
        ("shop.localhost", "shop"),
        ("next.localhost", "next"),
    ] {
        assert_eq!(leads_to(daemon, host).as_deref(), Some(name), "{host}");
    }
}

#[test]
fn an_edge_killed_again_and_again_loses_no_domain() {
    const KILLS: usize = 10;
    let daemon = two();
    daemon.may_complain("operation");
    let done = AtomicBool::new(false);
    let mut model = vec![(HOST.to_owned(), "shop")];
    let (mut changes, mut undone) = (0, 0);
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut last = 0;
            for _ in 0..KILLS {
                let edge = another(&daemon, last);
                last = edge.pid;
                kill(last);
            }
            done.store(true, Ordering::Relaxed);
        });
        for number in 0.. {
            if done.load(Ordering::Relaxed) || killer.is_finished() {
                break;
            }
            let name = format!("d{number}.example.test");
            let args = match number % 2 {
                0 => vec!["-o", "json", "domain", "add", "shop", &name],
                _ => vec!["-o", "json", "swap", "shop", "next"],
            };
            let output = daemon.try_run(&args).expect("offshoot can be run");
            changes += 1;
            match (output.status.success(), number % 2) {
                (false, _) => undone += 1,
                (true, 0) => model.push((name.clone(), "shop")),
                (true, _) => {
                    for (_, owner) in &mut model {
                        *owner = if *owner == "shop" { "next" } else { "shop" };
                    }
                }
            }
            // Whole or not at all, at every moment.
            for owner in ["shop", "next"] {
                let mut expected: Vec<_> = model.iter().filter(|(_, of)| *of == owner).collect();
                expected.sort();
                let expected: Vec<_> = expected.into_iter().map(|(host, _)| host.clone()).collect();
                assert_eq!(hosts(&daemon, owner), expected, "{args:?}: {output:?}");
            }
        }
        killer.join().expect("kills");
    });
    wait_for("an edge that serves all", SOON, || status(&daemon));
    for (host, owner) in &model {
        let led = wait_for(host, SOON, || leads_to(&daemon, host));
        assert_eq!(led, *owner, "{host}");
    }
    println!(
        "figures: {KILLS} kills of the edge: {changes} changes of domains meanwhile, {undone} undone as a whole, none half; \
         {} domains lead where they should",
        model.len()
    );
    nobody_panicked(&daemon);
    daemon.finish(&["shop", "next"]);
}

/// What may happen to a file.
const DAMAGES: [&str; 5] = [
    "truncated",
    "zeroes",
    "random bytes",
    "another's JSON",
    "absent",
];
/// The edge's files, beside its control socket.
const FILES: [&str; 5] = [
    "routes.json",
    "control.last-good.json",
    "control.json",
    "control.stats.json",
    "control.health.json",
];

fn damage(daemon: &TestDaemon, file: &str, how: &str) {
    let path = daemon.path("run/edge").join(file);
    let content = fs::read(&path).unwrap_or_else(|_| b"{}".to_vec());
    let content = match how {
        "truncated" => content
            .get(..content.len() / 2)
            .unwrap_or_default()
            .to_vec(),
        "zeroes" => vec![0; content.len()],
        "random bytes" => uuid::Uuid::new_v4().as_bytes().repeat(8),
        "another's JSON" => br#"{"name": "other", "version": "1.0"}"#.to_vec(),
        _ => {
            // it may be absent already
            let _ = fs::remove_file(path);
            return;
        }
    };
    fs::write(path, content).expect("it can be damaged");
}

#[test]
fn damaged_files_cost_no_request_and_are_written_anew() {
    let mut daemon = two();
    for (number, how) in DAMAGES.into_iter().enumerate() {
        // With the edge running: it serves on, and the daemon's next change mends it.
        let before = status(&daemon).expect("an edge");
        for file in FILES {
            damage(&daemon, file, how);
        }
        let refused = EdgeControl::connect(&control(&daemon)).and_then(|mut edge| edge.reload());
        let refused = refused.expect_err("damaged routes").to_string();
        assert_eq!(leads_to(&daemon, HOST).as_deref(), Some("shop"), "{how}");
        let domain = format!("d{number}.example.test");
        daemon.run(&["domain", "add", "shop", &domain]);
        assert_eq!(leads_to(&daemon, &domain).as_deref(), Some("shop"), "{how}");
        let after = status(&daemon).expect("an edge");
        assert_eq!(
            (after.pid, after.version),
            (before.pid, before.version + 1),
            "{how}"
        );

        // The edge is killed: the daemon starts it with what it knows.
        for file in FILES {
            damage(&daemon, file, how);
        }
        kill(after.pid);
        let began = Instant::now();
        let edge = another(&daemon, after.pid);
        wait_for("the routes", SOON, || leads_to(&daemon, &domain));
        let back = began.elapsed();

        // Both are gone. Without the daemon the edge has the last good routes; without those too it has the daemon's
        // when that has started.
        daemon.kill();
        kill(edge.pid);
        damage(&daemon, "routes.json", how);
        let start = |daemon: &TestDaemon| {
            daemon
                .inside(|| ensure_edge(&edge.config, &program("offshoot-edge")).expect("it starts"))
        };
        let alone = start(&daemon);
        assert_eq!(leads_to(&daemon, &domain).as_deref(), Some("shop"), "{how}");
        kill(alone.pid);
        for file in FILES {
            damage(&daemon, file, how);
        }
        start(&daemon);
        assert_eq!(
            daemon.inside(|| ask(HOST)).map(|(status, _)| status),
            Some(404),
            "{how}"
        );
        daemon.launch(&[]);
        daemon.wait_up();
        assert_eq!(leads_to(&daemon, &domain).as_deref(), Some("shop"), "{how}");
        println!(
            "figures: all files of the edge {how}: a reload was refused ({refused}), none of its requests; \
             killed, it served all again after {back:.0?}"
        );
    }
    nobody_panicked(&daemon);
    daemon.finish(&["shop", "next"]);
}
