//! Directories of nodes, by their disks: works on stopped nodes, and every path is resolved below the node's own root.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use jiff::Timestamp;
use offshoot_model::disk::{Directory, ENTRIES_MAX, FileEntry, FileKind};
use offshoot_model::{Environment, Node, Problem};
use offshoot_pool::Pool;
use offshoot_sys::fsx::Root;
use rustix::fs::{AtFlags, Dir, FileType, Stat};

use crate::copy::{disk_of, failed};

/// Most names of a directory that are read: what is behind them is not counted either.
const NAMES_MAX: usize = 100_000;

/// What is in a directory of a node.
pub(crate) fn list(
    pool: &Pool,
    environment: &Environment,
    node: &Node,
    path: &str,
) -> Result<Directory, Problem> {
    let (disk, inner) = disk_of(pool, environment, node, path)?;
    let read = || -> io::Result<Directory> {
        let dir = Root::open(&disk)?.open_dir(&inner)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir)?.take(NAMES_MAX) {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort();
        let left_out = names.len().saturating_sub(ENTRIES_MAX);
        let entries = names.iter().take(ENTRIES_MAX);
        Ok(Directory {
            // What a running node removes meanwhile is not there.
            entries: entries
                .filter_map(|name| entry(dir.as_fd(), OsStr::from_bytes(name)))
                .collect(),
            left_out: left_out as u64,
        })
    };
    read().map_err(|e| failed("reading", path, &e))
}

fn entry(dir: BorrowedFd<'_>, name: &OsStr) -> Option<FileEntry> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let kind = kind(&stat);
    let target = (kind == FileKind::Link)
        .then(|| rustix::fs::readlinkat(dir, name, Vec::new()).ok())
        .flatten()
        .map(|target| String::from_utf8_lossy(target.as_bytes()).into_owned());
    Some(FileEntry {
        name: name.to_string_lossy().into_owned(),
        kind,
        size: match kind {
            FileKind::File => u64::try_from(stat.st_size).unwrap_or_default(),
            _ => 0,
        },
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: Timestamp::from_second(stat.st_mtime).unwrap_or_default(),
        target,
    })
}

fn kind(stat: &Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Link,
        _ => FileKind::Other,
    }
}
