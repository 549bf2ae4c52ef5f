//! A clone yields to everybody else until it is open: the kernel runs its processes, CRIU and runc at work on them among these, only where
//! nobody else wants the processor (`cpu.idle` of cgroups, both versions, Linux 5.15), and lets whoever wakes up have it at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use offshoot_model::EnvId;

use crate::cgroup::Hierarchies;

/// The group of what works on the clone, beside its nodes. No node is called like this.
const WORK: &str = "work";
const IDLE: &str = "cpu.idle";

/// The groups of one environment where processors are shared out.
#[derive(Debug, Clone)]
pub struct Yielding {
    environment: PathBuf,
}

impl Yielding {
    /// Those of `environment`, whether they exist or not; `None` where the host has no such thing.
    #[must_use]
    pub fn of(host: &Hierarchies, instance: &str, environment: &EnvId) -> Option<Self> {
        Some(Self {
            environment: host
                .cpu_root()?
                .join(format!("offshoot-{instance}"))
                .join(environment.as_str()),
        })
    }

    /// Has the environment yield from now on.
    ///
    /// # Errors
    /// When the kernel does not offer it.
    pub fn begin(&self) -> io::Result<()> {
        let work = self.environment.join(WORK);
        fs::create_dir_all(&work)?;
        fs::write(self.environment.join(IDLE), "1").inspect_err(|_| {
            let _ = fs::remove_dir(&work);
        })
    }

    /// It takes its part again. Does nothing where it does not yield.
    pub fn end(&self) {
        let _ = fs::write(self.environment.join(IDLE), "0");
        // Busy for as long as somebody works there: then it goes with the environment's last node. And so do the others, if there are nodes.
        forget_work(&self.environment);
        for group in self.environment.ancestors().take(2) {
            let _ = fs::remove_dir(group);
        }
    }

    /// The calling process, and what it starts, yields with the environment until this is dropped; `None` when that does not yield.
    #[must_use]
    pub fn join(&self) -> Option<Joined> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let root = self.environment.parent()?.parent()?;
        let before = group_in(&own, root)?;
        let joined = Joined {
            before: root.join(before.strip_prefix("/").unwrap_or(&before)),
        };
        enter(&self.environment.join(WORK)).ok().map(|()| joined)
    }
}

/// A process that yields for a while.
#[derive(Debug)]
#[must_use = "it ends at once"]
pub struct Joined {
    before: PathBuf,
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.before) {
            tracing::warn!(%error, group = %self.before.display(), "cannot go back");
        }
    }
}

fn enter(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), "0")
}

/// Removes the group of those who work on an environment, if nobody does.
pub(crate) fn forget_work(environment: &Path) {
    let _ = fs::remove_dir(environment.join(WORK));
}

/// The group of a process in the hierarchy at `root`, by what `/proc/<pid>/cgroup` says (cgroups(7)).
fn group_in(own: &str, root: &Path) -> Option<PathBuf> {
    let mounted = root.file_name()?.to_str()?;
    let mut version_2 = None;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        if controllers.is_empty() {
            version_2 = Some(path);
        } else if controllers == mounted || controllers.split(',').any(|c| c == mounted) {
            return Some(path.into());
        }
    }
    // the root of version 2 is called as it was mounted
    (!mounted.starts_with("cpu")).then_some(version_2?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_process_is_found() {
        let hybrid = "9:name=systemd:/\n5:freezer:/a\n2:cpu,cpuacct:/b/c\n0::/d\n";
        let of = |own: &str, root: &str| group_in(own, Path::new(root));
        assert_eq!(
            of(hybrid, "/sys/fs/cgroup/cpu,cpuacct"),
            Some("/b/c".into())
        );
        assert_eq!(of(hybrid, "/sys/fs/cgroup/cpu"), Some("/b/c".into()));
        assert_eq!(
            of("0::/system.slice/x\n", "/sys/fs/cgroup"),
            Some("/system.slice/x".into())
        );
        assert_eq!(of("0::/\n", "/sys/fs/cgroup/cpu"), None);
        assert_eq!(of("", "/sys/fs/cgroup"), None);
    }

    #[test]
    fn a_process_yields_and_takes_its_part_again() {
        let host = Hierarchies::of_host().unwrap();
        let env: EnvId = "abcdefgh".parse().unwrap();
        let Some(yielding) = Yielding::of(&host, "yielding-test", &env) else {
            println!("SKIPPED: no processor groups on this host");
            return;
        };
        if let Err(error) = yielding.begin() {
            println!("SKIPPED: groups cannot yield on this host: {error}");
            yielding.end();
            return;
        }
        let node = yielding.environment.join("web-1");
        fs::create_dir(&node).unwrap();
        let idle = || fs::read_to_string(yielding.environment.join(IDLE)).unwrap();
        let own = || fs::read_to_string("/proc/self/cgroup").unwrap();
        let before = own();
        assert_eq!(idle().trim(), "1");
        let joined = yielding.join().unwrap();
        assert!(
            own().contains(&format!("{}/{WORK}", env.as_str())),
            "{}",
            own()
        );
        drop(joined);
        assert_eq!(own(), before);
        yielding.end();
        assert_eq!(idle().trim(), "0");
        assert!(yielding.join().is_none());
        fs::remove_dir(&node).unwrap();
        yielding.end();
        assert!(!yielding.environment.parent().unwrap().exists());
    }
}
