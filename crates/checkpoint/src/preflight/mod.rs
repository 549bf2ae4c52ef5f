//! What in a running node cannot be checkpointed, found out before anything is frozen.
//!
//! This is a look from outside at a moment of a node that goes on: a clean answer is no promise (the cut copes with a CRIU
//! that says no), but what is found here would certainly fail, and is told in words that name the process.

mod descriptors;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;

use offshoot_sys::netns::Netns;
use offshoot_sys::process::children;
use offshoot_sys::sock_diag::SockDiag;

use crate::container::{Container, mount_points};
use crate::error::CriuError;
use crate::family::is_twin;

/// More processes than this are not looked at one by one.
const PROCESSES_MAX: usize = 20_000;
/// At most this much of a process's memory map is read, bytes.
const MAPS_MAX: u64 = 16 * 1024 * 1024;

/// Namespaces that CRIU can dump once per container only, with the name of `/proc/<pid>/ns/<name>`. Mount namespaces may
/// be nested; cgroup namespaces are runc's business.
const ONCE_PER_NODE: &[&str] = &["user", "pid", "pid_for_children", "net", "ipc", "uts"];

/// Something that keeps a node from being checkpointed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// Who has it, for instance `qemu (process 12 of the node)`.
    pub process: String,
    /// What it is, for instance `an io_uring`.
    pub what: String,
    /// Why that cannot come along, one sentence without a full stop.
    pub why: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has {}: {}", self.process, self.what, self.why)
    }
}

/// What was found in one process.
struct Finding {
    what: String,
    why: &'static str,
}

fn finding(what: impl Into<String>, why: &'static str) -> Finding {
    Finding {
        what: what.into(),
        why,
    }
}

/// Looks at every process of the container. The same obstacle in several processes of one name is told once.
///
/// Processes that were put into the container from outside (`runc exec`) are not looked at: they do not come along.
///
/// # Errors
/// When the container is gone.
pub fn preflight(container: &Container) -> Result<Vec<Obstacle>, CriuError> {
    let gone = |source| CriuError::Container {
        what: "processes",
        path: format!("/proc/{}", container.pid).into(),
        source,
    };
    let init = Process::of(container.pid).map_err(gone)?;
    let tree = tree_of(container.pid);
    let mut node = Node {
        namespaces: init.namespaces(),
        mounts: fs::read(format!("/proc/{}/mountinfo", container.pid))
            .map(|text| {
                mount_points(&String::from_utf8_lossy(&text))
                    .into_keys()
                    .collect()
            })
            .map_err(gone)?,
        mount_namespace: fs::read_link(format!("/proc/{}/ns/mnt", container.pid)).ok(),
        cgroup: cgroup_of(container.pid),
        sockets: HashSet::new(),
    };
    let mut found = BTreeSet::new();
    let mut unix = Vec::new();
    for pid in &tree {
        // A process may end while it is looked at; then there is nothing to tell.
        let Ok(process) = Process::of(*pid) else {
            continue;
        };
        let mut findings = process.look(&node);
        findings.extend(descriptors::look(*pid, &mut node, &mut unix));
        if Process::of(*pid).map_or(true, |now| now.is_ending) {
            continue; // it ended meanwhile: what was seen is half the truth, its cgroup already the root
        }
        found.extend(findings.into_iter().map(|finding| Obstacle {
            process: process.title.clone(),
            what: finding.what,
            why: finding.why.to_owned(),
        }));
    }
    match unix_peers(container.pid) {
        Ok(peers) => found.extend(half_connections(&unix, &peers, &node.sockets)),
        Err(error) => {
            tracing::warn!(%error, "unix sockets cannot be listed; a connection out of the node is found by CRIU only")
        }
    }
    Ok(found.into_iter().collect())
}

/// Inode of every unix socket in the network namespace of `pid` with the inode of its peer (0: none).
fn unix_peers(pid: i32) -> io::Result<HashMap<u32, u32>> {
    Netns::of_process(pid)?.run(|| SockDiag::open()?.unix_peers())?
}

/// What all processes of a node share.
struct Node {
    namespaces: HashMap<&'static str, String>,
    mounts: HashSet<u64>,
    mount_namespace: Option<PathBuf>,
    cgroup: Option<String>,
    /// Inodes of all sockets that the node's processes hold.
    sockets: HashSet<u32>,
}

fn half_connections(
    held: &[(i32, u32)],
    peers: &HashMap<u32, u32>,
    sockets: &HashSet<u32>,
) -> impl Iterator<Item = Obstacle> {
    held.iter()
        .filter(|(_, inode)| {
            peers
                .get(inode)
                .is_some_and(|peer| *peer != 0 && !sockets.contains(peer))
        })
        .filter_map(|(pid, _)| Process::of(*pid).ok())
        .map(|process| Obstacle {
            process: process.title,
            what: "a unix socket that is connected to a process outside the node".to_owned(),
            why: "half of a connection cannot be taken along".to_owned(),
        })
        .collect::<Vec<_>>()
        .into_iter()
}

/// The descendants of `pid`, itself first.
fn tree_of(pid: i32) -> Vec<i32> {
    let mut tree = vec![pid];
    let mut next = 0;
    while let Some(pid) = tree.get(next).copied() {
        next += 1;
        tree.extend(children(pid).into_iter().filter(|child| !is_twin(*child)));
        if tree.len() > PROCESSES_MAX {
            return tree;
        }
    }
    tree
}

/// The freezer's or the unified hierarchy's group of a process.
fn cgroup_of(pid: i32) -> Option<String> {
    group_of(pid, "freezer").or_else(|| group_of(pid, ""))
}

/// Whether a process is frozen by the freezer of version 1.
fn has_own_freezer(pid: i32) -> bool {
    group_of(pid, "freezer").is_some()
}

/// A process's group for a controller of version 1, or by the empty name that of the unified hierarchy.
fn group_of(pid: i32, wanted: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        let path = parts.next()?;
        controllers
            .split(',')
            .any(|c| c == wanted)
            .then(|| path.to_owned())
    })
}

/// Whether /proc/pid/stat is of a process on its way out (`PF_EXITING`, include/linux/sched.h): from then on its cgroup is said to be
/// the root, long before it is a zombie.
fn is_ending(stat: &str) -> bool {
    const PF_EXITING: u64 = 0x4;
    // The name stands in brackets and may hold anything; the flags are the seventh after it.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let flags = rest.split_whitespace().nth(6);
    flags
        .and_then(|flags| flags.parse().ok())
        .is_some_and(|flags: u64| flags & PF_EXITING != 0)
}

struct Process {
    pid: i32,
    title: String,
    tracer: i32,
    /// Stopped by a signal.
    is_stopped: bool,
    is_ending: bool,
}

impl Process {
    fn of(pid: i32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map_or("", str::trim)
        };
        // The last of the numbers is the one in the innermost namespace.
        let inner = field("NSpid").split_whitespace().next_back().unwrap_or("?");
        Ok(Self {
            pid,
            title: format!("{} (process {inner} of the node)", field("Name")),
            tracer: field("TracerPid").parse().unwrap_or(0),
            is_stopped: field("State").starts_with('T'),
            is_ending: is_ending(&fs::read_to_string(format!("/proc/{pid}/stat"))?),
        })
    }

    fn namespaces(&self) -> HashMap<&'static str, String> {
        ONCE_PER_NODE
            .iter()
            .filter_map(|name| {
                let link = fs::read_link(format!("/proc/{}/ns/{name}", self.pid)).ok()?;
                Some((*name, link.to_string_lossy().into_owned()))
            })
            .collect()
    }

    fn look(&self, node: &Node) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.is_ending {
            return found; // has nothing any more
        }
        if self.tracer != 0 {
            found.push(finding(
                "a debugger",
                "a process that is traced (ptrace) cannot be checkpointed",
            ));
        }
        // ptrace(2) waits for such a process until it is thawed, and CRIU thaws when it has all of them.
        if self.is_stopped && has_own_freezer(self.pid) {
            found.push(finding(
                "a process that is stopped (SIGSTOP)",
                "with control groups of version 1 it cannot be held while its node is frozen",
            ));
        }
        for (name, namespace) in self.namespaces() {
            if node
                .namespaces
                .get(name)
                .is_some_and(|of_node| *of_node != namespace)
            {
                found.push(finding(
                    format!(
                        "a {} namespace of its own",
                        name.trim_end_matches("_for_children")
                    ),
                    "namespaces inside the node's cannot be checkpointed",
                ));
            }
        }
        if let (Some(of_node), Some(own)) = (&node.cgroup, cgroup_of(self.pid))
            && own != *of_node
        {
            found.push(finding(
                "a cgroup of its own",
                "all processes of a node must be in the node's cgroup",
            ));
        }
        found.extend(self.look_at_mappings());
        found
    }

    fn look_at_mappings(&self) -> Vec<Finding> {
        let Ok(maps) = fs::File::open(format!("/proc/{}/maps", self.pid)) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for line in BufReader::new(maps.take(MAPS_MAX))
            .split(b'\n')
            .map_while(Result::ok)
        {
            let line = String::from_utf8_lossy(&line);
            // address perms offset device inode, then what is mapped
            let name = line.splitn(6, ' ').nth(5).unwrap_or("").trim_start();
            found.extend(mapping(name));
        }
        found
    }
}

/// What speaks against a mapping of `name`.
fn mapping(name: &str) -> Option<Finding> {
    match name {
        "anon_inode:[io_uring]" => Some(descriptors::io_uring()),
        _ if name.starts_with("anon_inode:") && name != "anon_inode:[aio]" => Some(finding(
            format!("memory shared with the kernel ({name})"),
            "its content lives in the kernel",
        )),
        "/secretmem (deleted)" => Some(descriptors::secret_memory()),
        _ if name.starts_with("/dev/") && !is_plain_memory(name) => Some(finding(
            format!("memory of a device ({name})"),
            "what a device holds cannot be taken along",
        )),
        _ => None,
    }
}

/// Mappings below /dev that are ordinary memory.
fn is_plain_memory(name: &str) -> bool {
    name.starts_with("/dev/shm/")
        || name.starts_with("/dev/zero")
        || name.starts_with("/dev/hugepages/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        for fine in [
            "",
            "[heap]",
            "/usr/lib/libc.so",
            "/dev/shm/x",
            "/dev/zero (deleted)",
            "/SYSV00000000 (deleted)",
            "[aio]",
        ] {
            assert!(mapping(fine).is_none(), "{fine}");
        }
        for bad in [
            "/dev/kvm",
            "anon_inode:[io_uring]",
            "anon_inode:[perf_event]",
            "/secretmem (deleted)",
        ] {
            assert!(mapping(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_process_on_its_way_out_is_told_by_its_flags() {
        // One that runs, and one inside exit(2) that is no zombie yet.
        assert!(!is_ending("7 (a) b) S 1 7 7 0 -1 4194304 1 2"));
        assert!(is_ending("7 (a) b) R 1 7 7 0 -1 4194308 1 2"));
        assert!(!is_ending(""));
    }

    #[test]
    fn half_of_a_connection() {
        let me = std::process::id() as i32;
        let peers = HashMap::from([(1, 2), (2, 1), (3, 9), (4, 0)]);
        let held = HashSet::from([1, 2, 3, 4]);
        let all: Vec<_> = [1, 2, 3, 4].map(|inode| (me, inode)).to_vec();
        assert_eq!(half_connections(&all, &peers, &held).count(), 1);
    }

    #[test]
    fn a_tree_starts_with_its_root() {
        let me = std::process::id() as i32;
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let tree = tree_of(me);
        assert_eq!(tree.first(), Some(&me));
        assert!(tree.contains(&(child.id() as i32)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Process::of(me).unwrap().title.contains("process"));
    }
}
