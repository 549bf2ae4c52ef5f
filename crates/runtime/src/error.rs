//! What can go wrong around a node, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use offshoot_model::{Code, Fault, Problem};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The specification asks for something that cannot be.
    #[error("{what}")]
    Spec {
        /// What and why.
        what: String,
    },
    /// What the image says does not fit together: an unknown user, no command.
    #[error("{what}")]
    Image {
        /// What and why.
        what: String,
    },
    /// A file, mount or kernel call failed.
    #[error("cannot {doing}")]
    Io {
        /// What was being done, and to which path.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A command failed.
    #[error("{command} failed: {outcome}")]
    Command {
        /// argv as one line.
        command: String,
        /// Exit status or signal.
        outcome: String,
        /// The end of what it wrote to stderr or its log.
        stderr: String,
    },
    /// Something took longer than its bound.
    #[error("{what} took longer than {} ms", after.as_millis())]
    Timeout {
        /// What.
        what: String,
        /// The bound.
        after: Duration,
    },
    /// The node's shim reported a problem.
    #[error("{}", .0.what)]
    Reported(Box<Problem>),
    /// No shim answers for the node.
    #[error("nothing runs in {}", run_dir.display())]
    NotRunning {
        /// The node's directory.
        run_dir: PathBuf,
    },
    /// The shim and this process do not understand each other.
    #[error("the shim in {} answered {answer:?}", run_dir.display())]
    Protocol {
        /// The node's directory.
        run_dir: PathBuf,
        /// What it answered.
        answer: String,
    },
    /// Parts of a node could not be removed.
    #[error("could not remove all of node {node}")]
    Remains {
        /// The node.
        node: String,
        /// What is left and why.
        what: Vec<String>,
    },
}

/// Result of this crate.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

impl RuntimeError {
    /// An I/O error while doing something to a path.
    pub fn io(doing: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            doing: format!("{doing} {}", path.display()),
            source: source.into(),
        }
    }

    /// An I/O error while doing something.
    pub fn doing(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            doing: doing.into(),
            source: source.into(),
        }
    }

    /// A specification error.
    pub fn spec(what: impl Into<String>) -> Self {
        Self::Spec { what: what.into() }
    }

    /// As people see it; `code` names what was tried.
    #[must_use]
    pub fn problem_as(&self, code: Code) -> Problem {
        let mut problem = match self {
            Self::Reported(problem) => return (**problem).clone(),
            Self::Spec { what } => Problem::new(
                code,
                Fault::Request,
                what.clone(),
                "change the manifest accordingly",
            ),
            Self::Image { what } => Problem::new(
                code,
                Fault::Environment,
                what.clone(),
                "name a user and command that the image has",
            ),
            Self::Timeout { .. } => Problem::new(
                code,
                Fault::Host,
                self.to_string(),
                "look at the host's load and the node's logs, then try again",
            ),
            Self::NotRunning { .. } => Problem::new(
                Code::WrongState,
                Fault::Request,
                self.to_string(),
                "start the environment first",
            ),
            Self::Command { stderr, .. } => {
                let problem = Problem::new(
                    code,
                    Fault::Environment,
                    self.to_string(),
                    "read the details; `offshoot doctor` tells what the host lacks",
                );
                stderr
                    .lines()
                    .fold(problem, |problem, line| problem.detail(line))
            }
            Self::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                Problem::new(
                    Code::PoolFull,
                    Fault::Host,
                    self.to_string(),
                    "make room where this lies; `offshoot pool grow` when it is the pool",
                )
            }
            Self::Io { .. } | Self::Remains { .. } => Problem::new(
                code,
                Fault::Host,
                self.to_string(),
                "look at the details, put the host right, try again",
            ),
            Self::Protocol { .. } => Problem::new(
                code,
                Fault::Offshoot,
                self.to_string(),
                "stop and start the environment, and report this",
            ),
        };
        if let Self::Remains { what, .. } = self {
            problem.details.extend(what.iter().cloned());
        }
        match std::error::Error::source(self) {
            Some(source) => problem.caused_by(source),
            None => problem,
        }
    }

    /// As people see it, when starting a node.
    #[must_use]
    pub fn problem(&self) -> Problem {
        self.problem_as(Code::StartFailed)
    }
}
