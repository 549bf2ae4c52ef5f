//! The edge's process: started so that it outlives the daemon, found again by its pid file, stopped by a pidfd.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::config::EdgeConfig;
use crate::control::{EdgeControl, EdgeStatus};
use crate::error::EdgeError;
use crate::file;

/// Longer than an edge takes to drain, end and start anew.
const LOCK_TIMEOUT: Duration = Duration::from_secs(90);
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Content of the pid file: which process the edge is. The start time tells it from a later process with the same
/// number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidFile {
    /// Process id.
    pub pid: i32,
    /// Start in clock ticks since boot: field 22 of /proc/PID/stat, proc_pid_stat(5).
    pub start: u64,
}

impl PidFile {
    /// The calling process.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn myself() -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Ok(Self {
            pid,
            start: start_time(pid)?,
        })
    }

    /// Reads the file; `None` when it is absent, empty or damaged: then nothing is known to run.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&file::read(path, 4096).ok()?).ok()
    }

    /// A handle on the process if it still runs. A pidfd never comes to mean another process (pidfd_open(2)); the
    /// start time is read after it was opened.
    fn open(self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        (start_time(self.pid).ok()? == self.start).then_some(pidfd)
    }
}

/// Waits so long for the end of the edge's process; whether it ended. One that does not run has ended.
///
/// # Errors
/// When the pid file does not say which process it is.
pub fn ended_within(config: &EdgeConfig, bound: Duration) -> io::Result<bool> {
    let path = config.pid_file();
    if !path.exists() {
        return Ok(true);
    }
    let process = PidFile::read(&path).ok_or(io::ErrorKind::InvalidData)?;
    process
        .open()
        .map_or(Ok(true), |pidfd| ends(pidfd.as_fd(), bound))
}

fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // the second field is the command's name in parentheses and may itself hold spaces and parentheses
    let field = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(19));
    field
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Makes sure that an edge with this configuration runs and answers; returns what it says of itself.
///
/// One that runs with another configuration is stopped first (its clients get `drain_seconds`). One of another
/// program version keeps running: [`EdgeStatus::edge`] tells. The process has its own session and belongs to init,
/// so nothing that happens to the caller reaches it.
///
/// # Errors
/// When it does not start, with the end of its messages: an address in use, for instance.
pub fn ensure_edge(config: &EdgeConfig, binary: &Path) -> Result<EdgeStatus, EdgeError> {
    let path = config.path();
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(EdgeError::file("make", directory))?;
    }
    let _one_at_a_time = lock(&config.control.with_extension("lock"))?;
    match EdgeControl::connect(&config.control).and_then(|mut control| control.status()) {
        Ok(status) if &status.config == config => return Ok(status),
        // it runs with another configuration, hangs, or is gone
        _ => stop(config)?,
    }
    config.write(&path)?;
    let failed = |why: String| EdgeError::Start {
        binary: binary.to_owned(),
        why,
    };
    // with --detach the program starts itself anew in the background and ends once that one serves (or with its
    // messages, when it does not), within 15 s
    let output = Command::new(binary)
        .arg("--config")
        .arg(&path)
        .arg("--detach")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!(
            "{}: {}",
            output.status,
            tail(&output.stderr)
        )));
    }
    EdgeControl::connect(&config.control)?.status()
}

/// Takes a lock that others who start or stop the same edge wait for. It goes with the descriptor (flock(2)).
fn lock(path: &Path) -> Result<File, EdgeError> {
    let failed = EdgeError::file("lock", path);
    let deadline = Instant::now() + LOCK_TIMEOUT;
    let attempt = || -> io::Result<File> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                Err(Errno::INTR) => {}
                locked => return locked.map(|()| file).map_err(Into::into),
            }
        }
    };
    attempt().map_err(failed)
}

/// Stops the edge: SIGTERM, `drain_seconds` for its clients, SIGKILL; removes its control socket and pid file. No
/// edge is no error.
///
/// # Errors
/// When the process does not end even then.
pub fn stop(config: &EdgeConfig) -> Result<(), EdgeError> {
    let pid_file = config.pid_file();
    if let Some(process) = PidFile::read(&pid_file)
        && let Some(pidfd) = process.open()
    {
        let failed = |source: io::Error| EdgeError::Stop {
            pid: process.pid,
            source,
        };
        let grace = Duration::from_secs(config.limits.drain_seconds.saturating_add(5));
        if !end(pidfd.as_fd(), Signal::TERM, grace).map_err(failed)?
            && !end(pidfd.as_fd(), Signal::KILL, KILL_TIMEOUT).map_err(failed)?
        {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
    }
    for path in [&config.control, &pid_file] {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(EdgeError::file("remove", path)(e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Sends a signal and waits for the process' end; whether it ended.
fn end(pidfd: BorrowedFd<'_>, signal: Signal, bound: Duration) -> io::Result<bool> {
    match pidfd_send_signal(pidfd, signal) {
        Err(Errno::SRCH) => return Ok(true),
        other => other?,
    }
    ends(pidfd, bound)
}

/// Waits so long for a process' end, when its pidfd becomes readable (pidfd_open(2)); whether it ended.
fn ends(pidfd: BorrowedFd<'_>, bound: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + bound;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

fn tail(messages: &[u8]) -> String {
    let text = String::from_utf8_lossy(messages);
    let text = text.trim();
    let from = text.char_indices().rev().nth(1_000).map_or(0, |(at, _)| at);
    text.get(from..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let me = PidFile::myself().unwrap();
        assert!(me.open().is_some());
        assert!(
            PidFile {
                start: me.start + 1,
                ..me
            }
            .open()
            .is_none()
        );
    }

    #[test]
    fn stopping_nothing_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let config = EdgeConfig::new(at("routes.json"), at("edge.sock"));
        let ended = || ended_within(&config, Duration::ZERO).map_err(|error| error.kind());
        stop(&config).unwrap();
        assert_eq!(ended(), Ok(true));
        std::fs::write(config.pid_file(), b"").unwrap();
        assert_eq!(ended(), Err(io::ErrorKind::InvalidData));
        std::fs::write(&config.control, b"").unwrap();
        stop(&config).unwrap();
        assert!(!config.control.exists() && !config.pid_file().exists());
    }
}
