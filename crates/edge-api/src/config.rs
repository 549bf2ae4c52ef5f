//! The edge's configuration, written by the daemon as JSON.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::EdgeError;
use crate::file;

const CONFIG_MAX: u64 = 1 << 20;

/// What the edge is told at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeConfig {
    /// Addresses for HTTP/1.1 and HTTP/2 without TLS. `0.0.0.0` and `[::]` may stand side by side. An IPv6 address
    /// on a host without IPv6 is left out with a warning; every other address must be free.
    pub listen: Vec<SocketAddr>,
    /// Addresses for HTTPS: HTTP/1.1 and HTTP/2 with TLS 1.2 or 1.3, with the certificates of the routes file. The port
    /// of the first is where requests without TLS are sent by routes that want it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen_tls: Vec<SocketAddr>,
    /// The routes file ([`crate::RoutesFile`]); when it does not exist there are no routes.
    pub routes: PathBuf,
    /// The control socket. Beside it, with other endings: `.pid`, `.log`, `.stats.json`, `.health.json` and this
    /// configuration as `.json`.
    pub control: PathBuf,
    /// Where requests are logged; nowhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// From where connections begin with a PROXY protocol header, version 1 or 2: load balancers. They must have one
    /// then, on HTTP, HTTPS and published TCP ports; from elsewhere nothing is read as one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxy_from: Vec<IpNet>,
    /// Whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed: proxies that speak HTTP, a CDN for instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust: Vec<IpNet>,
    /// Where `GET /metrics` is answered in the text format of Prometheus, without TLS; nowhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

impl EdgeConfig {
    /// A configuration without addresses, access log and metrics, everything else by default.
    #[must_use]
    pub fn new(routes: PathBuf, control: PathBuf) -> Self {
        Self {
            listen: Vec::new(),
            listen_tls: Vec::new(),
            routes,
            control,
            access_log: None,
            limits: Limits::default(),
            proxy_from: Vec::new(),
            trust: Vec::new(),
            metrics: None,
        }
    }
}

/// The access log: a line per request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// The file; older ones are `<path>.1`, `<path>.2`, ...
    pub path: PathBuf,
    /// Size in bytes from which a new file is begun.
    #[serde(default = "AccessLog::default_max_bytes")]
    pub max_bytes: u64,
    /// How many older files are kept.
    #[serde(default = "AccessLog::default_keep")]
    pub keep: u32,
    /// What a line looks like.
    #[serde(default, skip_serializing_if = "LogFormat::is_json")]
    pub format: LogFormat,
    /// Whether queries are logged, which may hold secrets: of requests, and of the pages they came from.
    #[serde(default, skip_serializing_if = "is_false")]
    pub query: bool,
}

/// What a line of the access log looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A JSON object.
    #[default]
    Json,
    /// Apache's and nginx's `combined`, escaped as Apache does it (`mod_log_config`).
    Combined,
}

impl LogFormat {
    fn is_json(&self) -> bool {
        *self == Self::Json
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

impl AccessLog {
    /// A log at `path`: JSON, 64 MiB a file, two older files.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            max_bytes: Self::default_max_bytes(),
            keep: Self::default_keep(),
            format: LogFormat::default(),
            query: false,
        }
    }

    fn default_max_bytes() -> u64 {
        64 << 20
    }

    fn default_keep() -> u32 {
        2
    }
}

/// Bounds of the edge. The times for upstreams are far above the longest freeze of a cut (5 s by default): a request
/// to an environment that is being cloned waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Client connections at a time, HTTP and published ports together; more wait in the kernel's queue.
    pub connections: usize,
    /// Connections of one client (an IPv4 address, an IPv6 /64) at a time, HTTP and published TCP ports together; more
    /// are closed. 0: no bound. By default a quarter of all, so that no client alone takes every place; whoever stands
    /// for many (a load balancer) is better named in `proxy_from`, which makes each of its clients one.
    pub client_connections: usize,
    /// Bytes of a request's header, all fields together.
    pub header_bytes: u32,
    /// Seconds from a connection's start to its first complete request header.
    pub header_seconds: u64,
    /// Seconds from the end of an answer to the next complete request header on the same connection.
    pub idle_seconds: u64,
    /// Seconds that a client may take for the next part of its body, or to accept the next part of an answer.
    pub client_seconds: u64,
    /// Bytes per second that a client must send of its body on the average; `client_seconds` may pass before that
    /// counts, and time in which nobody wants more of it does not. 0: no bound.
    pub body_rate: u64,
    /// Bytes of a request's body; longer ones are answered 413. 0: no bound.
    pub body_bytes: u64,
    /// Requests of one HTTP/2 connection at a time. Those that a client gives up count until they have ended: from
    /// twice as many on the connection is closed (CVE-2023-44487).
    pub streams: u32,
    /// Seconds to connect to an upstream.
    pub connect_seconds: u64,
    /// Seconds without a byte from an upstream while an answer is due.
    pub upstream_seconds: u64,
    /// Seconds without a byte in either direction on a WebSocket, an event stream, a gRPC call or a published
    /// TCP port.
    pub tunnel_seconds: u64,
    /// Seconds that a WebSocket, an event stream, a gRPC call or a connection to a published TCP port goes on with its
    /// environment after what it came by leads elsewhere; 0 ends it at once.
    pub moved_seconds: u64,
    /// Seconds that requests get to finish after SIGTERM.
    pub drain_seconds: u64,
    /// Clients of one published UDP port at a time; packets of more are dropped.
    pub udp_sessions: usize,
    /// Seconds without a packet after which a UDP client is forgotten.
    pub udp_idle_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            client_connections: 4_096,
            header_bytes: 64 << 10,
            header_seconds: 15,
            idle_seconds: 75,
            client_seconds: 60,
            body_rate: 64,
            body_bytes: 0,
            streams: 100,
            connect_seconds: 15,
            upstream_seconds: 600,
            tunnel_seconds: 7_200,
            moved_seconds: 300,
            drain_seconds: 20,
            udp_sessions: 1_024,
            udp_idle_seconds: 120,
        }
    }
}

impl EdgeConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// When the file cannot be read or is not a configuration.
    pub fn read(path: &Path) -> Result<Self, EdgeError> {
        let content = file::read(path, CONFIG_MAX).map_err(EdgeError::file("read", path))?;
        serde_json::from_slice(&content).map_err(|e| EdgeError::file("understand", path)(e.into()))
    }

    /// Writes the configuration in one step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), EdgeError> {
        let mut content = serde_json::to_vec_pretty(self)
            .map_err(|e| EdgeError::file("write", path)(e.into()))?;
        content.push(b'\n');
        file::replace(path, &content).map_err(EdgeError::file("write", path))
    }

    /// Where the configuration is kept: beside the control socket, `.json`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.control.with_extension("json")
    }

    /// The running edge's process: beside the control socket, `.pid`.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.control.with_extension("pid")
    }

    /// What the edge counted, for the next one: beside the control socket, `.stats.json`.
    #[must_use]
    pub fn stats_file(&self) -> PathBuf {
        self.control.with_extension("stats.json")
    }

    /// What the edge must not forget of its checks: beside the control socket, `.health.json`.
    #[must_use]
    pub fn health_file(&self) -> PathBuf {
        self.control.with_extension("health.json")
    }

    /// The edge's own messages: beside the control socket, `.log`.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.control.with_extension("log")
    }
}
