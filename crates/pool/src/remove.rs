//! Removing subvolumes, whatever a container made of them.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use offshoot_model::EnvId;
use offshoot_sys::{btrfs, fsx};
use rustix::io::Errno;

use crate::layout::{CUT, ENVS, NODES, VOLUMES};
use crate::{Pool, PoolError, Subvolume, names, open_dir};

/// Most subvolumes that a container may have nested in one of ours for a removal to go through at once.
const NESTED_MAX: usize = 100_000;

impl Pool {
    /// Removes a subvolume with everything in it, nested subvolumes included. Not there is fine. The space comes back in
    /// the background.
    ///
    /// # Errors
    /// The first one; what could be removed is gone all the same.
    pub fn ensure_removed(&self, subvolume: &Subvolume) -> Result<(), PoolError> {
        let path = self.path(subvolume);
        if !subvolume.is_sane() {
            return Err(PoolError::io("name", &path)(Errno::INVAL.into()));
        }
        self.remove_at(&path)
    }

    /// Removes everything an environment has in the pool. Not there is fine.
    ///
    /// # Errors
    /// The first one; the rest is removed all the same.
    pub fn ensure_env_removed(&self, env: &EnvId) -> Result<(), PoolError> {
        let dir = self.root().join(ENVS).join(env.as_str());
        let mut first = Ok(());
        let mut kinds = vec![dir.join(NODES), dir.join(VOLUMES)];
        let cut = dir.join(CUT);
        kinds.extend(names(&cut)?.into_iter().map(|name| cut.join(name)));
        for dir in kinds {
            for name in names(&dir)? {
                let removed = self.remove_at(&dir.join(name));
                if first.is_ok() {
                    first = removed;
                }
            }
        }
        let removed = self.remove_at(&dir);
        if first.is_ok() { removed } else { first }
    }

    /// Removes whatever is at a path of the pool's own directories.
    pub(crate) fn remove_at(&self, path: &Path) -> Result<(), PoolError> {
        let dir = match open_dir(path) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A stray file or link of that name.
            Err(_) => return self.remove_plain(path),
        };
        if !btrfs::is_subvolume(dir.as_fd()).map_err(PoolError::io("look at", path))? {
            drop(dir);
            return self.remove_plain(path);
        }
        let id = btrfs::subvolume_id(dir.as_fd()).map_err(PoolError::io("look at", path))?;
        // An open descriptor would keep the space.
        drop(dir);
        let root = open_dir(self.root()).map_err(PoolError::io("open", self.root()))?;
        remove_subvolumes(&root, id).map_err(PoolError::io("remove", path))
    }

    fn remove_plain(&self, path: &Path) -> Result<(), PoolError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        let name: &OsStr = name;
        let dir = open_dir(parent).map_err(PoolError::io("open", parent))?;
        fsx::remove_tree(dir.as_fd(), name).map_err(PoolError::io("remove", path))
    }
}

/// Removes subvolume `top` and every one inside it, innermost first, by their ids: no path of the tree is looked at.
fn remove_subvolumes(pool: &File, top: u64) -> io::Result<()> {
    let mut order = vec![top];
    let mut at = 0;
    while let Some(&id) = order.get(at) {
        let room = NESTED_MAX.saturating_sub(order.len());
        order.extend(btrfs::children(pool.as_fd(), id, room)?);
        at += 1;
    }
    // A container may have made one read-only, and nothing can be removed from inside that.
    for &id in &order {
        if order.len() > 1
            && let Ok(dir) = btrfs::open_subvolume(pool.as_fd(), id)
        {
            btrfs::make_writable(dir.as_fd())?;
        }
    }
    for &id in order.iter().rev() {
        match btrfs::destroy_subvolume(pool.as_fd(), id) {
            Ok(()) => {}
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::STALE)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
