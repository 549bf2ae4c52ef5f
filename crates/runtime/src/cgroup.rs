//! Control groups of a node: where they are, freezing, killing, removing.
//!
//! runc sets the limits; this module needs only the freezer and the list of processes. Version 1 has a directory per controller and a
//! freezer that is polled; version 2 has one directory. A hybrid host (a v2 tree beside v1 controllers) freezes with v1, for there the
//! v1 freezer is what runc and CRIU look at.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use offshoot_model::NodeId;
use offshoot_sys::{process, threads};

use crate::error::{Result, RuntimeError};

/// Where the kernel's cgroup file systems are mounted.
pub const MOUNT: &str = "/sys/fs/cgroup";

/// The cgroup file systems of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchies {
    /// Version 1 (cgroups(7)): a directory per set of controllers, a hybrid's `unified` among them.
    V1 {
        /// Root of every mounted hierarchy.
        roots: Vec<PathBuf>,
        /// Root of the freezer's.
        freezer: PathBuf,
    },
    /// Version 2 (the kernel's Documentation/admin-guide/cgroup-v2.rst).
    V2 {
        /// Root of the tree.
        root: PathBuf,
    },
}

impl Hierarchies {
    /// Those of this host.
    ///
    /// # Errors
    /// When neither a v2 tree nor a v1 freezer is there.
    pub fn of_host() -> Result<Self> {
        Self::at(Path::new(MOUNT))
    }

    /// Those mounted below `mount`.
    ///
    /// # Errors
    /// As [`Self::of_host`].
    pub fn at(mount: &Path) -> Result<Self> {
        if mount.join("cgroup.controllers").is_file() {
            return Ok(Self::V2 {
                root: mount.to_owned(),
            });
        }
        let entries = fs::read_dir(mount).map_err(|e| RuntimeError::io("read", mount, e))?;
        let mut roots: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            // Names such as `cpu` are often links to `cpu,cpuacct`: one hierarchy, one path.
            .filter(|path| {
                fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
                    && path.join("cgroup.procs").exists()
            })
            .collect();
        roots.sort();
        let freezer = mount.join("freezer");
        if !roots.contains(&freezer) {
            return Err(RuntimeError::spec(format!(
                "{}: no cgroup v2 and no v1 freezer",
                mount.display()
            )));
        }
        Ok(Self::V1 { roots, freezer })
    }

    /// Takes a process out of whatever group it is in, as far as the freezer and the list of processes go: in version 1 it stays in the
    /// groups of the other controllers.
    ///
    /// # Errors
    /// When the kernel refuses, or there is no such process.
    pub fn take_out(&self, pid: i32) -> Result<()> {
        let path = self.freezer_root().join("cgroup.procs");
        fs::write(&path, pid.to_string()).map_err(|e| {
            RuntimeError::doing(format!("move process {pid} to {}", path.display()), e)
        })
    }

    fn roots(&self) -> &[PathBuf] {
        match self {
            Self::V1 { roots, .. } => roots,
            Self::V2 { root } => std::slice::from_ref(root),
        }
    }

    fn freezer_root(&self) -> &Path {
        match self {
            Self::V1 { freezer, .. } => freezer,
            Self::V2 { root } => root,
        }
    }
}

/// Path of a node's cgroup below each root: `/offshoot-<instance>/<env>/<node>`.
#[must_use]
pub fn path_of(instance: &str, node: &NodeId) -> PathBuf {
    Path::new("/")
        .join(format!("offshoot-{instance}"))
        .join(node.env().as_str())
        .join(node.name())
}

/// The cgroups of one node.
#[derive(Debug, Clone)]
pub struct NodeCgroup {
    host: Hierarchies,
    path: PathBuf,
}

/// What a freezer says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freezer {
    /// Everything may run.
    Thawed,
    /// Some processes do not stand yet.
    Freezing,
    /// Everything stands.
    Frozen,
}

/// Longest wait between two looks at a freezer; the first ones follow each other at once.
const FREEZER_POLL: Duration = Duration::from_micros(200);
/// How long everything may take to stand before a first breath is given.
const FREEZE_ATTEMPT: Duration = Duration::from_millis(20);
/// So often at most a node is let go for a moment because of vfork(2).
const VFORK_BREATHS: u32 = 20;
/// Time to run between two attempts.
const FREEZER_BREATH: Duration = Duration::from_micros(500);
/// Most rounds of moving guests back.
const RETURN_ROUNDS: u32 = 50;
/// Most parents followed: more than the kernel nests PID namespaces times any sane tree of processes.
const PARENTS_MAX: u32 = 100_000;
/// Bound on ending the processes of a node.
const KILL_MAX: Duration = Duration::from_secs(10);

impl NodeCgroup {
    /// The cgroups of `node`, whether they exist or not.
    #[must_use]
    pub fn new(host: Hierarchies, instance: &str, node: &NodeId) -> Self {
        Self {
            host,
            path: path_of(instance, node),
        }
    }

    fn dir(&self, root: &Path) -> PathBuf {
        root.join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }

    /// Directory that freezes the node.
    #[must_use]
    pub fn freezer(&self) -> PathBuf {
        self.dir(self.host.freezer_root())
    }

    /// Directory that freezes the node's guests: beside the node's own, since CRIU stops at any process in a node's cgroup that does not
    /// descend from its main process. No node's name has a dot.
    #[must_use]
    pub fn guest_freezer(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".guests");
        self.freezer().with_file_name(name)
    }

    /// Makes the node's directories, so that a concurrent removal of a neighbour cannot take the parents away under runc.
    ///
    /// # Errors
    /// Of the file system.
    pub fn ensure(&self) -> Result<()> {
        for root in self.host.roots() {
            let dir = self.dir(root);
            // A neighbour's removal may take an empty parent between two of our steps; a few rounds always win.
            let mut last = Ok(());
            for _ in 0..20 {
                last = fs::create_dir_all(&dir);
                if last.is_ok() {
                    break;
                }
            }
            last.map_err(|e| RuntimeError::io("make", &dir, e))?;
        }
        Ok(())
    }

    /// Host pids of the node's processes, its guests among them.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<i32> {
        let dirs = self
            .host
            .roots()
            .iter()
            .map(|root| self.dir(root))
            .chain([self.guest_freezer()]);
        dirs.flat_map(|dir| processes_in(&dir)).collect()
    }

    /// Freezes one directory and waits until everything stands.
    ///
    /// With version 1 a process of several threads that is in the middle of execve(2) never stands: it waits, unfreezable, for its other
    /// threads to end, which are frozen. Only a thaw helps, so after a while everything is let go for a moment and frozen again.
    ///
    /// So it is when somebody stands between vfork(2) and execve(2): its parent waits for it, and nobody could get hold of that one
    /// (ptrace(2)) until it goes on. A child that stays there for long is left as it is.
    ///
    /// # Errors
    /// When it does not stand within `max`; it is thawed again then.
    pub fn freeze(&self, dir: &Path, max: Duration) -> Result<()> {
        let start = Instant::now();
        let mut attempt = FREEZE_ATTEMPT;
        let mut breaths = VFORK_BREATHS;
        loop {
            set(&self.host, dir, Freezer::Frozen)?;
            if self.stands(dir, attempt.min(max.saturating_sub(start.elapsed())))? {
                if breaths == 0 || !is_within_vfork(&processes_in(dir)) {
                    return Ok(());
                }
                breaths -= 1;
                set(&self.host, dir, Freezer::Thawed)?;
                std::thread::sleep(FREEZER_BREATH);
                continue;
            }
            if start.elapsed() >= max {
                set(&self.host, dir, Freezer::Thawed)?;
                return Err(RuntimeError::Timeout {
                    what: format!("freezing {}", dir.display()),
                    after: max,
                });
            }
            if let Hierarchies::V1 { .. } = self.host {
                set(&self.host, dir, Freezer::Thawed)?;
                std::thread::sleep(FREEZER_BREATH);
            }
            // Longer each time, for what is merely slow, such as a write to a busy disk.
            attempt *= 2;
        }
    }

    /// Begins to freeze the node without waiting until it stands.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn begin_freeze(&self) -> Result<()> {
        set(&self.host, &self.freezer(), Freezer::Frozen)
    }

    /// Waits until everything stands, at most `max`.
    fn stands(&self, dir: &Path, max: Duration) -> Result<bool> {
        let start = Instant::now();
        loop {
            if state(&self.host, dir)? == Freezer::Frozen {
                return Ok(true);
            }
            if start.elapsed() >= max {
                return Ok(false);
            }
            if start.elapsed() > Duration::from_millis(1) {
                std::thread::sleep(FREEZER_POLL);
            }
        }
    }

    /// Lets node and guests go on. What is not there is thawed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&self) -> Result<()> {
        let mut result = Ok(());
        for dir in [self.freezer(), self.guest_freezer()] {
            match set(&self.host, &dir, Freezer::Thawed) {
                Err(RuntimeError::Io { source, .. }) if is_gone(&source) => {}
                other => result = result.and(other),
            }
        }
        result
    }

    /// Whether the node is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        state(&self.host, &self.freezer()).is_ok_and(|state| state == Freezer::Frozen)
    }

    /// Moves the node's processes that do not descend from `main` into the guests' freezer and gives their pids.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn move_guests(&self, main: i32) -> Result<Vec<i32>> {
        let mut moved = Vec::new();
        for pid in processes_in(&self.freezer()) {
            if descends_from(pid, main) {
                continue;
            }
            let guests = self.guest_freezer();
            if !guests.exists() {
                fs::create_dir_all(&guests).map_err(|e| RuntimeError::io("make", &guests, e))?;
                self.limit_guests(&guests);
            }
            match fs::write(guests.join("cgroup.procs"), pid.to_string()) {
                Ok(()) => moved.push(pid),
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                Err(e) => {
                    return Err(RuntimeError::doing(
                        format!("move process {pid} to {}", guests.display()),
                        e,
                    ));
                }
            }
        }
        Ok(moved)
    }

    /// Gives the guests' group the limits of the node's. In version 2 a process leaves all controllers at once; in version 1 only the
    /// freezer's.
    fn limit_guests(&self, guests: &Path) {
        if let Hierarchies::V1 { .. } = self.host {
            return;
        }
        for file in ["memory.max", "pids.max", "cpu.max"] {
            // A controller that the host does not have limits nobody.
            if let Ok(limit) = fs::read(self.freezer().join(file)) {
                let _ = fs::write(guests.join(file), limit);
            }
        }
    }

    /// Moves guests back among the node's processes and removes their freezer.
    pub fn return_guests(&self) {
        let guests = self.guest_freezer();
        // They run again and may fork between two looks. Whoever slips through all rounds is still a guest, and limited as before.
        for _ in 0..RETURN_ROUNDS {
            for pid in processes_in(&guests) {
                // A process that ended in between needs no moving.
                let _ = fs::write(self.freezer().join("cgroup.procs"), pid.to_string());
            }
            match fs::remove_dir(&guests) {
                Err(e) if !is_gone(&e) => {}
                _ => return,
            }
        }
    }

    /// Thaws and kills every process of the node and waits until all are gone.
    ///
    /// # Errors
    /// When some do not end within ten seconds.
    pub fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + KILL_MAX;
        loop {
            if let Hierarchies::V2 { .. } = self.host {
                // Linux 5.14; where it is missing the loop below does it.
                let _ = fs::write(self.freezer().join("cgroup.kill"), "1");
            }
            let pids = self.processes();
            let alive: Vec<i32> = pids.into_iter().filter(|pid| !is_zombie(*pid)).collect();
            for pid in &alive {
                if let Ok(process) = process::Process::open(*pid) {
                    let _ = process.signal(rustix::process::Signal::KILL.as_raw());
                }
            }
            // Only now: what was frozen shall not run again, not even for a moment.
            self.thaw()?;
            let Some(first) = alive.first() else {
                return Ok(());
            };
            if Instant::now() > deadline {
                let what = format!("killing the processes {alive:?} of {}", self.path.display());
                return Err(RuntimeError::Timeout {
                    what,
                    after: KILL_MAX,
                });
            }
            if let Ok(process) = process::Process::open(*first) {
                let _ = process.wait_end(Some(Duration::from_millis(50)));
            }
        }
    }

    /// Removes the directories, and the environment's and instance's when they are empty. Processes must be gone.
    ///
    /// # Errors
    /// What could not be removed, as texts.
    pub fn remove(&self) -> std::result::Result<(), Vec<String>> {
        let mut left = Vec::new();
        let mut dirs: Vec<PathBuf> = self
            .host
            .roots()
            .iter()
            .map(|root| self.dir(root))
            .collect();
        dirs.insert(0, self.guest_freezer());
        for dir in dirs {
            if let Err(e) = remove_tree(&dir) {
                left.push(format!("{}: {e}", dir.display()));
                continue;
            }
            for parent in dir.ancestors().skip(1).take(2) {
                // Busy: a neighbour lives there.
                let _ = fs::remove_dir(parent);
            }
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    }

    /// Whether anything of it is left.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.host.roots().iter().any(|root| self.dir(root).exists())
            || self.guest_freezer().exists()
    }

    /// How many processes the kernel killed here for want of memory (v1 `memory.oom_control`, v2 `memory.events`); 0 when it does not say.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let file = match &self.host {
            Hierarchies::V1 { roots, .. } => roots
                .iter()
                .find(|root| root.file_name().is_some_and(|name| name == "memory"))
                .map(|root| self.dir(root).join("memory.oom_control")),
            Hierarchies::V2 { root } => Some(self.dir(root).join("memory.events")),
        };
        let text = file
            .and_then(|file| fs::read_to_string(file).ok())
            .unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            .unwrap_or(0)
    }
}

/// A cgroup that was removed, before its file was opened or after.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// Children first; a cgroup's files go with its directory.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    // The kernel lets go of the last process's cgroup a moment after the process.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

fn processes_in(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .collect()
}

/// Whether one of these processes has its memory from its parent among them, which waits for it then.
fn is_within_vfork(pids: &[i32]) -> bool {
    pids.iter().any(|pid| {
        process::identity(*pid).is_ok_and(|child| {
            !matches!(child.state, 'Z' | 'X')
                && pids.contains(&child.parent)
                && threads::share_memory(*pid, child.parent).unwrap_or(false)
        })
    })
}

fn is_zombie(pid: i32) -> bool {
    process::identity(pid).map_or(true, |id| matches!(id.state, 'Z' | 'X'))
}

/// Whether a process is `main` or below it. One that ended is nobody's guest.
fn descends_from(pid: i32, main: i32) -> bool {
    is_below(pid, main, |pid| {
        process::identity(pid).ok().map(|id| id.parent)
    })
}

/// Follows parents. When one of them ends in between, its children have another one: the walk begins again.
fn is_below(pid: i32, main: i32, mut parent_of: impl FnMut(i32) -> Option<i32>) -> bool {
    let mut at = pid;
    for _ in 0..PARENTS_MAX {
        if at == main {
            return true;
        }
        match parent_of(at) {
            Some(parent) if parent > 1 => at = parent,
            Some(_) => return false,
            None if at == pid => return true,
            None => at = pid,
        }
    }
    false
}

fn set(host: &Hierarchies, dir: &Path, wanted: Freezer) -> Result<()> {
    let frozen = wanted == Freezer::Frozen;
    let (file, text) = match host {
        Hierarchies::V1 { .. } => ("freezer.state", if frozen { "FROZEN" } else { "THAWED" }),
        Hierarchies::V2 { .. } => ("cgroup.freeze", if frozen { "1" } else { "0" }),
    };
    let path = dir.join(file);
    fs::write(&path, text).map_err(|e| RuntimeError::io("write", &path, e))
}

fn state(host: &Hierarchies, dir: &Path) -> Result<Freezer> {
    let path = match host {
        Hierarchies::V1 { .. } => dir.join("freezer.state"),
        Hierarchies::V2 { .. } => dir.join("cgroup.events"),
    };
    let text = fs::read_to_string(&path).map_err(|e| RuntimeError::io("read", &path, e))?;
    let read = match host {
        Hierarchies::V1 { .. } => match text.trim() {
            "THAWED" => Some(Freezer::Thawed),
            "FREEZING" => Some(Freezer::Freezing),
            "FROZEN" => Some(Freezer::Frozen),
            _ => None,
        },
        Hierarchies::V2 { .. } => {
            match text.lines().find_map(|line| line.strip_prefix("frozen ")) {
                Some("1") => Some(Freezer::Frozen),
                // The kernel does not tell a thawed group from one on its way.
                Some("0") => Some(Freezer::Freezing),
                _ => None,
            }
        }
    };
    read.ok_or_else(|| {
        RuntimeError::spec(format!(
            "{}: {text:?} is no freezer's state",
            path.display()
        ))
    })
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
