//! Running runc: one root directory per node, so that nothing of one node can be mistaken for another's.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Result, RuntimeError};
use crate::files::read_bounded;
use crate::spec::Tools;

/// Longest part of a log that an error carries, in bytes.
const LOG_TAIL: usize = 4 << 10;
/// Largest runc or CRIU log read, in bytes.
const LOG_MAX: u64 = 64 << 20;

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
    pub fn run(&self, mut command: Command, max: Duration) -> Result<()> {
        let line = command_line(&command);
        let before = std::fs::metadata(self.log()).map_or(0, |m| m.len());
        let mut child = command
            .spawn()
            .map_err(|e| RuntimeError::doing(format!("run {line}"), e))?;
        match wait_for(&mut child, max)
            .map_err(|e| RuntimeError::doing(format!("wait for {line}"), e))?
        {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(RuntimeError::Command {
                command: line,
                outcome: status.to_string(),
                stderr: self.log_since(before),
            }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(RuntimeError::Timeout {
                    what: line,
                    after: max,
                })
            }
        }
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
    let process = offshoot_sys::process::Process::open(child.id().cast_signed())?;
    loop {
        if process.wait_end(Some(deadline.saturating_duration_since(Instant::now())))? {
            return child.wait().map(Some);
        }
        if Instant::now() >= deadline {
            return Ok(None);
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
    fn criu_errors_are_picked_out() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("restore.log");
        std::fs::write(&log, "(00.1) ok\n(00.2) Error (criu/x.c:1): bad\nend\n").unwrap();
        assert_eq!(criu_errors(&log), ["(00.2) Error (criu/x.c:1): bad"]);
        assert_eq!(tail("äöü", 3), "ü");
    }
}
