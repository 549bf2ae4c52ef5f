//! Promises of the pool, on a real btrfs in a file.
#![allow(missing_docs, unreachable_pub)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::{config, image, pool};
use offshoot_model::{Code, EnvId, NodeId};
use offshoot_pool::{Access, Backing, Pool, PoolConfig, PoolError, Subvolume};

const SIZE: u64 = 1 << 30;

fn rootfs(env: &EnvId, name: &str) -> Subvolume {
    Subvolume::Rootfs(NodeId::new(env.clone(), name).unwrap())
}

fn volume(env: &EnvId, name: &str) -> Subvolume {
    Subvolume::Volume(env.clone(), name.parse().unwrap())
}

#[test]
fn opens_again_after_a_stop_at_every_point() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir, SIZE);
    // A half-made file of an attempt that was killed.
    fs::write(dir.path().join("pool.img.new"), b"half").unwrap();
    let opened = match Pool::open(&config) {
        Ok(pool) => pool,
        Err(e @ (PoolError::NoLoopDevices | PoolError::NoBtrfs)) => {
            return println!("SKIPPED: {e}");
        }
        Err(e) => panic!("{e}"),
    };
    let first = common::TestPool { pool: opened, dir };
    assert!(!first.dir.path().join("pool.img.new").exists());
    let label = Subvolume::Staging("a".into());
    first.ensure_empty(&label).unwrap();
    fs::write(first.path(&label).join("file"), "kept").unwrap();
    // Mounted by an earlier daemon.
    let again = Pool::open(&config).unwrap();
    assert_eq!(
        fs::read_to_string(again.path(&label).join("file")).unwrap(),
        "kept"
    );
    // Formatted, not mounted.
    again.close().unwrap();
    again.close().unwrap();
    assert!(!again.path(&label).exists());
    // Attached, not mounted.
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(image(&first.dir))
        .unwrap();
    let device = offshoot_sys::loopdev::attach(&file).unwrap();
    let opened = Pool::open(&config).unwrap();
    assert_eq!(
        fs::read_to_string(opened.path(&label).join("file")).unwrap(),
        "kept"
    );
    let found = offshoot_sys::loopdev::attached(&file).unwrap().unwrap();
    assert_eq!(
        found.path, device.path,
        "a file must never be attached twice"
    );
    drop((found, device));
    opened.close().unwrap();
    // Nothing is left attached. Detaching happens when the last user is gone, which may be a scan of the devices
    // by another test.
    let gone = (0..1000).any(|_| {
        std::thread::yield_now();
        offshoot_sys::loopdev::attached(&file).unwrap().is_none()
    });
    assert!(gone);
}

#[test]
fn never_overwrites_what_is_not_a_pool() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir, SIZE);
    fs::write(image(&dir), "somebody's letters").unwrap();
    let error = Pool::open(&config).unwrap_err();
    assert!(matches!(error, PoolError::Foreign { .. }), "{error}");
    assert_eq!(error.problem().code, Code::PoolBroken);
    assert_eq!(
        fs::read_to_string(image(&dir)).unwrap(),
        "somebody's letters"
    );

    let small = PoolConfig {
        backing: Backing::LoopFile {
            path: dir.path().join("small.img"),
            size: 1 << 20,
        },
        ..config.clone()
    };
    assert!(matches!(
        Pool::open(&small).unwrap_err(),
        PoolError::Size { .. }
    ));
    let elsewhere = PoolConfig {
        backing: Backing::Mounted,
        ..config
    };
    if rustix::fs::statfs(dir.path()).unwrap().f_type as i64 != offshoot_sys::btrfs::SUPER_MAGIC {
        assert!(matches!(
            Pool::open(&elsewhere).unwrap_err(),
            PoolError::Foreign { .. }
        ));
    }
}

#[test]
fn a_directory_on_btrfs_serves_as_a_pool() {
    let Some(outer) = pool(SIZE) else { return };
    let mount = outer.root().join("inner");
    let inner = Pool::open(&PoolConfig {
        mount,
        backing: Backing::Mounted,
    })
    .unwrap();
    inner.ensure_empty(&Subvolume::Staging("x".into())).unwrap();
    assert_eq!(inner.list().unwrap(), [Subvolume::Staging("x".into())]);
    inner.close().unwrap();
    assert!(
        inner.exists(&Subvolume::Staging("x".into())).unwrap(),
        "it is not ours to unmount"
    );
}

#[test]
fn snapshots_are_independent_and_repeatable() {
    let Some(pool) = pool(SIZE) else { return };
    let (env, clone) = (EnvId::random(), EnvId::random());
    let image = Subvolume::Image("ab12".into());
    let staging = Subvolume::Staging("s".into());
    pool.ensure_empty(&staging).unwrap();
    fs::write(pool.path(&staging).join("a"), "1").unwrap();
    pool.ensure_snapshot(&staging, &image, Access::ReadOnly)
        .unwrap();
    assert!(
        fs::write(pool.path(&image).join("a"), "2").is_err(),
        "read-only"
    );
    let node = rootfs(&env, "web-1");
    pool.prepare_env(&env).unwrap();
    pool.ensure_snapshot(&image, &node, Access::ReadWrite)
        .unwrap();
    fs::write(pool.path(&node).join("a"), "3").unwrap();
    // Repeating changes nothing.
    pool.ensure_snapshot(&image, &node, Access::ReadWrite)
        .unwrap();
    pool.ensure_empty(&node).unwrap();
    assert_eq!(fs::read_to_string(pool.path(&node).join("a")).unwrap(), "3");
    let data = volume(&env, "data");
    pool.ensure_empty(&data).unwrap();
    fs::write(pool.path(&data).join("row"), "x").unwrap();

    pool.prepare_env(&clone).unwrap();
    let pairs = [
        (node.clone(), rootfs(&clone, "web-1")),
        (data.clone(), volume(&clone, "data")),
    ];
    let snapshots = pool.prepare_snapshots(&pairs).unwrap();
    fs::write(pool.path(&node).join("a"), "2").unwrap();
    snapshots.take().unwrap();
    fs::write(pool.path(&node).join("a"), "3").unwrap();
    // What counts is the last time.
    snapshots.take().unwrap();
    fs::write(pool.path(&node).join("a"), "4").unwrap();
    snapshots.place().unwrap();
    assert_eq!(
        fs::read_to_string(pool.path(&pairs[0].1).join("a")).unwrap(),
        "3"
    );
    fs::write(pool.path(&pairs[1].1).join("row"), "y").unwrap();
    assert_eq!(
        fs::read_to_string(pool.path(&data).join("row")).unwrap(),
        "x"
    );
    // A second cut into the same targets would silently keep the first one's content.
    assert!(pool.prepare_snapshots(&pairs).is_err());
    assert!(
        pool.prepare_snapshots(&[(node.clone(), image.clone())])
            .is_err()
    );
    // One that was never placed goes with its environment.
    let other = [(node.clone(), rootfs(&clone, "web-2"))];
    let unplaced = pool.prepare_snapshots(&other).unwrap();
    unplaced.take().unwrap();
    drop(unplaced);
    let untaken = pool.prepare_snapshots(&other).unwrap();
    assert!(untaken.place().is_err(), "nothing was taken");

    assert_eq!(
        pool.list()
            .unwrap()
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>(),
        [
            image.clone(),
            staging.clone(),
            node,
            data,
            pairs[0].1.clone(),
            pairs[1].1.clone()
        ]
        .into()
    );
    for env in [&env, &clone, &clone] {
        pool.ensure_env_removed(env).unwrap();
    }
    pool.ensure_removed(&image).unwrap();
    pool.ensure_removed(&image).unwrap();
    assert_eq!(pool.list().unwrap(), [staging]);
    assert!(pool.list_envs().unwrap().is_empty());
}

#[test]
fn removal_takes_nested_subvolumes_and_follows_no_link() {
    let Some(pool) = pool(SIZE) else { return };
    let env = EnvId::random();
    let outside = pool.dir.path().join("precious");
    fs::write(&outside, "still here").unwrap();
    let node = rootfs(&env, "evil-1");
    pool.ensure_empty(&node).unwrap();
    let root = pool.path(&node);
    symlink(pool.dir.path(), root.join("out")).unwrap();
    // Subvolumes in a subvolume, one of them read-only, as a container may make them.
    let btrfs = |args: &[&str], path: &Path| {
        assert!(
            Command::new("btrfs")
                .args(args)
                .arg(path)
                .output()
                .unwrap()
                .status
                .success(),
            "{args:?}"
        );
    };
    fs::create_dir(root.join("dir")).unwrap();
    btrfs(&["subvolume", "create"], &root.join("dir/one"));
    btrfs(&["subvolume", "create"], &root.join("dir/one/two"));
    fs::write(root.join("dir/one/two/file"), "x").unwrap();
    symlink(&outside, root.join("dir/one/link")).unwrap();
    btrfs(&["subvolume", "create"], &root.join("three"));
    let one = root.join("dir/one");
    let set = Command::new("btrfs")
        .args(["property", "set", "-t", "s"])
        .arg(&one)
        .args(["ro", "true"])
        .status();
    assert!(set.unwrap().success());
    assert!(fs::write(one.join("file"), "x").is_err(), "read-only");
    pool.ensure_env_removed(&env).unwrap();
    assert!(!root.exists());
    assert_eq!(fs::read_to_string(&outside).unwrap(), "still here");
    assert!(pool.list_envs().unwrap().is_empty());
    // A stray directory and a link in place of a subvolume.
    let stray = Subvolume::Staging("stray".into());
    fs::create_dir_all(pool.path(&stray).join("a/b")).unwrap();
    pool.ensure_removed(&stray).unwrap();
    symlink(pool.dir.path(), pool.path(&stray)).unwrap();
    assert!(pool.exists(&stray).is_err());
    pool.ensure_removed(&stray).unwrap();
    assert!(!pool.path(&stray).is_symlink() && outside.exists());
    for bad in ["", ".", "..", "a/b", "../x"] {
        assert!(
            pool.ensure_removed(&Subvolume::Staging(bad.into()))
                .is_err(),
            "{bad:?}"
        );
    }
}

#[test]
fn an_empty_volume_is_seeded_once() {
    let Some(pool) = pool(SIZE) else { return };
    let env = EnvId::random();
    let image = Subvolume::Image("cd34".into());
    pool.ensure_empty(&image).unwrap();
    let root = pool.path(&image);
    fs::create_dir_all(root.join("var/lib/db/sub")).unwrap();
    fs::write(root.join("var/lib/db/sub/file"), "seed").unwrap();
    fs::hard_link(
        root.join("var/lib/db/sub/file"),
        root.join("var/lib/db/again"),
    )
    .unwrap();
    symlink("/etc/passwd", root.join("var/lib/db/link")).unwrap();
    std::os::unix::fs::chown(root.join("var/lib/db"), Some(100), Some(101)).unwrap();
    fs::set_permissions(root.join("var/lib/db"), fs::Permissions::from_mode(0o2750)).unwrap();
    // The image's own link leads to it; it is absolute, and stays inside the image.
    symlink("/var/lib", root.join("data")).unwrap();

    let data = volume(&env, "data");
    pool.ensure_empty(&data).unwrap();
    for _ in 0..2 {
        pool.ensure_seeded(&data, &image, "/data/db").unwrap();
        let to = pool.path(&data);
        assert_eq!(
            fs::read_to_string(to.join("sub/file")).unwrap_or_default(),
            "seed"
        );
        assert_eq!(fs::metadata(to.join("again")).unwrap().nlink(), 2);
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        let meta = fs::metadata(&to).unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (100, 101, 0o2750)
        );
    }
    fs::write(pool.path(&data).join("sub/file"), "changed").unwrap();
    pool.ensure_seeded(&data, &image, "/data/db").unwrap();
    assert_eq!(
        fs::read_to_string(pool.path(&data).join("sub/file")).unwrap(),
        "changed"
    );
    assert_eq!(
        fs::read_to_string(root.join("var/lib/db/sub/file")).unwrap(),
        "seed"
    );
    let none = volume(&env, "none");
    pool.ensure_seeded(&none, &image, "/no/such").unwrap();
    assert_eq!(fs::read_dir(pool.path(&none)).unwrap().count(), 0);
    assert_eq!(
        fs::read_dir(pool.root().join("staging")).unwrap().count(),
        0
    );
}

#[test]
fn room_is_checked_and_a_pool_grows_while_in_use() {
    let Some(pool) = pool(SIZE) else { return };
    let before = pool.status().unwrap();
    assert!(
        before.size >= SIZE - (64 << 20) && before.free > 0,
        "{before:?}"
    );
    pool.ensure_room(1 << 20).unwrap();
    let error = pool.ensure_room(SIZE).unwrap_err();
    assert!(error.is_full());
    assert_eq!(error.problem().code, Code::PoolFull);
    pool.grow(2 * SIZE).unwrap();
    assert!(pool.status().unwrap().free > before.free + SIZE / 2);
    pool.ensure_room(SIZE).unwrap();
    assert!(matches!(
        pool.grow(SIZE).unwrap_err(),
        PoolError::Size { .. }
    ));
    // The file stays sparse.
    assert!(fs::metadata(image(&pool.dir)).unwrap().blocks() * 512 < SIZE / 4);
}

#[test]
fn writing_past_the_end_is_a_full_pool() {
    let Some(pool) = pool(offshoot_pool::SIZE_MIN) else {
        return;
    };
    let staging = Subvolume::Staging("big".into());
    pool.ensure_empty(&staging).unwrap();
    let mut file = fs::File::create(pool.path(&staging).join("file")).unwrap();
    let block = vec![7u8; 1 << 20];
    let full = (0..1024)
        .find_map(|_| std::io::Write::write_all(&mut file, &block).err())
        .unwrap();
    let error = PoolError::Io {
        what: "write",
        path: pool.path(&staging),
        source: full,
    };
    assert_eq!(error.problem().code, Code::PoolFull);
    drop(file);
    // A full pool can still be emptied.
    pool.ensure_removed(&staging).unwrap();
}

#[test]
fn a_held_pool_says_who_holds_it() {
    let Some(pool) = pool(SIZE) else { return };
    let staging = Subvolume::Staging("held".into());
    pool.ensure_empty(&staging).unwrap();
    let held = fs::File::create(pool.path(&staging).join("file")).unwrap();
    let error = pool.close().unwrap_err();
    let PoolError::Busy { holders, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        holders
            .iter()
            .any(|h| h.contains(&std::process::id().to_string())),
        "{holders:?}"
    );
    drop(held);
    pool.close().unwrap();
}

#[test]
fn usage_tells_what_is_shared() {
    let Some(pool) = pool(SIZE) else { return };
    let (one, two) = (
        Subvolume::Staging("one".into()),
        Subvolume::Staging("two".into()),
    );
    pool.ensure_empty(&one).unwrap();
    let data: Vec<u8> = (0..4u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(pool.path(&one).join("a"), &data).unwrap();
    fs::hard_link(pool.path(&one).join("a"), pool.path(&one).join("again")).unwrap();
    pool.sync().unwrap();
    let size = data.len() as u64;
    let usage = |s: &Subvolume| {
        pool.usage(s)
            .map(|u| (u.referenced.unwrap(), u.exclusive.unwrap()))
            .unwrap()
    };
    assert_eq!(usage(&one), (size, size));
    pool.ensure_snapshot(&one, &two, Access::ReadWrite).unwrap();
    fs::write(pool.path(&two).join("b"), &data[..1 << 20]).unwrap();
    pool.sync().unwrap();
    assert_eq!(usage(&one), (size, 0));
    assert_eq!(usage(&two), (size + (1 << 20), 1 << 20));
    pool.ensure_removed(&two).unwrap();
    assert!(pool.usage(&two).is_err());
}
