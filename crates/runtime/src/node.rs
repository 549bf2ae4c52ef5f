//! Starting and removing nodes.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use offshoot_model::{NodeId, Problem};
use offshoot_sys::process;

use crate::cgroup::{Hierarchies, NodeCgroup};
use crate::client::{NodeClient, observe};
use crate::control::{EXIT_FILE, RunState};
use crate::error::{Result, RuntimeError};
use crate::files::{ensure_passable, write_atomic};
use crate::runc::Runc;
use crate::spec::{NodeSpec, SPEC_FILE, Start, Tools};

/// Bound on a fresh start.
const START_MAX: Duration = Duration::from_secs(60);
/// Bound on a restore, which reads the node's memory.
const RESTORE_MAX: Duration = Duration::from_secs(600);
/// How long a shim whose node was killed has to end by itself.
const SHIM_END_MAX: Duration = Duration::from_secs(3);

/// Runs a node: starts its shim, which outlives the caller, and waits until the main process runs (or was restored). A node that
/// runs already is left alone; what an earlier run left is removed first.
///
/// # Errors
/// When the specification is wrong or the node does not start; nothing is left then.
pub fn ensure_node(spec: &NodeSpec) -> Result<NodeClient> {
    spec.check()?;
    let max = if matches!(spec.start, Start::Fresh) {
        START_MAX
    } else {
        RESTORE_MAX
    };
    if let Ok(client) = NodeClient::connect(&spec.run_dir) {
        match client.ready(max) {
            Ok(status) if matches!(status.state, RunState::Running | RunState::Frozen) => {
                return Ok(client);
            }
            // It ended or failed meanwhile: begin anew.
            Ok(_) | Err(RuntimeError::NotRunning { .. } | RuntimeError::Reported(_)) => {}
            Err(error) => return Err(error),
        }
    }
    ensure_node_removed(&spec.run_dir, &spec.node, &spec.instance, &spec.tools)?;
    ensure_passable(&spec.run_dir)?;
    let closed = process::first_closed_directory(&spec.run_dir)
        .map_err(|e| RuntimeError::io("look at", &spec.run_dir, e))?;
    if let Some(dir) = closed {
        let what = format!(
            "{} must be passable for every user (chmod o+x): nodes run as ordinary users",
            dir.display()
        );
        return Err(RuntimeError::spec(what));
    }
    fs::create_dir_all(&spec.log_dir).map_err(|e| RuntimeError::io("make", &spec.log_dir, e))?;
    let text = serde_json::to_vec(spec)
        .map_err(|e| RuntimeError::spec(format!("node {}: {e}", spec.node)))?;
    write_atomic(&spec.path(), &text)?;
    match start_shim(spec, max) {
        Ok(()) => Ok(NodeClient::connect(&spec.run_dir).or_else(|_| client_of_short_run(spec))?),
        Err(error) => {
            if let Err(left) =
                ensure_node_removed(&spec.run_dir, &spec.node, &spec.instance, &spec.tools)
            {
                tracing::warn!(node = %spec.node, error = %left, "a node that did not start could not be removed");
            }
            Err(error)
        }
    }
}

/// A main process that ended at once has no shim any more, but it did run.
fn client_of_short_run(spec: &NodeSpec) -> Result<NodeClient> {
    match observe(&spec.run_dir)?.state {
        RunState::Exited => Ok(NodeClient::of(&spec.run_dir)),
        _ => Err(RuntimeError::NotRunning {
            run_dir: spec.run_dir.clone(),
        }),
    }
}

/// Starts the shim and waits for its one line: empty when the node runs, a problem as JSON when not.
fn start_shim(spec: &NodeSpec, max: Duration) -> Result<()> {
    let log_path = spec.run_dir.join("shim.log");
    let log = fs::File::create(&log_path).map_err(|e| RuntimeError::io("make", &log_path, e))?;
    let mut command = Command::new(&spec.tools.shim);
    command.args(["node", "--spec"]).arg(spec.path());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .env_clear()
        .env("PATH", crate::user::DEFAULT_PATH);
    command.current_dir("/");
    let shim = spec.tools.shim.clone();
    let mut child = command
        .spawn()
        .map_err(|e| RuntimeError::io("run", &shim, e))?;
    // It forks into the background and this process ends at once; its stdout stays with the background until the node runs.
    let stdout = child.stdout.take();
    let status = crate::runc::wait_for(&mut child, Duration::from_secs(20))
        .map_err(|e| RuntimeError::io("wait for", &shim, e))?;
    if !status.is_some_and(|status| status.success()) {
        let _ = child.kill();
        let _ = child.wait();
        let said = fs::read_to_string(&log_path).unwrap_or_default();
        let stderr = crate::runc::tail(said.trim(), 4096).to_owned();
        let outcome = status.map_or("no end within 20 s".to_owned(), |status| status.to_string());
        return Err(RuntimeError::Command {
            command: format!("{} node", shim.display()),
            outcome,
            stderr,
        });
    }
    let Some(mut stdout) = stdout else {
        return Err(RuntimeError::spec("the shim has no stdout"));
    };
    let mut answer = Vec::new();
    let deadline = std::time::Instant::now() + max;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let readable = process::poll_readable(stdout.as_fd(), Some(left))
            .map_err(|e| RuntimeError::doing("wait for the shim", e))?;
        if !readable {
            return Err(RuntimeError::Timeout {
                what: format!("starting node {}", spec.node),
                after: max,
            });
        }
        let mut chunk = [0; 4096];
        match stdout
            .read(&mut chunk)
            .map_err(|e| RuntimeError::doing("read from the shim", e))?
        {
            0 => break,
            n => answer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
    }
    match answer.as_slice() {
        b"ready\n" => Ok(()),
        b"" => {
            let said = fs::read_to_string(&log_path).unwrap_or_default();
            Err(RuntimeError::Command {
                command: format!("{} node", shim.display()),
                outcome: "it ended without a word".into(),
                stderr: crate::runc::tail(said.trim(), 4096).to_owned(),
            })
        }
        text => match serde_json::from_slice::<Problem>(text) {
            Ok(problem) => Err(RuntimeError::Reported(Box::new(problem))),
            Err(_) => Err(RuntimeError::Protocol {
                run_dir: spec.run_dir.clone(),
                answer: String::from_utf8_lossy(text).into_owned(),
            }),
        },
    }
}

/// Removes a node, whatever is left of it: a shim without container, a container without shim, a frozen cgroup, runc's notes. Found by
/// its directory and its cgroup, never by name alone. What is not there is no error. Logs stay.
///
/// # Errors
/// [`RuntimeError::Remains`] with everything that could not be removed.
pub fn ensure_node_removed(
    run_dir: &Path,
    node: &NodeId,
    instance: &str,
    tools: &Tools,
) -> Result<()> {
    let mut left: Vec<String> = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            let cause = std::error::Error::source(&error)
                .map(|e| format!(": {e}"))
                .unwrap_or_default();
            left.push(format!("{error}{cause}"));
        }
    };
    let cgroup = NodeCgroup::new(Hierarchies::of_host()?, instance, node);
    // A runc that is still at work would go on making what is being removed.
    let helpers = processes_of(run_dir, Helper::Runc);
    note(kill_and_wait(&helpers));
    // First the node's processes: the shim sees their end, writes how, and ends by itself.
    note(cgroup.kill());
    let shims = processes_of(run_dir, Helper::Shim);
    if !shims
        .iter()
        .all(|shim| shim.wait_end(Some(SHIM_END_MAX)).unwrap_or(false))
    {
        note(kill_and_wait(&shims));
        // It may have been starting something.
        note(kill_and_wait(&processes_of(run_dir, Helper::Runc)));
        note(cgroup.kill());
    }
    note(Runc::new(tools, run_dir).delete(&node.to_string()));
    if let Err(dirs) = cgroup.remove() {
        left.extend(dirs);
    }
    let result = match fs::remove_dir_all(run_dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(format!("{}: {e}", run_dir.display())),
        Ok(()) => Ok(()),
    };
    left.extend(result.err());
    if left.is_empty() {
        Ok(())
    } else {
        Err(RuntimeError::Remains {
            node: node.to_string(),
            what: left,
        })
    }
}

/// Programs that work for a node on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Helper {
    /// `... node --spec <run_dir>/spec.json`, and its page source, which is called `memory`.
    Shim,
    /// `... --root <run_dir>/runc ...`
    Runc,
}

/// Processes whose arguments name `run_dir` as only a node's helper does.
fn processes_of(run_dir: &Path, helper: Helper) -> Vec<process::Process> {
    use std::os::unix::ffi::OsStrExt;
    let (flag, value) = match helper {
        Helper::Shim => (b"--spec".as_slice(), run_dir.join(SPEC_FILE)),
        Helper::Runc => (b"--root".as_slice(), run_dir.join("runc")),
    };
    let value = value.as_os_str().as_bytes();
    let is_helper = |arguments: &[Vec<u8>]| {
        let mode = arguments.get(1).map_or(b"".as_slice(), Vec::as_slice);
        let node = helper == Helper::Runc || [b"node".as_slice(), b"memory"].contains(&mode);
        node && arguments
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a == flag && b == value))
    };
    let me = std::process::id().cast_signed();
    let pids = process::all()
        .unwrap_or_default()
        .into_iter()
        .filter(|pid| *pid != me);
    pids.filter_map(|pid| {
        // Held first, looked at then: the number cannot come to mean another process in between.
        let held = process::Process::open(pid).ok()?;
        let arguments = process::arguments(pid).ok()?;
        is_helper(&arguments).then_some(held)
    })
    .collect()
}

fn kill_and_wait(processes: &[process::Process]) -> Result<()> {
    for process in processes {
        let _ = process.signal(rustix::process::Signal::KILL.as_raw());
    }
    for process in processes {
        let ended = process
            .wait_end(Some(SHIM_END_MAX))
            .map_err(|e| RuntimeError::doing("wait for a process", e))?;
        if !ended {
            let what = format!("killing process {}", process.pid());
            return Err(RuntimeError::Timeout {
                what,
                after: SHIM_END_MAX,
            });
        }
    }
    Ok(())
}

/// Forgets how an earlier run ended, so that the record seen is always of the last run.
///
/// # Errors
/// Of the file system.
pub fn forget_exit(run_dir: &Path) -> Result<()> {
    match fs::remove_file(run_dir.join(EXIT_FILE)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(RuntimeError::io("remove the exit record in", run_dir, e))
        }
        _ => Ok(()),
    }
}
