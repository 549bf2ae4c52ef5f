//! What the daemon and the edge agree on: the edge's configuration, the routes file, the control socket, and how
//! the edge's process is started and stopped.
//!
//! The proxy itself is `offshoot-edge`, a process of its own, so that traffic goes on while the daemon restarts.
//! This crate holds no proxy code: the daemon depends on it without building the proxy. Everything blocks, with
//! bounds.

mod config;
mod control;
mod error;
mod file;
mod names;
mod path;
mod process;
mod routes;

pub use config::{AccessLog, EdgeConfig, Limits, LogFormat};
pub use control::{
    CONTROL_LINE_MAX, Cause, ControlRequest, EdgeControl, EdgeStatus, PortReport, PortState,
    Refusal, Reloaded,
};
pub use error::EdgeError;
pub use file::{read as read_file, replace as replace_file};
pub use names::{normal_host, normal_origin, normal_pattern};
pub use path::{PATH_MAX, covers, normal_path, normal_prefix};
pub use process::{PidFile, ended_within, ensure_edge, stop};
pub use routes::{
    Certificate, Https, PortRoute, Protocol, ROUTES_FILE_MAX, Redirect, Route, RoutesError,
    RoutesFile, TEXT_MAX, Traffic,
};
