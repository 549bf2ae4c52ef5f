//! On a real btrfs: what is suspected is all that a walk finds, and little else.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use offshoot_pool::{Backing, Pool, PoolConfig, PoolError};
use offshoot_sys::btrfs::{Writable, create_snapshot, create_subvolume};
use offshoot_sys::fsx::{Pair, Root, Suspects, compare, compare_some};

use super::suspects;

/// A pool that is gone with this.
struct TestPool {
    pool: Pool,
    _dir: tempfile::TempDir,
}

impl Drop for TestPool {
    fn drop(&mut self) {
        let _ = self.pool.close();
    }
}

fn pool() -> Option<TestPool> {
    let dir = tempfile::Builder::new()
        .prefix("offshoot-suspects-")
        .tempdir()
        .unwrap();
    let config = PoolConfig {
        mount: dir.path().join("pool"),
        backing: Backing::LoopFile {
            path: dir.path().join("pool.img"),
            size: 512 << 20,
        },
    };
    match Pool::open(&config) {
        Ok(pool) => Some(TestPool { pool, _dir: dir }),
        Err(
            e @ (PoolError::NoLoopDevices | PoolError::NoBtrfs | PoolError::ProgramMissing { .. }),
        ) => {
            println!("SKIPPED: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// What differs, as `kind path`; `some` alone, or all of it.
fn differing(
    ours: &Path,
    theirs: &Path,
    some: Option<&BTreeMap<PathBuf, Suspects>>,
) -> Vec<String> {
    let (ours, theirs) = (Root::open(ours).unwrap(), Root::open(theirs).unwrap());
    let mut found = Vec::new();
    let mut visit = |pair: Pair<'_>| {
        if let Some(kind) = crate::changes::kind(&pair) {
            found.push(format!("{kind:?} {}", pair.path.display()));
        }
        ControlFlow::Continue(())
    };
    let walked = match some {
        Some(some) => compare_some(ours.as_fd(), theirs.as_fd(), some, &mut visit),
        None => compare(ours.as_fd(), theirs.as_fd(), &mut visit),
    };
    assert!(walked.unwrap().is_continue());
    found.sort();
    found
}

/// Makes both different, as programs do.
fn change(ours: &Path, theirs: &Path) {
    for (top, word) in [(ours, "ours"), (theirs, "theirs")] {
        fs::write(top.join("d3/f3"), word).unwrap();
        fs::create_dir_all(top.join("both/made")).unwrap();
        fs::write(top.join("both/made").join(word), word).unwrap();
        fs::write(top.join("top").with_extension(word), word).unwrap();
    }
    fs::write(ours.join("d1/f1"), "ours").unwrap();
    fs::write(ours.join("linked/again"), "through another name").unwrap();
    fs::remove_file(ours.join("d2/f7")).unwrap();
    fs::rename(ours.join("d4"), ours.join("moved")).unwrap();
    fs::write(ours.join("moved/f1"), "in what was moved").unwrap();
    // Another directory of the same name, with other files of the same names.
    fs::rename(ours.join("d5"), ours.join("d6/d5")).unwrap();
    fs::create_dir(ours.join("d5")).unwrap();
    fs::write(ours.join("d5/f1"), "new").unwrap();
    fs::rename(theirs.join("d7/f1"), theirs.join("d7/f1.old")).unwrap();
    fs::set_permissions(theirs.join("d8"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_dir_all(theirs.join("d9")).unwrap();
    symlink("/", theirs.join("d9")).unwrap();
    fs::write(ours.join("d9/f2"), "behind what is a link there").unwrap();
}

#[test]
fn what_was_changed_is_found_without_a_look_at_the_rest() {
    let Some(test) = pool() else { return };
    let root = test.pool.root();
    let room = fs::File::open(root).unwrap();
    let make = |name: &str| create_subvolume(room.as_fd(), name.as_ref()).unwrap();
    let snapshot = |of: &str, name: &str| {
        let source = fs::File::open(root.join(of)).unwrap();
        create_snapshot(source.as_fd(), room.as_fd(), name.as_ref(), Writable::Yes).unwrap();
    };
    make("parent");
    let parent = root.join("parent");
    for dir in 0..40 {
        let dir = parent.join(format!("d{dir}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..50 {
            fs::write(dir.join(format!("f{file}")), "one").unwrap();
        }
    }
    fs::create_dir(parent.join("linked")).unwrap();
    fs::hard_link(parent.join("d0/f0"), parent.join("linked/again")).unwrap();
    // (what the same transaction wrote as the snapshot is suspected, too)
    let written = || rustix::fs::syncfs(&room).unwrap();
    written();
    snapshot("parent", "clone");
    let clone = root.join("clone");
    let found = |ours: &Path, theirs: &Path| {
        written();
        let (ours, theirs) = (Root::open(ours).unwrap(), Root::open(theirs).unwrap());
        suspects(&ours, &theirs).unwrap()
    };
    let count = |found: &BTreeMap<PathBuf, Suspects>| {
        found.values().map(|dir| dir.names.len()).sum::<usize>()
    };

    let fresh = found(&clone, &parent).unwrap();
    assert_eq!(
        differing(&clone, &parent, Some(&fresh)),
        Vec::<String>::new()
    );

    change(&clone, &parent);
    for (ours, theirs) in [(&clone, &parent), (&parent, &clone)] {
        let some = found(ours, theirs).unwrap();
        let whole = differing(ours, theirs, None);
        assert!(whole.len() > 15, "{whole:?}");
        assert_eq!(differing(ours, theirs, Some(&some)), whole);
        assert!(count(&some) < 100, "of 2000: {some:?}");
    }

    // Two clones of one, the second from a later cut.
    snapshot("parent", "second");
    let second = root.join("second");
    let some = found(&clone, &second).unwrap();
    let whole = differing(&clone, &second, None);
    assert_eq!(differing(&clone, &second, Some(&some)), whole);

    // Nothing to do with each other.
    make("other");
    assert!(found(&clone, &root.join("other")).is_none());
}
