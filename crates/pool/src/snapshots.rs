//! The disks' part of a cut: snapshots of several subvolumes at one instant.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use offshoot_sys::btrfs::{self, Writable};
use rustix::io::Errno;

use crate::layout::{CUT, ENVS};
use crate::{Pool, PoolError, Subvolume, open_dir};

/// So many are taken at the same time.
const THREADS: usize = 32;

/// Snapshots that are about to be taken. What can be done before is done.
///
/// The kernel locks the directory in which a snapshot is made until that is on the disk: in one directory, they are made one after
/// the other, with a commit each. So each is made in a directory of its own, together they share a commit or two, and
/// [`Snapshots::place`] moves them.
#[derive(Debug)]
pub struct Snapshots<'a> {
    pool: &'a Pool,
    work: Vec<Work>,
    /// How often they were taken.
    taken: AtomicU32,
}

#[derive(Debug)]
struct Work {
    source: File,
    /// Where it is made.
    room: File,
    room_path: PathBuf,
    /// Where it belongs.
    to: Subvolume,
}

impl Pool {
    /// Prepares snapshots of all pairs (from, to).
    ///
    /// # Errors
    /// When a `from` cannot be opened, and when a `to` exists already or is no part of an environment.
    pub fn prepare_snapshots(
        &self,
        pairs: &[(Subvolume, Subvolume)],
    ) -> Result<Snapshots<'_>, PoolError> {
        let mut work = Vec::with_capacity(pairs.len());
        for (number, (from, to)) in pairs.iter().enumerate() {
            let path = self.path(to);
            if self.exists(to)? {
                return Err(PoolError::io("snapshot", path)(Errno::EXIST.into()));
            }
            let Some(env) = to.env() else {
                return Err(PoolError::io("snapshot", path)(Errno::INVAL.into()));
            };
            let source_path = self.path(from);
            let source = open_dir(&source_path).map_err(PoolError::io("open", source_path))?;
            let room_path = self
                .root
                .join(ENVS)
                .join(env.as_str())
                .join(CUT)
                .join(number.to_string());
            self.ensure_dir(&room_path)?;
            let room = open_dir(&room_path).map_err(PoolError::io("open", &room_path))?;
            work.push(Work {
                source,
                room,
                room_path,
                to: to.clone(),
            });
        }
        Ok(Snapshots {
            pool: self,
            work,
            taken: AtomicU32::new(0),
        })
    }
}

impl Snapshots<'_> {
    /// Takes them, as close to one instant as the file system can: the cut, while every process that writes is frozen. [`Pool::sync`]
    /// shortly before keeps it to milliseconds. What was taken by an earlier call is replaced.
    ///
    /// # Errors
    /// The first one, of a full pool or disk. What was made stays, and is removed with the environment.
    pub fn take(&self) -> Result<(), PoolError> {
        let name = name_of(self.taken.fetch_add(1, Ordering::Relaxed));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.work.len().min(THREADS))
                .map(|first| {
                    let (name, work) = (&name, self.work.iter().skip(first).step_by(THREADS));
                    scope.spawn(move || {
                        work.map(|one| self.take_one(one, name))
                            .fold(Ok(()), Result::and)
                    })
                })
                .collect();
            let mut first = Ok(());
            for thread in threads {
                let ended = thread.join().unwrap_or_else(|_| {
                    Err(PoolError::io("snapshot", &self.pool.root)(
                        io::Error::other("a thread panicked"),
                    ))
                });
                first = first.and(ended);
            }
            first
        })
    }

    fn take_one(&self, one: &Work, name: &OsStr) -> Result<(), PoolError> {
        btrfs::create_snapshot(one.source.as_fd(), one.room.as_fd(), name, Writable::Yes)
            .map_err(PoolError::io("snapshot", self.pool.path(&one.to)))
    }

    /// Puts what was taken last into its places, and removes the rest.
    ///
    /// # Errors
    /// When nothing was taken, when a place is not free, and of the disk. What is not in its place is removed with the environment.
    pub fn place(self) -> Result<(), PoolError> {
        let Some(last) = self.taken.into_inner().checked_sub(1) else {
            return Err(PoolError::io("snapshot", &self.pool.root)(
                Errno::NOENT.into(),
            ));
        };
        for one in self.work {
            let (parent, name, path) = self.pool.place(&one.to)?;
            rustix::fs::renameat_with(
                &one.room,
                name_of(last),
                &parent,
                &name,
                rustix::fs::RenameFlags::NOREPLACE,
            )
            .map_err(|e| PoolError::io("move a snapshot to", path)(e.into()))?;
            drop(one.room);
            for earlier in 0..last {
                self.pool.remove_at(&one.room_path.join(name_of(earlier)))?;
            }
            let rooms = one.room_path.parent();
            fs::remove_dir(&one.room_path).map_err(PoolError::io("remove", &one.room_path))?;
            // the last one succeeds
            let _ = rooms.map(fs::remove_dir);
        }
        Ok(())
    }
}

fn name_of(taken: u32) -> OsString {
    OsStr::new(&format!("disk-{taken}")).to_owned()
}
