//! What a node must not do while its environment's jobs are held: schedulers in it, known by their programs' names, stand still.
//!
//! Those that come from a cut are stopped by CRIU's script before CRIU lets go of them ([`crate::late::hold`]), or by the page source
//! before it does. Others are stopped before their first instruction: whoever starts a program in the node waits until this side
//! has looked at it ([`Execs`]). Only of a program that is many (busybox) it shows a moment later which one it is.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use offshoot_runtime::cgroup::NodeCgroup;
use offshoot_runtime::schedulers::{self, Kind};
use offshoot_runtime::{NodeSpec, Result, RuntimeError};
use offshoot_sys::execs::Execs;
use offshoot_sys::fsx::{Last, Root};
use offshoot_sys::process::{self, Process};

/// Most looks for children that a scheduler started between two of them.
const LOOKS: u32 = 5;
/// How long a process that was seen to start is looked at again, and how often.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1));
/// How soon the watch sees that it is over.
const IDLE: Duration = Duration::from_millis(200);
const SIGCONT: i32 = 18;

/// Whether the node's jobs are held, and what stands for that.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    held: Mutex<Option<Arc<AtomicBool>>>,
    stopped: Arc<Stopped>,
}

/// Processes that were stopped, with their start times. One that is about to become another program is no scheduler by its name when it is
/// to go on.
#[derive(Debug, Default)]
struct Stopped(Mutex<Noted>);

type Noted = BTreeMap<i32, u64>;

impl Stopped {
    /// Held while processes are stopped, so that none is after they were let go.
    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(noted: &mut Noted, pid: i32) {
    if let Ok(identity) = process::identity(pid) {
        noted.insert(pid, identity.started);
    }
}

impl Jobs {
    fn held(&self) -> MutexGuard<'_, Option<Arc<AtomicBool>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds them: no scheduler starts from now on in the node whose first process is `main`. Those that run are not touched yet
    /// ([`Self::stop_all`]).
    ///
    /// # Errors
    /// When the kernel does not tell of programs before they run; the jobs are held, but for what starts later.
    pub(crate) fn hold(&self, spec: &NodeSpec, main: i32) -> Result<()> {
        let mut held = self.held();
        if held.is_some() {
            return Ok(());
        }
        let go_on = Arc::new(AtomicBool::new(true));
        *held = Some(Arc::clone(&go_on));
        drop(held);
        let failed = |e| RuntimeError::doing("hear of programs before they run", e);
        let execs = Execs::new().map_err(failed)?;
        let root = Root::open(Path::new(&format!("/proc/{main}/root"))).map_err(failed)?;
        execs.watch(root.as_fd()).map_err(failed)?;
        let others = (spec.binds.iter().map(|bind| &bind.target))
            .chain(spec.tmpfs.iter().map(|tmpfs| &tmpfs.target));
        for target in others {
            // A mount that is not there has no programs. Links in the node lead nowhere but in the node.
            if let Ok(place) = root.resolve(Path::new(target), Last::Follow) {
                execs.watch(place.as_fd()).map_err(failed)?;
            }
        }
        let stopped = Arc::clone(&self.stopped);
        std::thread::Builder::new()
            .name("jobs".into())
            .spawn(move || attend(&execs, &go_on, &stopped))
            .map(drop)
            .map_err(|e| RuntimeError::doing("start a thread", e))
    }

    /// Stops every scheduler among the node's processes. What one started already goes on.
    pub(crate) fn stop_all(&self, cgroup: &NodeCgroup) {
        let mut noted = self.stopped.lock();
        for _ in 0..LOOKS {
            let stopped = stop(cgroup.processes());
            if stopped.is_empty() {
                return;
            }
            stopped.into_iter().for_each(|pid| note(&mut noted, pid));
        }
    }

    /// Lets them go: what stands goes on.
    pub(crate) fn let_go(&self, cgroup: &NodeCgroup) {
        let mut noted = self.stopped.lock();
        if let Some(go_on) = self.held().take() {
            go_on.store(false, Ordering::Release);
        }
        let noted = std::mem::take(&mut *noted);
        for pid in cgroup.processes() {
            let is_ours = noted.get(&pid).is_some_and(|started| {
                process::identity(pid).is_ok_and(|identity| identity.started == *started)
            });
            if !is_ours && schedulers::of_process(pid).is_none() {
                continue;
            }
            // Also to one that does not stand yet: it waits for a child of vfork(2), and would stop when that goes on.
            if let Ok(process) = Process::open(pid) {
                let _ = process.signal(SIGCONT);
            }
        }
    }

    /// Whether they are held.
    pub(crate) fn are_held(&self) -> bool {
        self.held().is_some()
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

/// Stops the schedulers among `pids` that do not stand; which they were.
pub(crate) fn stop(pids: impl IntoIterator<Item = i32>) -> Vec<i32> {
    let mut stopped = Vec::new();
    for (pid, name) in running(pids) {
        // One that ended meanwhile stands well enough.
        if !stands(pid) && process::stop_threads(pid).is_ok() {
            tracing::info!(pid, name, "a scheduler is held");
            stopped.push(pid);
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
fn attend(execs: &Execs, go_on: &AtomicBool, stopped: &Stopped) {
    let mut again: BTreeSet<(Instant, i32)> = BTreeSet::new();
    while go_on.load(Ordering::Acquire) {
        let rest = if again.is_empty() { IDLE } else { AGAIN.1 };
        let looked = match process::poll_readable(execs.as_fd(), Some(rest)) {
            Ok(true) => execs.attend(|pid, path| {
                let mut noted = stopped.lock();
                if go_on.load(Ordering::Acquire) && look(pid, path, &mut noted) {
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
        let mut noted = stopped.lock();
        if go_on.load(Ordering::Acquire) {
            let late = stop(again.iter().map(|(_, pid)| *pid));
            late.into_iter().for_each(|pid| note(&mut noted, pid));
        }
        again.retain(|(until, _)| *until > now);
    }
}

/// Stops process `pid` if it is about to become a scheduler; whether it has to be looked at again.
fn look(pid: i32, path: &Path, noted: &mut Noted) -> bool {
    match schedulers::kind(path) {
        Kind::Scheduler(name) => {
            tracing::info!(pid, name, "a scheduler is held before it begins");
            match process::stop_threads(pid) {
                Ok(()) => note(noted, pid),
                Err(error) => tracing::warn!(pid, name, %error, "it cannot be stopped yet"),
            }
            true
        }
        Kind::Many => true,
        Kind::Other => false,
    }
}
