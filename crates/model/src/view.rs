//! What the API takes and gives: requests, and pictures of what is, made for reading.
//!
//! Secrets never enter a view.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clone::{Memory, Rung, RungChoice};
use crate::domain::{Domain, DomainView, Warm};
use crate::environment::{EnvironmentState, NodeState, PortBinding};
use crate::hold::Hold;
use crate::id::{EnvId, OperationId};
use crate::manifest::{ImageConfig, ImageSource, Manifest, Role, Scaling, VolumeClone};

/// `POST /api/v1/environments`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// Name of the new environment.
    pub name: String,
    /// What it should be, as `offshoot-compose` makes it from Compose files.
    #[schema(value_type = Object)]
    pub manifest: Manifest,
}

/// `POST /api/v1/environments/{environment}/clone`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneRequest {
    /// Name of the clone; `<parent>-clone`, then `<parent>-clone2`, ... when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// How nodes are cloned.
    #[serde(default)]
    pub rung: RungChoice,
    /// Bound on the freeze in milliseconds, 10 to 60000; the daemon's configuration when absent.
    #[serde(default)]
    pub max_freeze_ms: Option<u64>,
    /// Whether the clone runs. Without, it is made from disks and left stopped.
    #[serde(default = "yes")]
    pub start: bool,
    /// What the clone is kept from, beside what its parent is.
    #[serde(default)]
    pub hold: Hold,
}

fn yes() -> bool {
    true
}

impl Default for CloneRequest {
    fn default() -> Self {
        Self {
            name: None,
            rung: RungChoice::default(),
            max_freeze_ms: None,
            start: true,
            hold: Hold::default(),
        }
    }
}

/// `POST /api/v1/environments/{environment}/rename`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameRequest {
    /// The new name.
    pub name: String,
    /// Whether the old name's domain leads visitors to the new one's, until another environment has the name.
    #[serde(default)]
    pub redirect: bool,
}

/// `POST /api/v1/environments/{environment}/domains`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DomainAddRequest {
    /// Domains to add, all in one step; 1 to 64.
    pub domains: Vec<Domain>,
}

/// `POST /api/v1/environments/{environment}/swap`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwapRequest {
    /// The other environment, by name or id.
    pub with: String,
    /// Exchange again what the last swap of the two exchanged; refused when their domains changed since.
    #[serde(default)]
    pub back: bool,
    /// What must be seen before anything is switched.
    #[serde(default)]
    pub warm: Warm,
}

/// `POST /api/v1/images`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagePullRequest {
    /// Where the image comes from.
    pub source: ImageSource,
}

/// `POST /api/v1/pool/grow`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolGrowRequest {
    /// New size in bytes.
    pub size: u64,
}

/// An environment as people see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentView {
    /// Identity.
    #[schema(value_type = String)]
    pub id: EnvId,
    /// Name.
    pub name: String,
    /// What was asked for last.
    pub state: EnvironmentState,
    /// `true` when every node is as `state` asks and no health check fails.
    pub healthy: bool,
    /// Address for a browser, when a layer has an entry.
    pub url: Option<String>,
    /// Custom domains, by host name.
    #[serde(default)]
    pub domains: Vec<DomainView>,
    /// What it is kept from.
    #[serde(default)]
    pub held: Hold,
    /// Where it came from.
    pub parent: Option<LineageView>,
    /// When it was created.
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// Layers in the order of the manifest.
    pub layers: Vec<LayerView>,
    /// Volumes.
    pub volumes: Vec<VolumeView>,
    /// Published ports as placed.
    pub ports: Vec<PortBinding>,
    /// The operation that holds it now.
    #[schema(value_type = Option<String>)]
    pub operation: Option<OperationId>,
}

/// Where a clone came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineageView {
    /// The parent.
    #[schema(value_type = String)]
    pub id: EnvId,
    /// The parent's name now, or at the cut when it is gone.
    pub name: String,
    /// The instant of the cut.
    #[schema(value_type = String)]
    pub cut: Timestamp,
    /// The operation that cloned it.
    #[schema(value_type = String)]
    pub operation: OperationId,
}

/// A layer as people see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LayerView {
    /// Name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// How a new node comes to be.
    pub scaling: Scaling,
    /// Image, one line.
    pub image: String,
    /// Port that the edge sends people to.
    pub entry: Option<u16>,
    /// Nodes by number.
    pub nodes: Vec<NodeView>,
}

/// A node as people see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Name inside the environment.
    pub name: String,
    /// What it is doing.
    pub status: NodeState,
    /// Host name.
    pub hostname: String,
    /// Address inside; the same in every clone.
    pub inner: String,
    /// Address that the host sees.
    pub outer: String,
    /// Address inside, IPv6.
    pub inner6: Option<String>,
    /// Address that the host sees, IPv6.
    pub outer6: Option<String>,
    /// Memory in use, bytes.
    pub memory_bytes: Option<u64>,
    /// Processor time used since the start, microseconds.
    pub cpu_us: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// How often its restart policy started it again.
    pub restarts: u32,
    /// Whether it stands because the environment's jobs are held: its layer runs jobs.
    #[serde(default)]
    pub held: bool,
    /// Schedulers in it that stand still because the environment's jobs are held, each as `cron (process 4711)`, a pid of the host.
    #[serde(default)]
    pub held_processes: Vec<String>,
}

/// A volume as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// Name.
    pub name: String,
    /// What a clone gets.
    pub clone: VolumeClone,
    /// Set when the volume belongs to another environment.
    #[schema(value_type = Option<String>)]
    pub shared_with: Option<EnvId>,
    /// Bytes that only this volume holds, where the pool can tell.
    pub exclusive_bytes: Option<u64>,
}

/// What `plan` and `clone --dry-run` answer: everything that would be done, decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    /// Name of the environment that would be made.
    pub name: String,
    /// Address for a browser it would have.
    pub url: Option<String>,
    /// Nodes that would be made.
    pub nodes: Vec<PlannedNode>,
    /// Volumes that would be made, with how.
    pub volumes: Vec<PlannedVolume>,
    /// Published ports as they would be placed.
    pub ports: Vec<PortBinding>,
    /// Steps in order.
    pub steps: Vec<String>,
    /// For a clone: how long the parent is expected to stand still, all nodes together, microseconds; absent where nothing of it
    /// runs, or where it cannot be told before it is tried.
    #[serde(default)]
    pub predicted_freeze_us: Option<u64>,
    /// What differs from the parent, what is not carried over, warnings.
    pub notices: Vec<String>,
}

/// A node of a [`PlanView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedNode {
    /// Node name.
    pub name: String,
    /// Image, one line.
    pub image: String,
    /// Address inside.
    pub inner: String,
    /// Address that the host would see.
    pub outer: String,
    /// Host name.
    pub hostname: String,
    /// For a clone: how it would be cloned.
    pub rung: Option<Rung>,
    /// For a clone: why not `live`.
    pub why: Option<String>,
    /// For a clone: how its memory would be taken, when it is `live`.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// For a clone: resident memory that would be copied, bytes.
    pub memory_bytes: Option<u64>,
    /// For a clone: why it, or what in it, would be held.
    #[serde(default)]
    pub held: Option<String>,
}

/// A volume of a [`PlanView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedVolume {
    /// Volume name.
    pub name: String,
    /// How it would be made: `copy`, `empty` or `shared`.
    pub clone: VolumeClone,
}

/// An image as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    /// `sha256:...`.
    pub id: String,
    /// Where it came from, one line.
    pub source: String,
    /// When it was fetched or made.
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// Bytes unpacked.
    pub size: u64,
    /// How many nodes were made from it.
    pub used_by: u32,
    /// What it runs.
    pub config: ImageConfig,
}

/// The pool as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// `loop file`, `device` or `mounted`.
    pub backing: String,
    /// The file, device or mount point.
    pub path: String,
    /// Bytes in all.
    pub size: u64,
    /// Bytes used.
    pub used: u64,
    /// Bytes that can still be written.
    pub free: u64,
    /// For a loop file: bytes it takes on the host's disk now.
    pub host_bytes: Option<u64>,
}

/// What `doctor` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorReport {
    /// `true` when environments can be run.
    pub fit: bool,
    /// Checks in order of importance.
    pub checks: Vec<DoctorCheck>,
}

/// One check of [`DoctorReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorCheck {
    /// Stable name, for instance `criu`.
    pub name: String,
    /// Verdict.
    pub verdict: Verdict,
    /// What was found, for instance a version and a path.
    pub found: String,
    /// What it costs when it is missing.
    pub cost: Option<String>,
    /// What to do.
    pub next: Option<String>,
}

/// Verdict of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// There and working.
    Good,
    /// Missing, and something is lost without it.
    Lacking,
    /// Missing, and nothing works without it.
    Missing,
}

/// A line of a node's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When it was read.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// Node name.
    pub node: String,
    /// Which stream.
    pub stream: LogStream,
    /// The line without its end; bytes that are not UTF-8 replaced.
    pub line: String,
}

/// Output stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A command to run in a node: first message of the exec WebSocket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// argv, not empty.
    pub args: Vec<String>,
    /// Variables on top of the node's, each `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory; the node's when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// User as in the manifest; the node's when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Size of a terminal to give it.
    #[serde(default)]
    pub tty: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// `POST /api/v1/login-links`: a link that signs one person in to the dashboard, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoginLink {
    /// Where to sign in. A secret until it was used or has expired.
    pub url: String,
    /// When it can no longer be used.
    #[schema(value_type = String)]
    pub expires: Timestamp,
}

/// An entry of the event stream: an operation as it is after a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Position; `Last-Event-ID` resumes after it.
    pub seq: u64,
    /// The operation.
    pub operation: crate::operation::Operation,
}
