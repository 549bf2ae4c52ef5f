use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;

/// A directory `box` for the archive, beside which nothing may appear.
struct Sandbox {
    root: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("box")).unwrap();
        std::fs::write(root.path().join("victim"), "untouched").unwrap();
        Self { root }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join("box").join(path)
    }

    fn unpack(&self, archive: &[u8], name: Option<&str>) -> io::Result<Copied> {
        unpack(archive, Owners::Default, |_| {
            let dir = File::open(self.path(""))?.into();
            Ok(Target {
                dir,
                name: name.map(OsString::from),
            })
        })
    }

    fn assert_intact(&self) {
        assert_eq!(
            std::fs::read_to_string(self.root.path().join("victim")).unwrap(),
            "untouched"
        );
        let beside: Vec<_> = std::fs::read_dir(self.root.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(beside.len(), 2, "{beside:?}");
    }
}

enum Item<'a> {
    Dir(&'a str),
    File(&'a str, &'a str),
    Symlink(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Device(&'a str),
}

/// Builds an archive with raw paths: the library's own checks must not stand in for ours.
fn archive(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for item in items {
        let (kind, path, link, content) = match item {
            Item::Dir(path) => (EntryType::Directory, path, "", ""),
            Item::File(path, content) => (EntryType::Regular, path, "", *content),
            Item::Symlink(path, to) => (EntryType::Symlink, path, *to, ""),
            Item::Hard(path, to) => (EntryType::Link, path, *to, ""),
            Item::Device(path) => (EntryType::Char, path, "", ""),
        };
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o6755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

use Item::{Device, Dir, File as F, Hard, Symlink};

#[test]
fn a_tree_comes_out_under_its_new_name() {
    let sandbox = Sandbox::new();
    let tar = archive(&[
        Dir("www"),
        F("www/index", "hello"),
        Symlink("www/link", "/etc/passwd"),
        Hard("www/again", "www/index"),
    ]);
    let copied = sandbox.unpack(&tar, Some("site")).unwrap();
    assert_eq!((copied.entries, copied.bytes), (4, 5));
    assert_eq!(
        std::fs::read_to_string(sandbox.path("site/index")).unwrap(),
        "hello"
    );
    assert_eq!(
        std::fs::read_link(sandbox.path("site/link")).unwrap(),
        Path::new("/etc/passwd")
    );
    let file = sandbox.path("site/index").metadata().unwrap();
    assert_eq!(
        (
            file.permissions().mode() & 0o7777,
            file.mtime(),
            file.nlink()
        ),
        (0o755, 1_000_000, 2)
    );
    assert_eq!(sandbox.path("site").metadata().unwrap().mtime(), 1_000_000);
}

#[test]
fn the_content_of_a_directory_and_a_single_file() {
    let sandbox = Sandbox::new();
    sandbox
        .unpack(
            &archive(&[Dir("./"), F("./a", "1"), Dir("./b"), F("./b/c", "2")]),
            None,
        )
        .unwrap();
    sandbox
        .unpack(&archive(&[F("etc/hosts", "3")]), Some("a"))
        .unwrap();
    assert_eq!(std::fs::read_to_string(sandbox.path("a")).unwrap(), "3");
    assert_eq!(std::fs::read_to_string(sandbox.path("b/c")).unwrap(), "2");
}

#[test]
fn nothing_gets_outside() {
    let cases: Vec<Vec<Item<'_>>> = vec![
        vec![F("../victim", "x")],
        vec![F("/victim", "x")],
        vec![Dir("d"), F("d/../../victim", "x")],
        vec![Dir("d"), Symlink("d/out", "../.."), F("d/out/victim", "x")],
        vec![
            Dir("d"),
            Symlink("d/out", "../../victim"),
            F("d/out/x", "x"),
        ],
        vec![Dir("d"), Symlink("d/out", "../.."), Dir("d/out/new")],
        vec![Dir("d"), Hard("d/x", "../victim")],
        vec![Dir("d"), Hard("d/x", "d/../../victim")],
        vec![
            Dir("d"),
            Symlink("d/out", "../.."),
            Hard("d/x", "d/out/victim"),
        ],
        vec![Dir("d"), F("e/x", "x")],
        vec![Symlink("d", "/tmp"), F("d/x", "x")],
        vec![Dir("d"), Dir("d/a"), Hard("d/b", "d/b")],
        vec![],
    ];
    for (index, items) in cases.iter().enumerate() {
        let sandbox = Sandbox::new();
        assert!(
            sandbox.unpack(&archive(items), Some("d")).is_err(),
            "case {index}"
        );
        sandbox.assert_intact();
    }
}

#[test]
fn a_link_is_replaced_and_never_written_through() {
    let sandbox = Sandbox::new();
    let tar = archive(&[Dir("d"), Symlink("d/x", "../../victim"), F("d/x", "new")]);
    sandbox.unpack(&tar, Some("d")).unwrap();
    assert_eq!(std::fs::read_to_string(sandbox.path("d/x")).unwrap(), "new");
    assert!(sandbox.path("d/x").symlink_metadata().unwrap().is_file());
    sandbox.assert_intact();
}

#[test]
fn a_link_that_was_there_before_does_not_lead_out() {
    let sandbox = Sandbox::new();
    std::os::unix::fs::symlink("..", sandbox.path("d")).unwrap();
    assert!(
        sandbox
            .unpack(&archive(&[Dir("d"), F("d/victim", "x")]), Some("d"))
            .is_err()
    );
    assert!(
        sandbox
            .unpack(&archive(&[Dir("."), F("d/victim", "x")]), None)
            .is_err()
    );
    sandbox.assert_intact();
}

#[test]
fn privileges_and_devices_stay_behind() {
    let sandbox = Sandbox::new();
    let copied = sandbox
        .unpack(
            &archive(&[Dir("d"), F("d/suid", "x"), Device("d/null")]),
            Some("d"),
        )
        .unwrap();
    assert_eq!(
        sandbox
            .path("d/suid")
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o755
    );
    assert!(!sandbox.path("d/null").exists());
    assert_eq!((copied.entries, copied.skipped.len()), (2, 1));
}

#[test]
fn a_directory_is_not_replaced_by_a_file() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("d")).unwrap();
    assert!(sandbox.unpack(&archive(&[F("f", "x")]), Some("d")).is_err());
    std::fs::write(sandbox.path("f"), "x").unwrap();
    assert!(sandbox.unpack(&archive(&[Dir("d")]), Some("f")).is_err());
}

#[test]
fn zeros_become_holes() {
    let sandbox = Sandbox::new();
    let zeros = "\0".repeat(8 << 20);
    sandbox
        .unpack(&archive(&[F("f", &zeros)]), Some("f"))
        .unwrap();
    let found = sandbox.path("f").metadata().unwrap();
    assert_eq!(found.len(), 8 << 20);
    assert!(found.blocks() * 512 < 1 << 20, "{} blocks", found.blocks());
}

#[test]
fn missing_directories_are_made() {
    let sandbox = Sandbox::new();
    sandbox
        .unpack(&archive(&[Dir("d"), F("d/a/b/c", "x")]), Some("d"))
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(sandbox.path("d/a/b/c")).unwrap(),
        "x"
    );
}

#[test]
fn cut_off_archives_are_errors() {
    let tar = archive(&[Dir("d"), F("d/f", "0123456789")]);
    let sandbox = Sandbox::new();
    for cut in [0, 100, 512, 700, 1030] {
        assert!(
            sandbox.unpack(&tar[..cut], Some("d")).is_err() || cut == 512,
            "{cut}"
        );
    }
}

fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just(".."),
        Just("."),
        Just("a"),
        Just("b"),
        Just("victim"),
        Just("")
    ];
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

proptest! {
    #[test]
    fn no_archive_gets_outside(paths in prop::collection::vec((0u8..5, path(), path()), 0..8)) {
        let sandbox = Sandbox::new();
        let mut items = vec![Dir("a")];
        for (kind, path, other) in &paths {
            items.push(match kind {
                0 => Dir(path),
                1 => F(path, "x"),
                2 => Symlink(path, other),
                3 => Hard(path, other),
                _ => Device(path),
            });
        }
        let _ = sandbox.unpack(&archive(&items), Some("a"));
        sandbox.assert_intact();
    }
}
