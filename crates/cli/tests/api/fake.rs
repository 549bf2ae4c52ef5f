//! A daemon for tests: a unix socket, routes that the test chooses, and a record of what was asked.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use offshoot_model::operation::StepState;
use offshoot_model::view::Event;
use offshoot_model::{Operation, OperationId, OperationKind, OperationState, Problem, StepRecord};

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running fake daemon; ends when dropped.
pub(crate) struct Fake {
    dir: tempfile::TempDir,
    runtime: Option<tokio::runtime::Runtime>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// Listens and answers as `routes` (below `/api/v1`) say.
    pub(crate) fn start(routes: Router) -> Self {
        let mut fake = Self {
            dir: tempfile::tempdir().unwrap(),
            runtime: None,
            asked: Arc::default(),
        };
        fake.listen(routes);
        fake
    }

    /// No daemon at all, only a place for one.
    pub(crate) fn absent() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            runtime: None,
            asked: Arc::default(),
        }
    }

    /// Begins to listen (again), as a daemon that was restarted does.
    pub(crate) fn listen(&mut self, routes: Router) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let socket = self.socket();
        let _ = std::fs::remove_file(&socket);
        let asked = Arc::clone(&self.asked);
        let routes = Router::new()
            .nest("/api/v1", routes)
            .layer(middleware::from_fn(move |request: Request, next: Next| {
                asked
                    .lock()
                    .unwrap()
                    .push(format!("{} {}", request.method(), request.uri()));
                next.run(request)
            }));
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(&socket).unwrap() });
        runtime.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        self.runtime = Some(runtime);
    }

    /// Breaks every connection and stops to listen.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let _ = std::fs::remove_file(self.socket());
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    /// A directory for the test's files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What was asked so far, `METHOD path`.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until something was asked.
    pub(crate) fn wait_asked(&self, what: &str) {
        until(
            || self.asked().iter().any(|asked| asked.starts_with(what)),
            what,
        );
    }

    /// The program with this daemon, in the test's directory, untouched by the caller's variables.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("OFFSHOOT_SOCKET", self.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Begins the program.
    pub(crate) fn begin(&self, args: &[&str]) -> Running {
        Running::new(self.command(args).spawn().unwrap())
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        self.begin(args).end()
    }

    /// Runs the program with this on its standard input.
    pub(crate) fn run_with_input(&self, args: &[&str], input: &[u8]) -> Done {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writing = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let done = Running::new(child).end();
        writing.join().unwrap();
        done
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The program while it runs; killed when dropped.
pub(crate) struct Running {
    child: Child,
    stdout: Option<std::thread::JoinHandle<Vec<u8>>>,
    stderr: Option<std::thread::JoinHandle<Vec<u8>>>,
}

/// The program after it ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Panics with all that was said unless the status is this.
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(
            self.status,
            status,
            "stdout: {}\nstderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }

    /// The answer as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The problem on standard error, with `-o json`.
    pub(crate) fn problem(&self) -> Problem {
        let line = self.stderr.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Running {
    pub(crate) fn new(mut child: Child) -> Self {
        fn read(
            from: Option<impl std::io::Read + Send + 'static>,
        ) -> Option<std::thread::JoinHandle<Vec<u8>>> {
            from.map(|mut from| {
                std::thread::spawn(move || {
                    let mut all = Vec::new();
                    let _ = from.read_to_end(&mut all);
                    all
                })
            })
        }
        let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    pub(crate) fn end(mut self) -> Done {
        let status = wait(&mut self.child);
        let stdout = self
            .stdout
            .take()
            .map(|reader| reader.join().unwrap())
            .unwrap_or_default();
        let stderr = self
            .stderr
            .take()
            .map(|reader| reader.join().unwrap())
            .unwrap_or_default();
        Done {
            status: status.code().unwrap_or(-1),
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a process, within bounds.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    until(
        || {
            status = child.try_wait().unwrap();
            status.is_some()
        },
        "the program to end",
    );
    status.unwrap()
}

/// Polls a condition, within bounds.
pub(crate) fn until(mut condition: impl FnMut() -> bool, what: &str) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// An operation in some state.
pub(crate) fn operation(kind: OperationKind, subject: &str, state: OperationState) -> Operation {
    let step = |name: &str, state| StepRecord {
        name: name.to_owned(),
        state,
        us: (state == StepState::Done).then_some(1_500),
        progress: None,
    };
    let (first, second) = match state {
        OperationState::Waiting => (StepState::Pending, StepState::Pending),
        OperationState::Running => (StepState::Done, StepState::Running),
        OperationState::Undoing => (StepState::Done, StepState::Failed),
        OperationState::Done => (StepState::Done, StepState::Done),
        OperationState::Failed | OperationState::Cancelled => {
            (StepState::Undone, StepState::Undone)
        }
    };
    let now = jiff::Timestamp::now();
    Operation {
        id: OperationId::new(),
        kind,
        environment: None,
        subject: subject.to_owned(),
        parent: None,
        state,
        created: now,
        ended: state.is_final().then_some(now),
        steps: vec![step("network", first), step("nodes", second)],
        problem: None,
        report: None,
        swap: None,
        traffic: None,
        notices: Vec::new(),
    }
}

/// The same operation in another state.
pub(crate) fn later(of: &Operation, state: OperationState) -> Operation {
    let mut next = operation(of.kind, &of.subject, state);
    next.id = of.id;
    next.created = of.created;
    next.parent = of.parent.clone();
    next
}

/// An event as the stream carries it.
pub(crate) fn sse(seq: u64, operation: &Operation) -> String {
    let data = serde_json::to_string(&Event {
        seq,
        operation: operation.clone(),
    })
    .unwrap();
    format!(": hello\nid: {seq}\nevent: operation\ndata: {data}\n\n")
}

/// A problem as the API answers it.
pub(crate) fn problem(problem: &Problem) -> Response {
    let status = axum::http::StatusCode::from_u16(problem.code.http_status()).unwrap();
    (status, axum::Json(problem.clone())).into_response()
}
