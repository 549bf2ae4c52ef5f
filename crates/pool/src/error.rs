//! What can go wrong with the pool.

use std::io;
use std::path::{Path, PathBuf};

use offshoot_model::{Code, Fault, Problem};
use rustix::io::Errno;

/// Why the pool could not do something.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A system call failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried, as a verb: `create`, `snapshot`, `mount`, ...
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A command failed.
    #[error("{argv} ended with {status}")]
    Command {
        /// The command line.
        argv: String,
        /// Its exit status, signal, or that it took too long.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// A program is not installed.
    #[error("{program} is not installed")]
    ProgramMissing {
        /// Its name.
        program: &'static str,
    },
    /// No loop devices here.
    #[error(
        "this machine has no loop devices: {} is missing",
        offshoot_sys::loopdev::CONTROL
    )]
    NoLoopDevices,
    /// The kernel has no btrfs.
    #[error("the kernel cannot mount btrfs")]
    NoBtrfs,
    /// What is configured as the pool holds something else.
    #[error("{} is not an Offshoot pool: {why}", path.display())]
    Foreign {
        /// File, device or mount point.
        path: PathBuf,
        /// What was found instead.
        why: String,
    },
    /// Another process is opening the pool and does not finish.
    #[error("another process has held {} for too long", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Too little room.
    #[error("the pool is full: {needed} bytes are needed and {free} are free in {}", path.display())]
    Full {
        /// Bytes asked for.
        needed: u64,
        /// Bytes there are.
        free: u64,
        /// The pool, or the file system that its file is on.
        path: PathBuf,
    },
    /// The size makes no pool, or the pool cannot be made that size.
    #[error("the pool cannot have {size} bytes: {why}")]
    Size {
        /// Bytes asked for.
        size: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Something still uses the pool.
    #[error("the pool at {} is in use by {}", mount.display(), list(holders))]
    Busy {
        /// Its mount point.
        mount: PathBuf,
        /// Processes as `name (pid): what`.
        holders: Vec<String>,
    },
}

fn list(holders: &[String]) -> String {
    if holders.is_empty() {
        "something that cannot be seen from here".into()
    } else {
        holders.join(", ")
    }
}

impl PoolError {
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { what, path, source }
    }

    /// Whether the pool, or the disk below it, has no room left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => {
                matches!(
                    Errno::from_io_error(source),
                    Some(Errno::NOSPC | Errno::DQUOT)
                )
            }
            _ => false,
        }
    }

    /// The error as a person sees it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let (code, fault, next) = match self {
            _ if self.is_full() => (
                Code::PoolFull,
                Fault::Host,
                "remove environments or images that are no longer needed, or run `offshoot pool grow`",
            ),
            Self::Io { .. } => (
                Code::PoolBroken,
                Fault::Host,
                "look into the kernel's log (dmesg) for errors of btrfs or of the disk",
            ),
            Self::Command { .. } => (
                Code::PoolBroken,
                Fault::Host,
                "see the command's own words below",
            ),
            Self::ProgramMissing { .. } => (
                Code::HostUnfit,
                Fault::Host,
                "install the package btrfs-progs",
            ),
            Self::NoLoopDevices => (
                Code::HostUnfit,
                Fault::Host,
                "load the kernel module `loop`, give this container /dev/loop-control, or use a disk as the pool",
            ),
            Self::NoBtrfs => (
                Code::HostUnfit,
                Fault::Host,
                "load the kernel module `btrfs`",
            ),
            Self::Foreign { .. } => (
                Code::PoolBroken,
                Fault::Host,
                "choose another place for the pool, or move away what is there",
            ),
            Self::Locked { .. } => (
                Code::Busy,
                Fault::Host,
                "see whether another daemon uses the same state directory",
            ),
            Self::Full { .. } => (Code::PoolFull, Fault::Host, "run `offshoot pool grow`"),
            Self::Size { .. } => (Code::BadRequest, Fault::Request, "choose another size"),
            Self::Busy { .. } => (
                Code::Busy,
                Fault::Host,
                "end what uses the pool and try again",
            ),
        };
        let mut problem = Problem::new(code, fault, self.to_string(), next);
        match self {
            Self::Io { source, .. } => problem = problem.detail(source.to_string()),
            Self::Command { stderr, .. } if !stderr.is_empty() => {
                problem = problem.detail(stderr.clone())
            }
            _ => {}
        }
        problem
    }
}
