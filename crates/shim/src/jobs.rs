//! What a node must not do while its environment's jobs are held: schedulers in it, known by their programs' names, stand still.
//!
//! Those that come from a cut are stopped by CRIU's script before CRIU lets go of them ([`crate::late::hold`]), or by the page source
//! before it does. All others are stopped before their first instruction: whoever starts a program in the node waits until this side
//! has looked at it ([`Execs`]). Only of a program that is many (busybox) it shows a moment later which one it is.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use offshoot_runtime::cgroup::NodeCgroup;
use offshoot_runtime::schedulers::{self, Kind};
use offshoot_runtime::{NodeSpec, Result, RuntimeError};
use offshoot_sys::execs::Execs;
use offshoot_sys::process::{self, Process};

/// Most looks for children that a scheduler started between two of them.
const LOOKS: u32 = 5;
/// How long a process that was seen to start is looked at again, and how often.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1));
/// How soon the watch sees that it is over.
const IDLE: Duration = Duration::from_millis(200);
const SIGCONT: i32 = 18;

/// Whether the node's jobs are held.
#[derive(Debug, Default)]
pub(crate) struct Jobs(Mutex<Option<Arc<AtomicBool>>>);

impl Jobs {
    /// Holds them: no scheduler starts from now on in the node whose first process is `main`. Those that run are not touched yet
    /// ([`stop_all`]).
    ///
    /// # Errors
    /// When the kernel does not tell of programs before they run; the jobs are held, but for what starts later.
    pub(crate) fn hold(&self, spec: &NodeSpec, main: i32) -> Result<()> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return Ok(());
        }
        let go_on = Arc::new(AtomicBool::new(true));
        *held = Some(Arc::clone(&go_on));
        drop(held);
        let failed = |e| RuntimeError::doing("hear of programs before they run", e);
        let execs = Execs::new().map_err(failed)?;
        let root = PathBuf::from(format!("/proc/{main}/root"));
        execs.watch(&root).map_err(failed)?;
        let others = (spec.binds.iter().map(|bind| &bind.target))
            .chain(spec.tmpfs.iter().map(|tmpfs| &tmpfs.target));
        for target in others {
            // A mount that is not there has no programs.
            let _ = execs.watch(&root.join(target.trim_start_matches('/')));
        }
        std::thread::Builder::new()
            .name("jobs".into())
            .spawn(move || attend(&execs, &go_on))
            .map(drop)
            .map_err(|e| RuntimeError::doing("start a thread", e))
    }

    /// Lets them go: schedulers that stand go on.
    pub(crate) fn let_go(&self, cgroup: &NodeCgroup) {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(go_on) = held {
            go_on.store(false, Ordering::Release);
        }
        for (pid, _) in running(cgroup.processes()) {
            if let (true, Ok(process)) = (stands(pid), Process::open(pid)) {
                let _ = process.signal(SIGCONT);
            }
        }
    }

    /// Whether they are held.
    pub(crate) fn are_held(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// The schedulers that stand, for people.
    pub(crate) fn standing(&self, cgroup: &NodeCgroup) -> Vec<String> {
        if !self.are_held() {
            return Vec::new();
        }
        running(cgroup.processes())
            .filter(|(pid, _)| stands(*pid))
            .map(|(pid, name)| format!("{name} (process {pid})"))
            .collect()
    }
}

/// Stops every scheduler among the node's processes. What one started already goes on.
pub(crate) fn stop_all(cgroup: &NodeCgroup) {
    for _ in 0..LOOKS {
        if stop(cgroup.processes()) == 0 {
            return;
        }
    }
}

/// Stops the schedulers among `pids` that do not stand; how many there were.
pub(crate) fn stop(pids: impl IntoIterator<Item = i32>) -> usize {
    let mut stopped = 0;
    for (pid, name) in running(pids) {
        // One that ended meanwhile stands well enough.
        if !stands(pid) && process::stop_threads(pid).is_ok() {
            tracing::info!(pid, name, "a scheduler is held");
            stopped += 1;
        }
    }
    stopped
}

/// Whether a process is a scheduler that stands.
pub(crate) fn is_held(pid: i32) -> bool {
    schedulers::of_process(pid).is_some() && stands(pid)
}

fn running(pids: impl IntoIterator<Item = i32>) -> impl Iterator<Item = (i32, &'static str)> {
    pids.into_iter()
        .filter_map(|pid| Some((pid, schedulers::of_process(pid)?)))
}

/// Whether a process is stopped by a signal (proc_pid_stat(5)).
fn stands(pid: i32) -> bool {
    process::identity(pid).is_ok_and(|identity| identity.state == 'T')
}

/// Looks at every program before it runs, until `go_on` says otherwise.
fn attend(execs: &Execs, go_on: &AtomicBool) {
    let mut again: BTreeSet<(Instant, i32)> = BTreeSet::new();
    while go_on.load(Ordering::Acquire) {
        let rest = if again.is_empty() { IDLE } else { AGAIN.1 };
        let looked = match process::poll_readable(execs.as_fd(), Some(rest)) {
            Ok(true) => execs.attend(|pid, path| {
                if look(pid, path) {
                    again.insert((Instant::now() + AGAIN.0, pid));
                }
            }),
            other => other.map(drop),
        };
        if let Err(error) = looked {
            // Whoever waits goes on when this ends.
            tracing::error!(%error, "programs that start are not looked at any more");
            return;
        }
        let now = Instant::now();
        stop(again.iter().map(|(_, pid)| *pid));
        again.retain(|(until, _)| *until > now);
    }
}

/// Stops process `pid` if it is about to become a scheduler; whether it has to be looked at again.
fn look(pid: i32, path: &Path) -> bool {
    match schedulers::kind(path) {
        Kind::Scheduler(name) => {
            tracing::info!(pid, name, "a scheduler is held before it begins");
            if let Err(error) = process::stop_threads(pid) {
                tracing::warn!(pid, name, %error, "it cannot be stopped yet");
            }
            true
        }
        Kind::Many => true,
        Kind::Other => false,
    }
}
