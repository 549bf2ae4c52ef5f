//! Files below a hostile directory: openat2(2) with RESOLVE_IN_ROOT, and what builds on it.
//!
//! A container's tree is written by the container: any component may be a symbolic link to anywhere, and it may
//! change between two looks. [`Root`] resolves every path as the container would see it (absolute links and `..`
//! stay inside, as after chroot(2)), in the kernel, in one step. Writers replace the last component and
//! never follow it.

mod compare;
mod entry;
mod tree;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

pub use compare::{Pair, Suspects, compare, compare_some};
pub use entry::{Attributes, SpecialFile, create_special, make_dir, set_attributes, set_time};
pub use tree::{copy_tree, disk_usage, is_empty_dir, remove_contents, remove_tree, walk};

/// How often a resolution that raced with a rename is tried again (openat2(2), `EAGAIN`).
const RACES: u32 = 128;

/// Whether the last component of a path is followed when it is a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Followed, inside the root.
    Follow,
    /// The link itself.
    Keep,
}

/// A directory that paths are resolved in as if it were `/`.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Root {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl Root {
    /// Opens a directory of the host. The path itself is trusted.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    /// What is at `inner`, as an O_PATH descriptor.
    ///
    /// # Errors
    /// As openat2(2): `ENOENT`, `ENOTDIR`, `ELOOP`.
    pub fn resolve(&self, inner: &Path, last: Last) -> io::Result<OwnedFd> {
        let flags = match last {
            Last::Follow => OFlags::PATH,
            Last::Keep => OFlags::PATH | OFlags::NOFOLLOW,
        };
        open_in(self.as_fd(), inner, flags, Mode::empty())
    }

    /// A directory that can be listed.
    ///
    /// # Errors
    /// As openat2(2).
    pub fn open_dir(&self, inner: &Path) -> io::Result<OwnedFd> {
        open_in(
            self.as_fd(),
            inner,
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )
    }

    /// A regular file for reading. Devices, pipes and sockets are refused without being opened: opening them can
    /// block or act.
    ///
    /// # Errors
    /// `EINVAL` when it is not a regular file; as openat2(2).
    pub fn open_file(&self, inner: &Path) -> io::Result<File> {
        let found = self.resolve(inner, Last::Follow)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        // The very file that was looked at, not its name again.
        Ok(File::from(rustix::fs::open(
            through_proc(found.as_fd()),
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
        )?))
    }

    /// The content of a regular file of at most `limit` bytes.
    ///
    /// # Errors
    /// `EFBIG` when it is longer; as [`Root::open_file`].
    pub fn read(&self, inner: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open_file(inner)?
            .take(limit.saturating_add(1))
            .read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(Errno::FBIG.into());
        }
        Ok(content)
    }

    /// Type, mode and owner of what is at `inner`; `None` when there is nothing.
    ///
    /// # Errors
    /// As openat2(2), other than `ENOENT` and `ENOTDIR`.
    pub fn stat(&self, inner: &Path, last: Last) -> io::Result<Option<Stat>> {
        match self.resolve(inner, last) {
            Ok(fd) => Ok(Some(rustix::fs::fstat(fd)?)),
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NOTDIR)) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// The directory that `inner`'s last component is in, and that component. Links on the way are followed inside
    /// the root.
    ///
    /// # Errors
    /// `EINVAL` when the path has no last name (`/`, `..`); as openat2(2).
    pub fn parent(&self, inner: &Path) -> io::Result<(OwnedFd, OsString)> {
        let name = inner.file_name().ok_or(Errno::INVAL)?;
        let parent = inner.parent().unwrap_or(Path::new("/"));
        let fd = open_in(
            self.as_fd(),
            non_empty(parent),
            OFlags::PATH | OFlags::DIRECTORY,
            Mode::empty(),
        )?;
        Ok((fd, name.to_owned()))
    }

    /// As `mkdir -p`: makes the directories of `inner` that are missing, with `mode`, owned by the caller. Links on
    /// the way are followed inside the root.
    ///
    /// # Errors
    /// `ENOTDIR` when a component is something else, `EINVAL` for a `..` in the path.
    pub fn create_dirs(&self, inner: &Path, mode: u32) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        if let Ok(fd) = open_in(self.as_fd(), non_empty(inner), flags, Mode::empty()) {
            return Ok(fd);
        }
        let mut done = PathBuf::from("/");
        for component in inner.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
            };
            let above = open_in(self.as_fd(), &done, flags, Mode::empty())?;
            match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(mode)) {
                // The umask of a daemon is not the container's business.
                Ok(()) => {
                    rustix::fs::chmodat(&above, name, Mode::from_raw_mode(mode), AtFlags::empty())?
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            done.push(name);
        }
        open_in(self.as_fd(), &done, flags, Mode::empty())
    }

    /// Writes a file in place of whatever is at `inner` (a directory is not replaced), with its mode and owner.
    /// Missing directories are made with mode 0755.
    ///
    /// # Errors
    /// `EISDIR` when a directory is there; as openat2(2).
    pub fn write(
        &self,
        inner: &Path,
        content: &[u8],
        mode: u32,
        owner: (u32, u32),
    ) -> io::Result<()> {
        self.create_dirs(inner.parent().unwrap_or(Path::new("/")), 0o755)?;
        let (parent, name) = self.parent(inner)?;
        let mut file = replace_file(parent.as_fd(), &name)?;
        file.write_all(content)?;
        rustix::fs::fchown(
            &file,
            Some(rustix::fs::Uid::from_raw(owner.0)),
            Some(rustix::fs::Gid::from_raw(owner.1)),
        )?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
        Ok(())
    }
}

/// A new, empty file in place of whatever had the name, except a directory.
///
/// # Errors
/// `EISDIR` when a directory has the name.
pub fn replace_file(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(
        parent,
        name,
        flags,
        Mode::from_raw_mode(0o600),
    )?))
}

/// openat2(2) below `root`: links and `..` stay inside, /proc's magic links are refused.
///
/// # Errors
/// As openat2(2).
pub fn open_in(
    root: BorrowedFd<'_>,
    inner: &Path,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RACES {
        match rustix::fs::openat2(
            root,
            non_empty(inner),
            flags | OFlags::CLOEXEC,
            mode,
            resolve,
        ) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// A path of the host that leads to exactly the file `fd` is, for calls that take only paths.
#[must_use]
pub fn through_proc(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// `.` for the empty path, which the kernel refuses.
fn non_empty(path: &Path) -> &Path {
    if path.as_os_str().as_bytes().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

#[cfg(test)]
mod tests;
