//! A child that stands still with the memory of its parent at one instant.

use std::fs::{self, File};
use std::io;
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::Stopped;
use super::speaker::Speaker;

/// How long the parent may be held for taking leave of its child.
const LEAVE_MAX: Duration = Duration::from_millis(500);

/// How long the parent may be out of reach, and how often it is tried.
const BURY_MAX: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(100);

/// Such a child. It executes nothing of its program and is killed when this is dropped, and when the calling process ends, however it ends.
///
/// The calling thread has to stay: it is the one that holds it (ptrace(2)).
#[derive(Debug)]
pub struct Twin {
    pid: Pid,
    parent: i32,
    // never put back: there is nothing that shall go on
    speaker: ManuallyDrop<Speaker>,
}

impl Twin {
    pub(super) fn new(pid: Pid, parent: i32, speaker: Speaker) -> Self {
        Self {
            pid,
            parent,
            speaker: ManuallyDrop::new(speaker),
        }
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Closes its descriptors: with them it would keep open what the parent closes (close_range(2), Linux 5.9). And should memory run
    /// out, it is the first to go (proc_pid_oom_score_adj(5)).
    ///
    /// # Errors
    /// Those of the call.
    pub fn let_go_of_files(&self) -> io::Result<()> {
        fs::write(format!("/proc/{}/oom_score_adj", self.pid), "1000")?;
        let all = u64::from(u32::MAX);
        self.speaker
            .call(libc::SYS_close_range as u64, [0, all, 0, 0, 0, 0])?;
        Ok(())
    }

    /// Its memory: the byte of address A is at offset A (proc_pid_mem(5)). Reading gives nothing once the child has ended.
    ///
    /// # Errors
    /// `ENOENT` when it has.
    pub fn memory(&self) -> io::Result<File> {
        File::open(format!("/proc/{}/mem", self.pid))
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        while waitpid(self.pid, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
        // What is left of it in the table of processes is the parent's to take away, who knows nothing of it; who may be frozen just now.
        let deadline = Instant::now() + BURY_MAX;
        while bury(self.parent, self.pid.as_raw()).is_err() && Instant::now() < deadline {
            std::thread::sleep(AGAIN);
        }
    }
}

/// Has process `parent` wait for its child `pid`, which ended, if it is still there and its own.
fn bury(parent: i32, pid: i32) -> io::Result<()> {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return Ok(());
    };
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
    let is_child = field("PPid:").is_some_and(|of| of.trim().parse() == Ok(parent));
    // its number as the parent sees it: both are in one namespace, the innermost
    let inner = field("NSpid:").and_then(|all| all.split_ascii_whitespace().next_back());
    let inner = inner.and_then(|number| number.parse::<u64>().ok());
    if let Some(inner) = inner.filter(|_| is_child) {
        let flags = (libc::__WALL | libc::WNOHANG) as u64;
        let parent = match Stopped::stop_one(parent, LEAVE_MAX) {
            // what it leaves is its own parent's
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            parent => parent?,
        };
        parent.call(libc::SYS_wait4 as u64, [inner, 0, flags, 0, 0, 0])?;
    }
    Ok(())
}
