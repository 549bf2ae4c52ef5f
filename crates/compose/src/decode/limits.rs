//! How much a node may use, and what it may do.

use std::collections::BTreeMap;

use offshoot_model::manifest::{Limits, MAX_REPLICAS, RestartPolicy, ULIMITS, Ulimit};

use super::process;
use crate::diagnostic::Report;
use crate::field::{At, Fields, closest};

/// capabilities(7), Linux 6.18.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// What `deploy`, `scale` and the older limit fields say together.
#[derive(Debug)]
pub(super) struct Deploy {
    pub(super) replicas: u32,
    pub(super) limits: Limits,
    /// `deploy.restart_policy`.
    pub(super) restart: Option<RestartPolicy>,
}

/// Reads `deploy`, `scale`, `mem_limit`, `cpus`, `cpu_quota`, `cpu_period`, `pids_limit`.
pub(super) fn deploy(fields: &mut Fields<'_>, report: &mut Report) -> Deploy {
    let mut deploy = Deploy {
        replicas: 1,
        limits: Limits::default(),
        restart: None,
    };
    let mut scale = None;
    if let Some(at) = fields.get("deploy") {
        let mut fields = at.fields(report);
        scale = fields.get("replicas");
        if let Some(at) = fields.get("mode") {
            match at.word(report) {
                None | Some("replicated") => {}
                Some("global") => at.warn(report, "means one node here, because there is one host"),
                Some(_) => at.unsupported(report, "only replicated and global are supported"),
            }
        }
        if let Some(at) = fields.get("restart_policy") {
            deploy.restart = Some(process::restart_policy(&at, report));
        }
        if let Some(at) = fields.get("resources") {
            resources(&at, &mut deploy.limits, report);
        }
        for name in [
            "placement",
            "endpoint_mode",
            "update_config",
            "rollback_config",
            "labels",
        ] {
            fields.ignore(report, name, "is ignored; it is for Docker Swarm");
        }
        fields.finish(report);
    }
    if let Some(at) = fields.get("scale") {
        scale = Some(at);
    }
    if let Some(at) = scale
        && let Some(count) = at.number(report, 0, u64::from(u32::MAX))
    {
        match u32::try_from(count) {
            Ok(0) => at.unsupported(
                report,
                "a layer has at least one node; give the service a profile to leave it out",
            ),
            Ok(count) if count <= MAX_REPLICAS => deploy.replicas = count,
            _ => at.unsupported(report, format!("a layer has at most {MAX_REPLICAS} nodes")),
        }
    }
    if let Some(at) = fields.get("mem_limit") {
        deploy.limits.memory = memory(&at, report);
    }
    if let Some(at) = fields.get("cpus") {
        deploy.limits.milli_cpus = cpus(&at, report);
    }
    let period = fields
        .get("cpu_period")
        .and_then(|at| microseconds(&at, report))
        .unwrap_or(100_000);
    if let Some(quota) = fields
        .get("cpu_quota")
        .and_then(|at| microseconds(&at, report))
    {
        deploy.limits.milli_cpus = u32::try_from(quota.saturating_mul(1000) / period)
            .ok()
            .filter(|m| *m > 0);
    }
    if let Some(at) = fields.get("pids_limit") {
        deploy.limits.pids = pids(&at, report);
    }
    deploy
}

fn resources(at: &At<'_>, limits: &mut Limits, report: &mut Report) {
    let mut fields = at.fields(report);
    if let Some(at) = fields.get("limits") {
        let mut fields = at.fields(report);
        limits.memory = fields.get("memory").and_then(|at| memory(&at, report));
        limits.milli_cpus = fields.get("cpus").and_then(|at| cpus(&at, report));
        limits.pids = fields.get("pids").and_then(|at| pids(&at, report));
        fields.finish(report);
    }
    if let Some(at) = fields.get("reservations") {
        let mut fields = at.fields(report);
        for name in ["memory", "cpus"] {
            fields.ignore(report, name, "is ignored; nothing is set aside for a node");
        }
        fields.refuse(report, "devices", "nodes get no devices of the host");
        fields.refuse(
            report,
            "generic_resources",
            "nodes get no devices of the host",
        );
        fields.finish(report);
    }
    fields.finish(report);
}

/// At least 6 MiB as in Docker: with less, nothing starts. Zero is without limit.
fn memory(at: &At<'_>, report: &mut Report) -> Option<u64> {
    const LEAST: u64 = 6 << 20;
    match at.bytes(report)? {
        0 => None,
        bytes if bytes < LEAST => {
            at.invalid(report, "less than 6 MiB of memory starts no process");
            None
        }
        bytes => Some(bytes),
    }
}

fn cpus(at: &At<'_>, report: &mut Report) -> Option<u32> {
    let milli = at.parse(report, |text| match text.trim().parse::<f64>() {
        Ok(cpus) if cpus == 0.0 || (0.01..=4096.0).contains(&cpus) => {
            Ok((cpus * 1000.0).round() as u32)
        }
        _ => Err(format!(
            "{text:?} is not a number of processors, 0.01 to 4096"
        )),
    })?;
    (milli > 0).then_some(milli)
}

fn microseconds(at: &At<'_>, report: &mut Report) -> Option<u64> {
    if let Some(Ok(number)) = at.node.text().map(str::parse::<u64>) {
        return Some(number).filter(|n| *n > 0);
    }
    at.duration(report)
        .map(|ms| ms.saturating_mul(1000))
        .filter(|n| *n > 0)
}

/// -1 and 0 ask for no limit, which there is not: the default counts.
fn pids(at: &At<'_>, report: &mut Report) -> Option<u32> {
    if matches!(at.node.text(), Some("-1" | "0")) {
        at.warn(report, "there is always a limit; the default is used");
        return None;
    }
    at.number(report, 1, 4_194_304)
        .and_then(|n| u32::try_from(n).ok())
}

/// `ulimits`.
pub(super) fn ulimits(at: &At<'_>, report: &mut Report) -> BTreeMap<String, Ulimit> {
    let mut ulimits = BTreeMap::new();
    for (name, at) in at.entries(report) {
        let lower = name.to_ascii_lowercase();
        if !ULIMITS.contains(&lower.as_str()) {
            let hint = closest(&lower, &ULIMITS)
                .map(|name| format!("; did you mean {name}?"))
                .unwrap_or_default();
            at.invalid(report, format!("is not a limit of setrlimit(2){hint}"));
            continue;
        }
        let ulimit = if at.is_text() {
            ulimit(&at, report).map(|both| Ulimit {
                soft: both,
                hard: both,
            })
        } else {
            let mut fields = at.fields(report);
            let soft = fields.get("soft").and_then(|at| ulimit(&at, report));
            let hard = fields.get("hard").and_then(|at| ulimit(&at, report));
            fields.finish(report);
            match (soft, hard) {
                (Some(soft), Some(hard)) => Some(Ulimit { soft, hard }),
                _ => {
                    at.invalid(report, "needs a number, or soft and hard");
                    None
                }
            }
        };
        match ulimit {
            Some(Ulimit { soft, hard }) if soft > hard => {
                at.invalid(report, "the soft limit is above the hard one")
            }
            Some(ulimit) => {
                ulimits.insert(lower, ulimit);
            }
            None => {}
        }
    }
    ulimits
}

/// -1 is without limit (`RLIM_INFINITY`).
fn ulimit(at: &At<'_>, report: &mut Report) -> Option<u64> {
    if at.node.text() == Some("-1") {
        return Some(u64::MAX);
    }
    at.number(report, 0, u64::MAX)
}

/// `sysctls`: those that belong to a namespace of the node (namespaces(7), Docker's list).
pub(super) fn sysctls(at: &At<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    for (name, at) in at.entries(report) {
        let name = name.replace('/', ".");
        let words = name.split('.').all(|part| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        });
        let ipc = [
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.sem",
            "kernel.shmall",
            "kernel.shmmax",
        ];
        let ipc = ipc.contains(&name.as_str())
            || matches!(name.as_str(), "kernel.shmmni" | "kernel.shm_rmid_forced");
        if !words {
            at.invalid(report, "is not a kernel setting's name");
        } else if !(ipc || name.starts_with("net.") || name.starts_with("fs.mqueue.")) {
            at.unsupported(report, "is a setting of the whole host; only net.*, fs.mqueue.* and kernel.shm*, msg*, sem are a node's own");
        } else if let Some(value) = at.text(report) {
            sysctls.insert(name, value.to_owned());
        }
    }
    sysctls
}

/// `cap_add`, `cap_drop`: names as `CAP_NAME`, or `ALL`.
pub(super) fn capabilities(at: &At<'_>, report: &mut Report) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for item in at.list(report) {
        let Some(text) = item.word(report) else {
            continue;
        };
        let upper = text.trim().to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let full = if name == "ALL" {
            name.to_owned()
        } else {
            format!("CAP_{name}")
        };
        if name != "ALL" && !CAPABILITIES.contains(&name) {
            let hint = closest(name, &CAPABILITIES)
                .map(|name| format!("; did you mean {name}?"))
                .unwrap_or_default();
            item.invalid(report, format!("{text:?} is not a capability{hint}"));
        } else if !names.contains(&full) {
            names.push(full);
        }
    }
    names
}

/// `security_opt`; answers whether processes may gain privileges.
pub(super) fn security_opt(at: &At<'_>, report: &mut Report) -> bool {
    let mut allow = false;
    for item in at.list(report) {
        let Some(text) = item.word(report) else {
            continue;
        };
        let (name, value) = text.split_once([':', '=']).unwrap_or((text, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => allow = false,
            ("no-new-privileges", "false") => allow = true,
            ("label" | "apparmor", _) => item.warn(
                report,
                "is ignored; no security module is configured for nodes",
            ),
            ("seccomp", _) => {
                item.unsupported(report, "the system-call filter is fixed; leave it out")
            }
            _ => item.unsupported(report, "only no-new-privileges is supported"),
        }
    }
    allow
}
