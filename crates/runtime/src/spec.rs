//! Everything that decides how a node runs. Written to `<run_dir>/spec.json`, from which the shim, the restore hook and
//! `exec` read it; nothing else is consulted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offshoot_model::NodeId;
use offshoot_model::manifest::{FileContent, Limits, Ulimit};
use serde::{Deserialize, Serialize};

use crate::NodeLink;
use crate::error::{Result, RuntimeError};

/// A node to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The node.
    pub node: NodeId,
    /// Label of the daemon, `[a-z0-9]{1,6}`: part of the cgroup's name.
    pub instance: String,
    /// `<run>/envs/<env>/nodes/<node>`, owned by this crate alone; gone after a reboot. Every directory on the way must be passable
    /// (`o+x`): the node's root is an ordinary user outside its user namespace.
    pub run_dir: PathBuf,
    /// Where its output is kept; stays after the node is removed.
    pub log_dir: PathBuf,
    /// Its root file system: a directory of the pool, owners unshifted.
    pub rootfs: PathBuf,
    /// Directories or files of the host shown inside: volumes, owners unshifted.
    pub binds: Vec<Bind>,
    /// Small files with given content.
    pub files: Vec<NodeFile>,
    /// Temporary file systems.
    pub tmpfs: Vec<Tmpfs>,
    /// Its main process.
    pub process: ProcessSpec,
    /// Host name, at most 64 bytes.
    pub hostname: String,
    /// Host id of inner id 0.
    pub id_base: u32,
    /// Number of ids.
    pub id_count: u32,
    /// Memory, processor and process limits.
    pub limits: Limits,
    /// Capabilities beyond Docker's default set, with or without `CAP_`, or `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities taken from it, or `ALL`.
    pub cap_drop: Vec<String>,
    /// Namespaced kernel settings (`net.*`, `kernel.shm*`, `kernel.msg*`, `kernel.sem`, `fs.mqueue.*`).
    pub sysctls: BTreeMap<String, String>,
    /// Resource limits by lower-case name (`nofile`). Values above the host's hard limit are lowered to it.
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Set `no_new_privs` (prctl(2)): set-uid programs give nothing.
    pub no_new_privileges: bool,
    /// Mount the root file system read-only.
    pub read_only: bool,
    /// Run a small init as process 1.
    pub init: bool,
    /// How it is connected; `None` leaves it with `lo` alone.
    pub link: Option<NodeLink>,
    /// Whether it begins anew or goes on from images.
    pub start: Start,
    /// Let the kernel keep memory that is equal to other nodes' once.
    pub share_memory: bool,
    /// Its environment's jobs are held: known schedulers in it stand still ([`crate::schedulers`]).
    #[serde(default)]
    pub hold_jobs: bool,
    /// Programs to use.
    pub tools: Tools,
}

/// Whether a bind may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// It may.
    ReadWrite,
    /// It may not.
    ReadOnly,
}

/// A directory or file of the host shown inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host; on a file system that can be id-mapped.
    pub source: PathBuf,
    /// Absolute, normal path inside.
    pub target: String,
    /// Whether it may be written to.
    pub access: Access,
}

/// Where a [`NodeFile`] lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilePlace {
    /// A read-only mount of its own: not even the node's root can change it.
    Mount,
    /// Written into the root file system before the start. Costs no mount (each costs time in a dump). For `/etc/hosts` and its like.
    Rootfs,
}

/// A small file with given content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// Absolute, normal path inside.
    pub target: String,
    /// Content.
    pub content: FileContent,
    /// Permission bits.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
    /// Where it lives.
    pub place: FilePlace,
}

impl NodeFile {
    /// A file of the root user, readable by all, written into the root file system: `/etc/hosts`, `/etc/hostname`,
    /// `/etc/resolv.conf`.
    #[must_use]
    pub fn etc(target: &str, text: String) -> Self {
        let content = FileContent::Text(text);
        Self {
            target: target.to_owned(),
            content,
            mode: 0o644,
            uid: 0,
            gid: 0,
            place: FilePlace::Rootfs,
        }
    }
}

/// A temporary file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute, normal path inside.
    pub target: String,
    /// Size limit in bytes; half of the memory when absent (tmpfs(5)).
    pub size: Option<u64>,
    /// Permission bits of its root; 1777 when absent.
    pub mode: Option<u32>,
}

/// A process to run inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// argv; not empty. `argv[0]` is searched in `PATH`.
    pub args: Vec<String>,
    /// Environment, each `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute; made when absent.
    pub cwd: String,
    /// Who it runs as, in inner ids.
    pub user: UserSpec,
}

/// Ids of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// How a node begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Start {
    /// With its main process.
    Fresh,
    /// With all its processes as they were at a cut.
    Restore {
        /// CRIU's images, and `descriptors.json`: what descriptors 0, 1 and 2 of the main process were, three texts such as
        /// `pipe:[4711]`. CRIU reads them as root without any privilege first and as the node's root later, through a descriptor:
        /// the directory must be mode 0711 and its files 0644; a parent that only root can pass keeps them secret.
        images: PathBuf,
    },
}

/// Programs that run a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    /// runc.
    pub runc: PathBuf,
    /// Directory that holds a working `criu`; put first in runc's `PATH`.
    pub criu_dir: Option<PathBuf>,
    /// Directory where `criu` keeps what it finds out about the kernel, where it would not keep it itself (`offshoot_sys::preload`).
    #[serde(default)]
    pub criu_kernel: Option<PathBuf>,
    /// offshoot-shim.
    pub shim: PathBuf,
}

/// Name of the specification in a node's directory.
pub const SPEC_FILE: &str = "spec.json";
/// Largest specification read, in bytes: captured files are at most a few hundred KiB.
const SPEC_MAX: u64 = 64 << 20;

impl NodeSpec {
    /// Reads the specification written for the node of `run_dir`.
    ///
    /// # Errors
    /// When it is absent, too large or not understood.
    pub fn read(path: &Path) -> Result<Self> {
        let text = crate::files::read_bounded(path, SPEC_MAX)?;
        serde_json::from_slice(&text)
            .map_err(|e| RuntimeError::spec(format!("{}: {e}", path.display())))
    }

    /// Where it is written: readable by root alone, for it holds secrets.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.run_dir.join(SPEC_FILE)
    }

    /// Checks what the kernel or runc would refuse late or, worse, accept.
    ///
    /// # Errors
    /// When a value is out of its range; the text names it.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(RuntimeError::spec(what));
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if self.instance.is_empty() || self.instance.len() > 6 || !self.instance.chars().all(label)
        {
            return refuse(format!(
                "instance {:?} is not 1 to 6 of a-z0-9",
                self.instance
            ));
        }
        if self.process.args.is_empty() || self.process.args.iter().any(|a| a.contains('\0')) {
            return refuse(format!(
                "node {}: no command, or one with a NUL byte",
                self.node
            ));
        }
        if self
            .process
            .env
            .iter()
            .any(|e| e.contains('\0') || !e.contains('='))
        {
            return refuse(format!(
                "node {}: an environment variable without '=' or with a NUL byte",
                self.node
            ));
        }
        if self.hostname.is_empty() || self.hostname.len() > 64 {
            return refuse(format!(
                "host name {:?} is not 1 to 64 bytes long",
                self.hostname
            ));
        }
        if self.id_base == 0
            || self.id_count == 0
            || self.id_base.checked_add(self.id_count).is_none()
        {
            return refuse(format!(
                "ids {} + {} are no range apart from the host's root",
                self.id_base, self.id_count
            ));
        }
        let ids = self
            .process
            .user
            .groups
            .iter()
            .chain([&self.process.user.uid, &self.process.user.gid]);
        if let Some(id) = ids.copied().find(|id| *id >= self.id_count) {
            return refuse(format!(
                "node {}: id {id} is beyond the {} mapped ids",
                self.node, self.id_count
            ));
        }
        let targets = (self.binds.iter().map(|b| &b.target))
            .chain(self.files.iter().map(|f| &f.target))
            .chain(self.tmpfs.iter().map(|t| &t.target));
        for target in targets.chain([&self.process.cwd]) {
            let path = Path::new(target);
            let normal = path.components().all(|c| {
                matches!(
                    c,
                    std::path::Component::RootDir | std::path::Component::Normal(_)
                )
            });
            if !path.is_absolute() || !normal || target.contains('\0') {
                return refuse(format!("{target:?} is not an absolute path without '..'"));
            }
        }
        Ok(())
    }
}
