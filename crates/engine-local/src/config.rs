//! What the engine of one host is told.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use offshoot_edge_api::{Limits, LogFormat};
use offshoot_images::ImagesConfig;
use offshoot_network::Forwarding;
use offshoot_pool::PoolConfig;

/// How the name of that directory begins.
const CRIU_KERNEL: &str = "criu-kernel-";

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
    /// What the edge believes, bounds and tells.
    pub edge_options: EdgeOptions,
    /// Where it listens for HTTPS; nowhere when empty.
    pub edge_listen_tls: Vec<SocketAddr>,
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

/// What the edge believes, bounds and tells; see [`offshoot_edge_api::EdgeConfig`].
#[derive(Debug, Clone)]
pub struct EdgeOptions {
    /// Whose connections begin with a PROXY header.
    pub proxy_from: Vec<IpNet>,
    /// Whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.
    pub trust: Vec<IpNet>,
    /// Where metrics are told.
    pub metrics: Option<SocketAddr>,
    /// What lines of the access log look like.
    pub log_format: LogFormat,
    /// Whether queries are logged.
    pub log_query: bool,
    /// Bounds.
    pub limits: Limits,
}

/// Where certificates and their keys are in a state directory.
#[must_use]
pub fn certificates_in(state_dir: &Path) -> PathBuf {
    state_dir.join("certificates")
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

    /// Where CRIU keeps what it finds out about the kernel, until the next boot; `None` where it does so by itself, because `/run` is in
    /// memory.
    pub(crate) fn criu_kernel(&self) -> Option<PathBuf> {
        /// `TMPFS_MAGIC` of statfs(2).
        const TMPFS: i64 = 0x0102_1994;
        if rustix::fs::statfs("/run").is_ok_and(|run| run.f_type == TMPFS) {
            return None;
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(self.run_dir.join(format!("{CRIU_KERNEL}{}", boot.trim())))
    }

    /// Makes that place, empty, and removes those of earlier boots.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn renew_criu_kernel(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.run_dir)?.flatten() {
            let name = entry.file_name();
            if name
                .to_str()
                .is_some_and(|name| name.starts_with(CRIU_KERNEL))
            {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        self.criu_kernel().map_or(Ok(()), std::fs::create_dir)
    }

    /// Files of certificates and their keys: `<id>.pem`, `<id>.key`.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        certificates_in(&self.state_dir)
    }

    /// Memory images of cuts under way.
    pub(crate) fn cuts(&self) -> PathBuf {
        self.run_dir.join("cuts")
    }
}
