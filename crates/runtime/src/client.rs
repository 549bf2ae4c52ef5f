//! Talking to a node's shim.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use offshoot_sys::process::poll_readable;

use crate::control::{
    Answer, EXIT_FILE, ExitRecord, LINE_MAX, NodeStatus, Request, RunState, SOCKET_FILE,
};
use crate::error::{Result, RuntimeError};
use crate::files::read_bounded;

/// Bound on answers that need no waiting.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// What a stop may take beyond its grace.
const KILL_MAX: Duration = Duration::from_secs(30);

/// A node that runs, or ran.
#[derive(Debug, Clone)]
pub struct NodeClient {
    run_dir: PathBuf,
}

/// One connection to a shim.
pub(crate) struct Connection {
    run_dir: PathBuf,
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(run_dir: &Path) -> Result<Self> {
        let stream = connect(run_dir).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                RuntimeError::NotRunning {
                    run_dir: run_dir.to_owned(),
                }
            }
            _ => RuntimeError::io("connect to the shim in", run_dir, e),
        })?;
        Ok(Self {
            run_dir: run_dir.to_owned(),
            stream,
            buffer: Vec::new(),
        })
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)
            .map_err(|e| RuntimeError::spec(format!("{request:?}: {e}")))?;
        line.push(b'\n');
        let _ = self.stream.set_write_timeout(Some(ANSWER_MAX));
        self.stream.write_all(&line).map_err(|e| self.broken(e))
    }

    fn broken(&self, error: std::io::Error) -> RuntimeError {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof
            | std::io::ErrorKind::BrokenPipe
            | std::io::ErrorKind::ConnectionReset => RuntimeError::NotRunning {
                run_dir: self.run_dir.clone(),
            },
            _ => RuntimeError::io("talk to the shim in", &self.run_dir, error),
        }
    }

    /// Reads one answer; `None` when `max` passed without one.
    fn receive(&mut self, max: Option<Duration>) -> Result<Option<Answer>> {
        let deadline = max.map(|max| Instant::now() + max);
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let answer = serde_json::from_slice(&line).map_err(|_| RuntimeError::Protocol {
                    run_dir: self.run_dir.clone(),
                    answer: String::from_utf8_lossy(
                        line.get(..200.min(line.len())).unwrap_or_default(),
                    )
                    .into_owned(),
                })?;
                return match answer {
                    Answer::Failed(problem) => Err(RuntimeError::Reported(Box::new(problem))),
                    answer => Ok(Some(answer)),
                };
            }
            if self.buffer.len() > LINE_MAX {
                return Err(RuntimeError::Protocol {
                    run_dir: self.run_dir.clone(),
                    answer: "a line too long".into(),
                });
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !poll_readable(self.stream.as_fd(), left).map_err(|e| self.broken(e))? {
                return Ok(None);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).map_err(|e| self.broken(e))? {
                0 => return Err(self.broken(std::io::ErrorKind::UnexpectedEof.into())),
                n => self
                    .buffer
                    .extend_from_slice(chunk.get(..n).unwrap_or_default()),
            }
        }
    }

    fn ask(&mut self, request: &Request, max: Duration) -> Result<Answer> {
        self.send(request)?;
        self.receive(Some(max))?
            .ok_or_else(|| RuntimeError::Timeout {
                what: format!("{request:?}"),
                after: max,
            })
    }

    fn unexpected<T>(&self, answer: &Answer) -> Result<T> {
        Err(RuntimeError::Protocol {
            run_dir: self.run_dir.clone(),
            answer: format!("{answer:?}"),
        })
    }
}

/// Socket paths are at most 108 bytes (unix(7)); through a descriptor of the directory any depth works.
pub(crate) fn connect(run_dir: &Path) -> std::io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    let flags =
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let dir = rustix::fs::open(run_dir, flags, rustix::fs::Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd()))
}

impl NodeClient {
    /// The node of `run_dir`, whose shim must answer.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`] when none does.
    pub fn connect(run_dir: &Path) -> Result<Self> {
        Connection::open(run_dir)?;
        Ok(Self {
            run_dir: run_dir.to_owned(),
        })
    }

    /// The node of `run_dir` without asking whether its shim answers.
    pub(crate) fn of(run_dir: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
        }
    }

    /// The node's directory.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    fn ask(&self, request: &Request, max: Duration) -> Result<Answer> {
        Connection::open(&self.run_dir)?.ask(request, max)
    }

    /// What the node is doing.
    ///
    /// # Errors
    /// When the shim is there and does not answer.
    pub fn status(&self) -> Result<NodeStatus> {
        observe(&self.run_dir)
    }

    /// Waits until the main process runs, at most `max`.
    ///
    /// # Errors
    /// With the shim's report when it could not be started.
    pub(crate) fn ready(&self, max: Duration) -> Result<NodeStatus> {
        let mut connection = Connection::open(&self.run_dir)?;
        match connection.ask(&Request::Ready, max)? {
            Answer::Status(status) => Ok(status),
            other => connection.unexpected(&other),
        }
    }

    /// Waits for the end of the main process, at most `max`; `None` when it still runs.
    ///
    /// # Errors
    /// When the shim went without a word.
    pub fn wait(&self, max: Duration) -> Result<Option<ExitRecord>> {
        let asked = Connection::open(&self.run_dir).and_then(|mut connection| {
            connection.send(&Request::Wait)?;
            connection.receive(Some(max))
        });
        match asked {
            Ok(None) => Ok(None),
            Ok(Some(Answer::Ended(record))) => Ok(Some(record)),
            Ok(Some(other)) => Err(RuntimeError::Protocol {
                run_dir: self.run_dir.clone(),
                answer: format!("{other:?}"),
            }),
            Err(RuntimeError::NotRunning { run_dir }) => match read_exit(&run_dir)? {
                Some(record) => Ok(Some(record)),
                None => Err(RuntimeError::NotRunning { run_dir }),
            },
            Err(error) => Err(error),
        }
    }

    /// Sends a signal to the main process.
    ///
    /// # Errors
    /// When it is not running or the number is no signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        match self.ask(&Request::Signal { signal }, ANSWER_MAX)? {
            Answer::Done => Ok(()),
            other => Err(RuntimeError::Protocol {
                run_dir: self.run_dir.clone(),
                answer: format!("{other:?}"),
            }),
        }
    }

    /// Thaws the node, sends `signal` to its main process, kills everything after `grace`, and waits for the end. A node that ended
    /// already is no error.
    ///
    /// # Errors
    /// When the processes cannot be ended.
    pub fn stop(&self, signal: i32, grace: Duration) -> Result<ExitRecord> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.end(&Request::Stop { signal, grace_ms }, grace + KILL_MAX)
    }

    /// Thaws the node and kills everything in it.
    ///
    /// # Errors
    /// When the processes cannot be ended.
    pub fn kill(&self) -> Result<ExitRecord> {
        self.end(&Request::Kill, KILL_MAX)
    }

    fn end(&self, request: &Request, max: Duration) -> Result<ExitRecord> {
        match self.ask(request, max) {
            Ok(Answer::Ended(record)) => Ok(record),
            Ok(other) => Err(RuntimeError::Protocol {
                run_dir: self.run_dir.clone(),
                answer: format!("{other:?}"),
            }),
            // It ended between the connection and the answer, or before.
            Err(RuntimeError::NotRunning { run_dir }) => {
                read_exit(&run_dir)?.ok_or(RuntimeError::NotRunning { run_dir })
            }
            Err(error) => Err(error),
        }
    }

    /// Freezes every process of the node, guests included, and gives the lease that holds the freeze. It ends when the lease is
    /// dropped, when this process dies, or after `max`, whichever is first.
    ///
    /// # Errors
    /// When the processes do not stand within `max`, or another freeze is held; the node runs on then.
    pub fn freeze(&self, max: Duration) -> Result<FreezeLease> {
        let mut connection = Connection::open(&self.run_dir)?;
        let max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
        match connection.ask(&Request::Freeze { max_ms }, max + ANSWER_MAX)? {
            Answer::Frozen { at, took_us } => Ok(FreezeLease {
                connection,
                frozen_at: at,
                took: Duration::from_micros(took_us),
            }),
            other => connection.unexpected(&other),
        }
    }

    /// Waits until all of the memory that the node was restored with is there, at most `max`. At once for a node that was started
    /// afresh. Before a cut: the kernel does not let two look after the same memory.
    ///
    /// # Errors
    /// [`RuntimeError::Reported`] when it takes longer, or cannot come any more; the node is killed then.
    pub fn wait_memory(&self, max: Duration) -> Result<()> {
        let max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
        match self.ask(&Request::Memory { max_ms }, max + ANSWER_MAX)? {
            Answer::Done => Ok(()),
            other => Err(RuntimeError::Protocol {
                run_dir: self.run_dir.clone(),
                answer: format!("{other:?}"),
            }),
        }
    }

    /// Holds the node's jobs or lets them go: known schedulers in it stand still ([`crate::schedulers`]), also those that start later.
    ///
    /// # Errors
    /// When it does not run, or the kernel does not tell of programs before they run; those that run stand all the same.
    pub fn hold_jobs(&self, held: bool) -> Result<()> {
        match self.ask(&Request::Jobs { held }, ANSWER_MAX)? {
            Answer::Done => Ok(()),
            other => Err(RuntimeError::Protocol {
                run_dir: self.run_dir.clone(),
                answer: format!("{other:?}"),
            }),
        }
    }

    /// Moves processes that do not descend from the main process (exec sessions, health checks) into a freezer of their own, beside the
    /// node's, so that CRIU does not meet them. A freeze does this by itself; they return with the thaw.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn guests(&self) -> Result<Vec<i32>> {
        match self.ask(&Request::Guests, ANSWER_MAX)? {
            Answer::Guests { pids } => Ok(pids),
            other => Err(RuntimeError::Protocol {
                run_dir: self.run_dir.clone(),
                answer: format!("{other:?}"),
            }),
        }
    }
}

/// A frozen node. Dropping it thaws the node; so does the death of the process that holds it, and its deadline.
pub struct FreezeLease {
    connection: Connection,
    /// When the last process stood still.
    pub frozen_at: Timestamp,
    /// Time from the request to that instant.
    pub took: Duration,
}

impl std::fmt::Debug for FreezeLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FreezeLease")
            .field("run_dir", &self.connection.run_dir)
            .field("frozen_at", &self.frozen_at)
            .finish()
    }
}

impl FreezeLease {
    /// Lets the node go on; says when that happened, which is earlier than now if the deadline had passed.
    ///
    /// # Errors
    /// When the shim is gone.
    pub fn thaw(mut self) -> Result<Timestamp> {
        match self.connection.ask(&Request::Thaw, ANSWER_MAX)? {
            Answer::Thawed { at } => Ok(at),
            other => self.connection.unexpected(&other),
        }
    }

    /// Whether the node is still frozen by this lease: false once its deadline passed or the shim died.
    #[must_use]
    pub fn holds(&mut self) -> bool {
        matches!(
            poll_readable(self.connection.stream.as_fd(), Some(Duration::ZERO)),
            Ok(false)
        )
    }
}

/// What the node of `run_dir` is doing, also when nothing of it is left.
///
/// # Errors
/// When a shim is there and does not answer.
pub fn observe(run_dir: &Path) -> Result<NodeStatus> {
    match Connection::open(run_dir)
        .and_then(|mut connection| connection.ask(&Request::Status, ANSWER_MAX))
    {
        Ok(Answer::Status(status)) => return Ok(status),
        Ok(other) => {
            return Err(RuntimeError::Protocol {
                run_dir: run_dir.to_owned(),
                answer: format!("{other:?}"),
            });
        }
        Err(RuntimeError::NotRunning { .. }) => {}
        Err(RuntimeError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotADirectory => {}
        Err(error) => return Err(error),
    }
    let exit = read_exit(run_dir)?;
    let state = match exit {
        Some(_) => RunState::Exited,
        None if run_dir.join(crate::spec::SPEC_FILE).exists() => RunState::Lost,
        None => RunState::Absent,
    };
    Ok(NodeStatus {
        state,
        pid: None,
        shim: None,
        started: None,
        exit,
        freezer: PathBuf::new(),
        warnings: Vec::new(),
        memory_to_come: 0,
        jobs_held: false,
        held: Vec::new(),
    })
}

fn read_exit(run_dir: &Path) -> Result<Option<ExitRecord>> {
    let path = run_dir.join(EXIT_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_bounded(&path, 64 << 10)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| RuntimeError::spec(format!("{}: {e}", path.display())))
}
