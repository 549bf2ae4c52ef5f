//! `cargo xtask check use-cases`: a WordPress and its live clone, under load, through everything that clones are for
//! (crates/e2e/tests/wordpress).

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, bail};

use crate::commands::{cargo, run, setup};

/// How the lines begin that are summed up.
const FIGURES: &str = "figures: ";

/// Options of the check.
#[derive(clap::Args)]
#[command(after_help = "Examples:
    cargo xtask check use-cases                once: some four minutes
    cargo xtask check use-cases --rounds 3     three times over, with the same images")]
pub(crate) struct Arguments {
    /// How often both environments are made and go through all turns.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Do not install packages first.
    #[arg(long)]
    no_setup: bool,
}

/// Runs the test with its messages on the terminal, then prints the figures of its turns; fails when a turn did.
pub(crate) fn run_all(arguments: &Arguments) -> anyhow::Result<()> {
    if !arguments.no_setup {
        setup(&["run", "build", "test"])?;
    }
    run(cargo().args(["build", "--workspace", "--bins"]))?;
    let mut child = cargo()
        .args(["test", "--quiet", "-p", "offshoot-e2e"])
        .args(["--test", "wordpress", "--", "--ignored", "--nocapture"])
        .env("OFFSHOOT_TEST_ROUNDS", arguments.rounds.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("no pipe from cargo test")?;
    let mut figures = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what cargo test prints")?;
        println!("{line}");
        figures.extend(line.strip_prefix(FIGURES).map(str::to_owned));
    }
    let is_good = child.wait()?.success();
    println!();
    for line in figures {
        println!("{line}");
    }
    if !is_good {
        bail!("a turn failed; the messages are above, at `panicked`");
    }
    Ok(())
}
