//! `offshoot-shim node`: starts one node, stays beside it, writes how it ended.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use offshoot_model::{Code, Problem};
use offshoot_runtime::cgroup::{Hierarchies, NodeCgroup};
use offshoot_runtime::config::{CRIU_CONFIG, CRIU_CONFIG_TEXT, Layout, hard_limits, oci_config};
use offshoot_runtime::control::EXIT_FILE;
use offshoot_runtime::files::{prepare_covered_dir, write_atomic, write_into_rootfs};
use offshoot_runtime::runc::{Runc, criu_errors};
use offshoot_runtime::{ExitRecord, NodeSpec, Result, RuntimeError, Start};
use offshoot_sys::process::{self, Ended, Process, Side, Visit};
use offshoot_sys::{merge, preload};

use crate::late::{Late, hold};
use crate::mounts::Images;
use crate::shared::Shared;
use crate::stdio::NodeEnds;
use crate::{control, hook, mounts, stdio};

/// Bound on `runc create` and `runc start`.
const CREATE_MAX: Duration = Duration::from_secs(40);
/// Bound on `runc restore`, which reads the node's memory.
const RESTORE_MAX: Duration = Duration::from_secs(590);
/// How long runc's process may take to become the node's program.
const PROGRAM_MAX: Duration = Duration::from_secs(5);
/// How long the log may take to be written after the node's end.
const LOG_MAX: Duration = Duration::from_secs(5);
/// How long those who wait for the node's end may take to be told.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// Runs the node described by the file `spec`. Returns in the process that was started at once; the one that goes on in the background
/// says on standard output that the node runs (`ready`), or why not (a problem as JSON).
pub(crate) fn run(spec: &Path) -> anyhow::Result<()> {
    let spec = NodeSpec::read(spec)?;
    if process::fork_to_background().context("go to the background")? == Side::Foreground {
        return Ok(());
    }
    let mut answer = File::from(process::take_stdout().context("take standard output")?);
    match start(spec) {
        Ok(node) => {
            // Whoever started this may be gone.
            let _ = answer.write_all(b"ready\n");
            drop(answer);
            node.accompany();
            Ok(())
        }
        Err(problem) => {
            let _ = answer.write_all(&serde_json::to_vec(&problem).unwrap_or_default());
            anyhow::bail!("{problem}: {}", problem.details.join("; "));
        }
    }
}

/// A node that runs.
struct Running {
    shared: Arc<Shared>,
    runc: Runc,
    main: Arc<Process>,
    pumps: Vec<JoinHandle<()>>,
    _lock: File,
}

fn start(spec: NodeSpec) -> std::result::Result<Running, Problem> {
    let lock = lock(&spec.run_dir).map_err(|e| e.problem())?;
    process::adopt_orphans().map_err(|e| RuntimeError::doing("adopt orphans", e).problem())?;
    offshoot_sys::mount::own_mount_namespace()
        .map_err(|e| RuntimeError::doing("make a mount namespace", e).problem())?;
    let cgroup = NodeCgroup::new(
        Hierarchies::of_host().map_err(|e| e.problem())?,
        &spec.instance,
        &spec.node,
    );
    let runc = Runc::new(&spec.tools, &spec.run_dir);
    let shared = Arc::new(Shared::new(spec, cgroup));
    control::serve(Arc::clone(&shared)).map_err(|e| e.problem())?;
    match create(&shared, &runc) {
        Ok((main, pumps)) => {
            shared.running(Arc::clone(&main));
            Ok(Running {
                shared,
                runc,
                main,
                pumps,
                _lock: lock,
            })
        }
        Err(problem) => {
            clean_up(&shared, &runc);
            shared.failed(problem.clone());
            shared.settle(SETTLE_MAX);
            Err(problem)
        }
    }
}

/// Holds the node's directory against a second shim.
fn lock(run_dir: &Path) -> Result<File> {
    let path = run_dir.join("shim.lock");
    let file = File::create(&path).map_err(|e| RuntimeError::io("make", &path, e))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| RuntimeError::io("lock (does another shim run?)", &path, e))?;
    Ok(file)
}

type Created = (Arc<Process>, Vec<JoinHandle<()>>);

fn create(shared: &Arc<Shared>, runc: &Runc) -> std::result::Result<Created, Problem> {
    let spec = &shared.spec;
    let code = match spec.start {
        Start::Fresh => Code::StartFailed,
        Start::Restore { .. } => Code::RestoreFailed,
    };
    let problem = |e: RuntimeError| e.problem_as(code);
    offshoot_runtime::forget_exit(&spec.run_dir).map_err(problem)?;
    let layout = Layout::of(spec);
    let (config, warnings) = oci_config(spec, &hard_limits()).map_err(problem)?;
    shared.warn(warnings);
    write_into_rootfs(&spec.rootfs, &layout.written).map_err(problem)?;
    if spec.init && spec.start == Start::Fresh {
        write_into_rootfs(
            &spec.rootfs,
            [&offshoot_runtime::init_file().map_err(problem)?],
        )
        .map_err(problem)?;
    }
    for tmpfs in &spec.tmpfs {
        let over_volume = spec
            .binds
            .iter()
            .any(|bind| Path::new(&tmpfs.target).starts_with(&bind.target));
        if let (Some(mode), false) = (tmpfs.mode, over_volume) {
            prepare_covered_dir(&spec.rootfs, &tmpfs.target, mode).map_err(problem)?;
        }
    }
    mounts::prepare(spec, &layout).map_err(problem)?;
    mounts::forget_others(spec, &layout, Images::Needed);
    let bundle = spec.run_dir.join("bundle");
    fs::create_dir_all(&bundle).map_err(|e| problem(RuntimeError::io("make", &bundle, e)))?;
    write_atomic(&bundle.join("config.json"), config.to_string().as_bytes()).map_err(problem)?;
    write_atomic(&spec.run_dir.join(CRIU_CONFIG), CRIU_CONFIG_TEXT.as_bytes()).map_err(problem)?;
    shared.cgroup.ensure().map_err(problem)?;
    let (ends, pumps) = stdio::open(spec).map_err(problem)?;
    let main = match &spec.start {
        Start::Fresh => fresh(shared, runc, &bundle, ends),
        Start::Restore { images } => restore(shared, runc, &bundle, images, ends),
    }?;
    if spec.start != Start::Fresh {
        mounts::forget_others(spec, &layout, Images::Done);
    }
    Ok((Arc::new(main), pumps))
}

fn fresh(
    shared: &Shared,
    runc: &Runc,
    bundle: &Path,
    ends: NodeEnds,
) -> std::result::Result<Process, Problem> {
    let spec = &shared.spec;
    let id = spec.node.to_string();
    let pid_file = spec.run_dir.join("pid");
    let mut command = runc.command(["create"]);
    command
        .arg("--bundle")
        .arg(bundle)
        .arg("--pid-file")
        .arg(&pid_file)
        .arg(&id);
    give(&mut command, spec, ends);
    let create = || runc.run(command, CREATE_MAX).map_err(|e| e.problem());
    making_network(spec, create)?;
    let main = main_process(&pid_file).map_err(|e| e.problem())?;
    hook::connect(main.pid(), spec.link.as_ref()).map_err(network_problem)?;
    hold_jobs(shared, &main);
    let before = process::arguments(main.pid()).unwrap_or_default();
    runc.run(runc.command(["start", &id]), CREATE_MAX)
        .map_err(|e| e.problem())?;
    wait_program(&main, &before);
    Ok(main)
}

/// Holds the node's jobs, if that is asked for, before its first program runs or goes on.
fn hold_jobs(shared: &Shared, main: &Process) {
    if !shared.spec.hold_jobs {
        return;
    }
    if let Err(e) = shared.jobs.hold(&shared.spec, main.pid()) {
        let cause = std::error::Error::source(&e).map(|e| format!(": {e}"));
        let why = format!("{e}{}", cause.unwrap_or_default());
        shared.warn(vec![format!(
            "schedulers that start in the node are not held: {why}"
        )]);
        tracing::error!(why, "schedulers that start are not held");
    }
}

/// Waits until runc's own process became the node's program: `runc start` does not wait for that, and a node that is said to run is
/// one that can be looked into and frozen. An end is as good: it is seen where ends are seen.
fn wait_program(main: &Process, before: &[Vec<u8>]) {
    let deadline = Instant::now() + PROGRAM_MAX;
    while Instant::now() < deadline && process::arguments(main.pid()).is_ok_and(|now| now == before)
    {
        if main
            .wait_end(Some(Duration::from_micros(200)))
            .unwrap_or(true)
        {
            return;
        }
    }
}

fn restore(
    shared: &Arc<Shared>,
    runc: &Runc,
    bundle: &Path,
    images: &Path,
    ends: NodeEnds,
) -> std::result::Result<Process, Problem> {
    let spec = &shared.spec;
    let problem = |e: RuntimeError| e.problem_as(Code::RestoreFailed);
    let late = Late::prepare(spec, images).map_err(problem)?;
    if late.is_some() || spec.hold_jobs {
        hold::prepare(spec).map_err(problem)?;
    }
    let work = spec.run_dir.join("criu");
    fs::create_dir_all(&work).map_err(|e| problem(RuntimeError::io("make", &work, e)))?;
    let pid_file = spec.run_dir.join("pid");
    let mut command = runc.command(["restore", "--detach"]);
    command
        .arg("--bundle")
        .arg(bundle)
        .arg("--image-path")
        .arg(images)
        .arg("--work-path")
        .arg(&work);
    command.args(["--tcp-established", "--ext-unix-sk", "--file-locks"]);
    // The network is the hook's, the cgroups are runc's: CRIU restores neither. runc 1.1 does not know `ignore` and passes over it.
    command.args(["--empty-ns", "network", "--manage-cgroups-mode", "ignore"]);
    command
        .arg("--pid-file")
        .arg(&pid_file)
        .arg(spec.node.to_string());
    hurry(&mut command, spec).map_err(problem)?;
    give(&mut command, spec, ends);
    making_network(spec, || {
        runc.run_restore(command, RESTORE_MAX).map_err(|e| {
            let problem = problem(e);
            criu_errors(&work.join("restore.log"))
                .into_iter()
                .fold(problem, Problem::detail)
        })
    })?;
    let main = main_process(&pid_file).map_err(problem)?;
    // The images hold the parent's.
    process::visit(main.pid(), Visit::HostName, || {
        process::set_hostname(&spec.hostname)
    })
    .map_err(|e| {
        problem(RuntimeError::doing(
            format!("set the host name {}", spec.hostname),
            e,
        ))
    })?;
    hold_jobs(shared, &main);
    if let Some(late) = late {
        late.begin(shared).map_err(problem)?;
    }
    if spec.hold_jobs {
        // What a process that went on at once has started since.
        shared.jobs.stop_all(&shared.cgroup);
    }
    Ok(main)
}

/// Spares CRIU, which runc starts, some of its work.
fn hurry(command: &mut Command, spec: &NodeSpec) -> Result<()> {
    if preload::CRIU.is_empty() {
        return Ok(());
    }
    let object = spec.run_dir.join("criu.so");
    write_atomic(&object, preload::CRIU)?;
    command.env("LD_PRELOAD", object);
    command.env("OFFSHOOT_STAGE", hold::STAGE);
    if let Some(kernel) = &spec.tools.criu_kernel {
        command.env("OFFSHOOT_KERNEL", kernel);
    }
    Ok(())
}

/// Does what makes the node's network namespace, where that is to be made.
fn making_network(
    spec: &NodeSpec,
    work: impl FnOnce() -> std::result::Result<(), Problem> + Send,
) -> std::result::Result<(), Problem> {
    match &spec.link {
        Some(link) => {
            offshoot_network::beside_router(link, work).map_err(|e| network_problem(e.into()))?
        }
        None => work(),
    }
}

/// Gives runc what it hands on to the node's processes, also through CRIU: the node's ends of its pipes, and whether equal memory may be
/// kept once.
fn give(command: &mut Command, spec: &NodeSpec, ends: NodeEnds) {
    if spec.share_memory {
        merge::allow(command);
    }
    let stdio = |end: OwnedFd| Stdio::from(end);
    command
        .stdin(stdio(ends.stdin))
        .stdout(stdio(ends.stdout))
        .stderr(stdio(ends.stderr));
}

fn main_process(pid_file: &PathBuf) -> Result<Process> {
    let text = fs::read_to_string(pid_file).map_err(|e| RuntimeError::io("read", pid_file, e))?;
    let pid: i32 = text
        .trim()
        .parse()
        .map_err(|_| RuntimeError::spec(format!("runc wrote the pid {text:?}")))?;
    Process::open(pid).map_err(|e| RuntimeError::doing(format!("hold the node's process {pid}"), e))
}

fn network_problem(error: anyhow::Error) -> Problem {
    match error.downcast_ref::<offshoot_network::NetworkError>() {
        Some(network) => network.problem(),
        None => Problem::new(
            Code::NetworkFailed,
            offshoot_model::Fault::Host,
            format!("cannot connect the node: {error:#}"),
            "look at the details, put the host right, try again",
        ),
    }
}

impl Running {
    /// Stays until the main process ended, then writes how and cleans up.
    fn accompany(self) {
        let ended = self.main.reap().unwrap_or_else(|e| {
            tracing::error!(error = %e, "waiting for the main process");
            Ended::Signaled(9)
        });
        let at = Timestamp::now();
        let signal = match ended {
            Ended::Exited(_) => None,
            Ended::Signaled(signal) => Some(signal),
        };
        let out_of_memory = self.shared.cgroup.oom_kills() > 0;
        // Sessions end with the PID namespace; this waits for them, so that the log is complete.
        if let Err(e) = self.shared.cgroup.kill() {
            tracing::error!(error = %e, "ending what the main process left");
        }
        let deadline = Instant::now() + LOG_MAX;
        while !self.pumps.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // The page source sees the end by itself.
        let _ = self.shared.wait_memory(SETTLE_MAX);
        let record = ExitRecord {
            status: ended.status(),
            signal,
            out_of_memory,
            memory_lost: self.shared.is_memory_lost(),
            at,
        };
        let written = serde_json::to_vec(&record).map_err(|e| RuntimeError::spec(e.to_string()));
        if let Err(e) =
            written.and_then(|text| write_atomic(&self.shared.spec.run_dir.join(EXIT_FILE), &text))
        {
            tracing::error!(error = %e, "writing how the node ended");
        }
        clean_up(&self.shared, &self.runc);
        self.shared.ended(record);
        self.shared.settle(SETTLE_MAX);
        let _ = fs::remove_file(
            self.shared
                .spec
                .run_dir
                .join(offshoot_runtime::control::SOCKET_FILE),
        );
    }
}

/// Removes the container and its cgroups; mounts go with this process.
fn clean_up(shared: &Shared, runc: &Runc) {
    if let Err(e) = shared.cgroup.kill() {
        tracing::error!(error = %e, "killing what is left");
    }
    if let Err(e) = runc.delete(&shared.spec.node.to_string()) {
        tracing::error!(error = %e, "removing the container");
    }
    if let Err(left) = shared.cgroup.remove() {
        tracing::error!(?left, "removing the cgroups");
    }
}
