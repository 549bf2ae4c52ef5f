//! The cut: all nodes of an environment stand still together, their memory and disks are taken, and they go on.
//!
//! ```text
//! before   CRIU is started for every live node, probes the kernel, and waits before it touches the node;
//!          memory is copied ahead, in rounds (see `memory`)
//! frozen   freeze all -> isolate them from each other -> dump all, CRIU letting go of each, and snapshot the disks -> thaw
//! after    the images are completed
//! ```
//!
//! A file that has lost the name it was opened by, but not its last one, gets a name from CRIU for as long as CRIU waits at `post-dump`
//! (`--link-remap`): the snapshot has to have it. Where a dump made such a name the disks are snapshotted once more.
//! Whatever fails, what stands still is let go first, then things are cleaned up.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use offshoot_model::clone::{Memory, Rung, Stage, Timing};
use offshoot_sys::first::First;

use crate::container::Container;
use crate::dump::{self, Dump};
use crate::error::{CriuError, CutError, Foreign};
use crate::forecast::{self, Work};
use crate::memory::{self, Late, Plant, Watched};
use crate::parallel::{by_processors, parallel};
use crate::probe::Criu;
use crate::swrk::Until;
use crate::watch::{in_time, watched};
use crate::working::Working;

/// A further round that leaves more than this share of the predicted freeze (percent) shows that there is nothing to win.
const SHRINKS: u32 = 95;
/// How long starting CRIU may take, before anything is frozen.
const START_TIME: Duration = Duration::from_secs(15);
/// What the freezer and the isolation are asked for beyond the bound on the freeze: CRIU needs it to let go. When it is over,
/// they let go by themselves.
const MARGIN: Duration = Duration::from_secs(10);

/// Something that is held until it is given back: a frozen node, isolated traffic. Dropping it gives it back too.
pub trait Lease: Send {
    /// Gives it back and says whether that worked.
    ///
    /// # Errors
    /// When it is not certain that it was given back.
    fn end(self: Box<Self>) -> Result<(), Foreign>;
}

/// Freezes a node as a whole and keeps it so until the lease ends: by itself, by being dropped, or after `max`.
pub trait Freezer: Sync {
    /// Returns when every process of `node` stands still.
    ///
    /// # Errors
    /// When they do not; then none of them stands still.
    fn freeze(&self, node: &str, max: Duration) -> Result<Box<dyn Lease>, Foreign>;
}

/// Stops all traffic between the nodes until the lease ends.
pub trait Isolate: Sync {
    /// Returns when no packet travels from a node to another.
    ///
    /// # Errors
    /// When that cannot be done.
    fn isolate(&self, max: Duration) -> Result<Box<dyn Lease>, Foreign>;
}

/// A node that takes part in a cut.
#[derive(Debug, Clone)]
pub struct CutNode {
    /// Its name inside the environment.
    pub node: String,
    /// Its container.
    pub container: Container,
    /// An empty folder, best on a tmpfs, for its memory.
    pub images: PathBuf,
    /// What is taken of it: [`Rung::Live`] memory and disk, anything else the disk only. It stands still in any case.
    pub rung: Rung,
    /// How its memory is taken, if it is ([`crate::Ladder`]).
    pub memory: Memory,
}

/// What happens to a node whose memory cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insist {
    /// It gets rung `disk`; the others stay live.
    No,
    /// The cut fails.
    OnLive,
}

/// Everything a cut needs.
pub struct CutRequest<'a> {
    /// Which CRIU.
    pub criu: &'a Criu,
    /// The nodes.
    pub nodes: Vec<CutNode>,
    /// Who freezes them.
    pub freezer: &'a dyn Freezer,
    /// Who isolates them; `None` when there is no traffic between them.
    pub isolate: Option<&'a dyn Isolate>,
    /// The longest that a node may stand still.
    pub max_freeze: Duration,
    /// What happens to a node whose memory cannot be taken.
    pub insist: Insist,
    /// Gets at the memory of processes that run.
    pub plant: &'a dyn Plant,
    /// Which memory the clone may get while it already runs.
    pub late: Late,
    /// Done while everything still runs, as the last thing: what need not be done in the freeze.
    pub settle: &'a (dyn Fn() + Sync),
    /// Whether the one who asked for it still wants it. Asked often.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
}

/// What was cut and measured.
#[derive(Debug, Clone, PartialEq)]
pub struct CutReport {
    /// The instant from which on all nodes stood still.
    pub at: SystemTime,
    /// From the moment the first node was told to stand still until the last ran again.
    pub freeze: Duration,
    /// What the freeze was expected to be.
    pub predicted: Duration,
    /// From the first node that stood still to the last.
    pub skew: Duration,
    /// Named spans, in order: `copy ahead`, `settle`, `freeze`, `isolate`, `dump`, `snapshot` (what is left of it after the dump, for they run
    /// side by side), `thaw`, `complete images`.
    pub parts: Vec<Timing>,
    /// The nodes, in the order of the request.
    pub nodes: Vec<CutNodeReport>,
}

/// What was taken of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutNodeReport {
    /// Its name.
    pub node: String,
    /// [`Rung::Live`] when its memory is in its folder of images; what was asked for, or [`Rung::Disk`], otherwise.
    pub rung: Rung,
    /// Why its memory was not taken although it was asked for.
    pub why: Option<String>,
    /// How its memory was taken, where it was.
    pub memory: Option<Memory>,
    /// How long it stood still.
    pub freeze: Duration,
    /// How long it stood still by itself before, while memory was copied ahead: all of it when CRIU copied, one process after the other when
    /// twins were made.
    pub paused: Duration,
    /// How long taking its memory took in the freeze.
    pub dump: Duration,
    /// Where that went, and letting go.
    pub stages: Vec<Stage>,
    /// Memory in the images, bytes.
    pub memory_bytes: u64,
    /// Of that, what was copied while the node stood still, bytes.
    pub frozen_bytes: u64,
    /// Processes in the images.
    pub processes: u32,
}

/// Cuts. `snapshot` takes the disks. It is called while everything stands still, and has to be quick; when it is called a second time,
/// what it took the first time is not to be used.
///
/// When it returns, whatever it returns, the nodes run again and no CRIU is left. What is left of the tracking in them is given back, so
/// that it is undone when there is time.
///
/// # Errors
/// [`CutError`]; the folders of images then hold leftovers, which are the caller's to remove.
pub fn cut(
    request: CutRequest<'_>,
    snapshot: &(dyn Fn() -> Result<(), Foreign> + Sync),
) -> Result<(CutReport, Tracking), CutError> {
    let mut nodes: Vec<Working> = request.nodes.iter().cloned().map(Working::new).collect();
    let stop = AtomicBool::new(false);
    let result = copy_ahead(&request, &mut nodes, &stop).and_then(|ahead| {
        let (predicted, begun) = (ahead.predicted, Instant::now());
        let run = stand_still(&request, &mut nodes, &stop, snapshot, (ahead, begun));
        if let Err(CutError::TimedOut { .. }) = run {
            forecast::learn_too_long(predicted, begun.elapsed());
        }
        run
    });
    // First everything goes on, then comes the rest.
    let thawed: Vec<_> = parallel(&mut nodes, Working::thaw);
    let watched = parallel(&mut nodes, |node| {
        let (done, watched) = node.dump.take()?.finish();
        node.done = Some(done);
        Some(watched)
    });
    let watched = watched.into_iter().flatten().flatten();
    let tracking = Tracking(watched.map(Some).collect());
    let run = result?;
    thawed.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok((finish(&request, nodes, run)?, tracking))
}

/// What is left of the tracking in the processes of the nodes that were cut. It costs them little, and undoing it takes a while where there
/// is much memory. Undone when it is dropped; until then their memory cannot be tracked again.
#[derive(Debug)]
#[must_use = "it is undone at once"]
pub struct Tracking(Vec<Option<Watched>>);

impl Drop for Tracking {
    fn drop(&mut self) {
        by_processors(&mut self.0, |watched| watched.take().map(Watched::undo));
    }
}

/// What is known when everything is ready for the freeze.
struct Ahead {
    /// What the freeze will be, as far as is known.
    predicted: Duration,
    /// The nodes, those with most to do first.
    order: Vec<usize>,
    /// Marks on the way, for the report.
    marks: Vec<(&'static str, Instant)>,
}

/// What is known after it.
struct Run {
    at: SystemTime,
    predicted: Duration,
    marks: Vec<(&'static str, Instant)>,
}

/// All that can be done while the nodes run.
fn copy_ahead(
    request: &CutRequest<'_>,
    nodes: &mut [Working],
    stop: &AtomicBool,
) -> Result<Ahead, CutError> {
    let mut marks = vec![("", Instant::now())];
    let until = Until {
        deadline: Instant::now() + START_TIME,
        stop,
    };
    watched(request, stop, || {
        parallel(nodes, |node| {
            if node.node.rung == Rung::Live {
                match Dump::prepare(request.criu, &node.node, request.plant, request.late, until) {
                    Ok(dump) => node.dump = Some(dump),
                    Err(why) => node.why = Some(why),
                }
            }
        });
    });
    check(request, nodes)?;
    marks.push(("copy ahead", Instant::now()));
    watched(request, stop, || {
        std::thread::scope(|scope| {
            scope.spawn(request.settle);
            parallel(nodes, Working::tell);
        });
        // As the last, for what is written from here on is copied in the freeze.
        parallel(nodes, |node| node.copy_ahead(request.plant, until));
    });
    check(request, nodes)?;
    let predicted = fit(request, nodes, until)?;
    watched(request, stop, || {
        parallel(nodes, |node| node.ready(request.plant, until));
    });
    check(request, nodes)?;
    // The node with most to do is waited for; on few processors all would have the same share of them.
    let mut works: Vec<_> = nodes
        .iter()
        .map(|node| node.forecast().map(Work::time))
        .enumerate()
        .collect();
    works.sort_by_key(|(_, work)| std::cmp::Reverse(*work));
    let longest = works.first().and_then(|(longest, _)| nodes.get(*longest));
    if let Some(dump) = longest.and_then(|node| node.dump.as_ref()) {
        dump.go_first();
    }
    marks.push(("settle", Instant::now()));
    Ok(Ahead {
        predicted,
        order: works.into_iter().map(|(at, _)| at).collect(),
        marks,
    })
}

/// The freeze, from `begun` on.
fn stand_still(
    request: &CutRequest<'_>,
    nodes: &mut [Working],
    stop: &AtomicBool,
    snapshot: &(dyn Fn() -> Result<(), Foreign> + Sync),
    (ahead, begun): (Ahead, Instant),
) -> Result<Run, CutError> {
    let Ahead {
        predicted,
        order,
        mut marks,
    } = ahead;
    let first = First::begin();
    let max = request.max_freeze + MARGIN;
    let frozen = parallel(nodes, |node| {
        node.told = Some(Instant::now());
        let lease = request
            .freezer
            .freeze(&node.node.node, max)
            .map_err(|source| CutError::Freeze {
                node: node.node.node.clone(),
                source,
            })?;
        node.lease = Some(lease);
        node.frozen = Some(Instant::now());
        Ok(())
    });
    frozen.into_iter().collect::<Result<Vec<()>, CutError>>()?;
    let at = SystemTime::now();
    marks.push(("freeze", Instant::now()));
    let until = Until {
        deadline: begun + request.max_freeze,
        stop,
    };
    in_time(request, until, "freezing the nodes")?;

    let isolation = request
        .isolate
        .map(|i| i.isolate(max))
        .transpose()
        .map_err(CutError::Isolate)?;
    marks.push(("isolate", Instant::now()));

    // Before anything else wants the processors.
    for at in order {
        if let Some(node) = nodes.get_mut(at) {
            node.begin();
        }
    }
    let (mut dumped, mut snapshotted) = (Ok(()), Ok(()));
    watched(request, stop, || {
        std::thread::scope(|scope| {
            let usual = first.usual();
            let snapshotting = scope.spawn(move || {
                // Half of it is waiting for the disk.
                usual.take();
                snapshot()
            });
            parallel(nodes, |node| {
                let (Some(dump), Some(began)) = (
                    node.dump.as_mut().filter(|_| node.why.is_none()),
                    node.began,
                ) else {
                    return;
                };
                let taken = dump.take(&node.node.container, until);
                node.dump_time = began.elapsed();
                match taken {
                    Ok(taken) => node.taken = taken,
                    Err(why) => return node.give_up(why),
                }
                // Its freezer keeps it, while others still have CRIU's attention. Named files go when CRIU does.
                if !node.has_named_files() {
                    node.let_go(until);
                }
            });
            marks.push(("dump", Instant::now()));
            dumped = in_time(request, until, "taking the memory");
            snapshotted = snapshotting
                .join()
                .unwrap_or_else(|_| Err("taking the snapshots panicked".into()));
        });
    });
    dumped?;
    for node in nodes.iter_mut() {
        if node.why.is_some()
            && let Some(dump) = node.dump.take()
        {
            dump.finish();
        }
        // CRIU writes the cgroup back to frozen before it lets go. When it could not, the node has been running.
        if !node.is_held() {
            return Err(CutError::Loose {
                node: node.node.node.clone(),
                why: node.why.as_ref().map(CriuError::chain),
            });
        }
    }
    check(request, nodes)?;

    if nodes.iter().any(Working::has_named_files) {
        snapshotted = snapshot();
    }
    snapshotted.map_err(CutError::Snapshot)?;
    marks.push(("snapshot", Instant::now()));
    in_time(request, until, "snapshotting the disks")?;

    if let Some(isolation) = isolation {
        isolation.end().map_err(CutError::Isolate)?;
    }
    let until = Until {
        deadline: (begun + request.max_freeze).max(Instant::now() + Duration::from_secs(1)),
        stop,
    };
    let thawed = parallel(nodes, |node| {
        node.let_go(until);
        node.thaw()
    });
    marks.push(("thaw", Instant::now()));
    thawed.into_iter().collect::<Result<Vec<()>, _>>()?;
    check(request, nodes)?;
    Ok(Run {
        at,
        predicted,
        marks,
    })
}

/// Goes on copying until the freeze will be as short as it has to; what it will be. Where that cannot be reached, nodes are left without
/// their memory, the largest first, or, if somebody insists, nothing is done at all.
fn fit(
    request: &CutRequest<'_>,
    nodes: &mut [Working],
    until: Until<'_>,
) -> Result<Duration, CutError> {
    let bound = request.max_freeze;
    let mut before = Duration::MAX;
    loop {
        let predicted = forecast(nodes);
        if predicted <= bound {
            return Ok(predicted);
        }
        let shrinks = predicted < before / 100 * SHRINKS;
        before = predicted;
        if shrinks {
            watched(request, until.stop, || {
                parallel(nodes, |node| node.copy_ahead(request.plant, until));
            });
            check(request, nodes)?;
            continue;
        }
        let live = nodes.iter_mut().filter(|node| node.is_live());
        let Some(largest) = live.max_by_key(|node| node.forecast().map(|work| work.bytes)) else {
            // its bound will be looked at while it lasts
            return Ok(predicted);
        };
        if request.insist == Insist::OnLive {
            return Err(CutError::TooLong { predicted, bound });
        }
        largest.give_up(CriuError::TooMuch { predicted, bound });
    }
}

fn forecast(nodes: &[Working]) -> Duration {
    forecast::here(nodes.iter().filter_map(Working::forecast))
}

/// Fails when somebody insists on memory that cannot be taken, or wants no cut any more.
fn check(request: &CutRequest<'_>, nodes: &mut [Working]) -> Result<(), CutError> {
    if (request.cancelled)() {
        return Err(CutError::Cancelled);
    }
    if request.insist == Insist::No {
        return Ok(());
    }
    for node in nodes {
        if let Some(source) = node.why.take() {
            return Err(CutError::NotCheckpointable {
                node: node.node.node.clone(),
                source,
            });
        }
    }
    Ok(())
}

fn finish(request: &CutRequest<'_>, nodes: Vec<Working>, run: Run) -> Result<CutReport, CutError> {
    let mut nodes: Vec<(Working, CutNodeReport)> = nodes
        .into_iter()
        .map(|n| {
            let r = n.report();
            (n, r)
        })
        .collect();
    let completed = parallel(&mut nodes, |(working, report)| {
        let (Rung::Live, Some(mut done)) = (report.rung, working.done.take()) else {
            let _ = fs::remove_dir_all(&working.node.images);
            return Ok(());
        };
        let summary =
            dump::complete(&working.node, &mut done).map_err(|source| CutError::Prepare {
                node: report.node.clone(),
                source,
            })?;
        let by_criu = memory::written(&summary.stats);
        report.memory_bytes = by_criu.saturating_add(working.taken.all);
        report.frozen_bytes = by_criu.saturating_add(working.taken.frozen);
        report.processes = summary.processes;
        report.paused = done.paused;
        report.memory = Some(done.how);
        report.stages = done.stages.finish(&summary.stats);
        Ok(())
    });
    completed
        .into_iter()
        .collect::<Result<Vec<()>, CutError>>()?;
    let mut marks = run.marks;
    marks.push(("complete images", Instant::now()));
    let first = |times: &dyn Fn(&Working) -> Option<Instant>| {
        nodes.iter().filter_map(|(n, _)| times(n)).min()
    };
    let last = |times: &dyn Fn(&Working) -> Option<Instant>| {
        nodes.iter().filter_map(|(n, _)| times(n)).max()
    };
    let span = |from: Option<Instant>, to: Option<Instant>| {
        from.zip(to).map_or(Duration::ZERO, |(from, to)| {
            to.saturating_duration_since(from)
        })
    };
    tracing::debug!(nodes = request.nodes.len(), "cut");
    let freeze = span(first(&|n| n.told), last(&|n| n.thawed));
    if nodes.iter().any(|(_, report)| report.rung == Rung::Live) {
        forecast::learn(run.predicted, freeze);
    }
    Ok(CutReport {
        at: run.at,
        freeze,
        predicted: run.predicted,
        skew: span(first(&|n| n.frozen), last(&|n| n.frozen)),
        parts: marks
            .windows(2)
            .filter_map(|pair| match pair {
                [(_, from), (what, to)] => Some(Timing {
                    what: (*what).to_owned(),
                    us: u64::try_from(to.saturating_duration_since(*from).as_micros())
                        .unwrap_or(u64::MAX),
                }),
                _ => None,
            })
            .collect(),
        nodes: nodes.into_iter().map(|(_, report)| report).collect(),
    })
}
