//! Answers on the node's control socket. One thread per connection; every wait has a bound or ends with the connection.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use offshoot_model::{Code, Fault, Problem};
use offshoot_runtime::control::{Answer, LINE_MAX, Request, SOCKET_FILE};
use offshoot_runtime::{Result, RuntimeError};
use offshoot_sys::process::poll_readable;

use crate::jobs;
use crate::shared::{Shared, not_running};

/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 64;
/// What ending the processes may take after the last signal.
const KILL_MAX: Duration = Duration::from_secs(20);
/// How long an answer may take to be read.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// Longest freeze that is granted, whatever is asked for.
const FREEZE_MAX: Duration = Duration::from_secs(600);

/// Binds the socket and answers until the process ends.
pub(crate) fn serve(shared: Arc<Shared>) -> Result<()> {
    let dir = &shared.spec.run_dir;
    let failed = |e: std::io::Error| RuntimeError::io("listen in", dir, e);
    let path = dir.join(SOCKET_FILE);
    // Left by a shim that was killed; the lock says that none runs.
    let _ = std::fs::remove_file(&path);
    let flags =
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let handle =
        rustix::fs::open(dir, flags, rustix::fs::Mode::empty()).map_err(|e| failed(e.into()))?;
    // Through a descriptor: a socket's path has at most 108 bytes (unix(7)).
    let listener = UnixListener::bind(format!(
        "/proc/self/fd/{}/{SOCKET_FILE}",
        handle.as_raw_fd()
    ))
    .map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let accept = move || {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming().flatten() {
            let slot = Slot::take(&open);
            if open.load(Ordering::Acquire) > CONNECTIONS_MAX {
                continue;
            }
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("control".into());
            // Without a thread the connection closes, which its other side sees.
            let _ = thread.spawn(move || {
                let _slot = slot;
                Connection {
                    stream,
                    buffer: Vec::new(),
                }
                .answer_all(&shared);
            });
        }
    };
    let thread = std::thread::Builder::new()
        .name("accept".into())
        .spawn(accept);
    thread
        .map(drop)
        .map_err(|e| RuntimeError::doing("start a thread", e))
}

/// Counts a connection while it lives.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(open))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// What came next on a connection.
enum Next {
    Request(Request),
    Nonsense(String),
    Nothing,
    Closed,
}

impl Connection {
    fn answer_all(mut self, shared: &Shared) {
        let _ = self.stream.set_write_timeout(Some(WRITE_MAX));
        loop {
            let request = match self.next(None) {
                Next::Request(request) => request,
                Next::Nonsense(what) => {
                    self.send(&Answer::Failed(misunderstood(&what)));
                    return;
                }
                Next::Nothing => continue,
                Next::Closed => return,
            };
            // The shim must not exit between the end of its node and the sending of an answer.
            let debt = shared.owe();
            if let Request::Freeze { max_ms } = request {
                drop(debt);
                self.hold_frozen(shared, Duration::from_millis(max_ms).min(FREEZE_MAX));
                continue;
            }
            let answer = match request {
                // A wait may last for ever: it only owes once there is something to say.
                Request::Wait => {
                    drop(debt);
                    let ended = shared.wait_ended(None);
                    let debt = shared.owe();
                    let sent = self.send(&ended_answer(ended, shared));
                    drop(debt);
                    if !sent {
                        return;
                    }
                    continue;
                }
                request => answer(request, shared).unwrap_or_else(Answer::Failed),
            };
            let sent = self.send(&answer);
            drop(debt);
            if !sent {
                return;
            }
        }
    }

    /// Freezes, and holds the freeze until it is ended: by a word, by the closing of the connection, by its deadline.
    fn hold_frozen(&mut self, shared: &Shared, max: Duration) {
        let asked = Instant::now();
        let number = match shared.freeze(max) {
            Ok(number) => number,
            Err(problem) => {
                self.send(&Answer::Failed(problem));
                return;
            }
        };
        let guard = Thaw { shared, number };
        let at = Timestamp::now();
        let took_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        if !self.send(&Answer::Frozen { at, took_us }) {
            return;
        }
        let next = self.next(Some(max.saturating_sub(asked.elapsed())));
        drop(guard);
        let at = Timestamp::now();
        match next {
            Next::Request(Request::Thaw) | Next::Nothing => {
                self.send(&Answer::Thawed { at });
            }
            Next::Request(other) => {
                self.send(&Answer::Failed(misunderstood(&format!(
                    "{other:?} during a freeze"
                ))));
            }
            Next::Nonsense(what) => {
                self.send(&Answer::Failed(misunderstood(&what)));
            }
            Next::Closed => {}
        }
    }

    /// The next request; `Nothing` when `max` passed without one.
    fn next(&mut self, max: Option<Duration>) -> Next {
        let deadline = max.map(|max| Instant::now() + max);
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return match serde_json::from_slice(&line) {
                    Ok(request) => Next::Request(request),
                    Err(e) => Next::Nonsense(e.to_string()),
                };
            }
            if self.buffer.len() > LINE_MAX {
                return Next::Nonsense("a line too long".into());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match poll_readable(self.stream.as_fd(), left) {
                Ok(true) => {}
                Ok(false) => return Next::Nothing,
                Err(_) => return Next::Closed,
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) | Err(_) => return Next::Closed,
                Ok(n) => self
                    .buffer
                    .extend_from_slice(chunk.get(..n).unwrap_or_default()),
            }
        }
    }

    /// Whether the answer could be sent.
    fn send(&mut self, answer: &Answer) -> bool {
        let Ok(mut line) = serde_json::to_vec(answer) else {
            return false;
        };
        line.push(b'\n');
        self.stream.write_all(&line).is_ok()
    }
}

/// Thaws when dropped, also when the thread panics.
struct Thaw<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        self.shared.thaw(self.number);
    }
}

fn answer(request: Request, shared: &Shared) -> Result<Answer, Problem> {
    match request {
        Request::Status => Ok(Answer::Status(shared.status())),
        Request::Ready => {
            shared.wait_started()?;
            Ok(Answer::Status(shared.status()))
        }
        Request::Signal { signal } => {
            let main = shared.main()?;
            main.signal(signal).map_err(|e| {
                let error = RuntimeError::doing(
                    format!("send signal {signal} to node {}", shared.spec.node),
                    e,
                );
                error.problem_as(Code::BadRequest)
            })?;
            Ok(Answer::Done)
        }
        Request::Stop { signal, grace_ms } => {
            shared.thaw_any();
            // Not running: ended meanwhile, which is what was asked for.
            if let Ok(main) = shared.main() {
                // It would not hear it.
                if jobs::is_held(main.pid()) {
                    return kill(shared);
                }
                let _ = main.signal(signal);
                if let Some(record) = shared.wait_ended(Some(Duration::from_millis(grace_ms)))? {
                    return Ok(Answer::Ended(record));
                }
            }
            kill(shared)
        }
        Request::Kill => kill(shared),
        Request::Thaw => Err(misunderstood("a thaw without a freeze")),
        Request::Memory { max_ms } => {
            shared.wait_memory(Duration::from_millis(max_ms).min(FREEZE_MAX))?;
            Ok(Answer::Done)
        }
        Request::Jobs { held } => {
            let main = shared.main()?;
            if !held {
                shared.jobs.let_go(&shared.cgroup);
                return Ok(Answer::Done);
            }
            let watched = shared.jobs.hold(&shared.spec, main.pid());
            shared.jobs.stop_all(&shared.cgroup);
            watched
                .map(|()| Answer::Done)
                .map_err(|e| e.problem_as(Code::HostUnfit))
        }
        Request::Guests => {
            let main = shared.main()?;
            let moved = shared.cgroup.move_guests(main.pid());
            moved
                .map(|pids| Answer::Guests { pids })
                .map_err(|e| e.problem_as(Code::CutFailed))
        }
        // Both are answered where their connection is at hand.
        Request::Wait | Request::Freeze { .. } => {
            Err(misunderstood("a request in the wrong place"))
        }
    }
}

fn kill(shared: &Shared) -> Result<Answer, Problem> {
    shared.thaw_any();
    if let Ok(main) = shared.main() {
        // Every process of a PID namespace ends with its first.
        let _ = main.signal(9);
    }
    if shared
        .wait_ended(Some(Duration::from_millis(200)))?
        .is_none()
    {
        shared
            .cgroup
            .kill()
            .map_err(|e| e.problem_as(Code::Internal))?;
    }
    let ended = shared.wait_ended(Some(KILL_MAX));
    Ok(ended_answer(ended, shared))
}

fn ended_answer(
    ended: Result<Option<offshoot_runtime::ExitRecord>, Problem>,
    shared: &Shared,
) -> Answer {
    match ended {
        Ok(Some(record)) => Answer::Ended(record),
        Ok(None) => Answer::Failed(not_running(&shared.spec)),
        Err(problem) => Answer::Failed(problem),
    }
}

fn misunderstood(what: &str) -> Problem {
    Problem::new(
        Code::Internal,
        Fault::Offshoot,
        format!("the shim does not understand {what}"),
        "report this",
    )
}
