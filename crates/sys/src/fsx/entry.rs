//! Making single entries of a tree with every attribute.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::through_proc;

/// Everything a tree entry carries besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-uid, set-gid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change: seconds since 1970, nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes by full name (xattr(7)).
    pub xattrs: Vec<(CString, Vec<u8>)>,
}

/// An entry that is neither file, directory nor link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialFile {
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
}

/// Makes a pipe, socket name or device.
///
/// # Errors
/// As mknodat(2).
pub fn create_special(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    special: SpecialFile,
) -> io::Result<()> {
    let (kind, device) = match special {
        SpecialFile::Fifo => (FileType::Fifo, 0),
        SpecialFile::Socket => (FileType::Socket, 0),
        SpecialFile::Char(major, minor) => {
            (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
        }
        SpecialFile::Block(major, minor) => {
            (FileType::BlockDevice, rustix::fs::makedev(major, minor))
        }
    };
    rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)?;
    Ok(())
}

/// Makes a directory, or leaves the one that is there.
///
/// # Errors
/// `EEXIST` when something else has the name.
pub fn make_dir(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                Ok(())
            } else {
                Err(Errno::EXIST.into())
            }
        }
        other => Ok(other?),
    }
}

/// Sets owner, mode, extended attributes and time of the entry `name` of `parent`, without following it when it
/// is a link. Nobody else may be changing the directory meanwhile.
///
/// # Errors
/// As chown(2), chmod(2), setxattr(2), utimensat(2).
pub fn set_attributes(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    attributes: &Attributes,
) -> io::Result<()> {
    let keep_link = AtFlags::SYMLINK_NOFOLLOW;
    let stat = rustix::fs::statat(parent, name, keep_link)?;
    // In this order: chown(2) clears set-uid bits and file capabilities.
    rustix::fs::chownat(
        parent,
        name,
        Some(Uid::from_raw(attributes.uid)),
        Some(Gid::from_raw(attributes.gid)),
        keep_link,
    )?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(attributes.mode & 0o7777);
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
    }
    if !attributes.xattrs.is_empty() {
        let path = entry_path(parent, name);
        for (key, value) in &attributes.xattrs {
            rustix::fs::lsetxattr(&path, key.as_c_str(), value, XattrFlags::empty())?;
        }
    }
    set_time(parent, name, attributes.mtime)
}

/// Sets when an entry was changed and read last, without following it when it is a link.
///
/// # Errors
/// As utimensat(2).
pub fn set_time(parent: BorrowedFd<'_>, name: &OsStr, mtime: (i64, u32)) -> io::Result<()> {
    let time = Timespec {
        tv_sec: mtime.0,
        tv_nsec: mtime.1.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Path of an entry of an open directory for calls that take only paths; the entry itself is not followed by the
/// `l` variants.
pub(super) fn entry_path(parent: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    through_proc(parent).join(name)
}
