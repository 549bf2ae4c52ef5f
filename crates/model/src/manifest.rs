//! What an environment should be: a Compose file after parsing, merging, interpolation and defaults.
//!
//! The fully decided form: no variables, no relative paths, no references to files outside. It is what the
//! database keeps and what a clone copies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::name::{LayerName, VolumeName};

/// An application: layers, and the volumes they share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Layers in the order of the file; never empty once parsed.
    pub layers: Vec<Layer>,
    /// Named volumes.
    #[serde(default)]
    pub volumes: BTreeMap<VolumeName, VolumeSpec>,
}

/// Nodes of one kind: a Compose service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The layer's name; resolves inside to the addresses of all its nodes.
    pub name: LayerName,
    /// Further names that resolve inside to the addresses of all its nodes; the same in every clone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Where the root file system comes from.
    pub image: ImageSource,
    /// What the layer is for.
    pub role: Role,
    /// How a new node of the layer comes to be.
    pub scaling: Scaling,
    /// How a clone's nodes come to be, for stateful layers.
    pub clone: CloneMode,
    /// Port that the edge sends people to; the first layer with one is the environment's entry.
    #[serde(default)]
    pub entry: Option<u16>,
    /// Number of nodes, 1 to [`MAX_REPLICAS`].
    pub replicas: u32,
    /// Replaces the image's command.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// Replaces the image's entrypoint (and, as in Compose, drops the image's command).
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Environment variables on top of the image's.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Replaces the image's working directory.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Replaces the image's user: `name`, `uid`, `name:group`, `uid:gid`.
    #[serde(default)]
    pub user: Option<String>,
    /// A fixed host name, the same in every clone. Without it a node is `<layer>-<n>.<environment>`.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Run a small init as process 1 that reaps orphans and passes signals.
    #[serde(default)]
    pub init: bool,
    /// Whether it runs scheduled or queued work, which an environment whose jobs are held must not do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub jobs: bool,
    /// What to do when the main process ends.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Signal that asks the main process to stop; the image's, or SIGTERM, when absent. A name such as `SIGQUIT`.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Milliseconds between the stop signal and SIGKILL.
    pub stop_grace_ms: u64,
    /// How to find out whether a node is healthy; the image's own when absent.
    #[serde(default)]
    pub healthcheck: Option<HealthCheck>,
    /// Layers that must have reached a condition before this one starts.
    #[serde(default)]
    pub depends_on: Vec<Dependency>,
    /// Volumes, files and temporary file systems.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Ports published on the host.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// Ports the layer listens on, for information.
    #[serde(default)]
    pub expose: Vec<u16>,
    /// Resource limits of each node.
    #[serde(default)]
    pub limits: Limits,
    /// Namespaced kernel settings.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Resource limits by their name without `RLIMIT_`, lower case (`nofile`), as in setrlimit(2).
    #[serde(default)]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Capabilities beyond the default set, `CAP_` names (capabilities(7)).
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set; `ALL` takes all.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// Additional names and their addresses in /etc/hosts.
    #[serde(default)]
    pub extra_hosts: BTreeMap<String, String>,
    /// Labels, for people and tools.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Mount the root file system read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Whether processes may gain privileges through execve(2); false sets `no_new_privs` (prctl(2)).
    #[serde(default)]
    pub allow_new_privileges: bool,
}

/// Most nodes in one layer.
pub const MAX_REPLICAS: u32 = 64;
/// Most nodes in one environment: fits its /24 with room for the gateway.
pub const MAX_NODES: usize = 200;
/// Default time between the stop signal and SIGKILL (Compose's default).
pub const DEFAULT_STOP_GRACE_MS: u64 = 10_000;

/// Where a layer's root file system comes from.
#[expect(
    clippy::large_enum_variant,
    reason = "a handful per environment; a box would only get in the way"
)]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum ImageSource {
    /// An OCI registry: a full reference such as `docker.io/library/nginx:1.27` (image-spec and
    /// distribution-spec).
    Registry {
        /// The reference with host, repository and tag or digest.
        reference: String,
    },
    /// An OCI image layout directory on the host.
    OciLayout {
        /// Absolute path.
        path: String,
        /// Tag (`org.opencontainers.image.ref.name`), when the layout holds several images.
        #[serde(default)]
        tag: Option<String>,
    },
    /// A file written by `docker save`.
    DockerArchive {
        /// Absolute path.
        path: String,
        /// Tag, when the archive holds several images.
        #[serde(default)]
        tag: Option<String>,
    },
    /// Made from a distribution's packages.
    Packages(PackageImage),
}

impl ImageSource {
    /// One line for people: the reference, the path, or the packages.
    #[must_use]
    pub fn display(&self) -> String {
        let tagged = |scheme: &str, path: &str, tag: &Option<String>| match tag {
            Some(tag) => format!("{scheme}:{path}:{tag}"),
            None => format!("{scheme}:{path}"),
        };
        match self {
            Self::Registry { reference } => reference.clone(),
            Self::OciLayout { path, tag } => tagged("oci", path, tag),
            Self::DockerArchive { path, tag } => tagged("docker-archive", path, tag),
            Self::Packages(image) => {
                format!("packages:{}:{}", image.suite, image.packages.join(","))
            }
        }
    }
}

/// An image made on the host from a distribution's packages; equal contents are made once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PackageImage {
    /// The distribution's release, for instance `bookworm`.
    pub suite: String,
    /// Packages to install with what they need, no recommendations; empty means the base alone.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Files written after the packages: absolute path inside to content and mode.
    #[serde(default)]
    pub files: BTreeMap<String, ImageFile>,
    /// Shell commands run once inside, as root, after the files are written.
    #[serde(default)]
    pub run: Vec<String>,
    /// What runs in a node by default.
    #[serde(default)]
    pub config: ImageConfig,
}

/// A file of a [`PackageImage`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Content as text.
    pub content: String,
    /// Permission bits, for instance 0o644.
    pub mode: u32,
}

/// The part of an image's configuration that starts a node (OCI image-spec, config.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// `Entrypoint`.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    #[serde(default)]
    pub command: Vec<String>,
    /// `Env`, each `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `WorkingDir`.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// `User`.
    #[serde(default)]
    pub user: Option<String>,
    /// `StopSignal`.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// `ExposedPorts`, TCP only.
    #[serde(default)]
    pub exposed_ports: Vec<u16>,
    /// `Volumes`: paths the image wants kept; information only.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Docker's `Healthcheck`.
    #[serde(default)]
    pub healthcheck: Option<HealthCheck>,
}

/// What a layer is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Spreads requests: nginx, HAProxy, ...
    Balancer,
    /// Runs the application.
    App,
    /// A relational database.
    Sql,
    /// A document or wide-column database.
    Nosql,
    /// A cache.
    Cache,
    /// Keeps files for others.
    Storage,
    /// Anything else.
    #[default]
    Other,
}

/// How a new node of a layer comes to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// It is a copy: a clone's node has its counterpart's disk and, where possible, memory.
    #[default]
    Stateful,
    /// It starts from the image.
    Stateless,
}

/// What the nodes of a clone are made from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CloneMode {
    /// Each from its own counterpart; clusters stay clusters.
    #[default]
    Each,
    /// All from the layer's first node.
    Master,
    /// All from the base image.
    Image,
}

/// What to do when a node's main process ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum RestartPolicy {
    /// Leave it (Compose's default).
    #[default]
    No,
    /// Start it again until a person stops it.
    Always,
    /// As `Always`, but a node that a person stopped stays stopped over a restart of the daemon.
    UnlessStopped,
    /// Start it again after a non-zero exit status.
    OnFailure {
        /// Most attempts in a row; `None` is without limit.
        #[serde(default)]
        max_attempts: Option<u32>,
    },
}

/// A command that tells by its exit status whether a node is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// argv; empty disables the image's own check. `CMD-SHELL x` has become `["/bin/sh", "-c", "x"]`.
    pub test: Vec<String>,
    /// Milliseconds between checks.
    pub interval_ms: u64,
    /// Milliseconds one check may take.
    pub timeout_ms: u64,
    /// Failures in a row that make a node unhealthy.
    pub retries: u32,
    /// Milliseconds after the start in which failures do not count.
    pub start_period_ms: u64,
    /// Milliseconds between checks in the start period.
    pub start_interval_ms: u64,
}

/// One entry of `depends_on`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Dependency {
    /// The layer waited for.
    #[schema(value_type = String)]
    pub layer: LayerName,
    /// What it must have reached.
    pub condition: Condition,
    /// Whether a missing or failed layer is an error.
    pub required: bool,
}

/// What `depends_on` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// All nodes were started.
    Started,
    /// All nodes are healthy.
    Healthy,
    /// All nodes ended with status 0.
    CompletedSuccessfully,
}

/// Something mounted into every node of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Mount {
    /// A named (or, with a generated name, anonymous) volume.
    Volume {
        /// The volume.
        volume: VolumeName,
        /// Absolute, normal path inside.
        target: String,
        /// Mounted read-only.
        #[serde(default)]
        read_only: bool,
    },
    /// A file (config, secret, or read-only bind of a file), captured when the manifest was read and always
    /// read-only inside.
    File {
        /// Absolute, normal path inside.
        target: String,
        /// Content; base64 would double what people see in `show`, so bytes travel as a list only when not UTF-8.
        content: FileContent,
        /// Permission bits.
        mode: u32,
        /// Owner inside.
        uid: u32,
        /// Group inside.
        gid: u32,
        /// A secret: never shown, logged or listed.
        #[serde(default)]
        secret: bool,
    },
    /// A temporary file system.
    Tmpfs {
        /// Absolute, normal path inside.
        target: String,
        /// Size limit in bytes.
        #[serde(default)]
        size: Option<u64>,
        /// Permission bits of its root.
        #[serde(default)]
        mode: Option<u32>,
    },
}

impl Mount {
    /// Where it is mounted inside.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Self::Volume { target, .. }
            | Self::File { target, .. }
            | Self::Tmpfs { target, .. } => target,
        }
    }
}

/// Content of a captured file. Its `Debug` never shows the bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FileContent {
    /// UTF-8 text.
    Text(String),
    /// Anything else.
    Bytes(Vec<u8>),
}

impl FileContent {
    /// Bytes to write to disk.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for FileContent {
    fn from(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|e| Self::Bytes(e.into_bytes()), Self::Text)
    }
}

impl std::fmt::Debug for FileContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileContent({} bytes)", self.as_bytes().len())
    }
}

/// A named volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// What a clone gets.
    #[serde(default)]
    pub clone: VolumeClone,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What a clone gets for a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeClone {
    /// A snapshot taken at the cut.
    #[default]
    Copy,
    /// A new, empty volume.
    Empty,
    /// The parent's own volume: both write to it.
    Shared,
}

/// A port published on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// Host address to listen on; `127.0.0.1` unless the manifest names another.
    pub host_ip: String,
    /// Port on the host; `None` lets Offshoot choose a free one.
    #[serde(default)]
    pub host_port: Option<u16>,
    /// Port of the node.
    pub target: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// Resource limits of a node; `None` is without limit, except `pids`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory in bytes.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Processor time in thousandths of one core.
    #[serde(default)]
    pub milli_cpus: Option<u32>,
    /// Processes and threads; [`DEFAULT_PIDS`] when absent.
    #[serde(default)]
    pub pids: Option<u32>,
}

/// Process limit of a node that names none.
pub const DEFAULT_PIDS: u32 = 4096;

/// Names that [`Layer::ulimits`] may have: those of setrlimit(2) without `RLIMIT_`, lower case.
pub const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Soft and hard value of a resource limit (setrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

impl Manifest {
    /// The layer of that name.
    #[must_use]
    pub fn layer(&self, name: &LayerName) -> Option<&Layer> {
        self.layers.iter().find(|layer| &layer.name == name)
    }

    /// The layer that the edge sends people to, with its port.
    #[must_use]
    pub fn entry(&self) -> Option<(&Layer, u16)> {
        self.layers
            .iter()
            .find_map(|layer| layer.entry.map(|port| (layer, port)))
    }
}
