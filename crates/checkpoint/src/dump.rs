//! Taking one node's memory with CRIU, in three steps: prepare (the node runs), take (it is frozen), let go.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use offshoot_model::clone::{Memory, MemoryWay};

use crate::container::Container;
use crate::cut::CutNode;
use crate::error::CriuError;
use crate::forecast::Work;
use crate::images::{self, Summary};
use crate::memory::{self, Late, NodeMemory, Plant, Taken, Watched};
use crate::predump::PreDump;
use crate::probe::Criu;
use crate::rpc::{CgroupMode, Kind, NetworkLock, Options, Request};
use crate::stages::Stages;
use crate::swrk::{Swrk, Until};

/// CRIU's log inside the folder of images.
pub(crate) const LOG: &str = "dump.log";
/// Errors and warnings: every further level costs milliseconds in the freeze.
pub(crate) const LOG_LEVEL: i32 = 2;
/// How long CRIU may take from its start until then, at least.
const START_TIME: Duration = Duration::from_secs(5);
/// The stage that it has by `offshoot_sys::preload`, where it is about to get hold of the processes.
const FREEZING: &str = "freezing";
/// What a pre-dump does.
const COPY_AHEAD: &str = "copy ahead";
/// CRIU's own time for getting hold of the processes, seconds.
pub(crate) const SEIZE_TIME: u32 = 2;

/// A CRIU that is taking a node's memory.
#[derive(Debug)]
pub(crate) struct Dump {
    criu: Criu,
    swrk: Swrk,
    /// Copies the private pages; `None`: CRIU does.
    memory: Option<NodeMemory>,
    /// What CRIU copied ahead, where it does.
    pre_dump: Option<PreDump>,
    /// How the memory is taken, in the end.
    how: Memory,
    stages: Stages,
    /// CRIU opens the folder through this descriptor of ours.
    images: File,
}

/// What a dump leaves.
#[derive(Debug)]
pub(crate) struct Finished {
    memory: Option<NodeMemory>,
    /// How the memory was taken.
    pub(crate) how: Memory,
    /// How long the node stood still by itself while memory was copied ahead.
    pub(crate) paused: Duration,
    /// Where the time went.
    pub(crate) stages: Stages,
}

impl Dump {
    /// Starts CRIU and copies memory ahead. Where a pre-dump does not go on from here, CRIU waits until it is about to touch the node for
    /// the first time.
    pub(crate) fn prepare(
        criu: &Criu,
        node: &CutNode,
        plant: &dyn Plant,
        late: Late,
        until: Until<'_>,
    ) -> Result<Self, CriuError> {
        let mut dump = Self::start(criu, node, late, node.memory.clone())?;
        let Some(pre_dump) = dump.pre_dump.as_mut() else {
            dump.ask(node, plant, until)?;
            return Ok(dump);
        };
        let pid = node.container.pid;
        if let Err(why) = pre_dump.copy_ahead(&mut dump.swrk, &node.images, pid, until) {
            dump.fall_back(node, plant, until, COPY_AHEAD, why)?;
        }
        Ok(dump)
    }

    fn start(criu: &Criu, node: &CutNode, late: Late, how: Memory) -> Result<Self, CriuError> {
        let io = |what: &str, source| CriuError::Image {
            path: node.images.clone(),
            what: what.to_owned(),
            source: Some(source),
        };
        fs::create_dir_all(&node.images).map_err(|e| io("cannot be created", e))?;
        let folder = File::open(&node.images).map_err(|e| io("cannot be opened", e))?;
        lay_tar(&node.images).map_err(|e| io("cannot be written to", e))?;
        let memory = match how.way {
            MemoryWay::Tracked => NodeMemory::new(&node.images, &node.node, late)
                .map_err(|e| io("cannot be written to", e))?,
            MemoryWay::PreDump | MemoryWay::Dump => None,
        };
        let preload = memory.as_ref().map(|memory| memory.preload(criu.kernel()));
        let swrk = Swrk::start(
            criu.path(),
            &node.images,
            &node.container.freezer,
            LOG,
            Some(node.container.pid),
            preload.as_ref(),
        )?;
        Ok(Self {
            criu: criu.clone(),
            swrk,
            memory,
            pre_dump: (how.way == MemoryWay::PreDump).then(PreDump::default),
            how,
            stages: Stages::default(),
            images: folder,
        })
    }

    /// Asks CRIU for the dump, copies ahead meanwhile, and waits until CRIU is about to touch the node.
    fn ask(
        &mut self,
        node: &CutNode,
        plant: &dyn Plant,
        until: Until<'_>,
    ) -> Result<(), CriuError> {
        let container = &node.container;
        let mut options = options(container, &self.images)?;
        if let Some(pre_dump) = &self.pre_dump {
            pre_dump.build_on(&mut options);
        }
        self.swrk.send(&Request {
            kind: Kind::Dump as i32,
            opts: Some(options),
            notify_success: None,
        })?;
        // CRIU probes the kernel meanwhile
        let bytes = self.forecast(container).bytes;
        if let Some(memory) = self.memory.as_mut() {
            memory.copy_ahead(container, plant, &|| !until.stop.load(Ordering::Relaxed))?;
        } else if let Err(error) = memory::warm(&node.images, bytes) {
            tracing::debug!(%error, "no memory was made ready"); // then it costs time in the freeze
        }
        let deadline = until.deadline.max(Instant::now() + START_TIME);
        let until = Until { deadline, ..until };
        self.swrk.wait_stage("pre-dump", until)?;
        if self.memory.is_some() {
            // Some of what it does now needs no frozen node either.
            self.swrk.go_on()?;
            if let Err(why) = self.swrk.next_stage(FREEZING, until) {
                return self.fall_back(node, plant, until, "be held before the freeze", why);
            }
        }
        Ok(())
    }

    /// After CRIU could not do `what`: begins again in the way for which it need not.
    fn fall_back(
        &mut self,
        node: &CutNode,
        plant: &dyn Plant,
        until: Until<'_>,
        what: &str,
        why: CriuError,
    ) -> Result<(), CriuError> {
        if until.stop.load(Ordering::Relaxed) {
            return Err(why);
        }
        let why = format!("CRIU could not {what}: {}", why.chain());
        tracing::info!(node = node.node, why, "its memory is copied in the freeze");
        self.swrk.abort();
        let reasons: Vec<String> = [Some(why), self.how.why.take()]
            .into_iter()
            .flatten()
            .collect();
        let how = Memory {
            way: MemoryWay::Dump,
            why: Some(reasons.join("; ")),
        };
        if let Some(pre_dump) = self.pre_dump.take() {
            pre_dump.forget(&node.images);
        }
        let fresh = Self::start(&self.criu, node, Late::Never, how)?;
        std::mem::replace(self, fresh).swrk.finish();
        self.ask(node, plant, until)
    }

    /// The last thing before the freeze: no more is copied ahead, and CRIU is about to touch the node.
    pub(crate) fn ready(
        &mut self,
        node: &CutNode,
        plant: &dyn Plant,
        until: Until<'_>,
    ) -> Result<(), CriuError> {
        match self.pre_dump {
            Some(_) => self.ask(node, plant, until),
            None => Ok(()),
        }
    }

    /// Writes down for CRIU what it would ask for in the freeze.
    pub(crate) fn tell(&mut self, container: &Container) -> Result<(), CriuError> {
        self.memory
            .as_mut()
            .map_or(Ok(()), |memory| memory.tell(container))
    }

    /// Copies once more what changed, while the node runs: the less is left for the freeze.
    pub(crate) fn copy_ahead(
        &mut self,
        node: &CutNode,
        plant: &dyn Plant,
        until: Until<'_>,
    ) -> Result<(), CriuError> {
        let wanted = || !until.stop.load(Ordering::Relaxed);
        let container = &node.container;
        if let Some(memory) = self.memory.as_mut() {
            memory.copy_ahead(container, plant, &wanted)?;
        }
        if let Some(pre_dump) = self.pre_dump.as_mut()
            && let Err(why) = pre_dump.round(&mut self.swrk, &node.images, container.pid, until)
        {
            self.fall_back(node, plant, until, COPY_AHEAD, why)?;
        }
        Ok(())
    }

    /// What will have to be done if the node is frozen now.
    pub(crate) fn forecast(&self, container: &Container) -> Work {
        let processes = container.processes();
        Work {
            processes: u32::try_from(processes.len()).unwrap_or(u32::MAX),
            bytes: match (&self.memory, &self.pre_dump) {
                (Some(memory), _) => memory.expected(),
                (None, Some(pre_dump)) => pre_dump.expected(),
                (None, None) => memory::resident(&processes),
            },
        }
    }

    /// The others will wait for this one.
    pub(crate) fn go_first(&self) {
        self.swrk.go_first();
    }

    /// Lets CRIU begin with the frozen node.
    pub(crate) fn begin(&mut self) -> Result<(), CriuError> {
        self.swrk.go_on()
    }

    /// Takes the memory of the frozen node, which CRIU has begun with and holds by ptrace afterwards.
    pub(crate) fn take(
        &mut self,
        container: &Container,
        until: Until<'_>,
    ) -> Result<Taken, CriuError> {
        let begun = Instant::now();
        if let Some(memory) = self.memory.as_mut() {
            memory.correct(container)?;
        }
        // It has stopped all processes and asks on; only then is there time for anything else.
        self.swrk.wait_stage("query-ext-files", until)?;
        self.stages.seized(begun);
        let seized = Instant::now();
        self.swrk.go_on()?;
        let mut taken = Taken {
            all: self.pre_dump.as_ref().map_or(0, PreDump::written),
            frozen: 0,
        };
        if let Some(memory) = self.memory.as_mut() {
            let begun = Instant::now();
            taken.add(memory.take_shared(container)?);
            self.stages.add("shared memory", begun);
        }
        self.swrk.wait_stage("post-dump", until)?;
        self.stages.criu(seized);
        if let Some(memory) = self.memory.as_mut() {
            let begun = Instant::now();
            taken.add(memory.take(container)?);
            self.stages.add("changed pages", begun);
        }
        Ok(taken)
    }

    /// Lets the node's processes go; its cgroup is frozen again. Does nothing the second time.
    pub(crate) fn let_go(&mut self, until: Until<'_>) -> Result<(), CriuError> {
        if self.is_through() {
            return Ok(());
        }
        let begun = Instant::now();
        self.swrk.go_on()?;
        self.swrk.wait_answer(until)?;
        self.stages.add("letting go", begun);
        Ok(())
    }

    /// Whether CRIU holds nothing any more.
    pub(crate) fn is_through(&self) -> bool {
        self.swrk.is_through()
    }

    /// Makes CRIU let go, wherever it is. Does nothing when it has.
    pub(crate) fn abort(&mut self) {
        if !self.is_through() {
            self.swrk.abort();
        }
    }

    /// Ends what is left of CRIU, after the node was thawed. What was copied is handed on, and what is left of the tracking.
    pub(crate) fn finish(self) -> (Finished, Vec<Watched>) {
        self.swrk.finish();
        let mut memory = self.memory;
        let watched = memory.as_mut().map(NodeMemory::let_go);
        let held = memory.as_ref().map_or(Duration::ZERO, NodeMemory::held);
        let finished = Finished {
            memory,
            how: self.how,
            paused: self.pre_dump.map_or(held, |done| done.paused()),
            stages: self.stages,
        };
        (finished, watched.unwrap_or_default())
    }
}

/// The options of a dump. Those with a reason that is not in CRIU's manual say it.
fn options(container: &Container, images: &File) -> Result<Options, CriuError> {
    let mut options = Options {
        images_dir_fd: images.as_raw_fd(),
        pid: Some(container.pid),
        leave_running: Some(true),
        ext_unix_sk: Some(true),
        tcp_established: Some(true),
        // A connection that the kernel has made and nobody has accepted yet: busy servers always have some. The parent
        // accepts it after the thaw; in the clone its client would not be there.
        tcp_skip_in_flight: Some(true),
        evasive_devices: Some(true),
        shell_job: None,
        file_locks: Some(true),
        log_level: Some(LOG_LEVEL),
        log_file: Some(LOG.to_owned()),
        notify_scripts: Some(true),
        link_remap: Some(true),
        ext_mnt: container.external_mounts()?,
        // runc puts the clone into its own cgroups.
        manage_cgroups_mode: Some(CgroupMode::Ignore as i32),
        ghost_limit: None,
        freeze_cgroup: Some(container.freezer.to_string_lossy().into_owned()),
        timeout: Some(SEIZE_TIME),
        orphan_pts_master: Some(true),
        config_file: None,
        parent_img: None,
        track_mem: None,
        work_dir_fd: None,
        pre_dump_mode: None,
        // The nodes are isolated from each other at the bridge: CRIU's iptables rules cost 70 ms.
        network_lock: Some(NetworkLock::Skip as i32),
    };
    memory::set_options(&mut options);
    Ok(options)
}

/// CRIU archives every tmpfs with `tar --gzip`. Compressing is not for the freeze: so it finds this `tar` first, in its
/// working folder, and [`images::compress_tmpfs`] makes up for it. It runs as the container's root, who may read this file
/// but none of the folders above. When it cannot be executed (`noexec`), the real one is found next.
fn lay_tar(images: &Path) -> std::io::Result<()> {
    const SCRIPT: &str = "#!/bin/sh\nfor a do\n  shift\n  [ \"$a\" = --gzip ] || set -- \"$@\" \"$a\"\ndone\nPATH=${PATH#.:} exec tar \"$@\"\n";
    let path = images.join("tar");
    fs::write(&path, SCRIPT)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(images, fs::Permissions::from_mode(0o711))
}

/// Completes the images of a finished dump.
pub(crate) fn complete(node: &CutNode, done: &mut Finished) -> Result<Summary, CriuError> {
    for leftover in ["tar", "criu.stderr"] {
        let _ = fs::remove_file(node.images.join(leftover));
    }
    if let Some(memory) = done.memory.take() {
        memory.complete()?;
    }
    images::compress_tmpfs(&node.images)?;
    images::complete(&node.images, &node.container)
}
