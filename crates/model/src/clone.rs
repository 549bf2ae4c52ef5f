//! How a node was cloned, and what was measured.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a node came to be in a clone, from most to least that came along.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Memory and disk at the cut: its processes go on.
    Live,
    /// Disk at the cut; its processes start afresh.
    Disk,
    /// The base image.
    Image,
    /// The parent's node was not running: disk only, and it stays stopped.
    Stopped,
}

/// How the memory of a node with rung `live` is taken, from the shortest freeze to the longest.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryWay {
    /// Copied or left to a twin while the node runs; in the freeze only what was written since (`PAGEMAP_SCAN`, Linux 6.7).
    Tracked,
    /// Copied by CRIU in rounds, in each of which the node stands still for a moment; in the freeze only what was written since the last
    /// (soft-dirty pages, `CONFIG_MEM_SOFT_DIRTY`).
    PreDump,
    /// Copied by CRIU in the freeze, all of it.
    Dump,
}

impl MemoryWay {
    /// Its name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tracked => "tracked",
            Self::PreDump => "pre-dump",
            Self::Dump => "dump",
        }
    }
}

/// How a node's memory is taken, and why not in a better way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// How.
    pub way: MemoryWay,
    /// Why not in a better way, when there is one.
    pub why: Option<String>,
}

/// What a person asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RungChoice {
    /// The best that each node allows.
    #[default]
    Auto,
    /// Every running stateful node with its memory, or fail before the parent is touched.
    Live,
    /// Disks only.
    Disk,
    /// Base images only.
    Image,
}

/// What was measured when an environment was cloned; kept with the operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CloneReport {
    /// Instant at which all nodes stood still.
    #[schema(value_type = Option<String>)]
    pub cut: Option<Timestamp>,
    /// First node frozen to last node thawed, microseconds.
    pub freeze_us: u64,
    /// What the freeze was expected to be just before it, microseconds; `None` where nothing ran.
    #[serde(default)]
    pub predicted_us: Option<u64>,
    /// First node frozen to last node frozen, microseconds.
    pub skew_us: u64,
    /// Memory written for all nodes, bytes.
    pub memory_bytes: u64,
    /// Of that, what was copied in the freeze, bytes; the rest was copied before, while everything ran.
    #[serde(default)]
    pub frozen_bytes: u64,
    /// From the request until every health check of the clone passed, microseconds.
    pub ready_us: Option<u64>,
    /// Where the freeze went: named parts in order.
    pub parts: Vec<Timing>,
    /// Per node.
    pub nodes: Vec<NodeCloneReport>,
}

/// A named span of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Timing {
    /// What was done, for instance `freeze`, `dump`, `snapshot`, `thaw`.
    pub what: String,
    /// How long, microseconds.
    pub us: u64,
}

/// What went on in a node while its memory was taken. Stages may overlap: two things are done side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stage {
    /// What was done, for instance `CRIU: everything else`, `changed pages`, `shared memory`, `letting go`.
    pub what: String,
    /// When it began: from the moment at which the node's memory began to be taken, microseconds.
    pub from_us: u64,
    /// How long it took, microseconds.
    pub us: u64,
}

/// What was measured of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeCloneReport {
    /// Node name.
    pub node: String,
    /// How it was cloned.
    pub rung: Rung,
    /// Why not `live`, when it is not.
    pub why: Option<String>,
    /// How its memory was taken; `None` when it was not.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// Time it stood still, microseconds.
    pub freeze_us: u64,
    /// Time it stood still by itself before, microseconds. Way `pre-dump`: while CRIU copied ahead, all rounds together. Way `tracked`: while
    /// twins of its processes were made, each of which holds up one process.
    #[serde(default)]
    pub paused_us: u64,
    /// Time it took in the freeze to write its memory, microseconds.
    pub dump_us: u64,
    /// Where that time went, and how long letting go took.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// Time until it ran again in the clone, microseconds.
    pub restore_us: u64,
    /// Memory written, bytes.
    pub memory_bytes: u64,
    /// Of that, what was copied while it stood still, bytes; the rest was copied before, while it ran.
    #[serde(default)]
    pub frozen_bytes: u64,
    /// Processes restored.
    pub processes: u32,
}
