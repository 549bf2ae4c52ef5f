//! What can go wrong, and what a person is told of it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use offshoot_model::{Code, Fault, Problem};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A system call, a file or the kernel's netlink said no.
    #[error("{what} failed")]
    Io {
        /// What was being done, to what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// An external command failed.
    #[error("{argv} ended with {status}: {stderr}")]
    Command {
        /// The command and its arguments.
        argv: String,
        /// Exit status or signal.
        status: String,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// An input that no caller should give.
    #[error("{0}")]
    Invalid(String),
    /// No router runs there.
    #[error("no router runs at {}", .0.display())]
    NoRouter(PathBuf),
    /// The router refused or could not do something.
    #[error("the router could not {what}: {why}")]
    Refused {
        /// What it was asked.
        what: String,
        /// What it answered.
        why: String,
    },
    /// A router ended before it was ready.
    #[error("the router at {} did not start: {why}", dir.display())]
    Start {
        /// Its run directory.
        dir: PathBuf,
        /// What it said, or the end of its log.
        why: String,
    },
    /// Something took longer than its bound.
    #[error("{what} took longer than {} ms", after.as_millis())]
    Timeout {
        /// What was waited for.
        what: String,
        /// The bound.
        after: Duration,
    },
    /// The isolation of a cut ended before it was lifted: traffic between nodes may have passed.
    #[error("the nodes' isolation ended early: {0}")]
    IsolationEnded(String),
}

impl NetworkError {
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }

    /// The error as a person sees it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let what = format!("the environment's network: {self}");
        let (fault, next) = match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => (
                Fault::Host,
                "run the daemon as root with CAP_NET_ADMIN and CAP_SYS_ADMIN",
            ),
            Self::Command { argv, .. } if argv.starts_with("nft") => (
                Fault::Host,
                "check with 'offshoot doctor' that nftables is installed and the kernel has nf_tables and NAT",
            ),
            Self::Io { .. } | Self::Command { .. } | Self::Start { .. } => {
                (Fault::Host, "look at the details and run 'offshoot doctor'")
            }
            Self::NoRouter(_) => (
                Fault::Host,
                "stop and start the environment: its router was killed",
            ),
            Self::Timeout { .. } => (
                Fault::Host,
                "try again; if it stays, look at the load of the host and the router's log",
            ),
            Self::IsolationEnded(_) => {
                (Fault::Host, "try again; if it stays, allow a longer freeze")
            }
            Self::Invalid(_) | Self::Refused { .. } => {
                (Fault::Offshoot, "report this with the daemon's log")
            }
        };
        let problem = Problem::new(Code::NetworkFailed, fault, what, next);
        match std::error::Error::source(self) {
            Some(source) => problem.caused_by(source),
            None => problem,
        }
    }
}

/// An error with its causes in one line, for logs and for the other end of a socket.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
