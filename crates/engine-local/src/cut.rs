//! The cut, as this host does it: who freezes, who isolates, what is snapshotted, where memory goes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use offshoot_checkpoint::{
    Container, Criu, CutNode, CutNodeReport, CutReport, CutRequest, Foreign, Freezer, Insist,
    Isolate, Ladder, Late, Lease, Plant, Tracking, rewrite_ids,
};
use offshoot_engine::failpoint;
use offshoot_model::clone::NodeCloneReport;
use offshoot_model::manifest::VolumeClone;
use offshoot_model::{CloneReport, Code, EnvId, Environment, Fault, Problem, Rung};
use offshoot_network::{IsolationLease, PreparedIsolation, Router};
use offshoot_plan::NodePlan;
use offshoot_pool::{Pool, Subvolume};
use offshoot_runtime::{FreezeLease, NodeClient};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::disks::volume_subvolume;

/// Processes with less come with all of their memory: it is quicker than to prepare them for the rest.
const LATE_FROM: u64 = 32 << 20;
/// How long a cut waits for the memory of a node that is a fresh clone itself.
const MEMORY_MAX: Duration = Duration::from_secs(120);

/// Where the memory of the nodes of one clone is kept until it is restored.
pub(crate) fn images_of(cuts: &Path, clone: &EnvId, node: &str) -> PathBuf {
    cuts.join(clone.as_str()).join(node)
}

/// A file system in memory for the images: writing them to disk would be part of the freeze.
pub(crate) fn ensure_room_for_memory(cuts: &Path, clone: &EnvId) -> Result<(), Problem> {
    ensure_forgotten(cuts, clone)?;
    let dir = cuts.join(clone.as_str());
    let made = || {
        fs::create_dir_all(&dir)?;
        // 90 %: a cut that is larger than the memory has no chance anyway, and half (the default) is too early.
        rustix::mount::mount(
            "offshoot-cut",
            &dir,
            "tmpfs",
            // Not NOEXEC: CRIU runs a quick `tar` of ours from there.
            MountFlags::NOSUID | MountFlags::NODEV,
            c"size=90%,mode=0700",
        )
        .map_err(std::io::Error::from)
    };
    made().map_err(|e| {
        host(
            format!("no room for memory images at {}", dir.display()),
            &e,
        )
    })
}

/// Gives the memory back.
pub(crate) fn ensure_forgotten(cuts: &Path, clone: &EnvId) -> Result<(), Problem> {
    let dir = cuts.join(clone.as_str());
    while let Ok(()) = rustix::mount::unmount(&dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
    }
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(host(
            format!("memory images at {} cannot be removed", dir.display()),
            &e,
        )),
        _ => Ok(()),
    }
}

/// Clones whose memory images are still there.
pub(crate) fn remembered(cuts: &Path) -> Vec<EnvId> {
    let Ok(entries) = fs::read_dir(cuts) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn host(what: String, error: &std::io::Error) -> Problem {
    Problem::new(Code::HostUnfit, Fault::Host, what, "see `offshoot doctor`").caused_by(error)
}

/// What a cut works with.
pub(crate) struct Cutter<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) criu: Option<&'a Criu>,
    pub(crate) ladder: &'a Ladder,
    pub(crate) cuts: &'a Path,
    /// Run-time directory of a node.
    pub(crate) node_dir: &'a dyn Fn(&str) -> PathBuf,
    /// The container of a node that runs.
    pub(crate) container: &'a dyn Fn(&str) -> Result<Container, Problem>,
    /// Isolates the parent's nodes.
    pub(crate) router: Option<Router>,
    /// Gets at the memory of processes that run.
    pub(crate) plant: &'a dyn Plant,
    pub(crate) cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl Cutter<'_> {
    /// Cuts `parent` for `clone`. `plans` are corrected where a node's memory could not be taken. What is left of the tracking can be
    /// undone later.
    pub(crate) fn cut(
        self,
        parent: &Environment,
        clone: &Environment,
        mut plans: Vec<NodePlan>,
        max_freeze: Duration,
        insist: Insist,
    ) -> Result<(Vec<NodePlan>, CloneReport, Option<Tracking>), Problem> {
        let snapshots = self
            .pool
            .prepare_snapshots(&snapshots(parent, clone, &plans))
            .map_err(|e| e.problem())?;
        let snapshot = || -> Result<(), Foreign> {
            let _ = failpoint::reach("clone.cut.frozen");
            snapshots.take().map_err(|e| Box::new(e) as Foreign)
        };
        let mut running = Vec::new();
        for plan in plans
            .iter_mut()
            .filter(|plan| plan.rung != Rung::Stopped && plan.source == plan.node)
        {
            if plan.rung == Rung::Live && self.criu.is_none() {
                (plan.rung, plan.why) = (
                    Rung::Disk,
                    Some("no working CRIU was found; see `offshoot doctor`".into()),
                );
            }
            let images = images_of(self.cuts, &clone.id, &plan.node);
            if plan.rung == Rung::Live {
                fs::create_dir_all(&images)
                    .map_err(|e| host(format!("{} cannot be made", images.display()), &e))?;
            }
            if let Ok(container) = (self.container)(&plan.source) {
                running.push(CutNode {
                    node: plan.node.clone(),
                    container,
                    images,
                    rung: plan.rung,
                    memory: plan.memory.clone().unwrap_or_else(|| self.ladder.best()),
                });
            }
        }
        if running.is_empty() {
            snapshot().map_err(|e| snapshot_failed(&*e))?;
            snapshots.place().map_err(|e| e.problem())?;
            return Ok((
                plans,
                CloneReport {
                    cut: Some(Timestamp::now()),
                    ..CloneReport::default()
                },
                None,
            ));
        }
        let freezer = Freezers::of(running.iter().map(|node| node.node.as_str()), self.node_dir)?;
        freezer.wait_memory()?;
        let isolation = self.router.map(|router| Isolator {
            router,
            prepared: Mutex::default(),
        });
        let nobody = Criu::at(PathBuf::from("/nonexistent"));
        let request = CutRequest {
            criu: self.criu.unwrap_or(&nobody),
            nodes: running,
            freezer: &freezer,
            isolate: isolation.as_ref().map(|isolator| isolator as &dyn Isolate),
            max_freeze,
            insist,
            plant: self.plant,
            late: Late::From {
                bytes: LATE_FROM,
                held_max: max_freeze,
            },
            // What a busy database wrote since `prepare_cut` need not wait for the freeze.
            settle: &|| {
                if let Err(error) = self.pool.sync() {
                    tracing::warn!(%error, "the pool could not be synced before a cut");
                }
                if let Some(isolator) = &isolation {
                    isolator.prepare();
                }
            },
            cancelled: self.cancelled,
        };
        let (report, tracking) =
            offshoot_checkpoint::cut(request, &snapshot).map_err(|e| e.problem())?;
        snapshots.place().map_err(|e| e.problem())?;
        for plan in &mut plans {
            let Some(row) = report.nodes.iter().find(|row| row.node == plan.node) else {
                continue;
            };
            if plan.rung == Rung::Live && row.rung != Rung::Live {
                (plan.rung, plan.why) = (Rung::Disk, row.why.clone());
            }
            plan.memory.clone_from(&row.memory);
            if plan.rung == Rung::Live {
                let images = images_of(self.cuts, &clone.id, &plan.node);
                rewrite_ids(&images, clone.placement.id_base, clone.placement.id_count).map_err(
                    |e| {
                        Problem::internal("the images could not be given the clone's ids")
                            .caused_by(&e)
                    },
                )?;
            }
        }
        let report = picture(&report, &plans);
        Ok((plans, report, Some(tracking)))
    }
}

fn snapshot_failed(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Problem {
    Problem::new(
        Code::CutFailed,
        Fault::Host,
        "the disks could not be taken",
        "see `offshoot pool status`",
    )
    .caused_by(error)
}

/// Which subvolumes of the parent become which of the clone.
fn snapshots(
    parent: &Environment,
    clone: &Environment,
    plans: &[NodePlan],
) -> Vec<(Subvolume, Subvolume)> {
    let roots = plans
        .iter()
        .filter(|plan| plan.rung != Rung::Image)
        .filter_map(|plan| {
            let from = parent
                .nodes
                .iter()
                .find(|node| node.name() == plan.source)?;
            let to = clone.nodes.iter().find(|node| node.name() == plan.node)?;
            Some((
                Subvolume::Rootfs(from.id.clone()),
                Subvolume::Rootfs(to.id.clone()),
            ))
        });
    let copied = |name| {
        parent
            .manifest
            .volumes
            .get(name)
            .is_some_and(|spec| spec.clone == VolumeClone::Copy)
    };
    let volumes = parent
        .volumes
        .iter()
        .filter(|volume| copied(&volume.name))
        .filter_map(|from| {
            let to = clone.volumes.iter().find(|to| to.name == from.name)?;
            Some((volume_subvolume(from), volume_subvolume(to)))
        });
    roots.chain(volumes).collect()
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn picture(report: &CutReport, plans: &[NodePlan]) -> CloneReport {
    let row = |plan: &NodePlan| {
        let seen: Option<&CutNodeReport> = report.nodes.iter().find(|row| row.node == plan.node);
        NodeCloneReport {
            node: plan.node.clone(),
            rung: plan.rung,
            why: plan.why.clone(),
            memory: plan.memory.clone(),
            freeze_us: seen.map_or(0, |row| micros(row.freeze)),
            paused_us: seen.map_or(0, |row| micros(row.paused)),
            dump_us: seen.map_or(0, |row| micros(row.dump)),
            stages: seen.map_or_else(Vec::new, |row| row.stages.clone()),
            restore_us: 0,
            memory_bytes: seen.map_or(0, |row| row.memory_bytes),
            frozen_bytes: seen.map_or(0, |row| row.frozen_bytes),
            processes: seen.map_or(0, |row| row.processes),
        }
    };
    CloneReport {
        cut: Timestamp::try_from(report.at).ok(),
        freeze_us: micros(report.freeze),
        predicted_us: Some(micros(report.predicted)),
        skew_us: micros(report.skew),
        memory_bytes: report.nodes.iter().map(|row| row.memory_bytes).sum(),
        frozen_bytes: report.nodes.iter().map(|row| row.frozen_bytes).sum(),
        ready_us: None,
        parts: report.parts.clone(),
        nodes: plans.iter().map(row).collect(),
    }
}

/// The shims of the nodes, each of which freezes its own.
struct Freezers(HashMap<String, NodeClient>);

impl Freezers {
    fn of<'a>(
        nodes: impl Iterator<Item = &'a str>,
        node_dir: &dyn Fn(&str) -> PathBuf,
    ) -> Result<Self, Problem> {
        nodes
            .map(|node| {
                Ok((
                    node.to_owned(),
                    NodeClient::connect(&node_dir(node)).map_err(|e| e.problem())?,
                ))
            })
            .collect::<Result<_, Problem>>()
            .map(Self)
    }
}

impl Freezers {
    /// Waits until the memory of nodes that are fresh clones themselves is all there.
    fn wait_memory(&self) -> Result<(), Problem> {
        self.0
            .values()
            .try_for_each(|node| node.wait_memory(MEMORY_MAX).map_err(|e| e.problem()))
    }
}

impl Freezer for Freezers {
    fn freeze(&self, node: &str, max: Duration) -> Result<Box<dyn Lease>, Foreign> {
        let client = self
            .0
            .get(node)
            .ok_or_else(|| Foreign::from(format!("node {node} has no shim")))?;
        Ok(Box::new(Frozen(client.freeze(max)?)))
    }
}

struct Frozen(FreezeLease);

impl Lease for Frozen {
    fn end(self: Box<Self>) -> Result<(), Foreign> {
        self.0.thaw()?;
        Ok(())
    }
}

/// The router, which keeps the nodes apart.
struct Isolator {
    router: Router,
    prepared: Mutex<Option<PreparedIsolation>>,
}

impl Isolator {
    /// Does what can be done before the freeze, shortly before it: the router does not wait for long.
    fn prepare(&self) {
        match self.router.prepare_isolation() {
            Ok(prepared) => *self.lock() = Some(prepared),
            // then it is tried once more, and what is wrong is said
            Err(error) => tracing::warn!(%error, "isolation could not be prepared"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<PreparedIsolation>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Isolate for Isolator {
    fn isolate(&self, max: Duration) -> Result<Box<dyn Lease>, Foreign> {
        let prepared = self.lock().take().map(|prepared| prepared.isolate(max));
        let lease = match prepared {
            Some(Ok(lease)) => lease,
            // The router does not wait for long, and on a busy host it may have been too long.
            _ => self.router.isolate(max)?,
        };
        Ok(Box::new(Isolated(lease)))
    }
}

struct Isolated(IsolationLease);

impl Lease for Isolated {
    fn end(self: Box<Self>) -> Result<(), Foreign> {
        self.0.lift()?;
        Ok(())
    }
}
