//! Images from a real registry on this machine, and through connections that break.
#![allow(missing_docs, unreachable_pub)]

mod common;

use std::fs;
use std::sync::atomic::Ordering;

use common::servers::{Cutter, Registry, start_token_front};
use common::{Packing, Store, Watch, archive, descriptor, digest, make_up, make_up_for, noise};
use oci_client::secrets::RegistryAuth;
use offshoot_images::ImageError;
use offshoot_model::{Code, ImageSource, Unobserved};
use serde_json::json;

fn source(reference: impl Into<String>) -> ImageSource {
    ImageSource::Registry {
        reference: reference.into(),
    }
}

#[tokio::test]
async fn an_image_is_pulled_once() {
    let Some(store) = Store::new() else { return };
    let Some(registry) = Registry::start(RegistryAuth::Anonymous) else {
        return;
    };
    let shared = archive(&[("etc/shared", b"shared")]);
    let image = make_up(&[
        (shared.clone(), Packing::Gzip),
        (archive(&[("one", &noise(3 << 20))]), Packing::Zstd),
    ]);
    let pushed = registry.push("shop/web:1", &image).await;
    let watch = Watch::default();
    let made = store
        .images
        .ensure(&source(registry.reference("shop/web:1")), &watch)
        .await
        .unwrap();
    assert_eq!(made.id, digest(&image.config));
    assert_eq!(made.config.env, ["A=b"]);
    assert_eq!(store.read(&made.subvolume, "etc/shared"), "shared");
    assert!(
        watch.most.load(Ordering::Relaxed) > 3 << 20 && watch.reports.load(Ordering::Relaxed) > 3
    );
    assert!(store.blobs().is_empty(), "downloads are not kept");
    // By digest it is the same image, without fetching its layers again.
    let by_digest = registry.reference(&format!("shop/web@{pushed}"));
    assert_eq!(
        store
            .images
            .ensure(&source(by_digest), &Unobserved)
            .await
            .unwrap(),
        made
    );
    let other = make_up(&[
        (shared, Packing::Gzip),
        (archive(&[("two", b"2")]), Packing::Gzip),
    ]);
    registry.push("shop/web:2", &other).await;
    let (one, two) = (
        source(registry.reference("shop/web:2")),
        source(registry.reference("shop/web:2")),
    );
    let (a, b) = tokio::join!(
        store.images.ensure(&one, &Unobserved),
        store.images.ensure(&two, &Unobserved)
    );
    assert_eq!(a.unwrap(), b.unwrap());
    store.assert_clean(2);

    // A tag that moves is followed when asked to, not otherwise.
    registry.push("shop/web:1", &other).await;
    let first = source(registry.reference("shop/web:1"));
    assert_eq!(
        store.images.ensure(&first, &Unobserved).await.unwrap(),
        made
    );
    let moved = store.images.refresh(&first, &Unobserved).await.unwrap();
    assert_eq!(moved.id, digest(&other.config));
    assert_eq!(
        store.images.ensure(&first, &Unobserved).await.unwrap(),
        moved
    );

    // What is there needs no registry.
    let address = registry.address.clone();
    drop(registry);
    assert_eq!(
        store.images.ensure(&first, &Unobserved).await.unwrap(),
        moved
    );
    let error = store
        .images
        .ensure(&source(format!("{address}/none:1")), &Unobserved)
        .await
        .unwrap_err();
    assert_eq!(error.problem().code, Code::ImageUnreachable, "{error}");
    assert!(
        error.to_string().to_lowercase().contains("refused"),
        "{error}"
    );
}

#[tokio::test]
async fn an_index_leads_to_this_machine_s_image() {
    let Some(store) = Store::with(|config| config.architecture = Some("arm64".into())) else {
        return;
    };
    let Some(registry) = Registry::start(RegistryAuth::Anonymous) else {
        return;
    };
    let arm = make_up_for("arm64", &[(archive(&[("arch", b"arm64")]), Packing::Gzip)]);
    let amd = make_up_for("amd64", &[(archive(&[("arch", b"amd64")]), Packing::Gzip)]);
    let mut entries = Vec::new();
    for (image, architecture) in [(&amd, "amd64"), (&arm, "arm64")] {
        registry.push(&format!("multi:{architecture}"), image).await;
        let mut entry = descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            &image.manifest,
        );
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries});
    registry
        .push_manifest("multi:all", &serde_json::to_vec(&index).unwrap(), kind)
        .await;
    let made = store
        .images
        .ensure(&source(registry.reference("multi:all")), &Unobserved)
        .await
        .unwrap();
    assert_eq!(store.read(&made.subvolume, "arch"), "arm64");
    let error = store
        .images
        .ensure(&source(registry.reference("multi:amd64")), &Unobserved)
        .await
        .unwrap_err();
    assert_eq!(error.problem().code, Code::ImageInvalid);
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let Some(store) = Store::new() else { return };
    let Some(registry) = Registry::start(RegistryAuth::Anonymous) else {
        return;
    };
    registry
        .push(
            "there:1",
            &make_up(&[(archive(&[("a", b"")]), Packing::Gzip)]),
        )
        .await;
    for (reference, code) in [
        (registry.reference("there:2"), Code::ImageNotFound),
        (registry.reference("not/there:1"), Code::ImageNotFound),
        (
            registry.reference(&format!("there@sha256:{}", "0".repeat(64))),
            Code::ImageNotFound,
        ),
        ("Not A Reference".into(), Code::ImageNotFound),
        (String::new(), Code::ImageNotFound),
    ] {
        let error = store
            .images
            .ensure(&source(&reference), &Unobserved)
            .await
            .unwrap_err();
        let problem = error.problem();
        assert_eq!(problem.code, code, "{reference}: {error}");
        assert!(!problem.next.is_empty());
    }
    store.assert_clean(0);
    assert!(store.blobs().is_empty());
}

#[tokio::test]
async fn credentials_open_a_registry() {
    let login = RegistryAuth::Basic("user".into(), "secret".into());
    let Some(registry) = Registry::start(login) else {
        return;
    };
    let image = make_up(&[(archive(&[("a", b"private")]), Packing::Gzip)]);
    registry.push("private:1", &image).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    let Some(store) = Store::with(|config| config.auth_file = Some(file.clone())) else {
        return;
    };
    let private = source(registry.reference("private:1"));
    let error = store
        .images
        .ensure(&private, &Unobserved)
        .await
        .unwrap_err();
    assert_eq!(error.problem().code, Code::ImageAccessDenied, "{error}");
    // "user:wrong", then "user:secret".
    for (auth, fine) in [("dXNlcjp3cm9uZw==", false), ("dXNlcjpzZWNyZXQ=", true)] {
        let text = json!({"auths": {(registry.address.as_str()): {"auth": auth}}});
        fs::write(&file, text.to_string()).unwrap();
        match store.images.ensure(&private, &Unobserved).await {
            Ok(made) => assert!(fine && store.read(&made.subvolume, "a") == "private"),
            Err(error) => {
                assert!(!fine, "{error}");
                assert_eq!(error.problem().code, Code::ImageAccessDenied, "{error}");
                assert!(
                    !format!("{error:?}").contains("wrong"),
                    "no secret in an error"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_broken_download_is_continued() {
    let Some(store) = Store::new() else { return };
    let Some(registry) = Registry::start(RegistryAuth::Anonymous) else {
        return;
    };
    let image = make_up(&[(archive(&[("big", &noise(2 << 20))]), Packing::Gzip)]);
    registry.push("big:1", &image).await;
    let cutter = Cutter::start(registry.address.clone(), digest(&image.layers[0]));
    let big = source(format!("{}/big:1", cutter.address));
    cutter.after.store(700 << 10, Ordering::Relaxed);
    cutter.cuts.store(2, Ordering::Relaxed);
    let made = store.images.ensure(&big, &Unobserved).await.unwrap();
    assert_eq!(
        fs::read(store.pool.path(&made.subvolume).join("big")).unwrap(),
        noise(2 << 20)
    );
    assert_eq!(cutter.ranges.load(Ordering::Relaxed), 2);
    store.images.remove(&made.id).unwrap();

    // A registry that never gets far is given up, and what came is continued by a later attempt (or daemon).
    cutter.cuts.store(u32::MAX, Ordering::Relaxed);
    cutter.after.store(100, Ordering::Relaxed);
    fs::write(
        store
            .dir
            .path()
            .join("images/blobs")
            .join(format!("{}.part", &digest(&image.layers[0])[7..])),
        &image.layers[0][..1 << 20],
    )
    .unwrap();
    let error = store.images.ensure(&big, &Unobserved).await.unwrap_err();
    assert_eq!(error.problem().code, Code::ImageUnreachable, "{error}");
    store.images.clean_up().unwrap();
    assert_eq!(store.blobs().len(), 1, "the partial download stays");
    cutter.cuts.store(0, Ordering::Relaxed);
    cutter.ranges.store(0, Ordering::Relaxed);
    let made = store.images.ensure(&big, &Unobserved).await.unwrap();
    assert_eq!(cutter.ranges.load(Ordering::Relaxed), 1);
    assert_eq!(
        fs::read(store.pool.path(&made.subvolume).join("big"))
            .unwrap()
            .len(),
        2 << 20
    );
    store.images.remove(&made.id).unwrap();

    // A partial file with other content: fetched anew, once.
    fs::write(
        store
            .dir
            .path()
            .join("images/blobs")
            .join(format!("{}.part", &digest(&image.layers[0])[7..])),
        noise(1 << 19),
    )
    .unwrap();
    store.images.ensure(&big, &Unobserved).await.unwrap();
    store.images.remove(&made.id).unwrap();

    // Content that never matches is refused.
    cutter.spoils.store(u32::MAX, Ordering::Relaxed);
    let error = store.images.ensure(&big, &Unobserved).await.unwrap_err();
    assert_eq!(error.problem().code, Code::ImageInvalid, "{error}");
    store.assert_clean(0);
    assert!(store.blobs().is_empty(), "{:?}", store.blobs());
}

#[tokio::test]
async fn a_pull_can_be_cancelled() {
    let Some(store) = Store::new() else { return };
    let Some(registry) = Registry::start(RegistryAuth::Anonymous) else {
        return;
    };
    registry
        .push(
            "big:1",
            &make_up(&[(archive(&[("big", &noise(8 << 20))]), Packing::Gzip)]),
        )
        .await;
    let watch = Watch {
        cancel_at: Some(1 << 20),
        ..Watch::default()
    };
    let error = store
        .images
        .ensure(&source(registry.reference("big:1")), &watch)
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Cancelled), "{error}");
    store.assert_clean(0);
    // The one who waits for another's work can be cancelled too, and takes over when the other was.
    let one = source(registry.reference("big:1"));
    let first = Watch {
        cancel_at: Some(1 << 20),
        ..Watch::default()
    };
    let (a, b) = tokio::join!(
        store.images.ensure(&one, &first),
        store.images.ensure(&one, &Unobserved)
    );
    assert!(matches!(a, Err(ImageError::Cancelled)), "{a:?}");
    b.unwrap();
    store.assert_clean(1);
}

#[tokio::test]
async fn a_token_is_asked_for() {
    let Some(registry) = Registry::start(RegistryAuth::Anonymous) else {
        return;
    };
    let image = make_up(&[(archive(&[("a", b"with token")]), Packing::Gzip)]);
    registry.push("private:1", &image).await;
    let front = start_token_front(registry.address.clone());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    let Some(store) = Store::with(|config| config.auth_file = Some(file.clone())) else {
        return;
    };
    let private = source(format!("{front}/private:1"));
    let error = store
        .images
        .ensure(&private, &Unobserved)
        .await
        .unwrap_err();
    assert_eq!(error.problem().code, Code::ImageAccessDenied, "{error}");
    fs::write(
        &file,
        json!({"auths": {(front.as_str()): {"auth": "dXNlcjpzZWNyZXQ="}}}).to_string(),
    )
    .unwrap();
    let made = store.images.ensure(&private, &Unobserved).await.unwrap();
    assert_eq!(store.read(&made.subvolume, "a"), "with token");
}
