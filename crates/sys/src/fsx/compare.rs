//! Two trees side by side, by what the kernel tells of their entries: no content is read.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

use super::tree::{DEPTH_MAX, entries, open_below};

/// An entry that one or both trees have; at least one is there.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// From the tops of the trees.
    pub path: &'a Path,
    /// In the first tree.
    pub ours: Option<&'a Stat>,
    /// In the second tree.
    pub theirs: Option<&'a Stat>,
}

/// Calls `visit` with every entry below two directories, by name. What only one has, or what is no directory in both,
/// is not gone into: a tree that was added is one pair. `visit` may end it.
///
/// # Errors
/// As getdents(2); `ENAMETOOLONG` for trees deeper than 512.
pub fn compare(
    ours: BorrowedFd<'_>,
    theirs: BorrowedFd<'_>,
    visit: &mut dyn FnMut(Pair<'_>) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    below(ours, theirs, Path::new(""), visit, 0)
}

/// Entries of a directory that may differ.
#[derive(Debug, Default)]
pub struct Suspects {
    /// By name.
    pub names: BTreeSet<OsString>,
    /// Also those that one has and the other has not, and those that are not the same inode in both: the directory itself was
    /// changed.
    pub entries: bool,
}

/// As [`compare`], but only of the entries of these directories, directory by directory.
///
/// # Errors
/// As [`compare`].
pub fn compare_some(
    ours: BorrowedFd<'_>,
    theirs: BorrowedFd<'_>,
    suspects: &BTreeMap<PathBuf, Suspects>,
    visit: &mut dyn FnMut(Pair<'_>) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let mut walked: Vec<PathBuf> = Vec::new();
    for (top, suspects) in suspects {
        if walked.iter().any(|above| top.starts_with(above)) {
            continue;
        }
        // One that is no directory in both is itself an entry that differs, of the one above.
        let here = top.as_os_str().is_empty();
        let place = if here {
            OsStr::new(".")
        } else {
            top.as_os_str()
        };
        let (Some(ours), Some(theirs)) = (open(ours, place)?, open(theirs, place)?) else {
            continue;
        };
        let (ours, theirs) = (ours.as_fd(), theirs.as_fd());
        let mut names = suspects.names.clone();
        if suspects.entries {
            names.extend(entries(ours)?.into_iter().map(|(name, _)| name));
            names.extend(entries(theirs)?.into_iter().map(|(name, _)| name));
        }
        for name in names {
            let (first, second) = (look(ours, &name)?, look(theirs, &name)?);
            let inode = |stat: &Option<Stat>| stat.as_ref().map(|stat| stat.st_ino);
            let same = inode(&first) == inode(&second);
            if (first.is_none() && second.is_none()) || (same && !suspects.names.contains(&name)) {
                continue;
            }
            let path = top.join(&name);
            let pair = Pair {
                path: &path,
                ours: first.as_ref(),
                theirs: second.as_ref(),
            };
            if visit(pair).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            // Two directories of different ways: nothing says which of their entries are the same.
            if same || !(is_dir(first.as_ref()) && is_dir(second.as_ref())) {
                continue;
            }
            let (Some(ours), Some(theirs)) = (open(ours, &name)?, open(theirs, &name)?) else {
                continue;
            };
            if below(ours.as_fd(), theirs.as_fd(), &path, visit, 1)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            walked.push(path);
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn below(
    ours: BorrowedFd<'_>,
    theirs: BorrowedFd<'_>,
    top: &Path,
    visit: &mut dyn FnMut(Pair<'_>) -> ControlFlow<()>,
    depth: usize,
) -> io::Result<ControlFlow<()>> {
    if depth > DEPTH_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    let mut names: BTreeMap<OsString, [Option<Stat>; 2]> = BTreeMap::new();
    for (name, _) in entries(ours)? {
        let [first, _] = names.entry(name.clone()).or_default();
        *first = look(ours, &name)?;
    }
    for (name, _) in entries(theirs)? {
        let [_, second] = names.entry(name.clone()).or_default();
        *second = look(theirs, &name)?;
    }
    for (name, [first, second]) in names {
        // A running container may have removed it meanwhile.
        if first.is_none() && second.is_none() {
            continue;
        }
        let path = top.join(&name);
        let pair = Pair {
            path: &path,
            ours: first.as_ref(),
            theirs: second.as_ref(),
        };
        if visit(pair).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if !(is_dir(first.as_ref()) && is_dir(second.as_ref())) {
            continue;
        }
        let (Some(ours), Some(theirs)) = (open(ours, &name)?, open(theirs, &name)?) else {
            continue;
        };
        if below(ours.as_fd(), theirs.as_fd(), &path, visit, depth + 1)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn is_dir(stat: Option<&Stat>) -> bool {
    stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn look(dir: BorrowedFd<'_>, name: &OsString) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// A directory below another; `None` when there is none, or something else.
fn open(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<std::os::fd::OwnedFd>> {
    match open_below(dir, name) {
        Ok(below) => Ok(Some(below)),
        Err(e)
            if matches!(
                Errno::from_io_error(&e),
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_one_has_is_one_pair() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("a"), dir.path().join("b"));
        for file in [
            "a/both/same",
            "a/both/ours",
            "a/new/deep/file",
            "b/both/same",
            "b/old",
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        std::os::unix::fs::symlink("/", ours.join("link")).unwrap();
        fs::create_dir(theirs.join("link")).unwrap();
        let (ours, theirs) = (File::open(&ours).unwrap(), File::open(&theirs).unwrap());
        let mut seen: Vec<(PathBuf, bool, bool)> = Vec::new();
        let whole = compare(ours.as_fd(), theirs.as_fd(), &mut |pair| {
            seen.push((
                pair.path.to_owned(),
                pair.ours.is_some(),
                pair.theirs.is_some(),
            ));
            ControlFlow::Continue(())
        });
        assert!(whole.unwrap().is_continue());
        let seen: Vec<_> = seen
            .iter()
            .map(|(path, ours, theirs)| (path.to_str().unwrap(), *ours, *theirs))
            .collect();
        assert_eq!(
            seen,
            [
                ("both", true, true),
                ("both/ours", true, false),
                ("both/same", true, true),
                ("link", true, true),
                ("new", true, false),
                ("old", false, true),
            ]
        );
        let mut count = 0;
        let ended = compare(ours.as_fd(), theirs.as_fd(), &mut |_| {
            count += 1;
            if count == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(ended.unwrap().is_break());
        assert_eq!(count, 2);
    }
}
