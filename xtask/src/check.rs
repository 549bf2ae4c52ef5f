//! `cargo xtask check clones`: environments that verify every page of their memory are cloned thousands of times
//! (crates/e2e/tests/consistency.rs), also while whoever works on a clone is killed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::commands::{cargo, run, setup};

/// Clones of one environment; after so many, and after a failure, there is a new daemon with a new one.
const BATCH: u32 = 50;
/// The tests, and how the line of counts begins that they print at their end.
const PLAIN: &str = "every_page_of_a_clone_is_of_one_instant";
const KILLS: &str = "every_page_is_right_whoever_is_killed";
const SUMMARY: &str = "SUMMARY ";

/// Options of the check.
#[derive(clap::Args)]
#[command(after_help = "Examples:
    cargo xtask check clones                         a few minutes
    cargo xtask check clones --count 5000            over night
    cargo xtask check clones --count 1000 --kills    daemon, shims, page sources and CRIU are killed meanwhile")]
pub(crate) struct Arguments {
    /// How many clones.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// At a random moment of every clone, kill the daemon, the shim of a clone's node, its page source, or CRIU.
    #[arg(long)]
    kills: bool,
    /// Do not install packages first.
    #[arg(long)]
    no_setup: bool,
}

/// Runs the check, prints what was done, and fails when any clone or parent was wrong.
pub(crate) fn clones(arguments: &Arguments) -> anyhow::Result<()> {
    if !arguments.no_setup {
        setup(&["run", "build", "test"])?;
    }
    run(cargo().args(["build", "--workspace", "--bins"]))?;
    let test = if arguments.kills { KILLS } else { PLAIN };
    let begun = Instant::now();
    let mut counts = BTreeMap::new();
    let mut failures = 0;
    let mut left = arguments.count;
    while left > 0 {
        let rounds = left.min(BATCH);
        left -= rounds;
        if !batch(test, rounds, &mut counts)? {
            failures += 1;
        }
        println!(
            "after {} s, {left} to come: {}, failures {failures}",
            begun.elapsed().as_secs(),
            told(&counts)
        );
    }
    if failures > 0 {
        bail!(
            "{failures} environments or their clones were wrong; the messages are above, at `panicked`"
        );
    }
    Ok(())
}

/// Runs one batch with its messages on the terminal, adds to `counts`, and says whether all was right.
fn batch(test: &str, rounds: u32, counts: &mut BTreeMap<String, u64>) -> anyhow::Result<bool> {
    let mut child = cargo()
        .args(["test", "--quiet", "-p", "offshoot-e2e"])
        .args(["--test", "consistency", "--", "--exact", test])
        .arg("--nocapture")
        .env("OFFSHOOT_TEST_ROUNDS", rounds.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("no pipe from cargo test")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what cargo test prints")?;
        match line.strip_prefix(SUMMARY) {
            Some(summary) => add(counts, summary),
            None => println!("{line}"),
        }
    }
    Ok(child.wait()?.success())
}

/// Adds `name=count` pairs.
fn add(counts: &mut BTreeMap<String, u64>, summary: &str) {
    for pair in summary.split_whitespace() {
        if let Some((name, count)) = pair.split_once('=') {
            *counts.entry(name.to_owned()).or_default() += count.parse().unwrap_or(0);
        }
    }
}

fn told(counts: &BTreeMap<String, u64>) -> String {
    let pairs: Vec<_> = counts
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    pairs.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let mut counts = BTreeMap::new();
        add(&mut counts, "clones=3 Criu.killed=1");
        add(&mut counts, "clones=2 undone=1");
        assert_eq!(told(&counts), "Criu.killed 1, clones 5, undone 1");
    }
}
