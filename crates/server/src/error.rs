//! Why the API cannot be served.

use std::net::SocketAddr;
use std::path::PathBuf;

use offshoot_model::{Code, Fault, Problem};

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody answers on the unix socket.
    #[error("another daemon answers on {}", .path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// What is there is no socket, so it is not replaced.
    #[error("{} is there and is no socket", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Others could put a socket of theirs in the place of ours.
    #[error("the directory {} can be changed by others than root", .path.display())]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The address can be reached from other hosts.
    #[error("{address} is not a loopback address")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The TCP address cannot be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The dashboard's address cannot be used.
    #[error("the dashboard cannot listen on {address}")]
    WebListen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The dashboard's certificate or key is of no use.
    #[error("the dashboard cannot use {}: {why}", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The token's file is of no use.
    #[error("the token in {} {why}", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something with a file failed.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What was to be done, an infinitive.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl ServeError {
    /// The error as people see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let problem = |code, next: &str| Problem::new(code, Fault::Host, self.to_string(), next);
        match self {
            Self::SocketInUse { .. } => problem(
                Code::HostUnfit,
                "stop the other daemon, or give this one another run_dir",
            ),
            Self::NotASocket { .. } => {
                problem(Code::HostUnfit, "move it away, or set another run_dir")
            }
            Self::OpenDirectory { .. } => problem(
                Code::HostUnfit,
                "give the directory to root and take write access from all others",
            ),
            Self::NotLoopback { .. } => problem(
                Code::ConfigInvalid,
                "set api.listen to an address such as 127.0.0.1:7463",
            ),
            Self::Listen { source, .. } => {
                problem(Code::PortInUse, "free the port, or set another api.listen")
                    .caused_by(source)
            }
            Self::WebListen { source, .. } => problem(
                Code::PortInUse,
                "free the port, or set another dashboard.listen (\"\": no dashboard)",
            )
            .caused_by(source),
            Self::Certificate { .. } => problem(
                Code::ConfigInvalid,
                "set dashboard.certificate and dashboard.key to PEM files that belong together",
            ),
            Self::Token { .. } => problem(
                Code::HostUnfit,
                "remove the file: a new token is made when the daemon starts",
            ),
            Self::File { source, .. } => {
                problem(Code::HostUnfit, "make the path usable for root").caused_by(source)
            }
        }
    }

    /// For `map_err` on I/O errors: what was to be done with which file.
    pub(crate) fn file(
        what: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}
