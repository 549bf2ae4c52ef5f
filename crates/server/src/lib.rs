//! The daemon's face: its configuration, and the API over HTTP.

pub mod config;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use config::Config;

/// Where the API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// The daemon's instance, for `GET /version`.
    pub instance: String,
    /// The unix socket.
    pub socket: PathBuf,
    /// A loopback TCP address; port 0 lets the kernel choose.
    pub tcp: Option<SocketAddr>,
    /// File that keeps the token for TCP; made when it is not there.
    pub token_file: PathBuf,
}
