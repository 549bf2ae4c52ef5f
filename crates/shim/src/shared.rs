//! What the shim's threads share: the node's state, and who holds it frozen.

use std::io::Write;
use std::process::ChildStdin;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use offshoot_model::{Code, Fault, Problem};
use offshoot_runtime::cgroup::NodeCgroup;
use offshoot_runtime::{ExitRecord, NodeSpec, NodeStatus, RunState};
use offshoot_sys::process::Process;

use crate::jobs::Jobs;

/// The shim's state.
pub(crate) struct Shared {
    pub(crate) spec: NodeSpec,
    pub(crate) cgroup: NodeCgroup,
    pub(crate) jobs: Jobs,
    inner: Mutex<Inner>,
    changed: Condvar,
}

enum Phase {
    Starting,
    Running {
        main: std::sync::Arc<Process>,
        since: Timestamp,
    },
    Ended(ExitRecord),
    Failed(Problem),
}

/// Where the memory is that the node was restored with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Memory {
    /// In the node.
    Whole,
    /// This many bytes have still to come.
    Coming(u64),
    /// Some can never come; the node is killed.
    Lost(String),
}

struct Inner {
    phase: Phase,
    memory: Memory,
    /// To the page source, to be told that somebody waits.
    source: Option<ChildStdin>,
    warnings: Vec<String>,
    /// Number of the freeze that holds, if one does.
    lease: Option<u64>,
    next_lease: u64,
    /// Connections that still have to be told of the end.
    waiters: usize,
}

impl Shared {
    pub(crate) fn new(spec: NodeSpec, cgroup: NodeCgroup) -> Self {
        let inner = Inner {
            phase: Phase::Starting,
            memory: Memory::Whole,
            source: None,
            warnings: Vec::new(),
            lease: None,
            next_lease: 0,
            waiters: 0,
        };
        Self {
            spec,
            cgroup,
            jobs: Jobs::default(),
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn warn(&self, warnings: Vec<String>) {
        self.lock().warnings.extend(warnings);
    }

    fn set(&self, phase: Phase) {
        self.lock().phase = phase;
        self.changed.notify_all();
    }

    pub(crate) fn running(&self, main: std::sync::Arc<Process>) {
        self.set(Phase::Running {
            main,
            since: Timestamp::now(),
        });
    }

    pub(crate) fn ended(&self, record: ExitRecord) {
        self.set(Phase::Ended(record));
    }

    pub(crate) fn failed(&self, problem: Problem) {
        self.set(Phase::Failed(problem));
    }

    /// What the node is doing.
    pub(crate) fn status(&self) -> NodeStatus {
        let inner = self.lock();
        let mut status = NodeStatus {
            state: RunState::Starting,
            pid: None,
            shim: Some(std::process::id().cast_signed()),
            started: None,
            exit: None,
            freezer: self.cgroup.freezer(),
            warnings: inner.warnings.clone(),
            memory_to_come: match inner.memory {
                Memory::Coming(bytes) => bytes,
                Memory::Whole | Memory::Lost(_) => 0,
            },
            jobs_held: self.jobs.are_held(),
            held: self.jobs.standing(&self.cgroup),
        };
        match &inner.phase {
            Phase::Starting => {}
            Phase::Running { main, since } => {
                let frozen = inner.lease.is_some() || self.cgroup.is_frozen();
                status.state = if frozen {
                    RunState::Frozen
                } else {
                    RunState::Running
                };
                status.pid = Some(main.pid());
                status.started = Some(*since);
            }
            Phase::Ended(record) => {
                status.state = RunState::Exited;
                status.exit = Some(*record);
            }
            Phase::Failed(_) => status.state = RunState::Absent,
        }
        status
    }

    /// Notes where the memory is.
    pub(crate) fn memory(&self, memory: Memory) {
        let mut inner = self.lock();
        if !matches!(memory, Memory::Coming(_)) {
            inner.source = None;
        }
        inner.memory = memory;
        self.changed.notify_all();
    }

    /// Notes whom to tell that somebody waits for the memory. It stays open as long as memory comes: its end is the shim's.
    pub(crate) fn source(&self, source: ChildStdin) {
        self.lock().source = Some(source);
    }

    pub(crate) fn is_memory_lost(&self) -> bool {
        matches!(self.lock().memory, Memory::Lost(_))
    }

    /// Waits until all memory is there, at most `max`.
    pub(crate) fn wait_memory(&self, max: Duration) -> Result<(), Problem> {
        let deadline = Instant::now() + max;
        let mut inner = self.lock();
        if let Some(source) = &mut inner.source {
            // If it is gone, that is heard elsewhere.
            let _ = source.write_all(b"hurry\n");
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match &inner.memory {
                Memory::Whole => return Ok(()),
                Memory::Lost(why) => return Err(memory_lost(&self.spec, why)),
                Memory::Coming(bytes) if left.is_zero() => {
                    return Err(Problem::new(
                        Code::Busy,
                        Fault::Host,
                        format!(
                            "{} MiB of the memory of node {} have still to come",
                            bytes >> 20,
                            self.spec.node
                        ),
                        "try again in a moment",
                    ));
                }
                Memory::Coming(_) => {}
            }
            inner = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The main process, while it runs.
    pub(crate) fn main(&self) -> Result<std::sync::Arc<Process>, Problem> {
        match &self.lock().phase {
            Phase::Running { main, .. } => Ok(std::sync::Arc::clone(main)),
            _ => Err(not_running(&self.spec)),
        }
    }

    /// Waits until the node has started.
    pub(crate) fn wait_started(&self) -> Result<(), Problem> {
        let mut inner = self.lock();
        while matches!(inner.phase, Phase::Starting) {
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        match &inner.phase {
            Phase::Failed(problem) => Err(problem.clone()),
            _ => Ok(()),
        }
    }

    /// Waits for the node's end, at most `max`; `None` when it still runs.
    pub(crate) fn wait_ended(&self, max: Option<Duration>) -> Result<Option<ExitRecord>, Problem> {
        let deadline = max.map(|max| Instant::now() + max);
        let mut inner = self.lock();
        inner.waiters += 1;
        let result = loop {
            match &inner.phase {
                Phase::Ended(record) => break Ok(Some(*record)),
                Phase::Failed(problem) => break Err(problem.clone()),
                _ => {}
            }
            inner = match deadline {
                None => self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break Ok(None);
                    }
                    self.changed
                        .wait_timeout(inner, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        };
        inner.waiters -= 1;
        result
    }

    /// Registers an answer that must be sent before the shim exits.
    pub(crate) fn owe(&self) -> Debt<'_> {
        self.lock().waiters += 1;
        Debt(self)
    }

    /// Waits until everyone who waits for the node's end was told, at most `max`.
    pub(crate) fn settle(&self, max: Duration) {
        let deadline = Instant::now() + max;
        let mut inner = self.lock();
        while inner.waiters > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Freezes the node and its guests within `max`, for one holder at a time.
    pub(crate) fn freeze(&self, max: Duration) -> Result<u64, Problem> {
        let main = self.main()?;
        // CRIU cannot dump memory that is not there.
        let began = Instant::now();
        self.wait_memory(max)?;
        let max = max.saturating_sub(began.elapsed());
        let number = {
            let mut inner = self.lock();
            if inner.lease.is_some() {
                return Err(Problem::new(
                    Code::Busy,
                    Fault::Request,
                    format!("node {} is frozen already", self.spec.node),
                    "wait until the operation that froze it ends",
                ));
            }
            inner.next_lease += 1;
            inner.lease = Some(inner.next_lease);
            inner.next_lease
        };
        let problem = |error: offshoot_runtime::RuntimeError| match error {
            error @ offshoot_runtime::RuntimeError::Timeout { .. } => {
                error.problem_as(Code::FreezeTimeout)
            }
            error => error.problem_as(Code::CutFailed),
        };
        let frozen = self.freeze_all(main.pid(), max).map_err(problem);
        if frozen.is_err() {
            self.thaw(number);
        }
        frozen.map(|()| number)
    }

    fn freeze_all(&self, main: i32, max: Duration) -> offshoot_runtime::Result<()> {
        let deadline = Instant::now() + max;
        let left = || deadline.saturating_duration_since(Instant::now());
        let guests = self.cgroup.guest_freezer();
        let mut any = !self.cgroup.move_guests(main)?.is_empty();
        self.cgroup.freeze(&self.cgroup.freezer(), left())?;
        // A session may have begun in between; now that all stand, whoever is still to be moved is seen.
        while !self.cgroup.move_guests(main)?.is_empty() {
            any = true;
        }
        if any || guests.exists() {
            self.cgroup.freeze(&guests, left())?;
        }
        Ok(())
    }

    /// Ends freeze `number`, if it still holds.
    pub(crate) fn thaw(&self, number: u64) {
        let mut inner = self.lock();
        if inner.lease == Some(number) {
            self.let_go();
            inner.lease = None;
        }
    }

    /// Ends whatever freeze there is.
    pub(crate) fn thaw_any(&self) {
        let mut inner = self.lock();
        self.let_go();
        inner.lease = None;
    }

    fn let_go(&self) {
        if let Err(e) = self.cgroup.thaw() {
            tracing::error!(node = %self.spec.node, error = %e, "cannot thaw");
        }
        self.cgroup.return_guests();
    }
}

/// An answer that is owed; dropping it says it was sent.
pub(crate) struct Debt<'a>(&'a Shared);

impl Drop for Debt<'_> {
    fn drop(&mut self) {
        self.0.lock().waiters -= 1;
        self.0.changed.notify_all();
    }
}

pub(crate) fn memory_lost(spec: &NodeSpec, why: &str) -> Problem {
    let what = format!("the memory of node {} could not be brought back", spec.node);
    Problem::new(
        Code::RestoreFailed,
        Fault::Host,
        what,
        "start or clone it again",
    )
    .detail(why)
}

pub(crate) fn not_running(spec: &NodeSpec) -> Problem {
    Problem::new(
        Code::WrongState,
        Fault::Request,
        format!("node {} does not run", spec.node),
        "start the environment first",
    )
}
