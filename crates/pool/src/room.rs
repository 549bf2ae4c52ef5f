//! How much room there is, and making more.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use offshoot_sys::btrfs::{self, FileUsage, Space};
use offshoot_sys::fsx;
use rustix::fs::{FileType, Mode, OFlags};
use serde::Serialize;

use crate::{Backing, Pool, PoolError, Subvolume, mount, open_dir};

/// Room that stays free on the file system below the pool's file: when that one is full, the pool breaks.
const HOST_RESERVE: u64 = 256 << 20;
/// Room that stays free in the pool: btrfs needs some to be able to free anything.
const POOL_RESERVE: u64 = 32 << 20;

/// How full the pool is; bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolStatus {
    /// What it lies on.
    pub backing: Backing,
    /// Where it is mounted.
    pub path: PathBuf,
    /// Size of the file system.
    pub size: u64,
    /// In use, copies of metadata counted.
    pub used: u64,
    /// Free for new content, as btrfs estimates it.
    pub free: u64,
    /// File contents in use.
    pub data_used: u64,
    /// Trees in use, one copy.
    pub metadata_used: u64,
    /// Free on the file system that the pool's file lies on; `None` for other backings.
    pub host_free: Option<u64>,
}

/// How often, and how long after each other, a full pool is committed and looked at again.
const COMMITS: u32 = 5;
const COMMIT_WAIT: Duration = Duration::from_millis(100);

/// Longest time that [`Pool::usage`] looks at files.
pub const USAGE_LIMIT: Duration = Duration::from_secs(2);

/// What a subvolume takes; bytes, `None` when unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Reachable from it, shared with others or not.
    pub referenced: Option<u64>,
    /// Freed when it goes.
    pub exclusive: Option<u64>,
}

impl Pool {
    /// How full the pool is.
    ///
    /// # Errors
    /// When the pool cannot be read.
    pub fn status(&self) -> Result<PoolStatus, PoolError> {
        let root = self.root();
        let (size, not_used, free) = stat(root)?;
        let dir = open_dir(root).map_err(PoolError::io("open", root))?;
        let spaces = btrfs::space(dir.as_fd()).map_err(PoolError::io("measure", root))?;
        let used = |kind: u64| {
            spaces
                .iter()
                .filter(|s| s.flags & kind != 0)
                .map(|s| s.used)
                .sum()
        };
        let host_free = match &self.config().backing {
            Backing::LoopFile { path, .. } => Some(stat(path)?.2),
            Backing::Device(_) | Backing::Mounted => None,
        };
        Ok(PoolStatus {
            backing: self.config().backing.clone(),
            path: root.to_path_buf(),
            size,
            used: size.saturating_sub(not_used),
            free,
            data_used: used(Space::DATA),
            metadata_used: used(Space::METADATA),
            host_free,
        })
    }

    /// Refuses what would not fit: work that is bound to fail half-way fails before it begins.
    ///
    /// # Errors
    /// [`PoolError::Full`] when the pool, or the disk below it, has less than `bytes` and a reserve.
    pub fn ensure_room(&self, bytes: u64) -> Result<(), PoolError> {
        let root = self.root();
        let mut free = stat(root)?.2.saturating_sub(POOL_RESERVE);
        // What was removed is free once it is committed, and subvolumes a little later: removing something to make
        // room must help at once.
        for _ in 0..COMMITS {
            if free >= bytes {
                break;
            }
            self.sync()?;
            free = stat(root)?.2.saturating_sub(POOL_RESERVE);
            if free < bytes {
                std::thread::sleep(COMMIT_WAIT);
            }
        }
        if free < bytes {
            return Err(PoolError::Full {
                needed: bytes,
                free,
                path: root.to_path_buf(),
            });
        }
        if let Backing::LoopFile { path, .. } = &self.config().backing {
            let free = stat(path)?.2.saturating_sub(HOST_RESERVE);
            if free < bytes {
                return Err(PoolError::Full {
                    needed: bytes,
                    free,
                    path: path.clone(),
                });
            }
        }
        Ok(())
    }

    /// Makes the pool `to` bytes large, while it is in use. A disk's size is taken as it is now, whatever `to` says.
    ///
    /// # Errors
    /// [`PoolError::Size`] when it is larger already or is not ours to grow.
    pub fn grow(&self, to: u64) -> Result<(), PoolError> {
        match &self.config().backing {
            Backing::LoopFile { path, .. } => mount::grow_file(path, to)?,
            Backing::Device(_) => {}
            Backing::Mounted => {
                return Err(PoolError::Size {
                    size: to,
                    why: "somebody else manages its file system".into(),
                });
            }
        }
        let dir = open_dir(self.root()).map_err(PoolError::io("open", self.root()))?;
        btrfs::grow_to_device(dir.as_fd()).map_err(PoolError::io("grow", self.root()))
    }

    /// What a subvolume's files take, and what of that is its own. Looked up file by file, so that nothing has to be
    /// counted while snapshots are taken; both are `None` when that is more than [`USAGE_LIMIT`] of work. Subvolumes nested
    /// in it are part of it.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn usage(&self, subvolume: &Subvolume) -> Result<Usage, PoolError> {
        let path = self.path(subvolume);
        let dir = open_dir(&path).map_err(PoolError::io("open", &path))?;
        let deadline = Instant::now() + USAGE_LIMIT;
        let mut total = FileUsage::default();
        let walked = fsx::walk(dir.as_fd(), &mut |parent, name, stat| {
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size > 0 {
                // It may have become something else meanwhile: nothing is followed or waited for.
                let flags = OFlags::RDONLY
                    | OFlags::NOFOLLOW
                    | OFlags::NONBLOCK
                    | OFlags::NOCTTY
                    | OFlags::CLOEXEC;
                if let Ok(file) = rustix::fs::openat(parent, name, flags, Mode::empty())
                    && let Ok(usage) = btrfs::file_usage(file.as_fd())
                {
                    total.referenced = total.referenced.saturating_add(usage.referenced);
                    total.exclusive = total.exclusive.saturating_add(usage.exclusive);
                }
            }
            if Instant::now() < deadline {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        match walked.map_err(PoolError::io("measure", &path))? {
            ControlFlow::Continue(()) => Ok(Usage {
                referenced: Some(total.referenced),
                exclusive: Some(total.exclusive),
            }),
            ControlFlow::Break(()) => Ok(Usage::default()),
        }
    }
}

/// Size, unused and available bytes of the file system a path is on (statvfs(3)).
fn stat(path: &std::path::Path) -> Result<(u64, u64, u64), PoolError> {
    let stat = rustix::fs::statvfs(path).map_err(|e| PoolError::io("measure", path)(e.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok((
        bytes(stat.f_blocks),
        bytes(stat.f_bfree),
        bytes(stat.f_bavail),
    ))
}
