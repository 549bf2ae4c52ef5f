//! What the host has, what it lacks, and what each missing thing costs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use offshoot_checkpoint::{CriuInfo, Ladder};
use offshoot_model::MemoryWay;
use offshoot_model::view::{DoctorCheck, DoctorReport, Verdict};
use offshoot_sys::execs::Execs;
use offshoot_sys::merge::{self, Merger, Run};

use crate::config::LocalConfig;

/// Longest time a program may take to say its version.
const VERSION_TIME: Duration = Duration::from_secs(5);

/// Checks everything; works without a daemon. `criu` is what a trial found, which takes a second.
#[must_use]
pub fn doctor(config: &LocalConfig, criu: &CriuInfo) -> DoctorReport {
    let mut checks = vec![
        root(),
        program(
            "runc",
            &config.runc,
            Verdict::Missing,
            "no node can be started",
            "install the package runc",
        ),
        program(
            "nft",
            Path::new("nft"),
            Verdict::Missing,
            "no network can be made",
            "install the package nftables",
        ),
        program(
            "mkfs.btrfs",
            Path::new("mkfs.btrfs"),
            Verdict::Missing,
            "no pool can be made",
            "install the package btrfs-progs",
        ),
        btrfs(),
        user_namespaces(),
        control_groups(),
        checkpoint(criu),
        program(
            "mmdebstrap",
            Path::new("mmdebstrap"),
            Verdict::Lacking,
            "images cannot be made from packages; those from registries and archives can",
            "install the package mmdebstrap",
        ),
        beside("offshoot-shim", &config.shim),
        beside("offshoot-edge", &config.edge),
        forwarding(config),
        ipv6(),
        memory(&Ladder::of_host()),
        equal_memory(config),
        held_jobs(),
    ];
    checks.sort_by_key(|check| match check.verdict {
        Verdict::Missing => 0,
        Verdict::Lacking => 1,
        Verdict::Good => 2,
    });
    DoctorReport {
        fit: checks.iter().all(|check| check.verdict != Verdict::Missing),
        checks,
    }
}

fn check(
    name: &str,
    found: Result<String, String>,
    bad: Verdict,
    cost: &str,
    next: &str,
) -> DoctorCheck {
    match found {
        Ok(found) => DoctorCheck {
            name: name.into(),
            verdict: Verdict::Good,
            found,
            cost: None,
            next: None,
        },
        Err(found) => DoctorCheck {
            name: name.into(),
            verdict: bad,
            found,
            cost: Some(cost.into()),
            next: Some(next.into()),
        },
    }
}

fn root() -> DoctorCheck {
    let found = if rustix::process::geteuid().is_root() {
        Ok("effective user id 0".to_owned())
    } else {
        Err("not root".to_owned())
    };
    check(
        "root",
        found,
        Verdict::Missing,
        "nothing can be run",
        "start the daemon as root",
    )
}

/// Where a program is in PATH, or the absolute path itself when it is a file.
fn locate(program: &Path) -> Option<PathBuf> {
    if program.is_absolute() {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

fn program(name: &str, program: &Path, bad: Verdict, cost: &str, next: &str) -> DoctorCheck {
    let found = match locate(program) {
        Some(path) => Ok(match version(&path) {
            Some(version) => format!("{version} ({})", path.display()),
            None => path.display().to_string(),
        }),
        None => Err(format!("{} was not found", program.display())),
    };
    check(name, found, bad, cost, next)
}

/// The first line of `<program> --version`.
fn version(program: &Path) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + VERSION_TIME;
    while child.try_wait().ok()?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout)
        .lines()
        .next()?
        .trim()
        .to_owned();
    (!line.is_empty() && line.len() < 120).then_some(line)
}

fn beside(name: &str, path: &Path) -> DoctorCheck {
    let found = if path.is_file() {
        Ok(path.display().to_string())
    } else {
        Err(format!("{} is not there", path.display()))
    };
    check(
        name,
        found,
        Verdict::Missing,
        "no environment can be run",
        "install the whole package, or set `tools`",
    )
}

fn btrfs() -> DoctorCheck {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let found = if known.lines().any(|line| line.trim() == "btrfs") {
        Ok("the kernel has btrfs".to_owned())
    } else if locate(Path::new("modprobe")).is_some() {
        Ok("not loaded yet; the kernel loads it when the pool is mounted".to_owned())
    } else {
        Err("the kernel has no btrfs".to_owned())
    };
    check(
        "btrfs",
        found,
        Verdict::Missing,
        "no pool can be mounted",
        "use a kernel with CONFIG_BTRFS_FS",
    )
}

fn user_namespaces() -> DoctorCheck {
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let found = match most.trim().parse::<u64>() {
        Ok(n) if n > 0 => Ok(format!("up to {n}")),
        _ => Err("user.max_user_namespaces is 0 or unknown".to_owned()),
    };
    let next = "set user.max_user_namespaces above 0 (sysctl)";
    check(
        "user namespaces",
        found,
        Verdict::Missing,
        "no node can be started",
        next,
    )
}

fn control_groups() -> DoctorCheck {
    let root = Path::new("/sys/fs/cgroup");
    let found = if root.join("cgroup.controllers").is_file() {
        Ok("version 2".to_owned())
    } else if root.join("freezer").is_dir() {
        Ok("version 1".to_owned())
    } else {
        Err("neither version 2 nor a version 1 freezer is mounted".to_owned())
    };
    check(
        "control groups",
        found,
        Verdict::Missing,
        "nodes cannot be limited or frozen",
        "mount /sys/fs/cgroup",
    )
}

fn checkpoint(criu: &CriuInfo) -> DoctorCheck {
    let path = criu.path.as_ref().map(|path| path.display().to_string());
    let version = criu
        .version
        .clone()
        .unwrap_or_else(|| "of unknown version".into());
    let found = match (&path, criu.works) {
        (Some(path), true) => Ok(format!(
            "{version} ({path}): dumped and restored a process with TCP connections"
        )),
        (Some(path), false) => Err(format!(
            "{version} ({path}): {}",
            criu.why.clone().unwrap_or_default()
        )),
        (None, _) => Err(criu
            .why
            .clone()
            .unwrap_or_else(|| "criu was not found".into())),
    };
    check(
        "criu",
        found,
        Verdict::Lacking,
        "clones take disks only: their processes start afresh",
        "run packaging/setup.sh, which brings one that works on this kernel",
    )
}

fn forwarding(config: &LocalConfig) -> DoctorCheck {
    let found = match offshoot_network::forwarding_state() {
        Ok(state) if state.v4 => Ok("the host forwards IPv4".to_owned()),
        Ok(_) if config.forwarding == offshoot_network::Forwarding::Enable => Ok(
            "off; the daemon turns it on when it starts (network.forwarding = \"enable\")"
                .to_owned(),
        ),
        Ok(_) => Err("net.ipv4.ip_forward is 0".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    check(
        "forwarding",
        found,
        Verdict::Lacking,
        "environments reach the host and each other's published ports, and nothing beyond the host",
        "set net.ipv4.ip_forward=1 (sysctl), or network.forwarding = \"enable\" in the configuration",
    )
}

fn ipv6() -> DoctorCheck {
    let found = if Path::new("/proc/net/if_inet6").exists() {
        Ok("the kernel has IPv6".to_owned())
    } else {
        Err("the kernel has no IPv6".to_owned())
    };
    check(
        "IPv6",
        found,
        Verdict::Lacking,
        "environments have IPv4 only",
        "nothing, unless you need it",
    )
}

fn equal_memory(config: &LocalConfig) -> DoctorCheck {
    let merger = Merger::at(Path::new(merge::DIR)).settings();
    let found = match merger.map(|settings| settings.run) {
        _ if !config.share_memory => Ok("not shared (clone.share_memory = false)".to_owned()),
        Ok(_) if !merge::can_be_allowed() => {
            Err("the kernel merges nothing without the program's doing (Linux 6.4)".to_owned())
        }
        Ok(Run::Stands) => Ok("the kernel can merge it".to_owned()),
        Ok(Run::Merges) => Ok("the kernel merges it".to_owned()),
        Ok(Run::Undone) => Err(format!("2 in {}/run: switched off for good", merge::DIR)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err("the kernel cannot merge it (CONFIG_KSM)".to_owned())
        }
        Err(error) => Err(error.to_string()),
    };
    check(
        "equal memory",
        found,
        Verdict::Lacking,
        "clones share no memory with their parents",
        "nothing, unless memory is short: then Linux 6.7 or newer with CONFIG_KSM, and 0 in its `run`",
    )
}

/// Whether schedulers can be kept from starting.
fn held_jobs() -> DoctorCheck {
    let found = Execs::try_out()
        .map(|()| "the kernel tells of programs before they run".to_owned())
        .map_err(|e| e.to_string());
    check(
        "held jobs",
        found,
        Verdict::Lacking,
        "where jobs are held, schedulers that start in a node later are not: only those that come from a cut, and layers with `jobs: true`",
        "a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS, 5.0 or newer",
    )
}

/// In which ways this kernel lets memory be taken. Whether there is a CRIU is another check.
fn memory(ladder: &Ladder) -> DoctorCheck {
    let says = |way| match way {
        MemoryWay::Tracked => "while nodes run; in the freeze only what was written just then",
        MemoryWay::PreDump => {
            "by CRIU, ahead in rounds that hold nodes up for a moment; in the freeze only what was written since"
        }
        MemoryWay::Dump => "in the freeze, all of it",
    };
    let best = ladder.best();
    let has: Vec<_> = ladder
        .ways()
        .into_iter()
        .filter(|(_, why_not)| why_not.is_none())
        .map(|(way, _)| way.name())
        .collect();
    let found = format!(
        "{}: {} (this host has: {})",
        best.way.name(),
        says(best.way),
        has.join(", ")
    );
    let cost = match best.way {
        MemoryWay::Dump => "the freeze grows with all memory of the nodes",
        _ => "the freeze is longer, and nodes stand still for a moment several times before it",
    };
    check(
        "memory",
        match best.why {
            None => Ok(found),
            Some(why) => Err(format!("{found}; {why}")),
        },
        Verdict::Lacking,
        cost,
        "use Linux 6.7 or newer",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_that_memory_is_taken_is_told() {
        let check = memory(&Ladder::of_host());
        assert!(check.found.contains("dump"), "{check:?}");
        assert_eq!(
            check.verdict == Verdict::Good,
            check.found.starts_with("tracked"),
            "{check:?}"
        );
    }
}
