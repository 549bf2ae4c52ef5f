//! One external command with a bound on its time and its words.

use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::PoolError;

/// Bytes of standard error that are kept.
const STDERR_MAX: u64 = 64 * 1024;

/// Runs `program` and waits at most `limit`; it is killed after that.
pub(crate) fn run(
    program: &'static str,
    args: &[&str],
    on: &Path,
    limit: Duration,
) -> Result<(), PoolError> {
    let argv = || format!("{program} {} {}", args.join(" "), on.display());
    let failed = |status: String, stderr: String| PoolError::Command {
        argv: argv(),
        status,
        stderr,
    };
    let mut child = match Command::new(program)
        .args(args)
        .arg(on)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(PoolError::ProgramMissing { program });
        }
        Err(e) => return Err(failed(format!("the error {e}"), String::new())),
    };
    // The pipe is drained on a thread of its own, so that a talkative command cannot block.
    let stderr = child.stderr.take();
    let words = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(STDERR_MAX).read_to_end(&mut text);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let ended = Pid::from_raw(child.id().cast_signed())
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .is_none_or(|pidfd| {
            let timeout = Timespec {
                tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: 0,
            };
            !matches!(
                poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)),
                Ok(0)
            )
        });
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait();
    let stderr = words.join().unwrap_or_default();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) if !ended => Err(failed(format!("nothing within {limit:?}"), stderr)),
        Ok(status) => Err(failed(status.to_string(), stderr)),
        Err(e) => Err(failed(format!("the error {e}"), stderr)),
    }
}
