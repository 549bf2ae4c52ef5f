//! What can go wrong, and what a person can do about it.

use std::path::PathBuf;
use std::time::Duration;

use offshoot_model::problem::{Code, Fault, Problem};

/// Any error of somebody else's part that a cut calls: the freezer, the isolation, the snapshot.
pub type Foreign = Box<dyn std::error::Error + Send + Sync>;

/// Why CRIU did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// It could not be started at all.
    #[error("cannot start {path}")]
    Start {
        /// The executable.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Its socket failed.
    #[error("talking to CRIU: {doing}")]
    Talk {
        /// What was being sent or received.
        doing: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It ended without an answer.
    #[error("CRIU ended without an answer{}", tail(errors))]
    Died {
        /// Its decisive error lines.
        errors: Vec<String>,
    },
    /// It said no.
    #[error("CRIU failed{}", tail(errors))]
    Failed {
        /// Its decisive error lines.
        errors: Vec<String>,
    },
    /// It did not answer in its time.
    #[error("CRIU did not answer within {0:?}")]
    TimedOut(Duration),
    /// It was not asked, because the node would stand still for too long.
    #[error(
        "taking its memory would hold everything up for about {predicted:?}, longer than the bound of {bound:?} on the freeze"
    )]
    TooMuch {
        /// What was expected.
        predicted: Duration,
        /// The bound.
        bound: Duration,
    },
    /// It said something that the protocol does not foresee.
    #[error("unexpected answer of CRIU: {0}")]
    Unexpected(String),
    /// A file of an image set cannot be read or written.
    #[error("{path}: {what}")]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What the kernel said, where it did.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The container cannot be described to CRIU.
    #[error("cannot read the container's {what} from {path}")]
    Container {
        /// Which part.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What was said.
        source: std::io::Error,
    },
}

fn tail(errors: &[String]) -> String {
    errors
        .first()
        .map(|first| format!(": {first}"))
        .unwrap_or_default()
}

impl CriuError {
    /// CRIU's decisive error lines, when it gave some.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        match self {
            Self::Died { errors } | Self::Failed { errors } => errors,
            _ => &[],
        }
    }

    /// The error as one line with its causes.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// `error` and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Why a cut did not happen. Whatever it is, every node runs again when it is returned, unless [`CutError::Thaw`] says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// A node that must come along with its memory cannot.
    #[error("{node} cannot be checkpointed")]
    NotCheckpointable {
        /// The node's name.
        node: String,
        /// CRIU's reason.
        source: CriuError,
    },
    /// A node could not be frozen.
    #[error("cannot freeze {node}")]
    Freeze {
        /// The node's name.
        node: String,
        /// What the freezer said.
        source: Foreign,
    },
    /// The traffic between the nodes could not be stopped.
    #[error("cannot isolate the nodes from each other")]
    Isolate(#[source] Foreign),
    /// The disks could not be snapshotted.
    #[error("cannot snapshot the disks")]
    Snapshot(#[source] Foreign),
    /// The bound on the freeze was passed.
    #[error("the freeze passed its bound of {bound:?} while {doing}; every node was let go")]
    TimedOut {
        /// The bound.
        bound: Duration,
        /// What was going on.
        doing: &'static str,
    },
    /// The freeze would pass its bound. Nothing has stood still.
    #[error(
        "the freeze would last about {predicted:?}, longer than its bound of {bound:?}; nothing was touched"
    )]
    TooLong {
        /// What was expected.
        predicted: Duration,
        /// The bound.
        bound: Duration,
    },
    /// A node came loose in the middle of the cut: its memory and the disks may not be of one instant.
    #[error("{node} did not stay frozen{}", why.as_ref().map(|w| format!(": {w}")).unwrap_or_default())]
    Loose {
        /// The node's name.
        node: String,
        /// What CRIU said.
        why: Option<String>,
    },
    /// The person who asked for it took it back.
    #[error("the cut was cancelled; the parent runs on")]
    Cancelled,
    /// A node could not be thawed: the one error after which a node may stand still.
    #[error("cannot thaw {node}")]
    Thaw {
        /// The node's name.
        node: String,
        /// What was said.
        source: Foreign,
    },
    /// Images or the work folder cannot be written.
    #[error("preparing the cut of {node}")]
    Prepare {
        /// The node's name.
        node: String,
        /// What happened.
        source: CriuError,
    },
}

impl CutError {
    /// The error as a person sees it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let what = self.to_string();
        let problem = match self {
            Self::NotCheckpointable { .. } => Problem::new(
                Code::NotCheckpointable,
                Fault::Environment,
                what,
                "clone with --rung disk (same disks, processes start afresh), or remove what CRIU names",
            ),
            Self::TimedOut { .. } | Self::TooLong { .. } => Problem::new(
                Code::FreezeTimeout,
                Fault::Host,
                what,
                "raise the bound on the freeze, or clone with --rung disk; the parent runs on",
            ),
            Self::Cancelled => Problem::new(
                Code::Cancelled,
                Fault::Request,
                what,
                "clone again when you want to",
            ),
            Self::Thaw { node, .. } => Problem::new(
                Code::CutFailed,
                Fault::Host,
                what,
                format!("look at the node with `offshoot ps`; if {node} stands still, restart it"),
            ),
            _ => Problem::new(
                Code::CutFailed,
                Fault::Host,
                what,
                "the parent runs on; look at the details, `offshoot doctor` checks the host",
            ),
        };
        let problem = match std::error::Error::source(self) {
            Some(source) => problem.caused_by(source),
            None => problem,
        };
        match self {
            Self::NotCheckpointable { source, .. } | Self::Prepare { source, .. } => source
                .lines()
                .iter()
                .skip(1)
                .fold(problem, |problem, line| problem.detail(line.clone())),
            _ => problem,
        }
    }
}
