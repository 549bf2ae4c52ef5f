//! Which entries of two subvolumes may differ, where one is a snapshot of the other: btrfs keeps with every inode the
//! last transaction that changed it, so the cost is that of the changes since, not of the files.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use offshoot_sys::btrfs::{Changed, Origin, changed, directory, names, origin};
use offshoot_sys::fsx::{Root, Suspects};

/// So many changed inodes of one subvolume are asked for their names; with more, a look at every file is no worse.
const CHANGED_MAX: usize = 200_000;

/// By directory. `None` when nothing is known: no btrfs, other origins, or too much was changed. Both were written to
/// the disk before (syncfs(2)).
pub(crate) fn suspects(
    ours: &Root,
    theirs: &Root,
) -> io::Result<Option<BTreeMap<PathBuf, Suspects>>> {
    // What a root is held by cannot be asked.
    let top = |root: &Root| root.open_dir(Path::new("."));
    let both: [OwnedFd; 2] = [top(ours)?, top(theirs)?];
    let [Ok(first), Ok(second)] = both.each_ref().map(|top| origin(top.as_fd())) else {
        return Ok(None);
    };
    let Some(since) = parted(&first, &second) else {
        return Ok(None);
    };
    let mut found = BTreeMap::new();
    for top in &both {
        let Some(changed) = changed(top.as_fd(), since, CHANGED_MAX)? else {
            return Ok(None);
        };
        note(top.as_fd(), &changed, &mut found)?;
    }
    Ok(Some(found))
}

/// The last transaction in which both were one: what it wrote before that is suspected in vain.
fn parted(ours: &Origin, theirs: &Origin) -> Option<u64> {
    if ours.parent == theirs.uuid {
        return Some(ours.made);
    }
    if theirs.parent == ours.uuid {
        return Some(theirs.made);
    }
    // Two snapshots of one: what was changed in that between the two is new to the second.
    let siblings = ours.parent == theirs.parent && ours.parent != [0; 16];
    siblings.then(|| ours.made.min(theirs.made))
}

fn note(
    top: BorrowedFd<'_>,
    changed: &[Changed],
    found: &mut BTreeMap<PathBuf, Suspects>,
) -> io::Result<()> {
    let mut paths: HashMap<u64, Option<PathBuf>> = HashMap::new();
    // What is gone by now was removed from a directory that was changed, too.
    let mut path = |inode| match paths.get(&inode) {
        Some(known) => Ok::<_, io::Error>(known.clone()),
        None => {
            let path = match directory(top, inode) {
                Ok(path) => Some(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            paths.insert(inode, path.clone());
            Ok(path)
        }
    };
    for one in changed {
        for (parent, name) in names(top, one.inode)? {
            if let Some(parent) = path(parent)? {
                found.entry(parent).or_default().names.insert(name);
            }
        }
        if one.is_dir
            && let Some(path) = path(one.inode)?
        {
            found.entry(path).or_default().entries = true;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "suspects_tests.rs"]
mod tests;
