//! `offshoot`: the command line, and with `serve` the daemon.
//!
//! Data goes to standard output, progress and messages to standard error, so that every command can stand in a
//! pipe. Exit status: 0 done, 1 a problem, 2 a command that was not understood; `exec` passes on the status of
//! what it ran.

mod api;
mod args;
mod commands;
mod context;
mod cp;
mod failure;
mod follow;
#[cfg(test)]
mod help_tests;
mod human;
mod progress;
mod serve;
mod signals;
mod table;
mod term;

use clap::Parser as _;

use crate::args::Cli;
use crate::context::Context;
use crate::failure::Failure;

fn main() {
    let cli = Cli::parse();
    let context = Context::new(&cli.global);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| {
            let outcome = runtime.block_on(commands::run(&context, cli.command));
            // A thread may still wait in read(2) on standard input; nothing waits for it.
            runtime.shutdown_background();
            outcome
        });
    let status = match outcome {
        Ok(()) => 0,
        Err(failure) => failure.report(&context),
    };
    // exit(3) and not a return: the same reason.
    std::process::exit(status);
}
