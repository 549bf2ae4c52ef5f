//! What can go wrong with images.

use std::io;
use std::path::{Path, PathBuf};

use offshoot_model::{Code, Fault, Problem};
use offshoot_pool::PoolError;
use rustix::io::Errno;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference or path makes no sense.
    #[error("{reference:?} is not an image reference: {why}")]
    BadReference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// The source has no such image.
    #[error("{image} does not exist{}", suffix(why))]
    NotFound {
        /// The source as a person wrote it.
        image: String,
        /// What there is instead, or the registry's words.
        why: String,
    },
    /// The source wants other credentials.
    #[error("the registry refuses access to {image}{}", suffix(why))]
    Denied {
        /// The source as a person wrote it.
        image: String,
        /// The registry's words.
        why: String,
    },
    /// The source does not answer, or broke off.
    #[error("{image} cannot be fetched: {why}")]
    Unreachable {
        /// The source as a person wrote it.
        image: String,
        /// What happened on the way.
        why: String,
    },
    /// What came is malformed, hostile, or not what its digest says.
    #[error("{image} is not a valid image: {why}")]
    Invalid {
        /// The source as a person wrote it.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// Making an image from packages failed.
    #[error("{what} failed: {status}")]
    Build {
        /// The step: `bootstrapping bookworm`, `installing nginx`, ...
        what: String,
        /// Exit status, signal, or that it took too long.
        status: String,
        /// The command line.
        argv: String,
        /// The end of what it said.
        output: String,
    },
    /// The recipe of a package image makes no sense.
    #[error("the package image is not valid: {why}")]
    BadRecipe {
        /// What is wrong, naming the field.
        why: String,
    },
    /// The host lacks something.
    #[error("{what}")]
    Host {
        /// What is missing.
        what: String,
        /// What to do about it.
        next: String,
    },
    /// No image with that id.
    #[error("there is no image {id}")]
    Unknown {
        /// The id asked for.
        id: String,
    },
    /// The pool refused.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A system call failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody asked to stop.
    #[error("fetching the image was cancelled")]
    Cancelled,
    /// A thread of ours ended in a way it must not.
    #[error("work on an image ended unexpectedly: {0}")]
    Internal(String),
}

fn suffix(why: &str) -> String {
    if why.is_empty() {
        String::new()
    } else {
        format!(": {why}")
    }
}

impl ImageError {
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { what, path, source }
    }

    pub(crate) fn invalid(image: &str, why: impl Into<String>) -> Self {
        Self::Invalid {
            image: image.into(),
            why: why.into(),
        }
    }

    /// The error as a person sees it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let (code, fault, next) = match self {
            Self::Pool(error) => return error.problem(),
            Self::BadReference { .. } => (
                Code::ImageNotFound,
                Fault::Request,
                "write it as host/repository:tag, oci:DIR or docker-archive:FILE",
            ),
            Self::NotFound { .. } => (
                Code::ImageNotFound,
                Fault::Request,
                "check the name and the tag",
            ),
            Self::Denied { .. } => (
                Code::ImageAccessDenied,
                Fault::Request,
                "put credentials for this registry in the configured auth file (the form of docker's config.json)",
            ),
            Self::Unreachable { .. } => (
                Code::ImageUnreachable,
                Fault::Host,
                "check the network and try again; what was fetched already is kept",
            ),
            Self::Invalid { .. } => (
                Code::ImageInvalid,
                Fault::Environment,
                "have the image built or pushed again, or use another tag",
            ),
            Self::Build { .. } => (
                Code::ImageBuildFailed,
                Fault::Request,
                "see the end of the command's output below; check the names of the suite and the packages",
            ),
            Self::BadRecipe { .. } => (
                Code::ImageBuildFailed,
                Fault::Request,
                "correct the manifest",
            ),
            Self::Host { next, .. } => (Code::HostUnfit, Fault::Host, next.as_str()),
            Self::Unknown { .. } => (
                Code::ImageNotFound,
                Fault::Request,
                "`offshoot image ls` shows what there is",
            ),
            Self::Io { source, .. }
                if matches!(
                    Errno::from_io_error(source),
                    Some(Errno::NOSPC | Errno::DQUOT)
                ) =>
            {
                (
                    Code::PoolFull,
                    Fault::Host,
                    "remove what is no longer needed, or run `offshoot pool grow`",
                )
            }
            Self::Io { .. } => (
                Code::HostUnfit,
                Fault::Host,
                "see what the kernel said, make the path usable for root, and try again",
            ),
            Self::Cancelled => (
                Code::Cancelled,
                Fault::Request,
                "start it again when you want to; what was fetched already is kept",
            ),
            Self::Internal(_) => (
                Code::Internal,
                Fault::Offshoot,
                "report this with the daemon's log",
            ),
        };
        let problem = Problem::new(code, fault, self.to_string(), next);
        match self {
            Self::Build { argv, output, .. } => {
                let problem = problem.detail(format!("command: {argv}"));
                output.lines().fold(problem, Problem::detail)
            }
            Self::Io { source, .. } => problem.detail(source.to_string()),
            _ => problem,
        }
    }
}
