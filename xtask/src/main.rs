//! What people who work on Offshoot type: `cargo xtask setup | test | ci | demo | bench | check`.

mod bench;
mod check;
mod ci;
mod commands;
mod demo;
mod instance;
mod interrupt;
mod table;
mod use_cases;
mod wordpress;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Offshoot's own tasks.")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing from the distribution's packages (packaging/setup.sh): `run`, `build`, `test`, `bench`, `browser`.
    Setup {
        /// What for; `run` when nothing is said.
        sets: Vec<String>,
    },
    /// Set up, build and run every test.
    Test {
        /// Passed on to `cargo nextest run`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        nextest: Vec<String>,
    },
    /// What must pass before a change lands: format, lints, tests, documentation, dependencies.
    Ci,
    /// Set up, build, run WordPress, clone it alive while it is being read, and show what came along.
    Demo(demo::Arguments),
    /// Measure.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Try for hours what a test tries for a minute.
    Check {
        #[command(subcommand)]
        what: Check,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// What clones of WordPress cost while it is used: freeze, time to the first answer, throughput, latency, memory.
    Clone(bench::clone::Arguments),
    /// The dashboard in Chromium: how soon the list of environments is seen.
    Dashboard(bench::dashboard::Arguments),
    /// The edge beside nginx and HAProxy: requests per second, latency, memory of connections, many routes, swaps under
    /// load.
    Edge(bench::edge::Arguments),
}

#[derive(Subcommand)]
enum Check {
    /// Clone environments that verify every page of their memory; exit status 1 when one was wrong.
    Clones(check::Arguments),
    /// Everything that clones are for, with a WordPress and its live clone under load; exit status 1 when anything did not hold.
    UseCases(use_cases::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup { sets } => {
            commands::setup(&sets.iter().map(String::as_str).collect::<Vec<_>>())
        }
        Task::Test { nextest } => ci::test(&nextest),
        Task::Ci => ci::ci(),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Bench {
            what: Bench::Clone(arguments),
        } => bench::clone::run(&arguments),
        Task::Bench {
            what: Bench::Dashboard(arguments),
        } => bench::dashboard::run(&arguments),
        Task::Bench {
            what: Bench::Edge(arguments),
        } => bench::edge::run(&arguments),
        Task::Check {
            what: Check::Clones(arguments),
        } => check::clones(&arguments),
        Task::Check {
            what: Check::UseCases(arguments),
        } => use_cases::run_all(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
