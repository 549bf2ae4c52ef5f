use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use super::*;

/// An archive being written entry by entry, names taken as they are.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: tar::EntryType, name: &str, link: &str, data: &[u8], mode: u32) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        // The library refuses hostile names; here they are wanted.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_uid(1234);
        header.set_gid(5678);
        header.set_mtime(1_600_000_000);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.add(tar::EntryType::Regular, name, "", data.as_bytes(), 0o644)
    }

    fn dir(self, name: &str) -> Self {
        self.add(tar::EntryType::Directory, name, "", b"", 0o755)
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.add(tar::EntryType::Symlink, name, to, b"", 0o777)
    }

    fn hard_link(self, name: &str, to: &str) -> Self {
        self.add(tar::EntryType::Link, name, to, b"", 0o644)
    }

    fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.0
            .append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value)])
            .unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A directory to unpack in, inside one that must stay untouched.
struct Target {
    outer: tempfile::TempDir,
}

impl Target {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("root")).unwrap();
        fs::write(outer.path().join("precious"), "untouched").unwrap();
        fs::create_dir(outer.path().join("outside")).unwrap();
        Self { outer }
    }

    fn root(&self) -> PathBuf {
        self.outer.path().join("root")
    }

    fn apply(&self, layers: impl IntoIterator<Item = Layer>) -> Result<(), UnpackError> {
        self.apply_limited(layers, u64::MAX)
    }

    fn apply_limited(
        &self,
        layers: impl IntoIterator<Item = Layer>,
        bytes: u64,
    ) -> Result<(), UnpackError> {
        let check = |_| true;
        let mut unpacker = Unpacker::new(&self.root(), Limits { bytes }, &check).unwrap();
        for layer in layers {
            unpacker.layer(layer.bytes().as_slice())?;
        }
        Ok(())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }

    fn exists(&self, path: &str) -> bool {
        self.root().join(path).symlink_metadata().is_ok()
    }

    fn assert_untouched(&self) {
        assert_eq!(
            fs::read_to_string(self.outer.path().join("precious")).unwrap(),
            "untouched"
        );
        assert_eq!(fs::read_dir(self.outer.path()).unwrap().count(), 3);
        assert_eq!(
            fs::read_dir(self.outer.path().join("outside"))
                .unwrap()
                .count(),
            0
        );
    }
}

#[test]
fn every_kind_of_entry_arrives_with_its_attributes() {
    let target = Target::new();
    let layer = Layer::new()
        .dir("./")
        .dir("bin")
        .xattr("user.note", b"kept")
        .xattr("trusted.evil", b"dropped")
        .add(tar::EntryType::Regular, "bin/su", "", b"program", 0o4755)
        .hard_link("bin/sudo", "bin/su")
        .symlink("usr", "/nowhere/at/all")
        .add(tar::EntryType::Char, "null", "", b"", 0o666)
        .add(tar::EntryType::Block, "disk", "", b"", 0o660)
        .add(tar::EntryType::Fifo, "pipe", "", b"", 0o600)
        .file("made/on/the/way", "x");
    target.apply([layer]).unwrap();
    let root = target.root();
    let su = fs::metadata(root.join("bin/su")).unwrap();
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()),
        (0o4755, 1234, 5678, 1_600_000_000)
    );
    assert_eq!(
        (su.nlink(), su.ino()),
        (2, fs::metadata(root.join("bin/sudo")).unwrap().ino())
    );
    let bin = fs::metadata(root.join("bin")).unwrap();
    assert_eq!(
        (bin.mtime(), bin.uid()),
        (1_600_000_000, 1234),
        "directories get their times last"
    );
    assert_eq!(fs::metadata(&root).unwrap().uid(), 1234);
    let usr = fs::symlink_metadata(root.join("usr")).unwrap();
    assert_eq!(
        (usr.uid(), fs::read_link(root.join("usr")).unwrap()),
        (1234, "/nowhere/at/all".into())
    );
    let null = fs::symlink_metadata(root.join("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    assert!(
        fs::symlink_metadata(root.join("disk"))
            .unwrap()
            .file_type()
            .is_block_device()
    );
    assert!(
        fs::symlink_metadata(root.join("pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        fs::metadata(root.join("made/on")).unwrap().mode() & 0o777,
        0o755
    );
    // Root's own attributes of the host, not the image's.
    assert_eq!(
        xattr::get(root.join("bin/su"), "trusted.evil").unwrap(),
        None
    );
    assert_eq!(target.read("made/on/the/way"), "x");
}

#[test]
fn attributes_that_belong_to_a_file_are_set() {
    let target = Target::new();
    // cap_net_bind_service=ep, as setcap(8) stores it.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Layer::new()
        .xattr("security.capability", &capability)
        .file("ping", "x");
    target.apply([layer]).unwrap();
    assert_eq!(
        xattr::get(target.root().join("ping"), "security.capability")
            .unwrap()
            .as_deref(),
        Some(capability.as_slice())
    );
    let layer = Layer::new().xattr("user.a", b"b").file("noted", "x");
    match target.apply([layer]) {
        Ok(()) => assert_eq!(
            xattr::get(target.root().join("noted"), "user.a")
                .unwrap()
                .unwrap(),
            b"b"
        ),
        Err(e) => println!("SKIPPED: no user attributes here: {e}"),
    }
}

#[test]
fn upper_layers_hide_and_replace_lower_ones() {
    let target = Target::new();
    let lower = Layer::new()
        .dir("etc")
        .file("etc/a", "old")
        .file("etc/b", "old")
        .dir("cache")
        .file("cache/one", "old")
        .dir("cache/deep")
        .file("cache/deep/two", "old")
        .file("was-file", "x")
        .dir("was-dir")
        .file("was-dir/in", "x")
        .dir("lib")
        .symlink("link", "lib");
    let upper = Layer::new()
        // In the same layer, before the opaque mark: stays.
        .dir("cache")
        .file("cache/new", "new")
        .dir("cache/deep")
        .file("cache/deep/three", "new")
        .file("cache/.wh..wh..opq", "")
        .file("cache/after", "new")
        .file("etc/.wh.a", "")
        .file("etc/b", "new")
        .file(".wh.not-there", "")
        .dir("was-file")
        .file("was-file/in", "now a directory")
        .file("was-dir", "now a file")
        // Through a link of the lower layer, as the container would see it.
        .file("link/so", "library");
    target.apply([lower, upper]).unwrap();
    assert!(!target.exists("etc/a") && !target.exists("etc/.wh.a"));
    assert_eq!(target.read("etc/b"), "new");
    assert!(!target.exists("cache/one") && !target.exists("cache/deep/two"));
    for new in ["cache/new", "cache/deep/three", "cache/after"] {
        assert_eq!(target.read(new), "new");
    }
    assert_eq!(target.read("was-file/in"), "now a directory");
    assert_eq!(target.read("was-dir"), "now a file");
    assert_eq!(target.read("lib/so"), "library");
    assert!(
        fs::symlink_metadata(target.root().join("link"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn a_whiteout_does_not_hide_its_own_layer() {
    let target = Target::new();
    let lower = Layer::new().file("a", "old");
    let upper = Layer::new().file("a", "new").file(".wh.a", "");
    target.apply([lower, upper]).unwrap();
    assert_eq!(target.read("a"), "new");
}

#[test]
fn links_lead_nowhere_outside() {
    let hostile: Vec<(&str, Layer)> = vec![
        (
            "through an absolute link",
            Layer::new().symlink("x", "/outside").file("x/new", "evil"),
        ),
        (
            "through dots in a link",
            Layer::new()
                .symlink("x", "../../../../outside")
                .file("x/new", "evil"),
        ),
        (
            "through a chain",
            Layer::new()
                .symlink("a", "..")
                .symlink("b", "a/..")
                .file("b/precious", "evil"),
        ),
        (
            "onto a link",
            Layer::new().symlink("x", "../precious").file("x", "evil"),
        ),
        (
            "a directory onto a link",
            Layer::new()
                .symlink("x", "../outside")
                .dir("x")
                .file("x/new", "evil"),
        ),
        (
            "a whiteout through a link",
            Layer::new().symlink("x", "..").file("x/.wh.precious", ""),
        ),
        (
            "an opaque mark through a link",
            Layer::new().symlink("x", "..").file("x/.wh..wh..opq", ""),
        ),
        (
            "a hard link through a link",
            Layer::new()
                .symlink("x", "..")
                .hard_link("y", "x/precious")
                .file("y", "evil"),
        ),
        (
            "a hard link to a link",
            Layer::new()
                .symlink("x", "../precious")
                .hard_link("y", "x")
                .file("y", "evil"),
        ),
        (
            "a whiteout of dots",
            Layer::new()
                .dir("d")
                .file("d/.wh...", "")
                .file("d/.wh..", ""),
        ),
    ];
    for (what, layer) in hostile {
        let target = Target::new();
        // Refused or harmless, but never outside.
        let result = target.apply([layer]);
        target.assert_untouched();
        assert!(target.root().is_dir(), "{what}: {result:?}");
    }
    // The same over two layers, the link coming with the lower.
    let target = Target::new();
    let lower = Layer::new().symlink("x", "../outside");
    let _ = target.apply([lower, Layer::new().file("x/new", "evil")]);
    target.assert_untouched();
}

#[test]
fn names_that_lead_out_are_refused() {
    let cases: Vec<(&str, Layer)> = vec![
        ("dots", Layer::new().file("../precious", "evil")),
        (
            "dots inside",
            Layer::new().dir("a").file("a/../../precious", "evil"),
        ),
        ("an absolute path", Layer::new().file("/precious", "evil")),
        (
            "a hard link with dots",
            Layer::new().hard_link("x", "../precious"),
        ),
        (
            "an absolute hard link",
            Layer::new().hard_link("x", "/etc/passwd"),
        ),
        (
            "a hard link to nothing",
            Layer::new().hard_link("x", "nothing"),
        ),
        (
            "a hard link to a directory",
            Layer::new().dir("d").hard_link("x", "d"),
        ),
        (
            "a file below a file",
            Layer::new().file("f", "").file("f/x", ""),
        ),
        (
            "a loop",
            Layer::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", ""),
        ),
        ("a root that is a file", Layer::new().file(".", "")),
        ("an empty link", Layer::new().symlink("x", "")),
    ];
    for (what, layer) in cases {
        let target = Target::new();
        let result = target.apply([layer]);
        assert!(
            matches!(result, Err(UnpackError::Bad(_))),
            "{what}: {result:?}"
        );
        target.assert_untouched();
    }
}

#[test]
fn a_file_linked_to_itself_survives() {
    let target = Target::new();
    target
        .apply([Layer::new()
            .file("a", "x")
            .hard_link("a", "a")
            .hard_link("b", "a")
            .hard_link("b", "a")])
        .unwrap();
    assert_eq!(
        (target.read("a"), target.read("b")),
        ("x".into(), "x".into())
    );
}

#[test]
fn an_existing_link_in_the_target_is_replaced_not_followed() {
    let target = Target::new();
    symlink(
        target.outer.path().join("precious"),
        target.root().join("f"),
    )
    .unwrap();
    symlink(target.outer.path().join("outside"), target.root().join("d")).unwrap();
    target
        .apply([Layer::new().file("f", "new").dir("d").file("d/x", "new")])
        .unwrap();
    target.assert_untouched();
    assert_eq!(
        (target.read("f"), target.read("d/x")),
        ("new".into(), "new".into())
    );
}

#[test]
fn too_much_is_refused() {
    let target = Target::new();
    let big = "x".repeat(300_000);
    let result = target.apply_limited([Layer::new().file("a", &big)], 200_000);
    assert!(matches!(result, Err(UnpackError::Bad(why)) if why.contains("200000")));
    let check = |_| false;
    let mut unpacker = Unpacker::new(&target.root(), Limits { bytes: u64::MAX }, &check).unwrap();
    let result = unpacker.layer(Layer::new().file("b", &big).bytes().as_slice());
    assert!(matches!(result, Err(UnpackError::Stopped)));
}

#[test]
fn compressions_are_told_by_their_bytes() {
    let plain = Layer::new().file("a", "content").bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    for packed in [plain.clone(), gzip, zstd] {
        let mut unpacked = Vec::new();
        decompress(packed.as_slice())
            .unwrap()
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, plain);
    }
}
