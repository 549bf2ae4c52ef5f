//! How the disks of two environments differ, by what the kernel tells of their files: a snapshot keeps numbers, times
//! and sizes, so what nobody touched is equal without a look at its content. Where one disk is a snapshot of the
//! other, only what was changed since is looked at; otherwise every file.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use offshoot_model::disk::{ChangeKind, ChangedBy, Disk, DiskChanges, FILES_MAX, FileChange};
use offshoot_model::{Code, Environment, Fault, Problem};
use offshoot_pool::{Pool, Subvolume};
use offshoot_sys::fsx::{Pair, Root, compare, compare_some};
use rustix::fs::{FileType, Stat, syncfs};

use crate::disks::{image_subvolume, volume_subvolume};
use crate::suspects::suspects;

/// Longest time for all disks of an environment.
const TIME: Duration = Duration::from_secs(10);

/// Disks that both have: root file systems by node, and volumes by name. Without an `other`, root file systems are
/// compared with their images.
pub(crate) fn changes(
    pool: &Pool,
    environment: &Environment,
    other: Option<&Environment>,
    cut: Option<Timestamp>,
) -> Result<Vec<DiskChanges>, Problem> {
    // What programs wrote a moment ago is not on the disk yet, and only what is there has its transaction.
    let written = File::open(pool.root()).and_then(|root| Ok(syncfs(root)?));
    if let Err(error) = written {
        tracing::warn!("the pool could not be written out before its disks are compared: {error}");
    }
    let until = Instant::now() + TIME;
    let pairs = pairs(environment, other);
    pairs
        .into_iter()
        .map(|(disk, ours, theirs)| {
            one(&pool.path(&ours), &pool.path(&theirs), disk, cut, until).map_err(|error| {
                Problem::new(
                    Code::Busy,
                    Fault::Host,
                    format!("the disks {ours} and {theirs} could not be compared: {error}"),
                    "try again; a change of one of the two may be under way",
                )
            })
        })
        .collect()
}

fn pairs(
    environment: &Environment,
    other: Option<&Environment>,
) -> Vec<(Disk, Subvolume, Subvolume)> {
    let nodes = environment.nodes.iter().filter_map(|node| {
        let theirs = match other {
            None => image_subvolume(&node.image),
            Some(other) => {
                let same = other.nodes.iter().find(|known| known.name() == node.name());
                Subvolume::Rootfs(same?.id.clone())
            }
        };
        let disk = Disk::Node(node.name().to_owned());
        Some((disk, Subvolume::Rootfs(node.id.clone()), theirs))
    });
    let volumes = environment.volumes.iter().filter_map(|volume| {
        let mut volumes = other?.volumes.iter();
        let ours = volume_subvolume(volume);
        let theirs = volume_subvolume(volumes.find(|known| known.name == volume.name)?);
        // A volume that both share has no two sides.
        (ours != theirs).then(|| (Disk::Volume(volume.name.to_string()), ours, theirs))
    });
    nodes.chain(volumes).collect()
}

fn one(
    ours: &Path,
    theirs: &Path,
    disk: Disk,
    cut: Option<Timestamp>,
    until: Instant,
) -> io::Result<DiskChanges> {
    let (ours, theirs) = (Root::open(ours)?, Root::open(theirs)?);
    let mut found = DiskChanges {
        disk,
        added: 0,
        changed: 0,
        removed: 0,
        files: Vec::new(),
        complete: false,
    };
    let mut look = |pair: Pair<'_>| {
        if let Some(kind) = kind(&pair) {
            let count = match kind {
                ChangeKind::Added => &mut found.added,
                ChangeKind::Changed => &mut found.changed,
                ChangeKind::Removed => &mut found.removed,
            };
            *count += 1;
            found.files.push(change(&pair, kind, cut));
            if found.files.len() >= 2 * FILES_MAX {
                keep_first(&mut found.files);
            }
        }
        if Instant::now() < until {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    let walked = match suspects(&ours, &theirs) {
        Ok(Some(some)) => compare_some(ours.as_fd(), theirs.as_fd(), &some, &mut look)?,
        Ok(None) => compare(ours.as_fd(), theirs.as_fd(), &mut look)?,
        Err(error) => {
            tracing::debug!(
                "every file is looked at, since btrfs does not tell which may differ: {error}"
            );
            compare(ours.as_fd(), theirs.as_fd(), &mut look)?
        }
    };
    found.complete = walked.is_continue();
    keep_first(&mut found.files);
    Ok(found)
}

/// Keeps as many as are told, by path: they come directory by directory.
fn keep_first(files: &mut Vec<FileChange>) {
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files.truncate(FILES_MAX);
}

fn change(pair: &Pair<'_>, kind: ChangeKind, cut: Option<Timestamp>) -> FileChange {
    let one = pair.ours.or(pair.theirs);
    let slash = if one.is_some_and(is_dir) { "/" } else { "" };
    FileChange {
        path: format!("{}{slash}", pair.path.to_string_lossy()),
        kind,
        by: cut.and_then(|cut| changed_by(pair, cut)),
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// How they differ, if they do.
pub(crate) fn kind(pair: &Pair<'_>) -> Option<ChangeKind> {
    match (pair.ours, pair.theirs) {
        (Some(ours), Some(theirs)) => (!is_same(ours, theirs)).then_some(ChangeKind::Changed),
        (Some(_), None) => Some(ChangeKind::Added),
        (None, _) => Some(ChangeKind::Removed),
    }
}

fn is_same(ours: &Stat, theirs: &Stat) -> bool {
    let owner = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
    let content = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    let touched = |stat: &Stat| (stat.st_ctime, stat.st_ctime_nsec);
    if owner(ours) != owner(theirs) {
        return false;
    }
    // What a directory holds is told by its entries.
    is_dir(ours)
        || content(ours) == content(theirs)
            // One file that went two ways: a program may set any time but this one (inode(7)).
            && (ours.st_ino != theirs.st_ino || touched(ours) == touched(theirs))
}

/// Who changed an entry, by the times that programs cannot set. What only one has was made there after the cut, or was
/// removed by the other.
fn changed_by(pair: &Pair<'_>, cut: Timestamp) -> Option<ChangedBy> {
    let since = |stat: &Stat| {
        let at = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
        at > cut.as_nanosecond()
    };
    match (pair.ours.map(since), pair.theirs.map(since)) {
        (Some(true), Some(true)) => Some(ChangedBy::Both),
        (Some(true), _) | (None, Some(false)) => Some(ChangedBy::This),
        (_, Some(true)) | (Some(false), None) => Some(ChangedBy::Other),
        (Some(false), Some(false)) | (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn both_sides_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("a"), dir.path().join("b"));
        for top in [&ours, &theirs] {
            fs::create_dir_all(top.join("etc")).unwrap();
            for file in ["etc/same", "etc/ours", "etc/gone"] {
                fs::write(top.join(file), "x").unwrap();
                let past = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
                let file = fs::File::options()
                    .write(true)
                    .open(top.join(file))
                    .unwrap();
                file.set_modified(past).unwrap();
            }
        }
        let cut = Timestamp::now();
        let until = Instant::now() + TIME;
        let look = || {
            let disk = Disk::Volume("data".to_owned());
            one(&ours, &theirs, disk, Some(cut), until).unwrap()
        };
        let before = look();
        assert_eq!((before.added, before.changed, before.removed), (0, 0, 0));
        assert!(before.complete);
        // The kernel's own clock ticks coarsely: the change shall be behind the cut.
        while {
            fs::write(ours.join("tick"), "x").unwrap();
            let made = fs::metadata(ours.join("tick")).unwrap().modified().unwrap();
            Timestamp::try_from(made).unwrap() <= cut
        } {}
        fs::write(ours.join("etc/ours"), "y").unwrap();
        fs::remove_file(ours.join("etc/gone")).unwrap();
        fs::create_dir_all(theirs.join("var/deep")).unwrap();
        let after = look();
        let files: Vec<_> = after
            .files
            .iter()
            .map(|file| (file.path.as_str(), file.kind, file.by))
            .collect();
        assert_eq!(
            files,
            [
                ("etc/gone", ChangeKind::Removed, Some(ChangedBy::This)),
                ("etc/ours", ChangeKind::Changed, Some(ChangedBy::This)),
                ("tick", ChangeKind::Added, Some(ChangedBy::This)),
                ("var/", ChangeKind::Removed, Some(ChangedBy::Other)),
            ]
        );
    }
}
