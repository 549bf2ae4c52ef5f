//! Run by CRIU at a stage of a restore (its `action-script`), or at all of them: freezes the node before any of its processes goes on, where
//! memory comes late, or stops the schedulers in it, where jobs are held.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use offshoot_runtime::cgroup::{Hierarchies, NodeCgroup};
use offshoot_runtime::config::{CRIU_CONFIG, CRIU_CONFIG_TEXT};
use offshoot_runtime::files::write_atomic;
use offshoot_runtime::{NodeSpec, RuntimeError, SPEC_FILE, Start};
use offshoot_sys::process::Process;

use super::pages;
use crate::jobs;

/// Name of the link to this program in the node's directory: CRIU gives its script no arguments.
pub(crate) const NAME: &str = "criu-action";
/// The stage at which all processes are complete and still held by CRIU.
pub(crate) const STAGE: &str = "pre-resume";

/// Has CRIU run this in the restore of the node described by `spec`.
pub(crate) fn prepare(spec: &NodeSpec) -> offshoot_runtime::Result<()> {
    let link = spec.run_dir.join(NAME);
    let _ = std::fs::remove_file(&link);
    symlink(&spec.tools.shim, &link).map_err(|e| RuntimeError::io("make", &link, e))?;
    let config = format!("{CRIU_CONFIG_TEXT}action-script={}\n", link.display());
    write_atomic(&spec.run_dir.join(CRIU_CONFIG), config.as_bytes())
}

/// Acts as CRIU's script, called by the name `link`. CRIU goes on whatever becomes of this stage, so what cannot be held is killed.
pub(crate) fn run(link: &Path) -> ExitCode {
    if std::env::var("CRTOOLS_SCRIPT_ACTION").as_deref() != Ok(STAGE) {
        return ExitCode::SUCCESS;
    }
    let main = std::env::var("CRTOOLS_INIT_PID")
        .ok()
        .and_then(|pid| pid.parse().ok());
    let held = main
        .context("CRIU does not name the main process")
        .and_then(|main| hold(link, main));
    match held {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // To CRIU's log.
            eprintln!("offshoot-shim: the node cannot be held: {error:#}");
            // All of a PID namespace ends with its first process.
            if let Some(Err(e)) = main.map(|main| Process::open(main).and_then(|p| p.signal(9))) {
                eprintln!("offshoot-shim: nor killed: {e}");
            }
            ExitCode::FAILURE
        }
    }
}

fn hold(link: &Path, main: i32) -> Result<()> {
    let dir = link.parent().context("no directory")?;
    let spec = NodeSpec::read(&dir.join(SPEC_FILE))?;
    let cgroup = NodeCgroup::new(Hierarchies::of_host()?, &spec.instance, &spec.node);
    let late = match &spec.start {
        Start::Restore { images } => pages::are_there(images)?,
        Start::Fresh => false,
    };
    if !late {
        // CRIU holds each of them, and stops by itself those that were stopped before in the same way.
        jobs::stop(cgroup.processes());
        return Ok(());
    }
    // runc starts CRIU inside the node's cgroup. It and this process are no part of the node and have to go on.
    cgroup.move_guests(main)?;
    // They stand when CRIU has let go.
    Ok(cgroup.begin_freeze()?)
}
