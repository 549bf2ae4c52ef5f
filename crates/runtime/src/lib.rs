//! Runs nodes: what runc is told, the shim that keeps a node alive, and everything that is done to a running node.
//!
//! A node is a container of runc's with a process of ours beside it, the *shim* (`offshoot-shim node`, crate `shim`). The shim owns the
//! node's mounts, pipes, log and exit status, and outlives the daemon. This crate is both sides of it: [`ensure_node`] and
//! [`NodeClient`] for the daemon, [`config`], [`cgroup`], [`logs`] and [`runc`] for the shim. docs/nodes.md tells it as a story.

mod capabilities;
pub mod cgroup;
mod client;
pub mod config;
pub mod control;
mod error;
mod exec;
pub mod files;
mod init;
pub mod logs;
mod node;
pub mod runc;
pub mod schedulers;
mod seccomp;
mod spec;
#[cfg(test)]
mod testing;
mod user;

pub use offshoot_network::NodeLink;

pub use client::{FreezeLease, NodeClient, observe};
pub use control::{ExitRecord, NodeStatus, RunState};
pub use error::{Result, RuntimeError};
pub use exec::{ExecProcess, ExecSpec, ExecStreams, Finished, TerminalSize, exec};
pub use init::init_file;
pub use logs::{LogLine, LogQuery, LogReader, Stream, read_logs};
pub use node::{ensure_node, ensure_node_removed, forget_exit};
pub use spec::{
    Access, Bind, FilePlace, NodeFile, NodeSpec, ProcessSpec, SPEC_FILE, Start, Tmpfs, Tools,
    UserSpec,
};
pub use user::{DEFAULT_PATH, resolve_process, resolve_user};
