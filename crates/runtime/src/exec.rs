//! Running further processes in a node: people's sessions and health checks.
//!
//! A process that `runc exec --detach` leaves behind has the session's own pipes or terminal, nothing copies in between, and the
//! session ends when the process does, whatever its children hold open. But only a parent learns how a process ended: so runc runs
//! below a helper of ours (`offshoot-shim exec`) that inherits the process from it, waits, and ends the same way.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
    helper: Child,
    /// Absent when it ended before it could be held.
    inner: Option<Process>,
    pid: i32,
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
    let console = what.terminal.map(|_| Console::open(dir)).transpose()?;
    let mut runc = Runc::new(&spec.tools, &spec.run_dir).command(["--log"]);
    // The last --log counts: sessions run side by side and each must find its own errors.
    runc.arg(&log).args(["exec", "--detach"]);
    runc.arg("--process")
        .arg(dir.join("process.json"))
        .arg("--pid-file")
        .arg(&pid_file);
    if let Some(console) = &console {
        runc.arg("--tty").arg("--console-socket").arg(&console.path);
    }
    runc.arg(spec.node.to_string());
    let line = crate::runc::command_line(&runc);
    let mut command = Command::new(&spec.tools.shim);
    command
        .args(["exec", "--pid-file"])
        .arg(&pid_file)
        .arg("--")
        .arg(runc.get_program())
        .args(runc.get_args());
    command.env_clear().env("PATH", crate::user::DEFAULT_PATH);
    let stdio = || {
        if console.is_some() {
            Stdio::null()
        } else {
            Stdio::piped()
        }
    };
    command.stdin(stdio()).stdout(stdio()).stderr(stdio());
    let mut helper = command
        .spawn()
        .map_err(|e| RuntimeError::doing(format!("run {line}"), e))?;
    let mut streams = ExecStreams {
        stdin: helper.stdin.take().map(OwnedFd::from),
        stdout: helper.stdout.take().map(OwnedFd::from),
        stderr: helper.stderr.take().map(OwnedFd::from),
        terminal: None,
    };
    let mut begin = || -> Result<(i32, Option<Process>, Option<OwnedFd>)> {
        let begun = wait_begun(&mut helper, &pid_file, &log, &line)?;
        let (Some(console), Some(size)) = (&console, what.terminal) else {
            return Ok((begun.0, begun.1, None));
        };
        let terminal = console
            .receive()
            .map_err(|e| RuntimeError::doing("receive a terminal", e))?;
        // Already gone when the process was a short one.
        let _ = set_size(&terminal, size);
        Ok((begun.0, begun.1, Some(terminal)))
    };
    let (pid, inner, terminal) = match begin() {
        Ok(begun) => begun,
        Err(error) => {
            let _ = helper.kill();
            let _ = helper.wait();
            return Err(error);
        }
    };
    if let Some(terminal) = &terminal {
        let copy = terminal
            .try_clone()
            .map_err(|e| RuntimeError::doing("copy a terminal", e))?;
        streams.terminal = Some(copy);
    }
    Ok(ExecProcess {
        streams,
        helper,
        inner,
        pid,
        terminal,
        ended: None,
        dir: dir.to_owned(),
    })
}

/// Waits until runc wrote the process's number.
fn wait_begun(
    helper: &mut Child,
    pid_file: &Path,
    log: &Path,
    line: &str,
) -> Result<(i32, Option<Process>)> {
    let deadline = Instant::now() + BEGIN_MAX;
    let failed = |e: std::io::Error| RuntimeError::doing(format!("wait for {line}"), e);
    loop {
        let ended = wait_for(helper, Duration::from_millis(1)).map_err(failed)?;
        // Looked for after the helper: a short process ends it with the file written.
        if let Ok(text) = fs::read_to_string(pid_file) {
            let unread = |_| RuntimeError::spec(format!("runc wrote the pid {text:?}"));
            let pid: i32 = text.trim().parse().map_err(unread)?;
            let held = Process::open(pid).ok();
            // While runc still runs the process is its child; a stranger with the same number is neither's.
            let parent = offshoot_sys::process::identity(pid).map_or(0, |identity| identity.parent);
            let helper_pid = helper.id().cast_signed();
            let ours = parent == helper_pid
                || offshoot_sys::process::identity(parent)
                    .is_ok_and(|identity| identity.parent == helper_pid);
            return Ok((pid, held.filter(|_| ours)));
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

/// Where runc hands over the terminal it made inside (its docs/terminals.md).
struct Console {
    listener: UnixListener,
    path: PathBuf,
    _dir: OwnedFd,
}

impl Console {
    fn open(dir: &Path) -> Result<Self> {
        let open = || -> std::io::Result<Self> {
            let flags = rustix::fs::OFlags::PATH
                | rustix::fs::OFlags::DIRECTORY
                | rustix::fs::OFlags::CLOEXEC;
            let fd = rustix::fs::open(dir, flags, rustix::fs::Mode::empty())?;
            // Through a descriptor of ours: a socket's path has at most 108 bytes (unix(7)).
            let path = PathBuf::from(format!(
                "/proc/{}/fd/{}/tty",
                std::process::id(),
                fd.as_raw_fd()
            ));
            let listener = UnixListener::bind(&path)?;
            Ok(Self {
                listener,
                path,
                _dir: fd,
            })
        };
        open().map_err(|e| RuntimeError::io("listen in", dir, e))
    }

    fn receive(&self) -> std::io::Result<OwnedFd> {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        let missing = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        if !poll_readable(self.listener.as_fd(), Some(END_MAX))? {
            return Err(missing());
        }
        let (stream, _) = self.listener.accept()?;
        if !poll_readable(stream.as_fd(), Some(END_MAX))? {
            return Err(missing());
        }
        let mut name = [0; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut data = [std::io::IoSliceMut::new(&mut name)];
        recvmsg(&stream, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        descriptors.flatten().next().ok_or_else(missing)
    }
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
        self.pid
    }

    /// Tells the terminal's new size; nothing without a terminal.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn resize(&self, size: TerminalSize) -> Result<()> {
        let Some(terminal) = &self.terminal else {
            return Ok(());
        };
        set_size(terminal, size).map_err(|e| RuntimeError::doing("resize a terminal", e))
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// When it ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let gone = || RuntimeError::spec("the process ended already");
        let inner = self
            .inner
            .as_ref()
            .filter(|_| self.ended.is_none())
            .ok_or_else(gone)?;
        inner
            .signal(signal)
            .map_err(|e| RuntimeError::doing(format!("signal process {}", self.pid), e))
    }

    /// Waits for its end, at most `max`: exit status, or 128 + signal; `None` when it still runs.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn wait(&mut self, max: Duration) -> Result<Option<i32>> {
        if self.ended.is_none() {
            let status = wait_for(&mut self.helper, max)
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

    /// Waits for its end at most `max` (then kills it) and gives what it printed, at most `limit` bytes of both streams together. What
    /// its children print after its end is not waited for.
    ///
    /// # Errors
    /// [`RuntimeError::Timeout`] when it had to be killed.
    pub fn finish(mut self, max: Duration, limit: usize) -> Result<Finished> {
        let deadline = Instant::now() + max;
        self.streams.stdin = None;
        let mut output = Vec::new();
        let streams = [
            self.streams.stdout.take(),
            self.streams.stderr.take(),
            self.streams.terminal.take(),
        ];
        let mut open: Vec<fs::File> = streams.into_iter().flatten().map(fs::File::from).collect();
        loop {
            // Asked before reading: what was printed before the end is read in full.
            let ended = self.wait(Duration::ZERO)?;
            let mut quiet = true;
            open.retain_mut(|file| {
                while poll_readable(file.as_fd(), Some(Duration::ZERO)).unwrap_or(false) {
                    quiet = false;
                    let mut chunk = [0; 8192];
                    // A terminal ends with EIO.
                    let read = file.read(&mut chunk).unwrap_or(0);
                    if read == 0 {
                        return false;
                    }
                    let room = limit.saturating_sub(output.len()).min(read);
                    output.extend_from_slice(chunk.get(..room).unwrap_or_default());
                    if Instant::now() >= deadline {
                        break;
                    }
                }
                true
            });
            if let Some(status) = ended {
                return Ok(Finished {
                    status,
                    output: String::from_utf8_lossy(&output).into_owned(),
                });
            }
            if Instant::now() >= deadline {
                return Err(RuntimeError::Timeout {
                    what: "the command".into(),
                    after: max,
                });
            }
            if quiet {
                self.wait(Duration::from_millis(5))?;
            }
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
            let _ = self.signal(Signal::KILL.as_raw());
            // The helper ends with its process.
            if !matches!(wait_for(&mut self.helper, END_MAX), Ok(Some(_))) {
                let _ = self.helper.kill();
                let _ = self.helper.wait();
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
