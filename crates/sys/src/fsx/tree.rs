//! Whole trees: removing, copying, measuring. No link is followed and no mount point crossed.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::entry::{Attributes, SpecialFile, create_special, entry_path, make_dir, set_attributes};
use super::replace_file;

/// Directories open at once on the way down; deeper ones are handled from the top again.
const OPEN_DIRS: usize = 64;
/// Deepest tree that is copied or measured.
pub(super) const DEPTH_MAX: usize = 512;
/// Longest extended attribute list or value the kernel hands out (`XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 65_536;

/// Removes the entry `name` of `parent` with everything in it. Nothing there is fine.
///
/// # Errors
/// The first error; what could be removed is gone all the same. Mount points below make `EXDEV` or `EBUSY`.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    let dir = open_below(parent, name)?;
    remove_contents(dir.as_fd())?;
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes everything in the directory `top`.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_contents(top: BorrowedFd<'_>) -> io::Result<()> {
    let mut first_error = None;
    let mut moved = 0u64;
    // A tree may be deeper than descriptors can be open: whatever is too deep is moved up and taken in the next
    // round, so depth costs rounds and not memory.
    loop {
        let moved_before = moved;
        empty(top, top, 0, &mut moved, &mut first_error)?;
        if moved == moved_before || first_error.is_some() {
            break;
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn empty(
    top: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    depth: usize,
    moved: &mut u64,
    first_error: &mut Option<io::Error>,
) -> io::Result<()> {
    for (name, kind) in entries(dir)? {
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(e) => {
                    first_error.get_or_insert(e.into());
                    continue;
                }
            }
        }
        let result = (|| -> io::Result<()> {
            if depth >= OPEN_DIRS {
                return move_up(dir, &name, top, moved);
            }
            let below = open_below(dir, &name)?;
            empty(top, below.as_fd(), depth + 1, moved, first_error)?;
            match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(e) => Err(e.into()),
            }
        })();
        if let Err(e) = result {
            first_error.get_or_insert(e);
        }
    }
    Ok(())
}

/// Gives a directory that lies too deep a free name at the top.
fn move_up(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    top: BorrowedFd<'_>,
    moved: &mut u64,
) -> io::Result<()> {
    for _ in 0..1000 {
        *moved += 1;
        let up = format!(".deep-{moved}");
        match rustix::fs::renameat_with(dir, name, top, &up, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return Ok(other?),
        }
    }
    Err(Errno::EXIST.into())
}

/// Whether a directory has no entries.
///
/// # Errors
/// As getdents(2).
pub fn is_empty_dir(dir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(entries(dir)?.is_empty())
}

/// Copies the content of the directory `from` into the empty directory `to`, with every attribute, the
/// directory's own included. File contents are shared where the file system can (FICLONE), links between files
/// inside stay links.
///
/// # Errors
/// The first one; the copy is then incomplete.
pub fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut links = HashMap::new();
    copy_dir(from, to, &mut links, 0)?;
    let attributes = attributes_of(&rustix::fs::fstat(from)?, from, OsStr::new("."))?;
    set_attributes(to, OsStr::new("."), &attributes)
}

/// First copies of files with several names, by inode: their directory stays open.
type Links = HashMap<u64, (OwnedFd, OsString)>;

fn copy_dir(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    links: &mut Links,
    depth: usize,
) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    for (name, _) in entries(from)? {
        let stat = rustix::fs::statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some((dir, first)) = links.get(&stat.st_ino) {
                rustix::fs::linkat(dir, first, to, &name, AtFlags::empty())?;
                continue;
            }
            // Descriptors are bounded: past some hundred such files the rest become separate files.
            if links.len() < 256 {
                links.insert(stat.st_ino, (rustix::io::dup(to)?, name.clone()));
            }
        }
        match kind {
            FileType::Directory => {
                make_dir(to, &name)?;
                let (below_from, below_to) = (open_below(from, &name)?, open_below(to, &name)?);
                copy_dir(below_from.as_fd(), below_to.as_fd(), links, depth + 1)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut source = File::from(rustix::fs::openat(from, &name, flags, Mode::empty())?);
                let mut target = replace_file(to, &name)?;
                match rustix::fs::ioctl_ficlone(&target, &source) {
                    Ok(()) => {}
                    Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY) => {
                        io::copy(&mut source, &mut target)?;
                    }
                    Err(e) => return Err(e.into()),
                }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, &name, Vec::new())?;
                rustix::fs::symlinkat(target.as_c_str(), to, &name)?;
            }
            other => {
                let device = (
                    rustix::fs::major(stat.st_rdev),
                    rustix::fs::minor(stat.st_rdev),
                );
                let special = match other {
                    FileType::Fifo => SpecialFile::Fifo,
                    FileType::CharacterDevice => SpecialFile::Char(device.0, device.1),
                    FileType::BlockDevice => SpecialFile::Block(device.0, device.1),
                    _ => SpecialFile::Socket,
                };
                create_special(to, &name, special)?;
            }
        }
        set_attributes(to, &name, &attributes_of(&stat, from, &name)?)?;
    }
    Ok(())
}

/// Calls `visit` with every entry below `dir`: the open directory it is in, its name, what it is. Files with several
/// names are visited once. `visit` may end the walk.
///
/// # Errors
/// As getdents(2); `ENAMETOOLONG` for a tree deeper than 512.
pub fn walk(
    dir: BorrowedFd<'_>,
    visit: &mut dyn FnMut(BorrowedFd<'_>, &OsStr, &Stat) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    walk_below(dir, visit, &mut HashSet::new(), 0)
}

fn walk_below(
    dir: BorrowedFd<'_>,
    visit: &mut dyn FnMut(BorrowedFd<'_>, &OsStr, &Stat) -> ControlFlow<()>,
    seen: &mut HashSet<u64>,
    depth: usize,
) -> io::Result<ControlFlow<()>> {
    if depth > DEPTH_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    for (name, _) in entries(dir)? {
        let stat = match rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // A running container may have removed it.
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_dir && stat.st_nlink > 1 && !seen.insert(stat.st_ino) {
            continue;
        }
        if visit(dir, &name, &stat).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if is_dir {
            let below = match open_below(dir, &name) {
                Ok(below) => below,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if walk_below(below.as_fd(), visit, seen, depth + 1)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Bytes of disk that a tree takes (512-byte blocks of every file, files with several names once).
///
/// # Errors
/// As [`walk`].
pub fn disk_usage(dir: BorrowedFd<'_>) -> io::Result<u64> {
    let mut total = 0u64;
    let _whole = walk(dir, &mut |_, _, stat| {
        total = total.saturating_add(
            u64::try_from(stat.st_blocks)
                .unwrap_or(0)
                .saturating_mul(512),
        );
        ControlFlow::Continue(())
    })?;
    Ok(total)
}

/// Names and types in a directory, without `.` and `..`.
pub(super) fn entries(dir: BorrowedFd<'_>) -> io::Result<Vec<(OsString, FileType)>> {
    let mut found = Vec::new();
    // A descriptor of its own: the position of a shared one would move.
    let own = rustix::fs::openat(
        dir,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for entry in Dir::new(own)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found.push((OsStr::from_bytes(name).to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

/// A directory of `parent` itself: no link, no mount point.
pub(super) fn open_below(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )?)
}

fn attributes_of(stat: &Stat, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Attributes> {
    let path = entry_path(parent, name);
    let mut xattrs = Vec::new();
    let mut list = vec![0u8; XATTR_MAX];
    let length = match rustix::fs::llistxattr(&path, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut value = vec![0u8; XATTR_MAX];
    for key in list
        .get(..length)
        .unwrap_or_default()
        .split_inclusive(|byte| *byte == 0)
    {
        let Ok(key) = CStr::from_bytes_with_nul(key) else {
            continue;
        };
        let length = match rustix::fs::lgetxattr(&path, key, &mut value[..]) {
            Ok(length) => length,
            Err(Errno::NODATA) => continue,
            Err(e) => return Err(e.into()),
        };
        xattrs.push((
            CString::from(key),
            value.get(..length).unwrap_or_default().to_vec(),
        ));
    }
    Ok(Attributes {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (
            stat.st_mtime,
            u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
        xattrs,
    })
}
