//! `offshoot-shim exec --pid-file FILE -- RUNC ARGUMENT...`: the parent of a session's process.
//!
//! runc, told to detach, starts the process and ends; the process then belongs to this one, which ends as it did. Whoever asked for the
//! session started this; when that one dies, the process has no use any more and is killed.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use offshoot_sys::process::{self, Process};

/// What a shell says when a command could not be started.
const NOT_STARTED: u8 = 126;

/// Runs runc, then waits for what it left behind.
pub(crate) fn run(pid_file: &Path, command: &[&str]) -> ExitCode {
    // runc's log says why; whoever started this reads it there.
    session(pid_file, command).unwrap_or(ExitCode::from(NOT_STARTED))
}

fn session(pid_file: &Path, command: &[&str]) -> Result<ExitCode> {
    let starter = Process::open(process::parent()).context("hold who started this")?;
    process::adopt_orphans().context("adopt orphans")?;
    let (program, arguments) = command.split_first().context("no command")?;
    // It and the process get the session's streams.
    let status = Command::new(program)
        .args(arguments)
        .status()
        .context("run runc")?;
    anyhow::ensure!(status.success(), "runc failed: {status}");
    let pid = std::fs::read_to_string(pid_file).context("read the pid")?;
    let session = Process::open(pid.trim().parse().context("understand the pid")?)
        .context("hold the process")?;
    // Their ends must be seen when the process is gone, not when this one is.
    process::close_streams().context("let go of the streams")?;
    if !process::wait_first(&session, &starter).context("wait")? {
        let _ = session.signal(9);
    }
    let status = session.reap().context("reap the process")?.status();
    Ok(ExitCode::from(
        u8::try_from(status & 0xff).unwrap_or(u8::MAX),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_is_told() {
        let missing = Path::new("/nonexistent/pid");
        assert!(session(missing, &["/bin/false"]).is_err());
        assert!(session(missing, &[]).is_err());
    }
}
