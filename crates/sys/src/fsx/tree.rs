//! Whole trees: removing, copying, measuring. No link is followed and no mount point crossed.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::entry::{Attributes, SpecialFile, create_special, entry_path, make_dir, set_attributes};
use super::replace_file;

/// Directories open at once on the way down; deeper ones are handled from the top again.
const OPEN_DIRS: usize = 64;
/// Deepest tree that is copied or measured.
const DEPTH_MAX: usize = 512;
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
                *moved += 1;
                let up = format!(".deep-{moved}-{}", std::process::id());
                return Ok(rustix::fs::renameat_with(
                    dir,
                    &name,
                    top,
                    &up,
                    RenameFlags::NOREPLACE,
                )?);
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

/// Bytes of disk that a tree takes (512-byte blocks of every file, files with several names once).
///
/// # Errors
/// As getdents(2).
pub fn disk_usage(dir: BorrowedFd<'_>) -> io::Result<u64> {
    fn walk(dir: BorrowedFd<'_>, seen: &mut HashMap<u64, ()>, depth: usize) -> io::Result<u64> {
        if depth > DEPTH_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let mut total = 0u64;
        for (name, _) in entries(dir)? {
            let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind != FileType::Directory
                && stat.st_nlink > 1
                && seen.insert(stat.st_ino, ()).is_some()
            {
                continue;
            }
            total = total.saturating_add(
                u64::try_from(stat.st_blocks)
                    .unwrap_or(0)
                    .saturating_mul(512),
            );
            if kind == FileType::Directory {
                total =
                    total.saturating_add(walk(open_below(dir, &name)?.as_fd(), seen, depth + 1)?);
            }
        }
        Ok(total)
    }
    walk(dir, &mut HashMap::new(), 0)
}

/// Names and types in a directory, without `.` and `..`.
fn entries(dir: BorrowedFd<'_>) -> io::Result<Vec<(OsString, FileType)>> {
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
fn open_below(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
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
