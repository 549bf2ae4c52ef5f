//! Running further processes in a node: people's sessions and health checks.
//!
//! `runc exec` stays in the foreground for the whole session, because only the parent learns the exit status. A session with a terminal
//! gets a pair of our own; runc copies between it and the terminal it makes inside (`--console-socket` would need `--detach`, and then
//! nobody could tell how the process ended).

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use offshoot_sys::process::{Process, poll_readable};
use rustix::process::Signal;
use serde_json::json;

use crate::client::observe;
use crate::config::{hard_limits, process_json};
use crate::control::RunState;
use crate::error::{Result, RuntimeError};
use crate::files::{read_bounded, write_atomic};
use crate::runc::{Runc, tail, wait_for};
use crate::spec::{NodeSpec, ProcessSpec};
use crate::user::{Environment, resolve_user};

/// How long a session waits for a frozen node to go on, and for its process to begin.
const BEGIN_MAX: Duration = Duration::from_secs(15);
/// How long a killed session has to end.
const END_MAX: Duration = Duration::from_secs(5);
/// How long streams may stay open after their process ended.
const LEFT_OPEN_MAX: Duration = Duration::from_millis(200);
const LOG_MAX: u64 = 1 << 20;

/// A process to run in a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// argv; not empty.
    pub args: Vec<String>,
    /// Environment on top of the node's, each `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; the node's when absent.
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group`, `uid:gid`; the node's when absent.
    pub user: Option<String>,
    /// Give it a terminal of this size.
    pub terminal: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// Descriptors of a session. Take what is needed; closing `stdin` is the process's end of file.
#[derive(Debug, Default)]
pub struct ExecStreams {
    /// Write end.
    pub stdin: Option<OwnedFd>,
    /// Read end.
    pub stdout: Option<OwnedFd>,
    /// Read end.
    pub stderr: Option<OwnedFd>,
    /// Read and write; the only one of a session with a terminal. Reads end with `EIO` when the process ended.
    pub terminal: Option<OwnedFd>,
}

/// A process running in a node; dropping it kills the process.
#[derive(Debug)]
pub struct ExecProcess {
    /// Its descriptors.
    pub streams: ExecStreams,
    runc: Child,
    inner: Process,
    terminal: Option<OwnedFd>,
    ended: Option<i32>,
    dir: PathBuf,
}

/// Runs a process in a node. Waits a moment when the node is frozen for a cut.
///
/// # Errors
/// When the node does not run, the user is unknown, or the program cannot be started (not found, not executable).
pub fn exec(spec: &NodeSpec, what: &ExecSpec) -> Result<ExecProcess> {
    let process = merged(spec, what)?;
    let (mut value, _) = process_json(spec, &process, &hard_limits())?;
    if let Some(size) = what.terminal {
        value["terminal"] = json!(true);
        value["consoleSize"] = json!({ "width": size.columns, "height": size.rows });
    }
    let deadline = Instant::now() + BEGIN_MAX;
    loop {
        match observe(&spec.run_dir)?.state {
            RunState::Running => {}
            RunState::Frozen if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            _ => {
                return Err(RuntimeError::NotRunning {
                    run_dir: spec.run_dir.clone(),
                });
            }
        }
        match begin(spec, what, &value) {
            // The freeze came between the look and the start.
            Err(RuntimeError::Command { stderr, .. })
                if stderr.contains("paused") && Instant::now() < deadline => {}
            other => return other,
        }
    }
}

fn merged(spec: &NodeSpec, what: &ExecSpec) -> Result<ProcessSpec> {
    if what.args.is_empty() {
        return Err(RuntimeError::spec("no command to run"));
    }
    let mut process = spec.process.clone();
    process.args.clone_from(&what.args);
    let mut env = Environment::new(&process.env);
    if let Some(user) = &what.user {
        let (ids, home) = resolve_user(user, &spec.rootfs)?;
        process.user = ids;
        env.set("HOME", &home);
    }
    if what.terminal.is_some() && env.get("TERM").is_none() {
        env.set("TERM", "xterm");
    }
    for entry in &what.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        env.set(name, value);
    }
    process.env = env.into_list();
    if let Some(cwd) = &what.cwd {
        process.cwd.clone_from(cwd);
    }
    let checked = NodeSpec {
        process: process.clone(),
        ..spec.clone()
    };
    checked.check()?;
    Ok(process)
}

static NEXT: AtomicU64 = AtomicU64::new(0);

fn begin(spec: &NodeSpec, what: &ExecSpec, process: &serde_json::Value) -> Result<ExecProcess> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = spec
        .run_dir
        .join("exec")
        .join(format!("{}-{number}", std::process::id()));
    fs::create_dir_all(&dir).map_err(|e| RuntimeError::io("make", &dir, e))?;
    let started = start(spec, what, process, &dir);
    if started.is_err() {
        let _ = fs::remove_dir_all(&dir);
    }
    started
}

fn start(
    spec: &NodeSpec,
    what: &ExecSpec,
    process: &serde_json::Value,
    dir: &Path,
) -> Result<ExecProcess> {
    write_atomic(&dir.join("process.json"), process.to_string().as_bytes())?;
    let (pid_file, log) = (dir.join("pid"), dir.join("runc.log"));
    let mut command = Runc::new(&spec.tools, &spec.run_dir).command::<&str>([]);
    // The last --log counts: sessions run side by side and each must find its own errors.
    command
        .arg("--log")
        .arg(&log)
        .arg("exec")
        .arg("--process")
        .arg(dir.join("process.json"));
    command.arg("--pid-file").arg(&pid_file);
    let mut streams = ExecStreams::default();
    let mut terminal = None;
    let failed = |e: std::io::Error| RuntimeError::doing("open a terminal", e);
    if let Some(size) = what.terminal {
        let (ours, theirs) = open_terminal(size).map_err(failed)?;
        for set in [
            std::process::Command::stdin,
            std::process::Command::stdout,
            std::process::Command::stderr,
        ] {
            set(
                &mut command,
                Stdio::from(theirs.try_clone().map_err(failed)?),
            );
        }
        command.arg("--tty");
        terminal = Some(ours.try_clone().map_err(failed)?);
        streams.terminal = Some(ours);
    } else {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }
    command.arg(spec.node.to_string());
    let line = crate::runc::command_line(&command);
    let mut runc = command
        .spawn()
        .map_err(|e| RuntimeError::doing(format!("run {line}"), e))?;
    // Drops our copies of the terminal's other end.
    drop(command);
    streams.stdin = runc.stdin.take().map(OwnedFd::from);
    streams.stdout = runc.stdout.take().map(OwnedFd::from);
    streams.stderr = runc.stderr.take().map(OwnedFd::from);
    let inner = match wait_begun(&mut runc, &pid_file, &log, &line) {
        Ok(inner) => inner,
        Err(error) => {
            let _ = runc.kill();
            let _ = runc.wait();
            return Err(error);
        }
    };
    Ok(ExecProcess {
        streams,
        runc,
        inner,
        terminal,
        ended: None,
        dir: dir.to_owned(),
    })
}

/// Waits until runc wrote the process's number.
fn wait_begun(runc: &mut Child, pid_file: &Path, log: &Path, line: &str) -> Result<Process> {
    let deadline = Instant::now() + BEGIN_MAX;
    let failed = |e: std::io::Error| RuntimeError::doing(format!("wait for {line}"), e);
    loop {
        let ended = wait_for(runc, Duration::from_millis(1)).map_err(failed)?;
        // Looked for after runc: a short process ends runc with the file written.
        if let Ok(text) = fs::read_to_string(pid_file) {
            let pid: i32 = text
                .trim()
                .parse()
                .map_err(|_| RuntimeError::spec(format!("runc wrote the pid {text:?}")))?;
            return match Process::open(pid) {
                Ok(process) => Ok(process),
                // Ended and reaped already; hold runc's own number in its place.
                Err(_) => Process::open(runc.id().cast_signed())
                    .or_else(|_| Process::open(std::process::id().cast_signed()))
                    .map_err(failed),
            };
        }
        if let Some(status) = ended {
            let bytes = read_bounded(log, LOG_MAX).unwrap_or_default();
            let stderr = tail(&String::from_utf8_lossy(&bytes), 4096).to_owned();
            return Err(RuntimeError::Command {
                command: line.to_owned(),
                outcome: status.to_string(),
                stderr,
            });
        }
        if Instant::now() > deadline {
            return Err(RuntimeError::Timeout {
                what: line.to_owned(),
                after: BEGIN_MAX,
            });
        }
    }
}

/// A pair of terminal ends (pty(7)): ours, and the one that programs use.
fn open_terminal(size: TerminalSize) -> std::io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::OpenptFlags;
    let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    set_size(&ours, size)?;
    Ok((ours, theirs))
}

fn set_size(terminal: &OwnedFd, size: TerminalSize) -> std::io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

impl ExecProcess {
    /// Host pid of the process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.inner.pid()
    }

    /// Tells the terminal's new size; nothing without a terminal.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn resize(&self, size: TerminalSize) -> Result<()> {
        let Some(terminal) = &self.terminal else {
            return Ok(());
        };
        set_size(terminal, size).map_err(|e| RuntimeError::doing("resize a terminal", e))?;
        // runc takes the size over to the terminal inside when it is told.
        let runc = rustix::process::Pid::from_raw(self.runc.id().cast_signed());
        if let (Some(runc), None) = (runc, self.ended) {
            let _ = rustix::process::kill_process(runc, Signal::WINCH);
        }
        Ok(())
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// When it ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let gone = self.ended.is_some() || self.inner.pid() == std::process::id().cast_signed();
        if gone {
            return Err(RuntimeError::spec("the process ended already"));
        }
        self.inner
            .signal(signal)
            .map_err(|e| RuntimeError::doing(format!("signal process {}", self.pid()), e))
    }

    /// Waits for its end, at most `max`: exit status, or 128 + signal; `None` when it still runs.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn wait(&mut self, max: Duration) -> Result<Option<i32>> {
        if self.ended.is_none() {
            let status = wait_for(&mut self.runc, max)
                .map_err(|e| RuntimeError::doing("wait for a session", e))?;
            self.ended = status.map(|status| {
                use std::os::unix::process::ExitStatusExt;
                status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap_or(9))
            });
        }
        Ok(self.ended)
    }

    /// Waits for its end at most `max` (then kills it) and gives what it printed, at most `limit` bytes of both streams together.
    ///
    /// # Errors
    /// [`RuntimeError::Timeout`] when it had to be killed.
    pub fn finish(mut self, max: Duration, limit: usize) -> Result<Finished> {
        let deadline = Instant::now() + max;
        self.streams.stdin = None;
        let mut output = Vec::new();
        let mut open: Vec<fs::File> = Vec::new();
        let streams = [
            self.streams.stdout.take(),
            self.streams.stderr.take(),
            self.streams.terminal.take(),
        ];
        open.extend(streams.into_iter().flatten().map(fs::File::from));
        while !open.is_empty() {
            let mut still = Vec::new();
            for mut file in open {
                let left = deadline
                    .saturating_duration_since(Instant::now())
                    .min(Duration::from_millis(10));
                match poll_readable(file.as_fd(), Some(left)) {
                    Ok(false) => still.push(file),
                    Ok(true) => {
                        let mut chunk = [0; 8192];
                        // A terminal ends with EIO.
                        let read = file.read(&mut chunk).unwrap_or(0);
                        let room = limit.saturating_sub(output.len()).min(read);
                        output.extend_from_slice(chunk.get(..room).unwrap_or_default());
                        if read > 0 {
                            still.push(file);
                        }
                    }
                    Err(e) => return Err(RuntimeError::doing("read from a session", e)),
                }
            }
            open = still;
            if Instant::now() >= deadline {
                break;
            }
        }
        match self.wait(deadline.saturating_duration_since(Instant::now()))? {
            Some(status) => Ok(Finished {
                status,
                output: String::from_utf8_lossy(&output).into_owned(),
            }),
            None => Err(RuntimeError::Timeout {
                what: "the command".into(),
                after: max,
            }),
        }
    }
}

/// A process that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Exit status, or 128 + signal.
    pub status: i32,
    /// What it printed.
    pub output: String,
}

impl Drop for ExecProcess {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let ended = matches!(self.inner.wait_end(Some(Duration::ZERO)), Ok(true));
            let _ = self.signal(Signal::KILL.as_raw());
            self.streams = ExecStreams::default();
            // runc exits when the streams are at their ends, which a process left behind by this one may hold open for ever.
            let max = if ended { LEFT_OPEN_MAX } else { END_MAX };
            if !matches!(wait_for(&mut self.runc, max), Ok(Some(_))) {
                let _ = self.runc.kill();
                let _ = self.runc.wait();
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
