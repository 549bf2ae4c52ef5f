//! Images from files: OCI layouts and what `docker save` writes.
#![allow(missing_docs, unreachable_pub)]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;

use common::{
    MadeUp, Packing, Store, Watch, archive, digest, make_up, make_up_for, noise, write_layout,
};
use offshoot_images::ImageError;
use offshoot_model::{Code, ImageSource, Unobserved};
use offshoot_pool::{Access, Subvolume};
use serde_json::json;

fn layout(path: &Path, tag: Option<&str>) -> ImageSource {
    ImageSource::OciLayout {
        path: path.display().to_string(),
        tag: tag.map(str::to_owned),
    }
}

fn saved(path: &Path, tag: Option<&str>) -> ImageSource {
    ImageSource::DockerArchive {
        path: path.display().to_string(),
        tag: tag.map(str::to_owned),
    }
}

fn three_layers() -> MadeUp {
    make_up(&[
        (
            archive(&[("etc/base", b"base"), ("gone", b"x")]),
            Packing::Plain,
        ),
        (
            archive(&[("etc/gzip", b"gzip"), (".wh.gone", b"")]),
            Packing::Gzip,
        ),
        (archive(&[("etc/zstd", b"zstd")]), Packing::Zstd),
    ])
}

#[tokio::test]
async fn a_layout_becomes_an_image_once() {
    let Some(store) = Store::new() else { return };
    let dir = store.dir.path().join("layout");
    let (image, other) = (
        three_layers(),
        make_up(&[(archive(&[("other", b"")]), Packing::Gzip)]),
    );
    write_layout(&dir, &[("1.0", &image), ("2.0", &other)]);
    let made = store
        .images
        .ensure(&layout(&dir, Some("1.0")), &Unobserved)
        .await
        .unwrap();
    assert_eq!(made.id, digest(&image.config));
    assert_eq!(
        (
            made.config.command.as_slice(),
            made.config.exposed_ports.as_slice()
        ),
        (["/bin/app".to_owned()].as_slice(), [80].as_slice())
    );
    for name in ["base", "gzip", "zstd"] {
        assert_eq!(store.read(&made.subvolume, &format!("etc/{name}")), name);
    }
    assert!(!store.pool.path(&made.subvolume).join("gone").exists());
    assert!(
        fs::write(store.pool.path(&made.subvolume).join("x"), "").is_err(),
        "an image is read-only"
    );
    assert_eq!(store.images.get(&made.id).unwrap(), made);
    // Again, at the same time, and under another name: the same image, made once.
    let (source, other_source) = (layout(&dir, Some("1.0")), layout(&dir, Some("2.0")));
    let (a, b, c) = tokio::join!(
        store.images.ensure(&source, &Unobserved),
        store.images.ensure(&source, &Unobserved),
        store.images.ensure(&other_source, &Unobserved),
    );
    assert_eq!((a.unwrap(), b.unwrap()), (made.clone(), made.clone()));
    assert_ne!(c.unwrap().id, made.id);
    store.assert_clean(2);
    store.images.remove(&made.id).unwrap();
    store.images.remove(&made.id).unwrap();
    store.assert_clean(1);
    let error = store.images.get(&made.id).unwrap_err();
    assert_eq!(error.problem().code, Code::ImageNotFound);

    let error = store
        .images
        .ensure(&layout(&dir, None), &Unobserved)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("1.0, 2.0"), "{error}");
    let error = store
        .images
        .ensure(&layout(&dir, Some("3")), &Unobserved)
        .await
        .unwrap_err();
    assert_eq!(error.problem().code, Code::ImageNotFound);
    let error = store
        .images
        .ensure(&layout(Path::new("/no/such"), None), &Unobserved)
        .await
        .unwrap_err();
    assert_eq!(error.problem().code, Code::ImageNotFound);
}

#[tokio::test]
async fn damaged_and_foreign_images_leave_nothing() {
    let Some(store) = Store::new() else { return };
    let dir = store.dir.path().join("layout");
    let spoil = |name: &str, change: &dyn Fn(&MadeUp, &Path)| {
        let dir = dir.join(name);
        let image = three_layers();
        write_layout(&dir, &[("x", &image)]);
        change(&image, &dir.join("blobs/sha256"));
        dir
    };
    let hex = |blob: &[u8]| digest(blob).trim_start_matches("sha256:").to_owned();
    let other = archive(&[("etc/evil", b"evil")]);
    let cases = [
        spoil("layer", &|image, blobs| {
            fs::write(
                blobs.join(hex(&image.layers[2])),
                noise(image.layers[2].len()),
            )
            .unwrap()
        }),
        spoil("short", &|image, blobs| {
            fs::write(blobs.join(hex(&image.layers[0])), &image.layers[0][..700]).unwrap()
        }),
        spoil("gone", &|image, blobs| {
            fs::remove_file(blobs.join(hex(&image.layers[1]))).unwrap()
        }),
        spoil("config", &|image, blobs| {
            fs::write(blobs.join(hex(&image.config)), b"{}").unwrap()
        }),
        spoil("manifest", &|image, blobs| {
            fs::write(blobs.join(hex(&image.manifest)), b"{}").unwrap()
        }),
        spoil("swapped", &|image, blobs| {
            // A valid archive of the right length, but another one.
            let mut other = other.clone();
            other.resize(image.layers[0].len(), 0);
            fs::write(blobs.join(hex(&image.layers[0])), other).unwrap();
        }),
    ];
    for dir in cases {
        let error = store
            .images
            .ensure(&layout(&dir, None), &Unobserved)
            .await
            .unwrap_err();
        assert_eq!(
            error.problem().code,
            Code::ImageInvalid,
            "{}: {error}",
            dir.display()
        );
        store.assert_clean(0);
    }
    let lying = {
        let mut image = three_layers();
        // The configuration promises other content than the layers have.
        image.config = make_up(&vec![(other, Packing::Plain); 3]).config;
        let manifest = json!({
            "schemaVersion": 2,
            "config": common::descriptor("", &image.config),
            "layers": image.layers.iter().map(|l| common::descriptor("", l)).collect::<Vec<_>>(),
        });
        image.manifest = serde_json::to_vec(&manifest).unwrap();
        image
    };
    let arm = make_up_for("arm64", &[(archive(&[]), Packing::Plain)]);
    let hostile = make_up(&[(
        {
            let mut archive = archive(&[("aa/bb", b"evil")]);
            archive[0..5].copy_from_slice(b"../bb");
            let sum: u32 = archive[..512]
                .iter()
                .enumerate()
                .map(|(i, b)| {
                    if (148..156).contains(&i) {
                        32
                    } else {
                        u32::from(*b)
                    }
                })
                .sum();
            archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            archive
        },
        Packing::Gzip,
    )]);
    for (name, image, word) in [
        ("lying", lying, "unpack to"),
        ("arm", arm, "linux/arm64"),
        ("hostile", hostile, "leads out"),
    ] {
        write_layout(&dir.join(name), &[("x", &image)]);
        let error = store
            .images
            .ensure(&layout(&dir.join(name), None), &Unobserved)
            .await
            .unwrap_err();
        assert_eq!(error.problem().code, Code::ImageInvalid);
        assert!(error.to_string().contains(word), "{error}");
        store.assert_clean(0);
    }
}

#[tokio::test]
async fn what_docker_saves_is_read() {
    let Some(store) = Store::new() else { return };
    let image = three_layers();
    let plain: Vec<_> = image
        .layers
        .iter()
        .map(|layer| {
            let mut plain = Vec::new();
            match layer.get(..2) {
                Some([0x1f, 0x8b]) => drop(std::io::copy(
                    &mut flate2::read::GzDecoder::new(layer.as_slice()),
                    &mut plain,
                )),
                Some([0x28, 0xb5]) => plain = zstd::decode_all(layer.as_slice()).unwrap(),
                _ => plain.clone_from(layer),
            }
            plain
        })
        .collect();
    let manifest = json!([{
        "Config": "abc.json", "RepoTags": ["shop/web:1", "shop/web:latest"],
        "Layers": ["l1/layer.tar", "l2/layer.tar", "l3/layer.tar"],
    }]);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("real/layer.tar", &plain[0]);
    add("l2/layer.tar", &plain[1]);
    add("l3/layer.tar", &plain[2]);
    add("abc.json", &image.config);
    add("manifest.json", &manifest);
    // Older versions link equal layers.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "l1/layer.tar", "../real/layer.tar")
        .unwrap();
    let archive = builder.into_inner().unwrap();
    let path = store.dir.path().join("saved.tar");
    fs::write(&path, &archive).unwrap();
    let made = store
        .images
        .ensure(&saved(&path, Some("latest")), &Unobserved)
        .await
        .unwrap();
    assert_eq!(made.id, digest(&image.config));
    assert_eq!(store.read(&made.subvolume, "etc/zstd"), "zstd");
    // Compressed as a whole it is the same image.
    let packed = store.dir.path().join("saved.tar.gz");
    let mut gzip = flate2::write::GzEncoder::new(
        fs::File::create(&packed).unwrap(),
        flate2::Compression::fast(),
    );
    gzip.write_all(&archive).unwrap();
    gzip.finish().unwrap();
    assert_eq!(
        store
            .images
            .ensure(&saved(&packed, None), &Unobserved)
            .await
            .unwrap(),
        made
    );
    store.assert_clean(1);
    assert!(store.blobs().is_empty(), "{:?}", store.blobs());

    let error = store
        .images
        .ensure(&saved(&path, Some("2")), &Unobserved)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("shop/web:1"), "{error}");
    fs::write(&path, b"not an archive").unwrap();
    let error = store
        .images
        .ensure(&saved(&path, None), &Unobserved)
        .await
        .unwrap_err();
    assert_eq!(error.problem().code, Code::ImageInvalid);
}

#[tokio::test]
async fn a_cancel_and_a_kill_leave_nothing() {
    let Some(store) = Store::new() else { return };
    let dir = store.dir.path().join("layout");
    let big = noise(16 << 20);
    let files: Vec<(String, &[u8])> = (0..4)
        .map(|n| (format!("f{n}"), &big[n << 22..(n + 1) << 22]))
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(name, data)| (name.as_str(), *data))
        .collect();
    write_layout(
        &dir,
        &[("x", &make_up(&[(archive(&files), Packing::Gzip)]))],
    );
    let watch = Watch {
        cancel_at: Some(1),
        ..Watch::default()
    };
    let error = store
        .images
        .ensure(&layout(&dir, None), &watch)
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Cancelled), "{error}");
    store.assert_clean(0);

    // What a daemon that was killed leaves: staging, an image without its record, a record without its image.
    let made = store
        .images
        .ensure(&layout(&dir, None), &Unobserved)
        .await
        .unwrap();
    let staging = Subvolume::Staging("image-abc".into());
    store.pool.ensure_empty(&staging).unwrap();
    let half = Subvolume::Image("f".repeat(64));
    store
        .pool
        .ensure_snapshot(&staging, &half, Access::ReadOnly)
        .unwrap();
    let records = store.dir.path().join("images/records");
    let record = fs::read(records.join(format!("{}.json", &made.id[7..]))).unwrap();
    fs::write(records.join(format!("{}.json", "e".repeat(64))), record).unwrap_or_default();
    fs::write(records.join("x.json.new"), "half").unwrap();
    fs::write(records.join(format!("{}.json", "d".repeat(64))), "damaged").unwrap();
    store.images.clean_up().unwrap();
    assert!(!store.pool.exists(&half).unwrap() && !store.pool.exists(&staging).unwrap());
    assert_eq!(store.images.get(&made.id).unwrap(), made);
    // A snapshot whose record was never written is made again and not trusted.
    store.images.remove(&made.id).unwrap();
    store.pool.ensure_empty(&made.subvolume).unwrap();
    let again = store
        .images
        .ensure(&layout(&dir, None), &Unobserved)
        .await
        .unwrap();
    assert!(store.pool.path(&again.subvolume).join("f3").exists());
}

#[tokio::test]
async fn an_image_larger_than_allowed_is_refused() {
    let Some(store) = Store::with(|config| config.unpacked_max = 1 << 20) else {
        return;
    };
    let dir = store.dir.path().join("layout");
    // A bomb: small packed, large unpacked.
    let zeros = vec![0u8; 16 << 20];
    write_layout(
        &dir,
        &[(
            "x",
            &make_up(&[(archive(&[("bomb", &zeros)]), Packing::Zstd)]),
        )],
    );
    let error = store
        .images
        .ensure(&layout(&dir, None), &Unobserved)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("more than 1048576 bytes"),
        "{error}"
    );
    store.assert_clean(0);
}
