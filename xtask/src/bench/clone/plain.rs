//! Plain runc and CRIU: `runc checkpoint --leave-running` and then `runc restore`.
//!
//! The container is what `runc spec` gives by default, except: the host's network, no terminal, a control group that
//! can be removed. CRIU does not lock the network, in its favour.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::json;

use super::compare::{self, Place, bytes_in, criu_errors, with_criu};
use crate::commands::output;
use crate::instance::Instance;

const PREFIX: &str = "offshoot-bench-";
/// How long the kernel may take to end Redis: it gives back every page first.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// A running container; dropping it removes it and its files.
#[derive(Debug)]
pub(super) struct Runc(Place);

/// What `runc state` tells.
#[derive(Deserialize)]
struct State {
    /// The container's first process; 0 when it has ended.
    pid: u32,
}

impl Runc {
    /// Starts one from a root file system.
    pub(super) fn start(instance: &Instance, rootfs: &Path) -> anyhow::Result<Self> {
        let container = Self(Place::new(instance, PREFIX)?);
        let place = &container.0;
        place.make(rootfs)?;
        fs::write(
            place.directory.join("config.json"),
            serde_json::to_vec_pretty(&container.config())?,
        )?;
        output(
            container
                .runc()
                .args(["run", "--detach", "--bundle"])
                .arg(&place.directory)
                .arg(&place.id),
        )
        .with_context(|| container.messages("dump.log"))?;
        Ok(container)
    }

    /// Removes what a benchmark left that was killed.
    pub(super) fn sweep(instance: &Instance) {
        drop(
            Place::left_behind(instance, PREFIX)
                .into_iter()
                .map(Self)
                .collect::<Vec<_>>(),
        );
    }

    fn config(&self) -> serde_json::Value {
        let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true,
                "args": self.0.command(),
                "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            ],
            "annotations": {"org.criu.config": self.0.criu_conf()},
            "linux": {
                "cgroupsPath": format!("/{}", self.0.id),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            },
        })
    }

    fn runc(&self) -> Command {
        let mut runc = with_criu("runc");
        // its own descriptors would stay open in the container
        runc.stdout(Stdio::null()).stderr(Stdio::null());
        runc.arg("--root")
            .arg(self.0.run.join("runc"))
            .arg("--log")
            .arg(self.0.run.join("runc.log"));
        runc
    }

    /// Checkpoint or restore, with the images' place.
    fn criu(&self, arguments: &[&str]) -> Command {
        let images = self.0.run.join("checkpoint");
        let mut runc = self.runc();
        runc.args(arguments).arg("--tcp-established");
        runc.arg("--image-path")
            .arg(&images)
            .arg("--work-path")
            .arg(images);
        runc
    }

    fn state(&self) -> Option<State> {
        let text = output(
            self.runc()
                .stdout(Stdio::piped())
                .args(["state", &self.0.id]),
        )
        .ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Kills it, waits for its end and lets runc forget it. `runc delete --force` alone goes on while the process is
    /// still giving back its memory, and then its control group cannot be removed.
    fn delete(&self) -> anyhow::Result<()> {
        let Some(state) = self.state() else {
            // what is not there need not go
            return Ok(());
        };
        if state.pid != 0 {
            output(self.runc().args(["kill", &self.0.id, "KILL"]))?;
            let deadline = Instant::now() + END_TIMEOUT;
            while lives(state.pid) {
                if Instant::now() > deadline {
                    bail!("process {} of {} does not end", state.pid, self.0.id);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        output(self.runc().args(["delete", "--force", &self.0.id]))?;
        Ok(())
    }

    /// What runc and CRIU have to say about a failure.
    fn messages(&self, criu_log: &str) -> String {
        let runc = fs::read_to_string(self.0.run.join("runc.log")).unwrap_or_default();
        format!(
            "runc: {}; CRIU: {}",
            runc.lines().last().unwrap_or("nothing"),
            criu_errors(&self.0.run.join("checkpoint").join(criu_log))
        )
    }
}

/// Whether the process runs: one that has ended stays, without memory, until its parent asks for it.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // the state follows the name in brackets, proc_pid_stat(5)
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

impl compare::Container for Runc {
    fn address(&self) -> SocketAddr {
        self.0.address
    }

    fn checkpoint(&self) -> anyhow::Result<u64> {
        let images = self.0.run.join("checkpoint");
        fs::create_dir_all(&images)?;
        let mut checkpoint = self.criu(&["checkpoint", "--leave-running"]);
        output(checkpoint.arg(&self.0.id)).with_context(|| self.messages("dump.log"))?;
        bytes_in(&images)
    }

    fn end(&self) -> anyhow::Result<()> {
        self.delete()
    }

    fn restore(&self) -> anyhow::Result<()> {
        let mut restore = self.criu(&["restore", "--detach"]);
        restore
            .arg("--bundle")
            .arg(&self.0.directory)
            .arg(&self.0.id);
        output(&mut restore).with_context(|| self.messages("restore.log"))?;
        Ok(())
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        if let Err(error) = self.delete() {
            eprintln!("xtask: {} stays: {error:#}", self.0.id);
        }
        self.0.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_is_checkpointed_and_restored() {
        compare::tests::clones_and_leaves_nothing("/usr/sbin/runc", Runc::start, |runc| &runc.0.id);
    }

    #[test]
    fn ended_processes_do_not_live() {
        assert!(lives(std::process::id()));
        let mut child = Command::new("true").spawn().unwrap();
        let deadline = Instant::now() + END_TIMEOUT;
        while lives(child.id()) {
            assert!(Instant::now() < deadline, "a zombie counts as alive");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!lives(0));
    }
}
