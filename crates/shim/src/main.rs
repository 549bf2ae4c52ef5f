//! `offshoot-shim`: the processes that keep an environment alive while the daemon is restarted or upgraded.
//!
//! - `node --spec FILE`: beside one node; owns its mounts, pipes, log and exit status ([`node`]).
//! - `router --spec FILE`: beside one environment; owns its network (crate `network`).
//! - `exec --pid-file FILE -- RUNC...`: beside one session ([`exec`]).
//! - `hook --spec FILE`: run by runc in the middle of a restore ([`hook`]).
//! - `memory --spec FILE`: beside a restored node while its memory comes ([`late::source`]).
//! - called by the name `criu-action`: run by CRIU during such a restore ([`late::hold`]).
//! - `plant PID`: for a moment, beside a process whose memory is about to be copied ([`plant`]).
//! - `twin PID SOCKET LOCK`: beside the standing copy of a process, while a clone takes memory from it ([`twin`]).
//!
//! People do not call it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod control;
mod exec;
mod hook;
mod jobs;
mod late;
mod mounts;
mod node;
mod plant;
mod shared;
mod stdio;
mod twin;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(late::hold::NAME.as_ref()) {
        return late::hold::run(Path::new(&name));
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["exec", "--pid-file", pid_file, "--", command @ ..] = args.as_slice() {
        return exec::run(Path::new(pid_file), command);
    }
    if let ["plant", pid] = args.as_slice() {
        return plant::run(pid);
    }
    if let ["twin", pid, socket, lock] = args.as_slice() {
        return twin::run(pid, Path::new(socket), Path::new(lock));
    }
    let run: fn(&Path) -> anyhow::Result<()> = match args.as_slice() {
        ["node", "--spec", _] => node::run,
        ["router", "--spec", _] => router,
        ["hook", "--spec", _] => hook::run,
        ["memory", "--spec", _] => late::source::run,
        ["--version"] => {
            println!("offshoot-shim {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!(
                "usage: offshoot-shim node|router|hook|exec ... (started by offshoot, not by people)"
            );
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run(&PathBuf::from(args.get(2).copied().unwrap_or_default())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "offshoot-shim {}: {error:#}",
                args.first().copied().unwrap_or_default()
            );
            ExitCode::FAILURE
        }
    }
}

fn router(spec: &Path) -> anyhow::Result<()> {
    // A Ctrl-C for a daemon in the foreground is not meant for the networks of running environments.
    offshoot_sys::process::leave_session();
    Ok(offshoot_network::router::run(spec)?)
}
