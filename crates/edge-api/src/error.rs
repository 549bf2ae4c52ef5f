//! What can go wrong between the daemon and the edge.

use std::io;
use std::path::PathBuf;

use offshoot_model::problem::{Code, Fault, Problem};

/// An error of a call to the edge or of its start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// A file of the edge could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// `read`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing answers on the control socket.
    #[error("the edge does not answer on {}", path.display())]
    Unreachable {
        /// The control socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The edge answered something that is not understood.
    #[error("the edge's answer on {} is not understood: {answer}", path.display())]
    Answer {
        /// The control socket.
        path: PathBuf,
        /// The beginning of the answer and what is wrong with it.
        answer: String,
    },
    /// The edge refused the request; its routes are as they were.
    #[error("the edge kept its routes: {0}")]
    Refused(String),
    /// A certificate of the routes cannot be used; the edge's routes are as they were.
    #[error("the edge kept its routes: {0}")]
    Certificate(String),
    /// The edge's process did not start.
    #[error("{} did not start: {why}", binary.display())]
    Start {
        /// The program.
        binary: PathBuf,
        /// Exit status and the end of its messages.
        why: String,
    },
    /// The edge's process did not end, not even when killed.
    #[error("the edge, process {pid}, does not end")]
    Stop {
        /// Its process id.
        pid: i32,
        /// Why, where the kernel said it.
        source: io::Error,
    },
}

impl EdgeError {
    /// The error as a person sees it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let (code, fault, next) = match self {
            Self::File { .. } => (
                Code::Internal,
                Fault::Host,
                "check the directory's room and permissions",
            ),
            Self::Unreachable { .. } => (
                Code::Internal,
                Fault::Host,
                "see the edge's log; restarting the daemon starts the edge again",
            ),
            Self::Answer { .. } | Self::Refused(_) => (
                Code::Internal,
                Fault::Offshoot,
                "report this with the edge's log",
            ),
            Self::Certificate(_) => (
                Code::HostUnfit,
                Fault::Host,
                "put a certificate that is valid, and its key, where the message says",
            ),
            Self::Start { .. } => (
                Code::HostUnfit,
                Fault::Host,
                "free the address that the edge listens on, or give it another in the configuration",
            ),
            Self::Stop { .. } => (
                Code::Internal,
                Fault::Host,
                "look at the process: it hangs in the kernel",
            ),
        };
        Problem::new(code, fault, self.to_string(), next).caused_by_source(self)
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}

trait CausedBySource {
    fn caused_by_source(self, error: &dyn std::error::Error) -> Self;
}

impl CausedBySource for Problem {
    fn caused_by_source(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = error.source();
        while let Some(error) = next {
            self.details.push(error.to_string());
            next = error.source();
        }
        self
    }
}
