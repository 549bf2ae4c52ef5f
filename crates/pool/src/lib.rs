//! The pool: one btrfs file system that holds every image, root file system and volume of a daemon as a subvolume,
//! so that copying any of them is one ioctl whatever it holds.
//!
//! Everything that may be repeated is called `ensure_*` and is idempotent, because crash recovery repeats it.
//! The pool's directories belong to root alone; what lies inside a subvolume was written by a container and is never
//! walked by path.

mod command;
mod error;
mod layout;
mod mount;
mod remove;
mod room;
mod seed;
mod snapshots;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use offshoot_model::EnvId;
use offshoot_sys::btrfs::{self, Writable};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

pub use error::PoolError;
pub use layout::Subvolume;
use layout::{ENVS, IMAGES, NODES, STAGING, VOLUMES};
pub use mount::SIZE_MIN;
pub use room::{PoolStatus, USAGE_LIMIT, Usage};
pub use snapshots::Snapshots;

/// What the pool lies on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Backing {
    /// A sparse file through a loop device.
    LoopFile {
        /// The file; made when it is missing.
        path: PathBuf,
        /// Its size in bytes when it is made; an existing file keeps its own. At least [`SIZE_MIN`].
        size: u64,
    },
    /// A whole disk or partition; formatted when it is blank.
    Device(PathBuf),
    /// A directory on a btrfs that somebody else mounts.
    Mounted,
}

/// Where the pool is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolConfig {
    /// Directory at which the pool is mounted.
    pub mount: PathBuf,
    /// What it lies on.
    pub backing: Backing,
}

/// Whether a new snapshot can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It can.
    ReadWrite,
    /// It cannot.
    ReadOnly,
}

/// An open pool. Any number of threads may use it.
#[derive(Debug)]
pub struct Pool {
    config: PoolConfig,
    /// Canonical, so that it can be compared with what the kernel says.
    root: PathBuf,
}

impl Pool {
    /// Brings the pool up: makes and formats its file where needed, attaches it, mounts it. Does the rest of the way from
    /// wherever an earlier attempt stopped, and nothing when the pool is mounted already.
    ///
    /// # Errors
    /// [`PoolError::NoLoopDevices`], [`PoolError::NoBtrfs`], [`PoolError::ProgramMissing`] (mkfs.btrfs),
    /// [`PoolError::Foreign`] when something else is there: nothing is ever overwritten.
    pub fn open(config: &PoolConfig) -> Result<Self, PoolError> {
        mount::ensure(config)?;
        let root =
            fs::canonicalize(&config.mount).map_err(PoolError::io("look at", &config.mount))?;
        let pool = Self {
            config: config.clone(),
            root,
        };
        // What lies here has set-uid files and devices of strangers: nobody but root gets near them.
        let private = rustix::fs::Mode::from_raw_mode(0o700);
        rustix::fs::chmod(&pool.root, private)
            .map_err(|e| PoolError::io("set the mode of", &pool.root)(e.into()))?;
        for dir in [IMAGES, STAGING, ENVS] {
            pool.ensure_dir(&pool.root.join(dir))?;
        }
        Ok(pool)
    }

    /// Unmounts the pool; its loop device goes away with it. A [`Backing::Mounted`] pool stays as it is.
    ///
    /// # Errors
    /// [`PoolError::Busy`] naming what holds it.
    pub fn close(&self) -> Result<(), PoolError> {
        if self.config.backing == Backing::Mounted || mount::mounted_at(&self.root)?.is_none() {
            return Ok(());
        }
        match rustix::mount::unmount(&self.root, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::BUSY) => Err(PoolError::Busy {
                mount: self.root.clone(),
                holders: mount::holders(&self.root),
            }),
            Err(e) => Err(PoolError::io("unmount", &self.root)(e.into())),
        }
    }

    /// The pool's own root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How the pool was opened.
    #[must_use]
    pub fn config(&self) -> &PoolConfig {
        &self.config
    }

    /// Where a subvolume lies. It need not exist.
    #[must_use]
    pub fn path(&self, subvolume: &Subvolume) -> PathBuf {
        self.root.join(subvolume.relative())
    }

    /// Whether the subvolume exists.
    ///
    /// # Errors
    /// When something else has its name, or the pool cannot be read.
    pub fn exists(&self, subvolume: &Subvolume) -> Result<bool, PoolError> {
        let path = self.path(subvolume);
        match open_dir(&path) {
            Ok(dir) => match btrfs::is_subvolume(dir.as_fd()) {
                Ok(true) => Ok(true),
                Ok(false) => Err(PoolError::Foreign {
                    path,
                    why: "it is no subvolume".into(),
                }),
                Err(e) => Err(PoolError::io("look at", path)(e)),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(PoolError::io("open", path)(e)),
        }
    }

    /// Makes the subvolume, empty and owned by root, unless it exists (with whatever it holds).
    ///
    /// # Errors
    /// As [`Pool::exists`]; a full pool.
    pub fn ensure_empty(&self, subvolume: &Subvolume) -> Result<(), PoolError> {
        if self.exists(subvolume)? {
            return Ok(());
        }
        let (parent, name, path) = self.place(subvolume)?;
        match btrfs::create_subvolume(parent.as_fd(), &name) {
            Ok(()) => Ok(()),
            // Somebody else was faster.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(PoolError::io("create", path)(e)),
        }
    }

    /// Makes `to` as a snapshot of `from`, unless it exists (then it stays as it is).
    ///
    /// # Errors
    /// When `from` does not exist; a full pool.
    pub fn ensure_snapshot(
        &self,
        from: &Subvolume,
        to: &Subvolume,
        access: Access,
    ) -> Result<(), PoolError> {
        if self.exists(to)? {
            return Ok(());
        }
        let (parent, name, path) = self.place(to)?;
        let source_path = self.path(from);
        let source = open_dir(&source_path).map_err(PoolError::io("open", source_path))?;
        let writable = match access {
            Access::ReadWrite => Writable::Yes,
            Access::ReadOnly => Writable::No,
        };
        match btrfs::create_snapshot(source.as_fd(), parent.as_fd(), &name, writable) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(PoolError::io("snapshot", path)(e)),
        }
    }

    /// Makes the directories that an environment's subvolumes lie in.
    ///
    /// # Errors
    /// A full pool.
    pub fn prepare_env(&self, env: &EnvId) -> Result<(), PoolError> {
        let dir = self.root.join(ENVS).join(env.as_str());
        self.ensure_dir(&dir.join(NODES))?;
        self.ensure_dir(&dir.join(VOLUMES))
    }

    /// Everything in the pool, for finding orphans. Names that are not Offshoot's are left out.
    ///
    /// # Errors
    /// When the pool cannot be read.
    pub fn list(&self) -> Result<Vec<Subvolume>, PoolError> {
        let mut found: Vec<_> = names(&self.root.join(IMAGES))?
            .into_iter()
            .map(Subvolume::Image)
            .collect();
        found.extend(
            names(&self.root.join(STAGING))?
                .into_iter()
                .map(Subvolume::Staging),
        );
        for env in self.list_envs()? {
            let dir = self.root.join(ENVS).join(env.as_str());
            let nodes = names(&dir.join(NODES))?.into_iter();
            found.extend(
                nodes
                    .filter_map(|name| offshoot_model::NodeId::new(env.clone(), &name).ok())
                    .map(Subvolume::Rootfs),
            );
            let volumes = names(&dir.join(VOLUMES))?.into_iter();
            found.extend(
                volumes
                    .filter_map(|name| name.parse().ok())
                    .map(|name| Subvolume::Volume(env.clone(), name)),
            );
        }
        Ok(found)
    }

    /// Environments that have a directory in the pool, even an empty one.
    ///
    /// # Errors
    /// When the pool cannot be read.
    pub fn list_envs(&self) -> Result<BTreeSet<EnvId>, PoolError> {
        Ok(names(&self.root.join(ENVS))?
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    /// Writes everything to the disk (syncfs(2)); done just before a cut, it leaves the cut little to write.
    ///
    /// # Errors
    /// An error of the disk, a full disk.
    pub fn sync(&self) -> Result<(), PoolError> {
        let dir = open_dir(&self.root).map_err(PoolError::io("open", &self.root))?;
        rustix::fs::syncfs(&dir).map_err(|e| PoolError::io("sync", &self.root)(e.into()))
    }

    /// The open directory that a subvolume lies in, its name there, and its path for messages.
    fn place(&self, subvolume: &Subvolume) -> Result<(File, OsString, PathBuf), PoolError> {
        let path = self.path(subvolume);
        let (Some(parent), Some(name), true) =
            (path.parent(), path.file_name(), subvolume.is_sane())
        else {
            return Err(PoolError::io("name", &path)(Errno::INVAL.into()));
        };
        let dir = match open_dir(parent) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.ensure_dir(parent)?;
                open_dir(parent)
            }
            other => other,
        };
        let dir = dir.map_err(PoolError::io("open", parent))?;
        let name: &OsStr = name;
        Ok((dir, name.to_owned(), path.clone()))
    }

    fn ensure_dir(&self, path: &Path) -> Result<(), PoolError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(PoolError::io("create", path))
    }
}

/// Opens a directory without following a link at its end.
fn open_dir(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Names in one of the pool's own directories, in order; none when it is missing.
fn names(path: &Path) -> Result<Vec<String>, PoolError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(PoolError::io("list", path)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(PoolError::io("list", path))?;
        match entry.file_name().into_string() {
            Ok(name) => found.push(name),
            Err(name) => tracing::debug!(?name, path = %path.display(), "not a name of ours"),
        }
    }
    found.sort();
    Ok(found)
}
