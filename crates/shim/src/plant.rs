//! Takes a userfaultfd out of a running process: `plant PID`, with the line to the daemon as descriptor 0.
//!
//! A program of its own, because nobody may be killed in the middle of it: the daemon can be, this cannot without intent.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use offshoot_sys::inject::Stopped;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

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
        .and_then(|stopped| stopped.take_userfaultfd())
        .and_then(|fd| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut message = SendAncillaryBuffer::new(&mut space);
            let fds = [fd.as_fd()];
            message.push(SendAncillaryMessage::ScmRights(&fds));
            Ok(sendmsg(
                rustix::stdio::stdin(),
                &[IoSlice::new(b"x")],
                &mut message,
                SendFlags::NOSIGNAL,
            )?)
        });
    match planted {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
