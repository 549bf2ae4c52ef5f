//! The control socket: a JSON object per line in, one per line out.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use offshoot_model::id::EnvId;
use offshoot_model::traffic::stats::Stats;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::EdgeConfig;
use crate::error::EdgeError;
use crate::routes::Protocol;

/// Longest line on the control socket, bytes.
pub const CONTROL_LINE_MAX: u64 = 16 << 20;
/// 100,000 routes load in well under a second; this is for a host that swaps.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked of the edge: `{"reload":true}`, for instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum ControlRequest {
    /// Read the routes file and switch to it.
    #[serde(rename = "reload")]
    Reload(bool),
    /// Say what is served.
    #[serde(rename = "status")]
    Status(bool),
    /// Say what was counted at the domains of these environments; of all that have been asked for when there is none.
    #[serde(rename = "stats")]
    Stats(Vec<EnvId>),
    /// Let every side of this environment's policy that is up take requests again.
    #[serde(rename = "back")]
    Back(EnvId),
}

/// Answer to a request that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, one sentence.
    pub error: String,
    /// What is at fault.
    #[serde(default, skip_serializing_if = "Cause::is_request")]
    pub because: Cause,
}

/// What a refusal is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The request or the routes file, which the daemon wrote.
    #[default]
    Request,
    /// A file of a certificate or its key.
    Certificate,
}

impl Cause {
    fn is_request(&self) -> bool {
        *self == Self::Request
    }
}

impl Refusal {
    /// A request that cannot be carried out, or routes that cannot be used.
    #[must_use]
    pub fn of_request(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            because: Cause::Request,
        }
    }

    /// A certificate that cannot be used.
    #[must_use]
    pub fn of_certificate(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            because: Cause::Certificate,
        }
    }
}

/// Answer to a reload: what is served now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Version of the routes file.
    pub version: u64,
    /// Number of HTTP routes.
    pub routes: usize,
    /// Every published port; one that could not be opened does not keep the others from being served, and is tried
    /// again at the next reload.
    pub ports: Vec<PortReport>,
    /// Microseconds that reading, checking and building took, while the old routes were served.
    #[serde(default)]
    pub load_us: u64,
    /// Microseconds of the switch itself, until the last connection of what was removed was told to end.
    #[serde(default)]
    pub switch_us: u64,
}

/// A published port as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// Address in the routes file.
    pub listen: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Whether it is open.
    #[serde(flatten)]
    pub state: PortState,
}

/// Whether a published port is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum PortState {
    /// Open.
    Open {
        /// The address it has: `listen` with port 0 replaced by the kernel's choice.
        bound: SocketAddr,
    },
    /// Another program has the address (`EADDRINUSE`).
    InUse,
    /// It could not be opened for another reason.
    Failed {
        /// The reason.
        error: String,
    },
}

/// What the edge is and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeStatus {
    /// Version of the routes it serves.
    pub version: u64,
    /// Its process.
    pub pid: u32,
    /// Its program's version.
    pub edge: String,
    /// Seconds since its start.
    pub uptime_seconds: u64,
    /// What it was told at its start.
    pub config: EdgeConfig,
    /// HTTP addresses it has, port 0 replaced.
    pub listen: Vec<SocketAddr>,
    /// HTTPS addresses it has, port 0 replaced.
    #[serde(default)]
    pub listen_tls: Vec<SocketAddr>,
    /// Number of HTTP routes.
    pub routes: usize,
    /// Number of environments with a route or a port.
    pub environments: usize,
    /// Every published port.
    pub ports: Vec<PortReport>,
    /// Client connections now, HTTP and published TCP ports.
    pub connections: usize,
    /// Requests answered since its start.
    pub requests: u64,
    /// Why the last reload was refused; absent when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// A connection to the edge's control socket.
#[derive(Debug)]
pub struct EdgeControl {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl EdgeControl {
    /// Connects, within 5 s; an answer may take 30 s.
    ///
    /// # Errors
    /// When nothing listens there.
    pub fn connect(path: &Path) -> Result<Self, EdgeError> {
        let unreachable = |source: io::Error| EdgeError::Unreachable {
            path: path.to_owned(),
            source,
        };
        let stream = connect_within(path, CONNECT_TIMEOUT).map_err(unreachable)?;
        stream
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .map_err(unreachable)?;
        Ok(Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
        })
    }

    /// Makes the edge read its routes file and switch to it.
    ///
    /// # Errors
    /// [`EdgeError::Refused`] when the file cannot be used, [`EdgeError::Certificate`] when a certificate cannot: the
    /// routes are as before. A published port that cannot be opened is no error but said in the answer.
    pub fn reload(&mut self) -> Result<Reloaded, EdgeError> {
        self.ask(ControlRequest::Reload(true))
    }

    /// Asks what is served.
    ///
    /// # Errors
    /// When the edge does not answer.
    pub fn status(&mut self) -> Result<EdgeStatus, EdgeError> {
        self.ask(ControlRequest::Status(true))
    }

    /// Asks what was counted at the domains of these environments, or of all.
    ///
    /// # Errors
    /// When the edge does not answer.
    pub fn stats(&mut self, of: Vec<EnvId>) -> Result<Stats, EdgeError> {
        self.ask(ControlRequest::Stats(of))
    }

    /// Lets the sides of an environment's policy that are up take requests again; returns its counts.
    ///
    /// # Errors
    /// [`EdgeError::Refused`] when it has no policy with checks.
    pub fn back(&mut self, owner: EnvId) -> Result<Stats, EdgeError> {
        self.ask(ControlRequest::Back(owner))
    }

    fn ask<T: DeserializeOwned>(&mut self, request: ControlRequest) -> Result<T, EdgeError> {
        let unreachable = |source: io::Error| EdgeError::Unreachable {
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(&request).map_err(|e| unreachable(e.into()))?;
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .map_err(unreachable)?;
        line.clear();
        (&mut self.stream)
            .take(CONTROL_LINE_MAX)
            .read_until(b'\n', &mut line)
            .map_err(unreachable)?;
        if line.last() != Some(&b'\n') {
            return Err(unreachable(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Ok(refusal) = serde_json::from_slice::<Refusal>(&line) {
            return Err(match refusal.because {
                Cause::Request => EdgeError::Refused(refusal.error),
                Cause::Certificate => EdgeError::Certificate(refusal.error),
            });
        }
        serde_json::from_slice(&line).map_err(|e| {
            let begin: String = String::from_utf8_lossy(&line).chars().take(200).collect();
            EdgeError::Answer {
                path: self.path.clone(),
                answer: format!("{e}: {}", begin.trim_end()),
            }
        })
    }
}

/// connect(2) on a unix socket waits while the listener's queue is full, for as long as `SO_SNDTIMEO` says.
fn connect_within(path: &Path, bound: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&socket, Timeout::Send, Some(bound))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_documented() {
        assert_eq!(
            serde_json::to_string(&ControlRequest::Reload(true)).unwrap(),
            r#"{"reload":true}"#
        );
        assert_eq!(
            serde_json::to_string(&ControlRequest::Status(true)).unwrap(),
            r#"{"status":true}"#
        );
        let report = PortReport {
            listen: "127.0.0.1:0".parse().unwrap(),
            protocol: Protocol::Tcp,
            state: PortState::Open {
                bound: "127.0.0.1:9".parse().unwrap(),
            },
        };
        let text =
            r#"{"listen":"127.0.0.1:0","protocol":"tcp","state":"open","bound":"127.0.0.1:9"}"#;
        assert_eq!(serde_json::to_string(&report).unwrap(), text);
        assert_eq!(serde_json::from_str::<PortReport>(text).unwrap(), report);
    }

    #[test]
    fn refusals_say_what_is_at_fault() {
        let plain = Refusal::of_request("x");
        let text = serde_json::to_string(&plain).unwrap();
        assert_eq!(text, r#"{"error":"x"}"#);
        assert_eq!(serde_json::from_str::<Refusal>(&text).unwrap(), plain);
        let text = serde_json::to_string(&Refusal::of_certificate("x")).unwrap();
        assert_eq!(text, r#"{"error":"x","because":"certificate"}"#);
    }

    #[test]
    fn nobody_there_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("edge.sock");
        let error = EdgeControl::connect(&path).unwrap_err();
        assert!(matches!(error, EdgeError::Unreachable { .. }), "{error}");
        assert!(error.problem().what.contains("edge.sock"));
    }
}
