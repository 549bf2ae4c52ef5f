//! What a daemon has on the host, found by its directories and its label, not by asking it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use offshoot_sys::netns::Netns;
use offshoot_sys::process;
use rustix::mount::UnmountFlags;

/// Everything that belongs to environments; the pool's own mount and loop device and the edge do not count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Residue {
    /// Shims, routers, containers' processes: argv, with the pid left out.
    pub processes: BTreeSet<String>,
    /// Mount points below the daemon's directories beside the pool.
    pub mounts: BTreeSet<PathBuf>,
    /// Control groups.
    pub cgroups: BTreeSet<PathBuf>,
    /// Network interfaces in the daemon's namespace beside `lo`.
    pub interfaces: BTreeSet<String>,
    /// Directories of environments in the pool, the run and the state directory.
    pub directories: BTreeSet<PathBuf>,
}

impl Residue {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Looks for everything of the daemon with these directories and this label.
#[must_use]
pub fn of(dir: &Path, instance: &str, netns: &Netns) -> Residue {
    let mut residue = Residue::default();
    for (_, argv) in processes(dir, instance) {
        if !argv.contains("offshoot-edge") && !argv.contains("offshoot ") {
            residue.processes.insert(argv);
        }
    }
    for point in process_mounts() {
        if point.starts_with(dir) && point != dir.join("state/pool") {
            residue.mounts.insert(point);
        }
    }
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .chain(controllers())
    {
        let top = root.join(format!("offshoot-{instance}"));
        residue.cgroups.extend(children(&top));
    }
    let names = netns
        .run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default())
        .unwrap_or_default();
    let interfaces = names
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    residue
        .interfaces
        .extend(interfaces.filter(|name| name != "lo"));
    for place in [
        "state/pool/envs",
        "state/envs",
        "run/envs",
        "run/cuts",
        "state/pool/staging",
    ] {
        residue.directories.extend(children(&dir.join(place)));
    }
    residue
}

/// What the shims of nodes wrote, and who brings memory into them.
pub(crate) fn shim_logs(dir: &Path) -> Vec<PathBuf> {
    let nodes = children(&dir.join("run/envs"))
        .into_iter()
        .flat_map(|environment| children(&environment.join("nodes")));
    nodes.map(|node| node.join("shim.log")).collect()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn controllers() -> Vec<PathBuf> {
    children(Path::new("/sys/fs/cgroup"))
}

fn process_mounts() -> Vec<PathBuf> {
    offshoot_sys::mount::mount_points().unwrap_or_default()
}

/// Processes that name the daemon's directory in their arguments, or live in its control groups.
fn processes(dir: &Path, instance: &str) -> Vec<(i32, String)> {
    let dir = dir.display().to_string();
    let group = format!("/offshoot-{instance}/");
    let ours = |pid: i32| -> Option<(i32, String)> {
        let argv = argv(pid)?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        (argv.contains(&dir) || groups.contains(&group)).then_some((pid, argv))
    };
    process::all()
        .unwrap_or_default()
        .into_iter()
        .filter_map(ours)
        .collect()
}

/// As [`processes`], with all their descendants: pid and arguments.
pub(crate) fn family(dir: &Path, instance: &str) -> Vec<(i32, String)> {
    let dir = dir.to_string_lossy();
    let mut found = processes(Path::new(dir.trim_end_matches('/')), instance);
    let parents: Vec<(i32, i32)> = process::all()
        .unwrap_or_default()
        .into_iter()
        .filter_map(|pid| Some((pid, parent_of(pid)?)))
        .collect();
    let mut next = 0;
    while let Some(&(parent, _)) = found.get(next) {
        next += 1;
        for &(pid, of) in &parents {
            if of == parent && found.iter().all(|(known, _)| *known != pid) {
                found.push((pid, argv(pid).unwrap_or_default()));
            }
        }
    }
    found
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn argv(pid: i32) -> Option<String> {
    let words = process::arguments(pid).ok()?;
    let words: Vec<_> = words
        .iter()
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    Some(words.join(" "))
}

/// Ends and removes everything, however broken: for the end of a test.
pub fn remove(dir: &Path, instance: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        thaw(instance);
        let found = processes(dir, instance);
        if found.is_empty() {
            break;
        }
        for (pid, _) in found {
            if let Ok(process) = process::Process::open(pid) {
                let _ = process.signal(9);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut points: Vec<_> = process_mounts()
        .into_iter()
        .filter(|point| point.starts_with(dir))
        .collect();
    points.sort();
    for point in points.into_iter().rev() {
        let _ = rustix::mount::unmount(&point, UnmountFlags::DETACH);
    }
    for root in controllers() {
        remove_groups(&root.join(format!("offshoot-{instance}")));
    }
    remove_groups(&Path::new("/sys/fs/cgroup").join(format!("offshoot-{instance}")));
}

fn thaw(instance: &str) {
    let top = Path::new("/sys/fs/cgroup/freezer").join(format!("offshoot-{instance}"));
    for env in children(&top) {
        for node in children(&env) {
            let _ = fs::write(node.join("freezer.state"), "THAWED");
        }
    }
}

fn remove_groups(dir: &Path) {
    for child in children(dir) {
        remove_groups(&child);
    }
    let _ = fs::remove_dir(dir);
}
