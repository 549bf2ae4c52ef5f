//! Every page of every process, in the parent and in its clones: the parent is never torn, a clone is one instant of all its
//! processes and nodes. The nodes check themselves (crates/e2e/checker) while they are cloned again and again, also while
//! whoever works on a clone is killed.
//!
//! `OFFSHOOT_TEST_ROUNDS` says how many clones; `cargo xtask check clones` runs thousands. A line `SUMMARY name=count ...` at
//! the end says what was done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use offshoot_e2e::checker::{self, NODES, Said, Victim};
use offshoot_e2e::residue::Residue;
use offshoot_e2e::support::{SOON, ended, id_of, nothing_new, rungs};
use offshoot_e2e::{TestDaemon, wait_for};
use serde_json::Value;

const PARENT: &str = "shop";

/// An environment that is cloned, as it was before.
struct Shop {
    daemon: TestDaemon,
    boots: [Value; 2],
    processes: BTreeSet<(i32, String)>,
    settled: Residue,
    counts: BTreeMap<String, u32>,
    random: u64,
}

impl Shop {
    fn open() -> Self {
        let daemon = TestDaemon::start();
        right(checker::create(&daemon, PARENT));
        let mut shop = Self {
            boots: checker::boots(&daemon, PARENT).expect("it answers"),
            processes: BTreeSet::new(),
            settled: daemon.residue(),
            daemon,
            counts: BTreeMap::new(),
            random: u64::from(std::process::id()) << 32 | 1,
        };
        shop.processes = wait_for("two nodes of five processes", SOON, || {
            let all = checker::processes(&shop.daemon, PARENT);
            (all.len() == 10).then_some(all)
        });
        shop
    }

    /// Below `bound`; which moments come out is up to the machine anyway.
    fn random(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % bound.max(1)
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    /// Clones one environment; all of it must come along.
    fn clone_of(&mut self, parent: &str, name: &str) -> Value {
        let operation = self
            .daemon
            .json(&["clone", parent, "--name", name, "--max-freeze", "60s"]);
        for (node, rung) in rungs(&operation) {
            assert_eq!(rung, "live", "{name}, {node}: {operation:#}");
        }
        self.count("clones");
        operation
    }

    /// Every page of the parent is right, and it is the one that it was.
    fn parent_is_well(&self) {
        right(checker::verify(&self.daemon, PARENT, &self.boots));
        let mut seen = BTreeSet::new();
        let same = |seen: &mut BTreeSet<_>| {
            *seen = checker::processes(&self.daemon, PARENT);
            *seen == self.processes
        };
        let deadline = Instant::now() + SOON;
        while !same(&mut seen) {
            assert!(
                Instant::now() < deadline,
                "the parent's processes were {:?} and are {seen:?}",
                self.processes
            );
        }
    }

    /// A clone that came along whole: `at_once` before its memory came by itself, or afterwards too.
    fn clone_is_well(&self, name: &str, at_once: bool) {
        if at_once {
            right(checker::verify(&self.daemon, name, &self.boots));
        }
        right(checker::goes_on(&self.daemon, name));
        right(checker::verify(&self.daemon, name, &self.boots));
    }

    fn remove(&self, name: &str) {
        self.daemon.run(&["rm", "--force", name]);
    }

    fn summary(&self) {
        let counts = self.counts.iter();
        let counts: Vec<_> = counts
            .map(|(name, count)| format!("{name}={count}"))
            .collect();
        println!("SUMMARY {}", counts.join(" "));
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.summary();
    }
}

fn rounds(default: u32) -> u32 {
    let told = std::env::var("OFFSHOOT_TEST_ROUNDS");
    told.ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[track_caller]
fn right(found: anyhow::Result<()>) {
    if let Err(e) = found {
        panic!("WRONG: {e:#}");
    }
}

#[test]
fn every_page_of_a_clone_is_of_one_instant() {
    let mut shop = Shop::open();
    let rounds = rounds(4);
    for round in 0..rounds {
        let begun = Instant::now();
        let operation = shop.clone_of(PARENT, "copy");
        let cloned = begun.elapsed();
        shop.clone_is_well("copy", round % 2 == 0);
        shop.parent_is_well();
        if round % 4 == 3 {
            // Its memory may still come when it is cloned.
            shop.clone_of("copy", "second");
            shop.clone_is_well("second", round % 8 == 3);
            shop.clone_is_well("copy", true);
            shop.remove("second");
        }
        shop.remove("copy");
        println!(
            "{round}/{rounds}: cloned in {} ms, freeze {} ms, {} ms in all",
            cloned.as_millis(),
            operation["report"]["freeze_us"].as_u64().unwrap_or(0) / 1000,
            begun.elapsed().as_millis()
        );
    }
    nothing_new(&shop.daemon, &shop.settled);
    shop.daemon.finish(&[PARENT]);
}

impl Shop {
    /// Kills whoever it is, at some moment of the operation. Whether there was anybody.
    fn kill(&mut self, victim: Victim, operation: &str, usual: Duration) -> bool {
        let usual = u64::try_from(usual.as_micros()).unwrap_or(u64::MAX);
        if victim == Victim::Daemon {
            // The moment is what is random here, there is nothing to wait for.
            std::thread::sleep(Duration::from_micros(self.random(usual)));
            self.daemon.kill();
            self.daemon.launch(&[]);
            self.daemon.wait_up();
            return true;
        }
        let parent = self.daemon.json(&["show", PARENT])["id"].clone();
        let parent = parent.as_str().expect("an id").to_owned();
        let moment = Duration::from_micros(self.random(usual / 2));
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            let found = victim.find(&self.daemon, &parent);
            if !found.is_empty() {
                std::thread::sleep(moment);
                let which = self.random(found.len() as u64) as usize;
                return found[which].signal(9).is_ok();
            }
            let state = self.daemon.json(&["op", "show", operation])["state"].clone();
            if matches!(state.as_str(), Some("done" | "failed" | "cancelled")) {
                return false;
            }
        }
        false
    }

    /// What became of a clone whose making was disturbed: whatever runs of it is right.
    fn what_became(&mut self, operation: &Value) -> &'static str {
        let list = self.daemon.json(&["ls"]);
        let list = list.as_array().expect("a list");
        if list.iter().all(|environment| environment["name"] != "copy") {
            assert_ne!(operation["state"], "done", "it is gone: {operation:#}");
            let problem = &operation["problem"];
            for key in ["code", "what", "next"] {
                let told = problem[key].as_str().is_some_and(|text| !text.is_empty());
                assert!(told, "no {key}: {operation:#}");
            }
            return "undone";
        }
        let boots = self.boots.clone();
        let mut from_parent = 0;
        let mut connected = 0;
        for (name, boot) in NODES.iter().zip(&boots) {
            match checker::ask(&self.daemon, "copy", name, "/verify") {
                Ok(Said::Alive(said)) => {
                    let found = checker::memory_is_right("copy", name, &said);
                    right(found.with_context(|| format!("{operation:#}\n{name}: {said}")));
                    from_parent += u32::from(said["boot"] == *boot);
                    connected += u32::from(said["exchange"]["said"] == "ok");
                }
                Ok(Said::Gone(view)) => println!("{name} is gone: {}", view["status"]),
                Err(e) => right(Err(e.context(format!("{operation:#}")))),
            }
        }
        if from_parent == 2 && connected == 2 {
            self.clone_is_well("copy", false);
            return "whole";
        }
        "in part"
    }
}

#[test]
fn every_page_is_right_whoever_is_killed() {
    let mut shop = Shop::open();
    // Whoever is killed in its work makes the daemon complain.
    shop.daemon.may_complain("");
    let begun = Instant::now();
    shop.clone_of(PARENT, "copy");
    let mut usual = begun.elapsed();
    shop.remove("copy");
    let rounds = rounds(4);
    for round in 0..rounds {
        let victim = Victim::ALL[round as usize % Victim::ALL.len()];
        let begun = Instant::now();
        let operation = shop.daemon.json(&[
            "clone",
            PARENT,
            "--name",
            "copy",
            "--max-freeze",
            "60s",
            "--detach",
        ]);
        let id = id_of(&operation);
        let hit = shop.kill(victim, &id, usual);
        let operation = ended(&shop.daemon, &id);
        if !hit {
            usual = begun.elapsed();
        }
        let became = shop.what_became(&operation);
        println!(
            "{round}/{rounds}: {victim:?} {}: {became}, {} ms",
            if hit { "killed" } else { "missed" },
            begun.elapsed().as_millis()
        );
        shop.count("clones");
        shop.count(&format!(
            "{victim:?}.{}",
            if hit { "killed" } else { "missed" }
        ));
        shop.count(&became.replace(" ", "-"));
        shop.parent_is_well();
        right(checker::goes_on(&shop.daemon, PARENT));
        if became != "undone" {
            shop.remove("copy");
        }
        nothing_new(&shop.daemon, &shop.settled);
    }
    shop.daemon.finish(&[PARENT]);
}
