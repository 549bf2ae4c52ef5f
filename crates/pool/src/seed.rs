//! A new volume's first content: what its image has at the mount point.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use offshoot_model::EnvId;
use offshoot_sys::fsx;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{Pool, PoolError, Subvolume, open_dir};

impl Pool {
    /// Docker's rule: an empty volume gets a copy of what `from` has at `inner_path`, with the owner, mode and
    /// attributes of the directory itself; contents are shared, not copied. A volume with anything in it stays as it
    /// is, and so does one whose image has no directory there. The volume must not be mounted yet.
    ///
    /// # Errors
    /// When `from` does not exist; a full pool.
    pub fn ensure_seeded(
        &self,
        volume: &Subvolume,
        from: &Subvolume,
        inner_path: &str,
    ) -> Result<(), PoolError> {
        let path = self.path(volume);
        if self.exists(volume)? {
            let dir = open_dir(&path).map_err(PoolError::io("open", &path))?;
            if !fsx::is_empty_dir(dir.as_fd()).map_err(PoolError::io("list", &path))? {
                return Ok(());
            }
        }
        let from_path = self.path(from);
        let root = fsx::Root::open(&from_path).map_err(PoolError::io("open", &from_path))?;
        let source = match fsx::open_in(
            root.as_fd(),
            Path::new(inner_path),
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        ) {
            Ok(source) => source,
            Err(e)
                if matches!(
                    Errno::from_io_error(&e),
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
                ) =>
            {
                return self.ensure_empty(volume);
            }
            Err(e) => {
                return Err(PoolError::io(
                    "open",
                    from_path.join(inner_path.trim_start_matches('/')),
                )(e));
            }
        };
        // Made aside and moved in place when complete: a volume half seeded would look like one in use.
        let staging = Subvolume::Staging(format!("seed-{}", EnvId::random()));
        self.ensure_empty(&staging)?;
        let staged = self.path(&staging);
        let made = open_dir(&staged)
            .and_then(|dir| fsx::copy_tree(source.as_fd(), dir.as_fd()))
            .map_err(PoolError::io("copy into", &path))
            .and_then(|()| self.ensure_removed(volume))
            .and_then(|()| {
                let (parent, name, _) = self.place(volume)?;
                let moved = rustix::fs::renameat(rustix::fs::CWD, &staged, &parent, &name);
                moved.map_err(|e| PoolError::io("move into place", &path)(io::Error::from(e)))
            });
        if made.is_err()
            && let Err(e) = self.ensure_removed(&staging)
        {
            tracing::warn!(error = %e, "an unfinished copy stays until the next start");
        }
        made
    }
}
