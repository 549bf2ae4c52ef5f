//! The words between a node's shim and whoever asks it: one JSON object per line over `<run_dir>/control.sock`.
//!
//! Requests and answers alternate on a connection. A freeze lasts as long as its connection: whoever is killed
//! closes it, and the node thaws.

use std::path::PathBuf;

use jiff::Timestamp;
use offshoot_model::Problem;
use serde::{Deserialize, Serialize};

/// Name of the socket in a node's directory; mode 0600.
pub const SOCKET_FILE: &str = "control.sock";
/// Name of the exit record in a node's directory.
pub const EXIT_FILE: &str = "exit.json";
/// Longest line either side accepts, in bytes.
pub const LINE_MAX: usize = 64 << 10;

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Request {
    /// What the node is doing.
    Status,
    /// Answers when the main process runs, or cannot be started.
    Ready,
    /// Answers when the main process ended.
    Wait,
    /// Sends a signal to the main process.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// Thaws, sends `signal`, after `grace_ms` kills; answers when the node ended.
    Stop {
        /// Signal that asks the process to stop.
        signal: i32,
        /// Milliseconds it has.
        grace_ms: u64,
    },
    /// Thaws and kills every process; answers when the node ended.
    Kill,
    /// Freezes every process of the node, for at most `max_ms` and as long as the connection stays open.
    Freeze {
        /// Milliseconds after which it thaws by itself.
        max_ms: u64,
    },
    /// Ends the freeze of this connection.
    Thaw,
    /// Answers when all of the memory that the node was restored with is there; it comes as fast as it can from now on.
    Memory {
        /// Milliseconds to wait at most.
        max_ms: u64,
    },
    /// Holds the node's jobs or lets them go: known schedulers in it stand still.
    Jobs {
        /// Whether they are held.
        held: bool,
    },
    /// Moves processes that do not descend from the main process (exec sessions) into a freezer of their own.
    Guests,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// To `Status` and `Ready`.
    Status(NodeStatus),
    /// To `Wait`, `Stop`, `Kill`.
    Ended(ExitRecord),
    /// To `Signal`, `Memory` and `Jobs`.
    Done,
    /// To `Freeze`.
    Frozen {
        /// When the last process stood still.
        at: Timestamp,
        /// Microseconds between the request and that instant.
        took_us: u64,
    },
    /// To `Thaw`; also sent unasked when the deadline of a freeze passed.
    Thawed {
        /// When it was let go.
        at: Timestamp,
    },
    /// To `Guests`.
    Guests {
        /// Host pids of the processes moved.
        pids: Vec<i32>,
    },
    /// The request failed.
    Failed(Problem),
}

/// What a node is doing, as its shim sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// State.
    pub state: RunState,
    /// Host pid of the main process, once there is one.
    pub pid: Option<i32>,
    /// Host pid of the shim; `None` when it is gone.
    pub shim: Option<i32>,
    /// When the main process was started or restored.
    pub started: Option<Timestamp>,
    /// How it ended.
    pub exit: Option<ExitRecord>,
    /// Directory of the node's freezer cgroup (cgroup v1), or of its cgroup (v2).
    pub freezer: PathBuf,
    /// What was asked for and could not be given in full, for people.
    pub warnings: Vec<String>,
    /// Bytes of memory that the node was restored with and that have still to come; it cannot be cut until then.
    #[serde(default)]
    pub memory_to_come: u64,
    /// Whether its jobs are held.
    #[serde(default)]
    pub jobs_held: bool,
    /// Schedulers in it that stand for that, each as `cron (process 4711)`.
    #[serde(default)]
    pub held: Vec<String>,
}

/// State of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Nothing runs and nothing is known of an earlier run.
    Absent,
    /// Being created or restored.
    Starting,
    /// Its main process runs.
    Running,
    /// Frozen.
    Frozen,
    /// Its main process ended and the shim wrote how.
    Exited,
    /// The shim is gone without a word: it was killed. Processes may be left; `ensure_node_removed` ends them.
    Lost,
}

/// How the main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit status, or 128 + signal.
    pub status: i32,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the node for want of memory while it ran.
    pub out_of_memory: bool,
    /// Whether it was killed because memory that it was restored with could not come any more.
    #[serde(default)]
    pub memory_lost: bool,
    /// When.
    pub at: Timestamp,
}
