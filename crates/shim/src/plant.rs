//! Takes a userfaultfd out of a running process, which watches what is written there: `plant PID`, with the line to the daemon as descriptor 0.
//!
//! A program of its own, because nobody may be killed in the middle of it: the daemon can be, this cannot without intent.

use std::process::ExitCode;
use std::time::Duration;

use offshoot_sys::inject::Stopped;
use offshoot_sys::passing;

/// How long the process may be held.
const HELD_MAX: Duration = Duration::from_millis(500);

/// Sends one byte and the descriptor; says why not on standard error.
pub(crate) fn run(pid: &str) -> ExitCode {
    // A Ctrl-C for a daemon in the foreground is not meant for this either.
    offshoot_sys::process::leave_session();
    let planted = pid
        .parse()
        .map_err(|_| std::io::Error::other("that is no process id"))
        .and_then(|pid| Stopped::stop(pid, HELD_MAX))
        .and_then(|stopped| stopped.watch_writes())
        .and_then(|fd| passing::give(rustix::stdio::stdin(), fd));
    match planted {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
