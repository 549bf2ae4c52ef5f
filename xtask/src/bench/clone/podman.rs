//! Podman: `podman container checkpoint --leave-running` and then `podman container restore`.
//!
//! Its storage is in the benchmark's directories, so nothing of the host's Podman is touched.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::compare::{self, Place, bytes_in, criu_errors, with_criu};
use crate::commands::output;
use crate::instance::Instance;

const PREFIX: &str = "offshoot-podman-";

/// A running container; dropping it removes it and its files.
#[derive(Debug)]
pub(super) struct Podman(Place);

/// What this Podman calls itself, where there is one.
pub(super) fn version() -> Option<String> {
    let text = output(Command::new("podman").arg("--version")).ok()?;
    Some(text.trim().to_owned())
}

impl Podman {
    /// Starts one from a root file system.
    pub(super) fn start(instance: &Instance, rootfs: &Path) -> anyhow::Result<Self> {
        let container = Self(Place::new(instance, PREFIX)?);
        let place = &container.0;
        place.make(rootfs)?;
        let mut run = container.podman();
        run.args(["run", "--detach", "--network", "host", "--name", &place.id]);
        run.arg("--cgroup-parent").arg(format!("/{}", place.id));
        run.arg("--annotation")
            .arg(format!("org.criu.config={}", place.criu_conf().display()));
        // Podman's own limits are beyond what root may have on some hosts
        run.args([
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=4096:4096",
        ]);
        run.arg("--rootfs")
            .arg(place.rootfs())
            .args(place.command());
        output(&mut run)?;
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

    fn podman(&self) -> Command {
        let mut podman = with_criu("podman");
        for (option, directory) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            podman.arg(option).arg(self.0.run.join(directory));
        }
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        podman.args(["--events-backend", "none", "--runtime", "runc"]);
        podman
    }

    /// Where Podman keeps what belongs to the one container of this storage.
    fn user_data(&self) -> anyhow::Result<PathBuf> {
        let containers = self.0.run.join("root/vfs-containers");
        let directories =
            fs::read_dir(&containers).with_context(|| containers.display().to_string())?;
        directories
            .flatten()
            .map(|entry| entry.path().join("userdata"))
            .find(|directory| directory.is_dir())
            .with_context(|| format!("{} has no container", containers.display()))
    }

    fn messages(&self, criu_log: &str) -> String {
        let errors = self
            .user_data()
            .map(|data| criu_errors(&data.join(criu_log)));
        format!("CRIU: {}", errors.unwrap_or_default())
    }
}

impl compare::Container for Podman {
    fn address(&self) -> SocketAddr {
        self.0.address
    }

    fn checkpoint(&self) -> anyhow::Result<u64> {
        let mut checkpoint = self.podman();
        checkpoint.args([
            "container",
            "checkpoint",
            "--leave-running",
            "--keep",
            "--tcp-established",
        ]);
        output(checkpoint.arg(&self.0.id)).with_context(|| self.messages("dump.log"))?;
        bytes_in(&self.user_data()?.join("checkpoint"))
    }

    fn end(&self) -> anyhow::Result<()> {
        output(self.podman().args(["kill", "--signal", "KILL", &self.0.id]))?;
        output(self.podman().args(["wait", &self.0.id]))?;
        Ok(())
    }

    fn restore(&self) -> anyhow::Result<()> {
        let mut restore = self.podman();
        restore.args(["container", "restore", "--keep", "--tcp-established"]);
        output(restore.arg(&self.0.id)).with_context(|| self.messages("restore.log"))?;
        Ok(())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let mut remove = self.podman();
        remove.args(["rm", "--force", "--ignore", "--time", "0", &self.0.id]);
        if let Err(error) = output(&mut remove) {
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
        compare::tests::clones_and_leaves_nothing("/usr/bin/podman", Podman::start, |podman| {
            &podman.0.id
        });
    }
}
