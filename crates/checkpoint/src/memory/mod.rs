//! A node's memory, taken while the node runs; in the freeze only what changed since.
//!
//! ```text
//! runs     every process is tracked; large memory is left to a twin of its process, other pages are copied; and what is
//!          written from then on is copied, in rounds, until little changes between two
//! frozen   CRIU dumps everything but private pages: it is told that there are none (`offshoot_sys::preload`);
//!          then one pass over the page tables, and the pages that changed are copied once more
//! runs     what was copied is completed to the images that a restore expects
//! ```
//!
//! A twin is a child that stands still with the memory of the instant when it was made (fork(2)): the clone gets from it what was not
//! written since, while it runs already.
//!
//! A page that is not certainly unchanged since it was copied counts as changed: pages of processes that were not
//! tracked, of memory mapped since, of programs executed since. Where the kernel cannot tell (before Linux 6.7), CRIU copies every
//! page in the freeze.

mod areas;
mod flags;
mod image;
mod known;
mod process;
mod shared;
mod twin;
mod warm;

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use offshoot_sys::pagemap::Pagemap;
use offshoot_sys::preload;
use rustix::process::Pid;

use self::known::Known;
use self::process::Tracked;
pub(crate) use self::process::Watched;
use self::shared::Shared;
pub use self::twin::Twin;
pub(crate) use self::warm::{resident, warm};
use crate::container::Container;
use crate::error::{CriuError, Foreign};
use crate::forecast;
use crate::parallel::by_processors;
use crate::rpc::{DumpStats, Options};

/// How big the pages are.
pub(crate) const PAGE: u64 = 4096;

/// Largest unlinked but open file that is copied into the images, in bytes. Bigger ones would make the freeze long; a node with
/// one is not checkpointed and CRIU's message says so.
const GHOST_LIMIT: u32 = 64 * 1024 * 1024;
/// The shared object that CRIU is started with, in the folder of images.
const PRELOAD: &str = "criu.so";
/// A process gets a twin if its node may have this part of the twin's memory more: what it writes meanwhile, it has twice.
const ROOM_SHARE: u64 = 8;

/// A round that copied no more pages than this is the last.
const FEW_PAGES: u64 = 1024;
/// So many bytes are compared in the time that it takes to copy one.
const COMPARING: u64 = 4;
/// From a look at what will be copied until the node stands still.
const UNTIL_FROZEN: Duration = Duration::from_millis(20);
/// At most so many rounds.
const ROUNDS: u32 = 8;
/// No further round is begun after this time.
const ROUNDS_TIME: Duration = Duration::from_secs(20);
/// A round that copied more than this share of the one before (percent) shows that there is nothing to win.
const SHRINKS: u64 = 80;

/// Makes a process hand over its memory, without a trace in it.
pub trait Plant: Sync {
    /// A userfaultfd that watches what is written in all private areas that process `pid` has right now
    /// (`offshoot_sys::inject::Stopped::watch_writes`).
    ///
    /// # Errors
    /// When the process cannot be stopped or the kernel refuses; then its pages are copied in the freeze.
    fn plant(&self, pid: i32) -> Result<OwnedFd, Foreign>;

    /// Makes a twin of process `pid` of node `node`. It has none of the process's files open, is in none of the node's freezers, and its memory
    /// is handed out at `socket`, which is made.
    ///
    /// # Errors
    /// When it cannot be made; then the process's memory is copied.
    fn twin(&self, node: &str, pid: i32, socket: &Path) -> Result<Twin, Foreign>;
}

/// Makes the twins of one node.
pub(crate) struct Twins<'a> {
    plant: &'a dyn Plant,
    node: &'a str,
    container: &'a Container,
    /// Processes with less in large areas get none, bytes.
    from: u64,
    /// Nor do those that would be held up longer.
    held_max: Duration,
    /// How long the node's processes were held up, one after the other.
    held: Cell<Duration>,
}

impl Twins<'_> {
    /// A twin of process `pid`, to which `bytes` would be left; `None` where that is not worth it, or not possible.
    fn of(&self, pid: i32, bytes: u64, socket: &Path) -> Option<Twin> {
        if bytes < self.from {
            return None;
        }
        if !twin::has_room(&self.container.memory, bytes / ROOM_SHARE) {
            tracing::debug!(pid, bytes, "no twin: the node is close to its memory limit");
            return None;
        }
        let expected = forecast::fork(bytes);
        if expected > self.held_max {
            tracing::debug!(
                pid,
                bytes,
                ?expected,
                "no twin: the process would stand too long"
            );
            return None;
        }
        let made = self.plant.twin(self.node, pid, socket);
        let twin = made
            .inspect_err(|error| tracing::debug!(pid, error = &**error, "no twin"))
            .ok()?;
        forecast::learn_fork(bytes, twin.held);
        self.held.set(self.held.get() + twin.held);
        Some(twin)
    }
}

/// Which pages a clone may get while it already runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// None: all are in CRIU's images.
    Never,
    /// Large areas of processes: in files of their own beside CRIU's images (see `docs/clone.md`).
    From {
        /// With at least so many bytes in them.
        bytes: u64,
        /// Making a twin may hold a process up for so long; otherwise its memory is copied.
        held_max: Duration,
    },
}

/// What CRIU is started with, so that it leaves to others what is theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Preload {
    /// The shared object (`offshoot_sys::preload`).
    pub(crate) object: PathBuf,
    /// The folder with what it is told.
    pub(crate) known: PathBuf,
    /// The folder where it keeps what it finds out about the kernel.
    pub(crate) kernel: Option<PathBuf>,
}

/// What was taken of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes of private memory.
    pub(crate) all: u64,
    /// Of these, copied while the node stood still.
    pub(crate) frozen: u64,
}

impl Taken {
    pub(crate) fn add(&mut self, other: Self) {
        self.all = self.all.saturating_add(other.all);
        self.frozen = self.frozen.saturating_add(other.frozen);
    }
}

/// The memory of one node on its way into the images.
#[derive(Debug)]
pub(crate) struct NodeMemory {
    images: PathBuf,
    node: String,
    late: Late,
    processes: Vec<Tracked>,
    shared: Shared,
    known: Known,
    /// When the last round began.
    round_at: Option<Instant>,
    /// Pages that were written each second between the last two rounds.
    writes_per_s: f64,
    /// How long its processes were held up by making twins, together.
    held: Duration,
}

impl NodeMemory {
    /// For node `node`, whose images go to `images`; `None` where the kernel cannot tell which pages were written.
    pub(crate) fn new(images: &Path, node: &str, late: Late) -> io::Result<Option<Self>> {
        if preload::CRIU.is_empty() || !Pagemap::is_supported() {
            return Ok(None);
        }
        fs::write(images.join(PRELOAD), preload::CRIU)?;
        Ok(Some(Self {
            images: images.to_owned(),
            node: node.to_owned(),
            late,
            processes: Vec::new(),
            shared: Shared::default(),
            known: Known::new(images),
            round_at: None,
            writes_per_s: 0.0,
            held: Duration::ZERO,
        }))
    }

    /// What CRIU has to be started with.
    pub(crate) fn preload(&self, kernel: Option<&Path>) -> Preload {
        Preload {
            kernel: kernel.map(Path::to_owned),
            object: self.images.join(PRELOAD),
            known: self.images.clone(),
        }
    }

    /// Copies while the node runs, until the rest is small or does not get smaller. `wanted` is asked between two steps.
    pub(crate) fn copy_ahead(
        &mut self,
        container: &Container,
        plant: &dyn Plant,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), CriuError> {
        let begun = Instant::now();
        let mut before = u64::MAX;
        for round in 0..ROUNDS {
            let pages = self.round(container, plant, wanted)?;
            tracing::debug!(round, pages, "copied ahead");
            let shrinks = pages <= before.saturating_mul(SHRINKS) / 100;
            if !wanted() || pages <= FEW_PAGES || !shrinks || begun.elapsed() > ROUNDS_TIME {
                break;
            }
            before = pages;
        }
        Ok(())
    }

    /// How long the node's processes were held up so far while everything ran, one after the other.
    pub(crate) fn held(&self) -> Duration {
        self.held
    }

    /// One round over all processes; the pages that were copied.
    fn round(
        &mut self,
        container: &Container,
        plant: &dyn Plant,
        wanted: &dyn Fn() -> bool,
    ) -> Result<u64, CriuError> {
        let mut pages = 0_u64;
        let began = Instant::now();
        let before = self.round_at.replace(began);
        let twins = match self.late {
            Late::Never => None,
            Late::From { bytes, held_max } => Some(Twins {
                plant,
                node: &self.node,
                container,
                from: bytes,
                held_max,
                held: Cell::default(),
            }),
        };
        let all = container.processes();
        pages += self
            .shared
            .round(&self.images, &all)
            .map_err(|e| self.failed(container.pid, e))?;
        for pid in all {
            if !wanted() {
                break;
            }
            self.processes
                .retain(|known| known.pid() != pid || known.is_alive());
            if !self.processes.iter().any(|known| known.pid() == pid) {
                match Tracked::new(pid, &self.images, plant) {
                    Ok(process) => self.processes.push(process),
                    Err(error) if is_over(&error) => continue,
                    Err(error) => return Err(self.failed(pid, error)),
                }
            }
            if let Some(process) = self.processes.iter_mut().find(|known| known.pid() == pid) {
                match process.round(twins.as_ref(), wanted) {
                    Ok(copied) => pages = pages.saturating_add(copied),
                    Err(error) if is_over(&error) => {}
                    Err(error) => return Err(self.failed(pid, error)),
                }
            }
        }
        self.held += twins.map_or(Duration::ZERO, |twins| twins.held.get());
        if let Some(before) = before {
            let since = began.saturating_duration_since(before).as_secs_f64();
            self.writes_per_s = pages as f64 / since.max(0.001);
        }
        Ok(pages)
    }

    /// Writes down for CRIU what is known about the node right before the freeze.
    pub(crate) fn tell(&mut self, container: &Container) -> Result<(), CriuError> {
        self.known
            .write(container)
            .map_err(|e| self.failed(container.pid, e))
    }

    /// Corrects what is written down for CRIU. The node stands still, and CRIU has not asked yet.
    pub(crate) fn correct(&mut self, container: &Container) -> Result<(), CriuError> {
        self.known
            .correct(container)
            .map_err(|e| self.failed(container.pid, e))
    }

    /// Bytes that will have to be copied if the node is frozen now.
    pub(crate) fn expected(&self) -> u64 {
        let always: u64 = self.processes.iter().map(Tracked::always).sum();
        let since = self.round_at.map_or(Duration::ZERO, |at| at.elapsed()) + UNTIL_FROZEN;
        let written = self.writes_per_s * since.as_secs_f64();
        always
            .saturating_add(self.shared.bytes() / COMPARING)
            .saturating_add((written as u64).saturating_mul(PAGE))
    }

    /// Copies what changed of the memory that processes share, as far as it is known. The node stands still; CRIU may be at work.
    pub(crate) fn take_shared(&mut self, container: &Container) -> Result<Taken, CriuError> {
        self.shared
            .take()
            .map_err(|e| self.failed(container.pid, e))
    }

    /// Copies what changed. The node stands still, and CRIU, which is through with it, has written what areas there are.
    pub(crate) fn take(&mut self, container: &Container) -> Result<Taken, CriuError> {
        let processes = container.processes();
        let dumped = areas::dumped(&self.images)?;
        let mapped = dumped
            .iter()
            .flat_map(|process| process.shared.iter().copied());
        let rest = self.shared.take_rest(&self.images, &processes, mapped);
        let mut taken = rest.map_err(|e| self.failed(container.pid, e))?;
        let inner: HashMap<u32, i32> = processes
            .into_iter()
            .filter_map(|pid| Some((inner_pid(pid)?, pid)))
            .collect();
        let mut rest = std::mem::take(&mut self.processes);
        let mut all = Vec::new();
        for process in dumped {
            let (number, areas) = (process.number, process.private);
            let Some(pid) = inner.get(&number).copied() else {
                return Err(CriuError::Unexpected(format!(
                    "it dumped process {number}, which is not in the node's cgroup"
                )));
            };
            let known = rest.iter().position(|p| p.pid() == pid && p.is_alive());
            let process = match known {
                Some(at) => rest.swap_remove(at),
                None => Tracked::untracked(pid, &self.images).map_err(|e| self.failed(pid, e))?,
            };
            all.push((process, number, areas));
        }
        let outcomes = by_processors(&mut all, |(process, number, areas)| {
            process
                .take(*number, areas)
                .map_err(|e| self.failed(process.pid(), e))
        });
        self.processes = all.into_iter().map(|(process, ..)| process).collect();
        for outcome in outcomes {
            taken.add(outcome?);
        }
        Ok(taken)
    }

    /// Ends the tracking; what is left of it in the processes is to be undone.
    pub(crate) fn let_go(&mut self) -> Vec<Watched> {
        self.processes
            .iter_mut()
            .filter_map(Tracked::let_go)
            .collect()
    }

    /// Completes CRIU's images.
    pub(crate) fn complete(self) -> Result<(), CriuError> {
        let images = &self.images;
        let mut processes: Vec<Option<Tracked>> = self.processes.into_iter().map(Some).collect();
        by_processors(&mut processes, |process| {
            process
                .take()
                .map_or(Ok(()), |process| process.complete(images, self.late))
        })
        .into_iter()
        .collect::<Result<Vec<()>, _>>()?;
        self.shared.complete(&self.images)?;
        let _ = fs::remove_file(self.images.join(PRELOAD));
        self.known.forget();
        Ok(())
    }

    fn failed(&self, pid: i32, source: io::Error) -> CriuError {
        CriuError::Image {
            path: self.images.clone(),
            what: format!("cannot hold the memory of process {pid}"),
            source: Some(source),
        }
    }
}

/// What a freeze copies, at least, of nodes whose memory is tracked: it compares what processes share (as copied bytes). What they write
/// just before comes on top, and nobody knows that before they are watched.
pub(crate) fn left_of_tracked(processes: &[i32]) -> u64 {
    shared::mapped(processes) / COMPARING
}

/// Sets the options that decide which memory is dumped.
pub(crate) fn set_options(options: &mut Options) {
    options.ghost_limit = Some(GHOST_LIMIT);
}

/// Bytes of memory that CRIU wrote in one dump.
pub(crate) fn written(stats: &DumpStats) -> u64 {
    let pages = stats
        .pages_written
        .saturating_add(stats.shared_pages_written.unwrap_or(0));
    pages.saturating_mul(PAGE)
}

/// The process ended while it was looked at.
fn is_over(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// The number of a process in its own PID namespace (`NSpid` of proc_pid_status(5)).
fn inner_pid(pid: i32) -> Option<u32> {
    let pid = Pid::from_raw(pid)?.as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}
