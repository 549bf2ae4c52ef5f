//! What the engine of one host is told.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use offshoot_images::ImagesConfig;
use offshoot_network::Forwarding;
use offshoot_pool::PoolConfig;

/// Configuration of the engine.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Label of the daemon, 1 to 6 of `a-z0-9`; in the name of everything it owns on the host.
    pub instance: String,
    /// What outlives a reboot.
    pub state_dir: PathBuf,
    /// What does not.
    pub run_dir: PathBuf,
    /// The pool.
    pub pool: PoolConfig,
    /// The images.
    pub images: ImagesConfig,
    /// runc.
    pub runc: PathBuf,
    /// Directory with a working `criu`; the search path when absent.
    pub criu_dir: Option<PathBuf>,
    /// offshoot-shim.
    pub shim: PathBuf,
    /// offshoot-edge.
    pub edge: PathBuf,
    /// Where the edge listens.
    pub edge_listen: Vec<SocketAddr>,
    /// All outer networks are taken from it.
    pub outer_pool: Ipv4Net,
    /// As `outer_pool`, where the host has IPv6.
    pub outer_pool6: Option<Ipv6Net>,
    /// What may be done about the host's forwarding.
    pub forwarding: Forwarding,
    /// Name servers for names outside of environments; the host's own when empty.
    pub dns: Vec<SocketAddr>,
    /// Whether equal memory of nodes may be kept once, and is while there are clones that came with their memory.
    pub share_memory: bool,
}

impl LocalConfig {
    /// Run-time directory of all environments.
    pub(crate) fn run_envs(&self) -> PathBuf {
        self.run_dir.join("envs")
    }

    /// Logs and the like of all environments.
    pub(crate) fn state_envs(&self) -> PathBuf {
        self.state_dir.join("envs")
    }

    /// Memory images of cuts under way.
    pub(crate) fn cuts(&self) -> PathBuf {
        self.run_dir.join("cuts")
    }
}
