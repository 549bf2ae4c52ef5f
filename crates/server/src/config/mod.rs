//! The daemon's configuration: one TOML file, every key with a default, unknown keys refused.
//!
//! Values are parsed where they stand, so that an error names its line. `packaging/offshoot.toml` shows every key
//! with its default; docs/configuration.md says what each is for.

mod sections;
mod tools;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use offshoot_model::{Code, Fault, Problem};
use serde::Deserialize;

pub use sections::{
    Acme, Api, Backing, CloneBounds, Dashboard, Edge, Forwarding, Ids, Images, Ipv6, LogFormat,
    Network, Pool,
};
pub use tools::{ToolMissing, Tools};
pub(crate) use value::is_loopback;
pub use value::{BaseDomain, Instance};

use crate::{ServerConfig, TlsFiles, WebConfig};

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/offshoot/offshoot.toml";
/// Where setup.sh puts a CRIU of its own.
pub const DEFAULT_CRIU_DIR: &str = "/opt/offshoot/criu/bin";
/// Largest configuration file in bytes.
const FILE_MAX: u64 = 1 << 20;

/// All settings of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Label in the name of every object on the host, so that several daemons can run side by side.
    pub instance: Instance,
    /// What must last: database, images, disks, logs.
    #[serde(deserialize_with = "value::absolute")]
    pub state_dir: PathBuf,
    /// What may go at a reboot: sockets, pid files.
    #[serde(deserialize_with = "value::absolute")]
    pub run_dir: PathBuf,
    /// Environments answer at `<name>.<base_domain>`.
    pub base_domain: BaseDomain,
    /// Filter of the daemon's log, as of tracing-subscriber's `EnvFilter`.
    pub log: String,
    /// The API beside the unix socket.
    pub api: Api,
    /// The pages for people.
    pub dashboard: Dashboard,
    /// The entry for people.
    pub edge: Edge,
    /// Networks of environments.
    pub network: Network,
    /// User and group ids of environments.
    pub ids: Ids,
    /// Disks.
    pub pool: Pool,
    /// Where images come from.
    pub images: Images,
    /// Bounds of a clone.
    pub clone: CloneBounds,
    /// Programs that the daemon runs.
    pub tools: Tools,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: Instance::default(),
            state_dir: PathBuf::from("/var/lib/offshoot"),
            run_dir: PathBuf::from("/run/offshoot"),
            base_domain: BaseDomain::default(),
            log: "info".to_owned(),
            api: Api::default(),
            dashboard: Dashboard::default(),
            edge: Edge::default(),
            network: Network::default(),
            ids: Ids::default(),
            pool: Pool::default(),
            images: Images::default(),
            clone: CloneBounds::default(),
            tools: Tools::default(),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no configuration. `detail` names line and column and shows the line.
    #[error("the configuration {} has an error", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What and where.
        detail: String,
    },
}

impl ConfigError {
    /// The error as people see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let problem = Problem::new(
            Code::ConfigInvalid,
            Fault::Host,
            self.to_string(),
            "correct the file; docs/configuration.md and the comments in packaging/offshoot.toml say what each key takes",
        );
        match self {
            Self::Read { source, .. } => problem.caused_by(source),
            Self::Invalid { detail, .. } => problem.detail(detail.trim_end()),
        }
    }
}

impl Config {
    /// Reads the file at `path`. Without a path [`DEFAULT_PATH`] is read where it exists; else all is as by default.
    ///
    /// # Errors
    /// When the file cannot be read, or has a key or value that is not understood.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let chosen = path.unwrap_or_else(|| Path::new(DEFAULT_PATH));
        let read = |source| ConfigError::Read {
            path: chosen.to_owned(),
            source,
        };
        match std::fs::metadata(chosen) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => {
                return Ok(Self::default());
            }
            Err(error) => return Err(read(error)),
            Ok(meta) if meta.len() > FILE_MAX => {
                return Err(read(std::io::ErrorKind::FileTooLarge.into()));
            }
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(chosen).map_err(read)?;
        Self::parse(&text).map_err(|detail| ConfigError::Invalid {
            path: chosen.to_owned(),
            detail,
        })
    }

    /// Understands the text of a configuration.
    ///
    /// # Errors
    /// What is wrong, with line and column where one value is to blame.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        config.dashboard.check()?;
        config.network.check()?;
        config.ids.check()?;
        config.pool.check()?;
        if config.state_dir == config.run_dir {
            return Err("state_dir and run_dir must differ".to_owned());
        }
        Ok(config)
    }

    /// The unix socket of the API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("offshoot.sock")
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("offshoot.db")
    }

    /// The file that keeps the token of the API over TCP.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.state_dir.join("api-token")
    }

    /// The pool's file, device or mounted file system: what is configured, else `pool.img` in the state directory.
    #[must_use]
    pub fn pool_path(&self) -> PathBuf {
        self.pool
            .path
            .clone()
            .unwrap_or_else(|| self.state_dir.join("pool.img"))
    }

    /// Port at which people reach the edge: the first address's.
    #[must_use]
    pub fn edge_port(&self) -> u16 {
        self.edge.listen.first().map_or(80, SocketAddr::port)
    }

    fn web(&self) -> Option<WebConfig> {
        let Dashboard {
            listen,
            host,
            certificate,
            key,
        } = &self.dashboard;
        let tls = certificate.clone().zip(key.clone());
        Some(WebConfig {
            listen: (*listen)?,
            host: host.as_ref().map(ToString::to_string),
            tls: tls.map(|(certificate, key)| TlsFiles { certificate, key }),
            sessions: Some(self.run_dir.join("dashboard-sessions")),
        })
    }

    /// What [`crate::Server`] needs of this.
    #[must_use]
    pub fn server(&self) -> ServerConfig {
        ServerConfig {
            instance: self.instance.as_str().to_owned(),
            socket: self.socket(),
            tcp: self.api.listen.map(SocketAddr::from),
            token_file: self.token_file(),
            web: self.web(),
        }
    }
}

#[cfg(test)]
mod tests;
