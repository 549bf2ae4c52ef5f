use proptest::prelude::*;

use super::*;

fn entries(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut tarball = Tarball::new(Stream(archive));
    let mut found = Vec::new();
    while let Some(entry) = tarball.next_entry()? {
        let mut data = Vec::new();
        tarball.read_to_end_of_entry(&mut data)?;
        found.push((entry, data));
        assert!(found.len() < 10_000, "it must end");
    }
    Ok(found)
}

impl<R: Skip> Tarball<R> {
    fn read_to_end_of_entry(&mut self, data: &mut Vec<u8>) -> io::Result<()> {
        let size = self.left;
        // What a header claims is not allocated beforehand.
        (&mut *self)
            .take(size.min(1 << 20))
            .read_to_end(data)
            .map(|_| ())
    }
}

/// A header block by hand, for what no library would write.
fn header(name: &str, kind: u8, size: &[u8]) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, size);
    put(136, b"00000000000\0");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

fn octal(size: u64) -> Vec<u8> {
    format!("{size:011o}\0").into_bytes()
}

#[test]
fn what_gnu_tar_writes_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("in");
    let long = "d".repeat(90);
    std::fs::create_dir_all(root.join(&long).join(&long)).unwrap();
    std::fs::write(root.join(&long).join(&long).join("file"), "deep").unwrap();
    std::fs::hard_link(root.join(&long).join(&long).join("file"), root.join("hard")).unwrap();
    std::os::unix::fs::symlink("/a/b", root.join("soft")).unwrap();
    let holes = std::fs::File::create(root.join("holes")).unwrap();
    holes.set_len(4 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"middle", 2 << 20).unwrap();
    drop(holes);
    for format in ["gnu", "posix", "oldgnu"] {
        for version in ["0.0", "0.1", "1.0"] {
            let output = std::process::Command::new("tar")
                .args([
                    "--format",
                    format,
                    "--sparse",
                    "--sparse-version",
                    version,
                    "-cf",
                    "-",
                    "-C",
                ])
                .arg(&root)
                .args(["hard", "soft", "holes", &long])
                .output()
                .unwrap();
            let found = entries(&output.stdout).unwrap();
            let get = |name: &str| {
                let of = |e: &&(Entry, Vec<u8>)| e.0.path == name.as_bytes();
                found
                    .iter()
                    .find(of)
                    .unwrap_or_else(|| panic!("{format} {version}: no {name}"))
            };
            assert_eq!(get("soft").0.link, b"/a/b");
            assert_eq!(get("hard").1, b"deep");
            let deep = format!("{long}/{long}/file");
            assert_eq!(
                (get(&deep).0.kind, &get(&deep).0.link[..]),
                (Kind::HardLink, &b"hard"[..])
            );
            assert_eq!(get(&long).0.kind, Kind::Dir);
            let (holes, data) = get("holes");
            assert_eq!(holes.size, 4 << 20, "{format} {version}");
            let total: u64 = holes.segments.iter().map(|(_, length)| length).sum();
            assert_eq!(total, data.len() as u64);
            assert!(
                total < 1 << 20 && data.windows(6).any(|w| w == b"middle"),
                "{format} {version}: {total}"
            );
        }
    }
}

#[test]
fn extended_attributes_and_times_come_from_pax() {
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([
            ("mtime", b"1700000000.25".as_slice()),
            ("SCHILY.xattr.user.key", b"va\nl=ue\0".as_slice()),
            ("uid", b"3000000".as_slice()),
            ("path", "dir/ä".as_bytes()),
        ])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(2);
    header.set_mode(0o4755);
    header.set_cksum();
    builder
        .append_data(&mut header, "short", b"hi".as_slice())
        .unwrap();
    let found = entries(&builder.into_inner().unwrap()).unwrap();
    let (entry, data) = &found[0];
    assert_eq!(entry.path, "dir/ä".as_bytes());
    assert_eq!(entry.mtime, (1_700_000_000, 250_000_000));
    assert_eq!(
        entry.xattrs,
        [(b"user.key".to_vec(), b"va\nl=ue\0".to_vec())]
    );
    assert_eq!(
        (entry.uid, entry.mode, data.as_slice()),
        (3_000_000, 0o4755, b"hi".as_slice())
    );
}

#[test]
fn claims_of_the_archive_are_bounded() {
    // A long name of eight GiB is refused, not allocated.
    let huge = header("x", b'L', b"\x80\0\0\0\0\0\0\x02\0\0\0\0");
    assert!(matches!(entries(&huge), Err(TarError::Malformed(why)) if why.contains("extension")));
    // Nor are many small ones, without an end.
    let record = padded(b"31 SCHILY.xattr.user.a=bcdefgh\n");
    let many = [header("x", b'x', &octal(31)).to_vec(), record]
        .concat()
        .repeat(2000);
    assert!(matches!(entries(&many), Err(TarError::Malformed(why)) if why.contains("extension")));
    // A file that claims more than there is.
    let short = [header("x", b'0', &octal(5000)).as_slice(), &[1; 512]].concat();
    assert!(entries(&short).is_err());
    // A sparse map that counts more pieces than anybody has.
    let record = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n29 GNU.sparse.realsize=10000\n";
    let map = padded(b"99999999999\n");
    let sparse = [
        header("p", b'x', &octal(record.len() as u64)).to_vec(),
        padded(record),
        header("x", b'0', &octal(512)).to_vec(),
        map,
    ]
    .concat();
    assert!(matches!(entries(&sparse), Err(TarError::Malformed(why)) if why.contains("pieces")));
    // Overlapping pieces.
    let record = b"22 GNU.sparse.major=0\n22 GNU.sparse.minor=1\n27 GNU.sparse.map=0,10,5,10\n25 GNU.sparse.size=10000\n";
    let sparse = [
        header("p", b'x', &octal(record.len() as u64)).to_vec(),
        padded(record),
        header("x", b'0', &octal(20)).to_vec(),
        padded(&[0; 20]),
    ]
    .concat();
    assert!(entries(&sparse).is_err());
    let mut broken = header("x", b'0', &octal(0));
    broken[0] = b'y';
    assert!(matches!(entries(&broken), Err(TarError::Malformed(why)) if why.contains("checksum")));
    assert!(entries(&header("x", b'Z', &octal(0))).is_err());
    assert!(entries(b"no archive at all").is_err());
    assert!(entries(&[]).unwrap().is_empty());
}

#[test]
fn links_and_directories_have_no_data() {
    let archive = [
        header("link", b'1', &octal(4096)).as_slice(),
        &header("dir/", b'0', &octal(0)),
        &header("file", b'0', &octal(2)),
        &padded(b"ok"),
        &[0; 1024],
    ]
    .concat();
    let found = entries(&archive).unwrap();
    assert_eq!(
        found.iter().map(|e| e.0.kind).collect::<Vec<_>>(),
        [Kind::HardLink, Kind::Dir, Kind::File]
    );
    assert_eq!(found[1].0.path, b"dir");
}

proptest! {
    #[test]
    fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = entries(&bytes);
    }

    #[test]
    fn any_damage_ends_without_panic(
        at in 0usize..4096,
        byte in any::<u8>(),
        fix in any::<bool>(),
        kind in prop::sample::select(vec![b'0', b'1', b'2', b'5', b'L', b'K', b'x', b'g', b'S']),
        data in proptest::collection::vec(any::<u8>(), 0..1500),
    ) {
        let mut archive = [
            header("some/name", kind, &octal(data.len() as u64)).to_vec(),
            padded(&data),
            header("next", b'0', &octal(3)).to_vec(),
            padded(b"abc"),
            vec![0; 1024],
        ].concat();
        let len = archive.len();
        archive[at % len] = byte;
        if fix {
            let mut first: [u8; BLOCK] = archive[..BLOCK].try_into().unwrap();
            seal(&mut first);
            archive[..BLOCK].copy_from_slice(&first);
        }
        let _ = entries(&archive);
    }

    #[test]
    fn what_is_written_is_read(
        files in proptest::collection::vec(("[a-z]{1,120}(/[a-z]{1,120}){0,3}", proptest::collection::vec(any::<u8>(), 0..2000)), 1..8),
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, data) in &files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, data.as_slice()).unwrap();
        }
        let found = entries(&builder.into_inner().unwrap()).unwrap();
        let found: Vec<_> = found.into_iter().map(|(e, data)| (String::from_utf8(e.path).unwrap(), data)).collect();
        prop_assert_eq!(found, files);
    }
}
