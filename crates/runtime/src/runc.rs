//! Running runc: one root directory per node, so that nothing of one node can be mistaken for another's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use offshoot_sys::process;

use crate::error::{Result, RuntimeError};
use crate::files::read_bounded;
use crate::spec::Tools;

/// Longest part of a log that an error carries, in bytes.
const LOG_TAIL: usize = 4 << 10;
/// Largest runc or CRIU log read, in bytes.
const LOG_MAX: u64 = 64 << 20;
/// How often a restore's helpers are looked at.
const HELPER_LOOK: Duration = Duration::from_millis(250);
/// How long a helper may have ended without its runc taking notice.
const HELPER_ENDED_MAX: Duration = Duration::from_secs(3);

/// runc for one node.
#[derive(Debug, Clone)]
pub struct Runc {
    tools: Tools,
    run_dir: PathBuf,
}

impl Runc {
    /// runc for the node of `run_dir`.
    #[must_use]
    pub fn new(tools: &Tools, run_dir: &Path) -> Self {
        Self {
            tools: tools.clone(),
            run_dir: run_dir.to_owned(),
        }
    }

    /// `--root`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.run_dir.join("runc")
    }

    /// Where runc writes its own errors (its stderr is the container's).
    fn log(&self) -> PathBuf {
        self.run_dir.join("runc.log")
    }

    /// A runc command with its global options, a clean environment and no standard streams.
    #[must_use]
    pub fn command<I: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(&self.tools.runc);
        command
            .arg("--root")
            .arg(self.root())
            .arg("--log")
            .arg(self.log())
            .args(args);
        let mut path = OsString::new();
        if let Some(dir) = &self.tools.criu_dir {
            // runc finds criu through PATH (it has no other way since 1.2).
            path.push(dir);
            path.push(":");
        }
        path.push(crate::user::DEFAULT_PATH);
        command.env_clear().env("PATH", path);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Runs a prepared command to its end.
    ///
    /// # Errors
    /// When it cannot be started, fails, or takes longer than `max` (it is killed then). The end of runc's log is in the error.
    pub fn run(&self, command: Command, max: Duration) -> Result<()> {
        self.run_until(command, max, |child| {
            Ok(wait_for(child, max)?.map_or(Wait::Late, Wait::Ended))
        })
    }

    /// As [`Runc::run`], for `runc restore`: also ends when a helper of runc's, which is CRIU, was killed. runc does not notice (1.1): it
    /// waits for the end of a line whose other end the half-restored processes hold.
    ///
    /// # Errors
    /// As [`Runc::run`], and when a helper has ended for three seconds while runc still waits.
    pub fn run_restore(&self, command: Command, max: Duration) -> Result<()> {
        self.run_until(command, max, |child| wait_with_helpers(child, max))
    }

    fn run_until(
        &self,
        mut command: Command,
        max: Duration,
        wait: impl FnOnce(&mut Child) -> std::io::Result<Wait>,
    ) -> Result<()> {
        let line = command_line(&command);
        let before = std::fs::metadata(self.log()).map_or(0, |m| m.len());
        let mut child = command
            .spawn()
            .map_err(|e| RuntimeError::doing(format!("run {line}"), e))?;
        let outcome = match wait(&mut child)
            .map_err(|e| RuntimeError::doing(format!("wait for {line}"), e))?
        {
            Wait::Ended(status) if status.success() => return Ok(()),
            Wait::Ended(status) => Some(status.to_string()),
            Wait::Helpless(helper) => Some(format!(
                "its helper {helper} was killed, which it did not notice"
            )),
            Wait::Late => None,
        };
        let _ = child.kill();
        let _ = child.wait();
        Err(match outcome {
            Some(outcome) => RuntimeError::Command {
                command: line,
                outcome,
                stderr: self.log_since(before),
            },
            None => RuntimeError::Timeout {
                what: line,
                after: max,
            },
        })
    }

    /// Messages that runc logged after the first `skip` bytes.
    fn log_since(&self, skip: u64) -> String {
        let bytes = read_bounded(&self.log(), LOG_MAX).unwrap_or_default();
        let new = bytes
            .get(usize::try_from(skip).unwrap_or(0)..)
            .unwrap_or_default();
        let text = String::from_utf8_lossy(new);
        let wanted: Vec<&str> = text
            .lines()
            .filter(|line| !line.contains("level=warning"))
            .collect();
        tail(&wanted.join("\n"), LOG_TAIL).to_owned()
    }

    /// Removes what runc keeps about a container, killing what is left of it.
    ///
    /// # Errors
    /// When runc fails; a container that is not there is no error.
    pub fn delete(&self, id: &str) -> Result<()> {
        if !self.root().join(id).exists() {
            return Ok(());
        }
        self.run(
            self.command(["delete", "--force", id]),
            Duration::from_secs(30),
        )
    }
}

/// Waits for a child, at most `max`; `None` when it still runs.
pub(crate) fn wait_for(child: &mut Child, max: Duration) -> std::io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let deadline = Instant::now() + max;
    let process = process::Process::open(child.id().cast_signed())?;
    loop {
        if process.wait_end(Some(deadline.saturating_duration_since(Instant::now())))? {
            return child.wait().map(Some);
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

/// How waiting for a command came out.
enum Wait {
    Ended(ExitStatus),
    /// It still runs.
    Late,
    /// It still runs, and this process that it started ended long ago: name and number.
    Helpless(String),
}

/// Waits for a child, at most `max`, or until one of its own children has ended for [`HELPER_ENDED_MAX`] without being taken notice of.
fn wait_with_helpers(child: &mut Child, max: Duration) -> std::io::Result<Wait> {
    let deadline = Instant::now() + max;
    let mut ended: BTreeMap<i32, Instant> = BTreeMap::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(status) = wait_for(child, left.min(HELPER_LOOK))? {
            return Ok(Wait::Ended(status));
        }
        if left.is_zero() {
            return Ok(Wait::Late);
        }
        let now = Instant::now();
        ended = process::children(child.id().cast_signed())
            .into_iter()
            .filter(|pid| process::identity(*pid).is_ok_and(|id| id.state == 'Z'))
            .map(|pid| (pid, ended.get(&pid).copied().unwrap_or(now)))
            .collect();
        if let Some((pid, _)) = ended
            .iter()
            .find(|(_, since)| now.duration_since(**since) >= HELPER_ENDED_MAX)
        {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Ok(Wait::Helpless(format!("{} (process {pid})", name.trim())));
        }
    }
}

/// argv as one line, for errors.
pub(crate) fn command_line(command: &Command) -> String {
    let parts = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    parts
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last `max` bytes of a text, from the start of a line or character.
pub(crate) fn tail(text: &str, max: usize) -> &str {
    let mut start = text.len().saturating_sub(max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default()
}

/// CRIU's `Error (` lines of a log file, at most the last twenty.
#[must_use]
pub fn criu_errors(log: &Path) -> Vec<String> {
    let bytes = read_bounded(log, LOG_MAX).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let errors: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("Error ("))
        .collect();
    errors
        .iter()
        .skip(errors.len().saturating_sub(20))
        .map(|line| tail(line.trim(), 500).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_says_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools {
            runc: "/bin/false".into(),
            criu_dir: Some("/opt/criu".into()),
            criu_kernel: None,
            shim: "/x".into(),
        };
        let runc = Runc::new(&tools, dir.path());
        let command = runc.command(["create", "x"]);
        let path = command
            .get_envs()
            .find(|(name, _)| *name == "PATH")
            .unwrap()
            .1
            .unwrap();
        assert!(path.to_string_lossy().starts_with("/opt/criu:/usr/"));
        let error = runc
            .run(command, Duration::from_secs(5))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("/bin/false --root ")
                && error.contains("create x failed: exit status: 1"),
            "{error}"
        );
        runc.delete("absent").unwrap();
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools {
            runc: "/bin/sleep".into(),
            criu_dir: None,
            criu_kernel: None,
            shim: "/x".into(),
        };
        let runc = Runc::new(&tools, dir.path());
        let mut command = Command::new("/bin/sleep");
        command.arg("1000");
        assert!(matches!(
            runc.run(command, Duration::from_millis(20)),
            Err(RuntimeError::Timeout { .. })
        ));
    }

    #[test]
    fn a_restore_whose_helper_was_killed_ends_soon() {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools {
            runc: "/bin/sh".into(),
            criu_dir: None,
            criu_kernel: None,
            shim: "/x".into(),
        };
        let runc = Runc::new(&tools, dir.path());
        let mut command = Command::new("/bin/sh");
        // What the shell becomes knows nothing of the shell's child.
        command.args(["-c", "sh -c 'kill -9 $$' & exec sleep 1000"]);
        let error = runc.run_restore(command, Duration::from_secs(100));
        assert!(
            matches!(&error, Err(RuntimeError::Command { outcome, .. }) if outcome.contains("helper")),
            "{error:?}"
        );
        let mut command = Command::new("/bin/sleep");
        command.arg("1000");
        assert!(matches!(
            runc.run_restore(command, Duration::from_millis(20)),
            Err(RuntimeError::Timeout { .. })
        ));
    }

    #[test]
    fn criu_errors_are_picked_out() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("restore.log");
        std::fs::write(&log, "(00.1) ok\n(00.2) Error (criu/x.c:1): bad\nend\n").unwrap();
        assert_eq!(criu_errors(&log), ["(00.2) Error (criu/x.c:1): bad"]);
        assert_eq!(tail("äöü", 3), "ü");
    }
}
