//! The OCI runtime configuration of a node: a pure function of its specification and the host's hard limits.
//!
//! Two things are unusual. `/dev` is a directory the shim prepared, shown as one bind mount, and hardly anything below `/proc` or
//! `/sys` is masked: every mount costs time in the freeze of a cut (clone-engine measurements: about 70 ms for Docker's set), and the
//! user namespace already refuses what those masks guard. docs/nodes.md lists each of Docker's masks and what guards it here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offshoot_model::manifest::{DEFAULT_PIDS, ULIMITS};
use serde_json::{Value, json};

use crate::error::{Result, RuntimeError};
use crate::spec::{FilePlace, NodeFile, NodeSpec, ProcessSpec, Start};
use crate::user::Environment;
use crate::{capabilities, seccomp};

/// Where the small init is put in the root file system of a node that asks for one. In the root file system, not mounted: a clone
/// must find the very same file again, also after an upgrade of Offshoot.
pub const INIT_PATH: &str = "/.offshoot-init";
/// Name of the file in a node's directory that CRIU reads when runc starts it.
pub const CRIU_CONFIG: &str = "criu.conf";
/// Its content. The cgroups are runc's: the images name the parent's, and CRIU would put the clone's processes there. runc 1.1 cannot
/// be told so by its own option; with `=` because CRIU takes the value for optional arguments in no other form. How connections
/// are locked is not said here: the images record it, and CRIU before 4.2.1 crashes at `network-lock` in such a file.
pub const CRIU_CONFIG_TEXT: &str = "manage-cgroups=ignore\n";
/// Length of a processor quota's period in microseconds (the kernel's default).
const CPU_PERIOD_US: u64 = 100_000;
/// Size of /dev/shm in bytes. Docker's 64 MiB is too small for PostgreSQL's parallel queries; memory limits count it anyway.
const SHM_SIZE: u64 = 1 << 30;
/// Open files of a node whose manifest does not say: soft and hard.
const DEFAULT_NOFILE: (u64, u64) = (65_536, 1 << 20);

/// The host's hard limits by lower-case name; `u64::MAX` is without limit.
pub type HardLimits = BTreeMap<&'static str, u64>;

/// What the shim mounts for a node, all below one directory of its own mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Mount point of the tmpfs that holds the rest.
    pub base: PathBuf,
    /// The id-mapped root file system.
    pub rootfs: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
    /// The id-mapped binds, in the order of [`NodeSpec::binds`].
    pub binds: Vec<PathBuf>,
    /// Mounted files and where they come from.
    pub files: Vec<(NodeFile, PathBuf)>,
    /// Files written into the root file system.
    pub written: Vec<NodeFile>,
}

impl Layout {
    /// The layout of a node.
    #[must_use]
    pub fn of(spec: &NodeSpec) -> Self {
        let base = spec.run_dir.join("mnt");
        let hidden = |target: &str| {
            let below = |dir: &str| Path::new(target).starts_with(dir);
            spec.binds.iter().any(|b| below(&b.target))
                || spec.tmpfs.iter().any(|t| below(&t.target))
        };
        let (mut files, mut written) = (Vec::new(), Vec::new());
        for file in &spec.files {
            // What a volume or tmpfs would hide is mounted over it instead.
            if file.place == FilePlace::Rootfs && !hidden(&file.target) {
                written.push(file.clone());
            } else {
                let source = base.join("files").join(files.len().to_string());
                files.push((file.clone(), source));
            }
        }
        Self {
            rootfs: base.join("rootfs"),
            dev: base.join("dev"),
            binds: (0..spec.binds.len())
                .map(|i| base.join("binds").join(i.to_string()))
                .collect(),
            base,
            files,
            written,
        }
    }
}

/// Path of a node's cgroup below each hierarchy's root.
#[must_use]
pub fn cgroup_path(spec: &NodeSpec) -> PathBuf {
    crate::cgroup::path_of(&spec.instance, &spec.node)
}

/// The node's `config.json` and what could not be given in full.
///
/// # Errors
/// When the specification asks for an unknown capability, limit or a setting that is not the node's own.
pub fn oci_config(spec: &NodeSpec, host: &HardLimits) -> Result<(Value, Vec<String>)> {
    spec.check()?;
    let layout = Layout::of(spec);
    let capabilities = capabilities::resolve(&spec.cap_add, &spec.cap_drop)?;
    let filter = seccomp::filter(&capabilities)
        .map_err(|e| RuntimeError::spec(format!("seccomp profile: {e}")))?;
    let (process, warnings) = process_json(spec, &spec.process, host)?;
    let map = json!([{ "containerID": 0, "hostID": spec.id_base, "size": spec.id_count }]);
    let namespaces =
        ["user", "mount", "pid", "network", "ipc", "uts"].map(|kind| json!({ "type": kind }));
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": layout.rootfs, "readonly": spec.read_only },
        "hostname": spec.hostname,
        "mounts": mounts(spec, &layout),
        // Instead of a configuration file of the host's.
        "annotations": { "org.criu.config": spec.run_dir.join(CRIU_CONFIG) },
        "linux": {
            "namespaces": namespaces,
            "uidMappings": map,
            "gidMappings": map,
            "cgroupsPath": cgroup_path(spec),
            "resources": resources(spec),
            "rootfsPropagation": "rprivate",
            "sysctl": sysctls(spec)?,
            "seccomp": filter,
            "maskedPaths": [],
            "readonlyPaths": [],
        },
    });
    if matches!(spec.start, Start::Restore { .. }) {
        // Run by runc when CRIU has made the namespaces and before it brings sockets back, which need their addresses.
        let hook = json!({
            "path": spec.tools.shim,
            "args": ["offshoot-shim", "hook", "--spec", spec.path()],
            "env": [format!("PATH={}", crate::user::DEFAULT_PATH)],
            "timeout": 30,
        });
        config["hooks"] = json!({ "createRuntime": [hook] });
    }
    Ok((config, warnings))
}

/// The `process` object, for the main process and for `exec`.
pub(crate) fn process_json(
    spec: &NodeSpec,
    process: &ProcessSpec,
    host: &HardLimits,
) -> Result<(Value, Vec<String>)> {
    let capabilities = capabilities::resolve(&spec.cap_add, &spec.cap_drop)?;
    let (rlimits, warnings) = rlimits(spec, host)?;
    let mut env = Environment::new(&process.env);
    if env.get("HOSTNAME").is_none() {
        env.set("HOSTNAME", &spec.hostname);
    }
    let init = spec.init && process == &spec.process;
    let prefix: &[&str] = if init { &[INIT_PATH, "--"] } else { &[] };
    let args: Vec<&str> = prefix
        .iter()
        .copied()
        .chain(process.args.iter().map(String::as_str))
        .collect();
    let value = json!({
        "terminal": false,
        "user": { "uid": process.user.uid, "gid": process.user.gid, "additionalGids": process.user.groups },
        "args": args,
        "env": env.into_list(),
        "cwd": process.cwd,
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            "inheritable": [], "ambient": [],
        },
        "rlimits": rlimits,
        "noNewPrivileges": spec.no_new_privileges,
    });
    Ok((value, warnings))
}

fn mounts(spec: &NodeSpec, layout: &Layout) -> Vec<Value> {
    let mut list = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        // Flags of binds are set where the shim makes them: changing them here would fail on locked ones.
        json!({ "destination": "/dev", "type": "bind", "source": layout.dev, "options": ["bind"] }),
        json!({
            "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] }),
    ];
    let mut own: Vec<(usize, Value)> = Vec::new();
    let mut add =
        |target: &str, value: Value| own.push((Path::new(target).components().count(), value));
    if !spec.tmpfs.iter().any(|t| t.target == "/dev/shm")
        && !spec.binds.iter().any(|b| b.target == "/dev/shm")
    {
        let options = [
            "nosuid".to_owned(),
            "noexec".into(),
            "nodev".into(),
            "mode=1777".into(),
            format!("size={SHM_SIZE}"),
        ];
        let value = json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options });
        add("/dev/shm", value);
    }
    for tmpfs in &spec.tmpfs {
        let mut options = vec!["nosuid".to_owned(), "noexec".into(), "nodev".into()];
        options.push(format!("mode={:o}", tmpfs.mode.unwrap_or(0o1777)));
        options.extend(tmpfs.size.map(|size| format!("size={size}")));
        let value = json!({ "destination": tmpfs.target, "type": "tmpfs", "source": "tmpfs", "options": options });
        add(&tmpfs.target, value);
    }
    for (bind, source) in spec.binds.iter().zip(&layout.binds) {
        let value = json!({ "destination": bind.target, "type": "bind", "source": source, "options": ["bind"] });
        add(&bind.target, value);
    }
    for (file, source) in &layout.files {
        let value = json!({ "destination": file.target, "type": "bind", "source": source, "options": ["bind"] });
        add(&file.target, value);
    }
    // What contains comes before what is contained.
    own.sort_by_key(|(depth, _)| *depth);
    list.extend(own.into_iter().map(|(_, value)| value));
    list
}

fn resources(spec: &NodeSpec) -> Value {
    let mut resources = json!({
        "pids": { "limit": spec.limits.pids.unwrap_or(DEFAULT_PIDS) },
        // runc adds Docker's default devices (null, zero, full, random, urandom, tty, ptmx, pts) to what follows.
        "devices": [{ "allow": false, "access": "rwm" }],
    });
    if let Some(memory) = spec.limits.memory {
        resources["memory"] = json!({ "limit": memory });
    }
    if let Some(milli) = spec.limits.milli_cpus {
        // The kernel refuses quotas below 1 ms.
        let quota = (u64::from(milli) * CPU_PERIOD_US / 1000).max(1000);
        resources["cpu"] = json!({ "quota": quota, "period": CPU_PERIOD_US });
    }
    resources
}

/// Settings that belong to the node's own namespaces; all others would be the host's.
fn sysctls(spec: &NodeSpec) -> Result<&BTreeMap<String, String>> {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    for name in spec.sysctls.keys() {
        let clean = !name.contains('/') && name.split('.').all(|part| !part.is_empty());
        let own = name.starts_with("net.")
            || name.starts_with("fs.mqueue.")
            || IPC.contains(&name.as_str());
        if !(clean && own) {
            return Err(RuntimeError::spec(format!(
                "sysctl {name} is not the node's own: it would change the host"
            )));
        }
    }
    Ok(&spec.sysctls)
}

/// Limits, lowered to what the host allows: raising a hard limit needs `CAP_SYS_RESOURCE` over the host, and a clone's restore could
/// not raise it either.
fn rlimits(spec: &NodeSpec, host: &HardLimits) -> Result<(Vec<Value>, Vec<String>)> {
    let mut limits = Vec::new();
    let mut warnings = Vec::new();
    let most = |name: &str| host.get(name).copied().unwrap_or(u64::MAX);
    if !spec.ulimits.contains_key("nofile") {
        let (soft, hard) = DEFAULT_NOFILE;
        let most = most("nofile");
        limits.push(
            json!({ "type": "RLIMIT_NOFILE", "soft": soft.min(most), "hard": hard.min(most) }),
        );
    }
    for (name, limit) in &spec.ulimits {
        if !ULIMITS.contains(&name.as_str()) {
            return Err(RuntimeError::spec(format!(
                "ulimit {name:?} is not known; known are {}",
                ULIMITS.join(", ")
            )));
        }
        let most = most(name);
        let hard = limit.hard.min(most);
        let soft = limit.soft.min(hard);
        if hard < limit.hard {
            warnings.push(format!(
                "ulimit {name}: {} was lowered to the host's {most}",
                limit.hard
            ));
        }
        limits.push(json!({ "type": format!("RLIMIT_{}", name.to_uppercase()), "soft": soft, "hard": hard }));
    }
    Ok((limits, warnings))
}

/// The calling process's hard limits.
#[must_use]
pub fn hard_limits() -> HardLimits {
    use rustix::process::Resource as R;
    let known = [
        ("as", R::As),
        ("core", R::Core),
        ("cpu", R::Cpu),
        ("data", R::Data),
        ("fsize", R::Fsize),
        ("locks", R::Locks),
        ("memlock", R::Memlock),
        ("msgqueue", R::Msgqueue),
        ("nice", R::Nice),
        ("nofile", R::Nofile),
        ("nproc", R::Nproc),
        ("rss", R::Rss),
        ("rtprio", R::Rtprio),
        ("rttime", R::Rttime),
        ("sigpending", R::Sigpending),
        ("stack", R::Stack),
    ];
    known
        .map(|(name, r)| {
            (
                name,
                rustix::process::getrlimit(r).maximum.unwrap_or(u64::MAX),
            )
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Access, Bind, Tmpfs};
    use crate::testing::spec;
    use offshoot_model::manifest::{Limits, Ulimit};

    #[test]
    fn golden_config() {
        let mut spec = spec(Path::new("/run/offshoot/envs/abcdefgh/nodes/web-1"));
        spec.binds.push(Bind {
            source: "/pool/v".into(),
            target: "/data/deep".into(),
            access: Access::ReadWrite,
        });
        spec.tmpfs.push(Tmpfs {
            target: "/data".into(),
            size: Some(1 << 20),
            mode: None,
        });
        spec.files
            .push(NodeFile::etc("/etc/hosts", "127.0.0.1 localhost\n".into()));
        spec.files.push(NodeFile {
            place: FilePlace::Mount,
            ..NodeFile::etc("/etc/app.conf", "x".into())
        });
        spec.limits = Limits {
            memory: Some(64 << 20),
            milli_cpus: Some(500),
            pids: None,
        };
        spec.ulimits.insert(
            "nofile".into(),
            Ulimit {
                soft: 10,
                hard: 1 << 40,
            },
        );
        spec.start = Start::Restore {
            images: "/img".into(),
        };
        let (mut config, warnings) =
            oci_config(&spec, &HardLimits::from([("nofile", 20_000)])).unwrap();
        assert_eq!(
            warnings,
            ["ulimit nofile: 1099511627776 was lowered to the host's 20000"]
        );
        // Its own golden file is data/seccomp.json.
        config["linux"]["seccomp"]["syscalls"][0]["names"] = json!("...");
        insta::assert_json_snapshot!(config);
    }

    #[test]
    fn what_is_the_hosts_is_refused() {
        for name in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net./../kernel.panic",
            "net..x",
            "kernel.hostname",
        ] {
            let mut spec = spec(Path::new("/run/x"));
            spec.sysctls.insert(name.into(), "1".into());
            assert!(oci_config(&spec, &HardLimits::new()).is_err(), "{name}");
        }
        let mut bad = spec(Path::new("/run/x"));
        bad.binds.push(Bind {
            source: "/".into(),
            target: "/a/../../b".into(),
            access: Access::ReadOnly,
        });
        assert!(oci_config(&bad, &HardLimits::new()).is_err());
        let mut bad = spec(Path::new("/run/x"));
        bad.id_base = 0;
        assert!(oci_config(&bad, &HardLimits::new()).is_err());
    }

    #[test]
    fn a_written_file_below_a_volume_is_mounted_over_it() {
        let mut spec = spec(Path::new("/run/x"));
        spec.files.push(NodeFile::etc("/etc/hosts", String::new()));
        assert_eq!(Layout::of(&spec).written.len(), 1);
        spec.binds.push(Bind {
            source: "/v".into(),
            target: "/etc".into(),
            access: Access::ReadWrite,
        });
        assert_eq!(
            (
                Layout::of(&spec).written.len(),
                Layout::of(&spec).files.len()
            ),
            (0, 1)
        );
    }
}
