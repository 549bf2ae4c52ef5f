//! What a node uses, by its control group (cgroups(7); Documentation/admin-guide/cgroup-v2.rst).

use std::fs;
use std::path::{Path, PathBuf};

/// Memory (bytes), processor time (microseconds) and processes of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) cpu_us: Option<u64>,
    pub(crate) pids: Option<u64>,
}

/// Reads the usage of the node whose freezer is at `freezer`: its v2 group, or its v1 freezer, beside which the
/// other controllers have directories of the same path.
pub(crate) fn usage(freezer: &Path) -> Usage {
    if freezer.join("cgroup.controllers").exists() {
        let cpu = fs::read_to_string(freezer.join("cpu.stat")).unwrap_or_default();
        return Usage {
            memory_bytes: number(&freezer.join("memory.current")),
            cpu_us: cpu
                .lines()
                .find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok()),
            pids: number(&freezer.join("pids.current")),
        };
    }
    let beside = |controller: &str, file: &str| {
        let mut path = PathBuf::new();
        let mut replaced = false;
        for part in freezer.components() {
            if !replaced && part.as_os_str() == "freezer" {
                path.push(controller);
                replaced = true;
            } else {
                path.push(part);
            }
        }
        number(&path.join(file))
    };
    Usage {
        memory_bytes: beside("memory", "memory.usage_in_bytes"),
        cpu_us: beside("cpuacct", "cpuacct.usage").map(|ns| ns / 1_000),
        pids: beside("pids", "pids.current"),
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
