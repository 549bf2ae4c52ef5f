use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

/// A directory with `root/` to work in and things around it that must stay as they are.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("offshoot-fsx-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("root/etc")).unwrap();
        fs::write(path.join("precious"), "outside").unwrap();
        fs::write(path.join("root/etc/passwd"), "inside").unwrap();
        Self(path)
    }

    fn path(&self, inner: &str) -> PathBuf {
        self.0.join("root").join(inner)
    }

    fn root(&self) -> Root {
        Root::open(&self.path("")).unwrap()
    }

    fn read(&self, inner: &str) -> io::Result<String> {
        self.root()
            .read(Path::new(inner), 1 << 20)
            .map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn open(&self, inner: &str) -> File {
        File::open(self.path(inner)).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        assert_eq!(
            fs::read_to_string(self.0.join("precious")).unwrap(),
            "outside"
        );
        let parent = File::open(std::env::temp_dir()).unwrap();
        remove_tree(parent.as_fd(), self.0.file_name().unwrap()).unwrap();
        assert!(!self.0.exists());
    }
}

fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().and_then(|e| Errno::from_io_error(&e))
}

#[test]
fn paths_stay_inside() {
    let place = Place::new();
    symlink("/etc", place.path("absolute")).unwrap();
    symlink("../../../../../../etc", place.path("dots")).unwrap();
    symlink("/absolute/passwd", place.path("chain")).unwrap();
    symlink("/proc/self/root/etc/passwd", place.path("magic")).unwrap();
    symlink("loop", place.path("loop")).unwrap();
    for inside in [
        "etc/passwd",
        "/etc/passwd",
        "absolute/passwd",
        "dots/passwd",
        "chain",
        "../../etc/passwd",
        "/../etc/passwd",
    ] {
        assert_eq!(place.read(inside).unwrap(), "inside", "{inside}");
    }
    // The host has these; the container does not.
    for outside in [
        "../precious",
        "/proc/self/status",
        "/dev/null",
        "magic",
        "absolute/../../precious",
    ] {
        assert_eq!(errno(place.read(outside)), Some(Errno::NOENT), "{outside}");
    }
    assert_eq!(errno(place.read("loop")), Some(Errno::LOOP));
    assert_eq!(errno(place.read("etc/passwd/x")), Some(Errno::NOTDIR));
    let kept = place
        .root()
        .resolve(Path::new("chain"), Last::Keep)
        .unwrap();
    assert_eq!(
        FileType::from_raw_mode(rustix::fs::fstat(kept).unwrap().st_mode),
        FileType::Symlink
    );
    assert!(
        place
            .root()
            .stat(Path::new("no/such"), Last::Follow)
            .unwrap()
            .is_none()
    );
    assert!(
        place
            .root()
            .stat(Path::new("chain"), Last::Follow)
            .unwrap()
            .is_some()
    );
}

#[test]
fn a_magic_link_inside_is_not_followed() {
    // A container may have /proc mounted; here the root is the host's own.
    let root = Root::open(Path::new("/")).unwrap();
    assert_eq!(
        errno(root.read(Path::new("/proc/self/root/etc/hostname"), 100)),
        Some(Errno::LOOP)
    );
    assert_eq!(
        errno(root.resolve(Path::new("/proc/self/cwd"), Last::Follow)),
        Some(Errno::LOOP)
    );
}

#[test]
fn only_regular_files_are_read_and_only_so_much() {
    let place = Place::new();
    let etc = place.open("etc");
    create_special(etc.as_fd(), OsStr::new("pipe"), SpecialFile::Fifo).unwrap();
    create_special(etc.as_fd(), OsStr::new("zero"), SpecialFile::Char(1, 5)).unwrap();
    create_special(etc.as_fd(), OsStr::new("socket"), SpecialFile::Socket).unwrap();
    // Opening a pipe would wait for a writer for ever.
    for special in ["etc/pipe", "etc/zero", "etc/socket", "etc"] {
        assert_eq!(errno(place.read(special)), Some(Errno::INVAL), "{special}");
    }
    let root = place.root();
    assert_eq!(root.read(Path::new("etc/passwd"), 6).unwrap(), b"inside");
    assert_eq!(
        errno(root.read(Path::new("etc/passwd"), 5)),
        Some(Errno::FBIG)
    );
    // Larger than any memory, if it were read.
    fs::File::create(place.path("huge"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert_eq!(errno(root.read(Path::new("huge"), 1000)), Some(Errno::FBIG));
}

#[test]
fn writing_replaces_and_never_follows() {
    let place = Place::new();
    let root = place.root();
    symlink(place.0.join("precious"), place.path("etc/link")).unwrap();
    symlink("../../precious", place.path("etc/dots")).unwrap();
    for name in ["etc/link", "etc/dots", "etc/passwd", "new/dir/file"] {
        root.write(Path::new(name), b"written", 0o640, (7, 8))
            .unwrap();
        let meta = fs::symlink_metadata(place.path(name)).unwrap();
        assert!(meta.is_file(), "{name}");
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o640, 7, 8)
        );
        assert_eq!(place.read(name).unwrap(), "written");
    }
    assert_eq!(
        fs::metadata(place.path("new/dir")).unwrap().mode() & 0o7777,
        0o755
    );
    // Another name of the file keeps the old content.
    fs::hard_link(place.path("etc/passwd"), place.path("etc/other")).unwrap();
    root.write(Path::new("etc/passwd"), b"again", 0o600, (0, 0))
        .unwrap();
    assert_eq!(place.read("etc/other").unwrap(), "written");
    assert_eq!(
        errno(root.write(Path::new("etc"), b"", 0o600, (0, 0))),
        Some(Errno::ISDIR)
    );
    assert_eq!(
        errno(root.write(Path::new("/"), b"", 0o600, (0, 0))),
        Some(Errno::INVAL)
    );
    assert!(
        root.write(Path::new("a/../../precious"), b"", 0o600, (0, 0))
            .is_err()
    );
    // A link to a directory on the way is followed inside.
    symlink("/etc", place.path("way")).unwrap();
    root.write(Path::new("way/through"), b"x", 0o600, (0, 0))
        .unwrap();
    assert!(place.path("etc/through").exists());
}

#[test]
fn directories_are_made_inside() {
    let place = Place::new();
    let root = place.root();
    symlink("/etc/../made", place.path("dangling")).unwrap();
    symlink("/../../..", place.path("up")).unwrap();
    root.create_dirs(Path::new("a/b/c"), 0o711).unwrap();
    root.create_dirs(Path::new("/a/b/c"), 0o700).unwrap();
    assert_eq!(
        fs::metadata(place.path("a/b")).unwrap().mode() & 0o7777,
        0o711
    );
    root.create_dirs(Path::new("up/made-here"), 0o755).unwrap();
    assert!(place.path("made-here").is_dir());
    assert_eq!(
        errno(root.create_dirs(Path::new("etc/passwd/x"), 0o755)),
        Some(Errno::NOTDIR)
    );
    assert_eq!(
        errno(root.create_dirs(Path::new("x/../../y"), 0o755)),
        Some(Errno::INVAL)
    );
    assert!(root.create_dirs(Path::new("dangling/x"), 0o755).is_err());
    assert!(!place.0.join("made").exists() && !place.0.join("y").exists());
}

#[test]
fn a_path_that_changes_meanwhile_leads_nowhere_else() {
    let place = Place::new();
    // `swap` is by turns a directory inside and a link to the directory outside; both have a `precious`.
    fs::create_dir(place.path("swap")).unwrap();
    fs::write(place.path("swap/precious"), "inside").unwrap();
    symlink("../..", place.path("swap-link")).unwrap();
    fs::create_dir(place.path("deep")).unwrap();
    fs::rename(place.path("swap"), place.path("deep/swap")).unwrap();
    fs::rename(place.path("swap-link"), place.path("deep/swap-link")).unwrap();
    let stop = AtomicBool::new(false);
    let deep = place.open("deep");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(
                    &deep,
                    "swap",
                    &deep,
                    "swap-link",
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        });
        let root = place.root();
        let mut read = 0;
        for _ in 0..5000 {
            if let Ok(content) = root.read(Path::new("deep/swap/precious"), 100) {
                assert_eq!(content, b"inside");
                read += 1;
            }
            let _ = root.write(Path::new("deep/swap/new"), b"x", 0o600, (0, 0));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(read > 0);
    });
    // The link leads to the root at most.
    assert!(!place.0.join("new").exists());
}

#[test]
fn removal_takes_everything_and_follows_nothing() {
    let place = Place::new();
    let top = place.path("tree");
    fs::create_dir(&top).unwrap();
    symlink(&place.0, top.join("out")).unwrap();
    symlink("../..", top.join("dots")).unwrap();
    fs::write(top.join(OsStr::from_bytes(b"\xff\n weird")), "").unwrap();
    fs::write(top.join("read-only"), "").unwrap();
    fs::set_permissions(top.join("read-only"), fs::Permissions::from_mode(0o000)).unwrap();
    // Deeper than descriptors can be open, with longer paths than the kernel takes, and a name in the way.
    fs::create_dir(top.join(".deep-1")).unwrap();
    let mut dir = rustix::io::dup(File::open(&top).unwrap()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&dir, "nested", Mode::from_raw_mode(0o755)).unwrap();
        dir = rustix::fs::openat(
            &dir,
            "nested",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
    }
    rustix::fs::symlinkat("/", &dir, "end").unwrap();
    drop(dir);
    let root = place.open("");
    remove_tree(root.as_fd(), OsStr::new("tree")).unwrap();
    assert!(!top.exists());
    remove_tree(root.as_fd(), OsStr::new("tree")).unwrap();
    // A link is removed, not what it leads to.
    symlink("etc", place.path("to-etc")).unwrap();
    remove_tree(root.as_fd(), OsStr::new("to-etc")).unwrap();
    assert_eq!(place.read("etc/passwd").unwrap(), "inside");
    let etc = place.open("etc");
    remove_contents(etc.as_fd()).unwrap();
    assert!(is_empty_dir(etc.as_fd()).unwrap());
}

#[test]
fn a_copy_has_everything() {
    let place = Place::new();
    fs::create_dir_all(place.path("from/sub")).unwrap();
    let from = place.open("from");
    fs::write(place.path("from/sub/file"), "content").unwrap();
    fs::hard_link(place.path("from/sub/file"), place.path("from/link")).unwrap();
    symlink("/precious", place.path("from/soft")).unwrap();
    create_special(from.as_fd(), OsStr::new("pipe"), SpecialFile::Fifo).unwrap();
    create_special(from.as_fd(), OsStr::new("null"), SpecialFile::Char(1, 3)).unwrap();
    let attributes = Attributes {
        mode: 0o6755,
        uid: 100,
        gid: 200,
        mtime: (1_500_000_000, 123_000_000),
        xattrs: vec![(c"trusted.note".into(), b"kept\0too".to_vec())],
    };
    for name in ["sub", "link", "soft", "pipe", "."] {
        set_attributes(from.as_fd(), OsStr::new(name), &attributes).unwrap();
    }
    fs::create_dir(place.path("to")).unwrap();
    let to = place.open("to");
    copy_tree(from.as_fd(), to.as_fd()).unwrap();
    assert_eq!(
        fs::read_to_string(place.path("to/link")).unwrap(),
        "content"
    );
    let (link, file) = (
        fs::metadata(place.path("to/link")).unwrap(),
        fs::metadata(place.path("to/sub/file")).unwrap(),
    );
    assert_eq!((link.ino(), link.nlink()), (file.ino(), 2));
    assert_ne!(
        link.ino(),
        fs::metadata(place.path("from/link")).unwrap().ino()
    );
    assert_eq!(
        fs::read_link(place.path("to/soft")).unwrap(),
        Path::new("/precious")
    );
    assert!(
        fs::symlink_metadata(place.path("to/pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        fs::symlink_metadata(place.path("to/null")).unwrap().rdev(),
        rustix::fs::makedev(1, 3)
    );
    for name in ["sub", "link", "soft", "pipe", ""] {
        let meta = fs::symlink_metadata(place.path("to").join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (100, 200), "{name}");
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (1_500_000_000, 123_000_000),
            "{name}"
        );
        if !meta.is_symlink() {
            assert_eq!(meta.mode() & 0o7777, 0o6755, "{name}");
        }
        let mut value = [0u8; 16];
        let length =
            rustix::fs::lgetxattr(place.path("to").join(name), "trusted.note", &mut value[..])
                .unwrap();
        assert_eq!(&value[..length], b"kept\0too", "{name}");
    }
}

#[test]
fn a_walk_sees_each_file_once_and_can_end() {
    let place = Place::new();
    fs::write(place.path("etc/big"), vec![1u8; 1 << 20]).unwrap();
    let root = place.open("");
    rustix::fs::syncfs(&root).unwrap();
    let once = disk_usage(root.as_fd()).unwrap();
    fs::hard_link(place.path("etc/big"), place.path("etc/again")).unwrap();
    symlink("/", place.path("etc/everything")).unwrap();
    assert!(once >= 1 << 20 && disk_usage(root.as_fd()).unwrap() < once + (64 << 10));
    let mut seen = 0;
    let ended = walk(root.as_fd(), &mut |_, _, _| {
        seen += 1;
        std::ops::ControlFlow::Break(())
    });
    assert!(ended.unwrap().is_break() && seen == 1);
}
