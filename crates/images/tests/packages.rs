//! An image from a distribution's packages: one real build.
#![allow(missing_docs, unreachable_pub)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use common::{Store, Watch};
use offshoot_images::ImageError;
use offshoot_model::manifest::{ImageConfig, ImageFile, PackageImage};
use offshoot_model::{Code, ImageSource, Unobserved};

fn recipe(packages: &[&str], run: &[&str]) -> PackageImage {
    PackageImage {
        suite: own_suite(),
        packages: packages.iter().map(|p| (*p).to_owned()).collect(),
        files: BTreeMap::from([(
            "/etc/hello/conf".into(),
            ImageFile {
                content: "hello\n".into(),
                mode: 0o640,
            },
        )]),
        run: run.iter().map(|r| (*r).to_owned()).collect(),
        config: ImageConfig {
            command: vec!["/usr/bin/hello".into()],
            ..ImageConfig::default()
        },
    }
}

/// The release this machine runs, whose archive its apt surely knows.
fn own_suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("stable");
    name.trim_matches('"').to_owned()
}

#[tokio::test]
async fn packages_become_an_image() {
    let Some(store) = Store::new() else { return };
    // What a command must not be able to do: see the host's files and processes, make devices, change the kernel.
    let confined = "\
        test \"$(cat /etc/hello/conf)\" = hello; hello > /greeting; \
        test ! -e /image; test \"$(ls /proc | grep -c '^[0-9]')\" -lt 10; \
        refuse() { if \"$@\" 2>/dev/null; then echo \"$* worked\"; exit 9; fi; }; \
        refuse mknod /evil b 8 0; refuse mount -t tmpfs none /mnt; refuse umount /proc; \
        refuse sh -c 'echo x > /proc/sys/kernel/core_pattern'; refuse hostname evil; \
        refuse test -e /proc/1/root/image; refuse sh -c 'echo > /proc/sysrq-trigger'; \
        refuse perl -e 'mkdir \"/x\"; chdir \"/\"; chroot \"/x\"; chdir \"..\" for 1..20; chroot \".\"; exit !-e \"/root\"'; \
        rmdir /x; touch /root/ran";
    let wanted = ImageSource::Packages(recipe(&["hello"], &[confined]));
    let watch = Watch::default();
    let made = match store.images.ensure(&wanted, &watch).await {
        Ok(made) => made,
        Err(e @ ImageError::Host { .. }) => return println!("SKIPPED: {e}: {}", e.problem().next),
        Err(e) => panic!("{:#?}", e.problem()),
    };
    assert!(watch.reports.load(std::sync::atomic::Ordering::Relaxed) > 10);
    assert_eq!(store.read(&made.subvolume, "greeting"), "Hello, world!\n");
    let root = store.pool.path(&made.subvolume);
    let conf = fs::metadata(root.join("etc/hello/conf")).unwrap();
    assert_eq!((conf.mode() & 0o7777, conf.uid()), (0o640, 0));
    assert!(root.join("root/ran").exists());
    for leftover in [
        "usr/sbin/policy-rc.d",
        "etc/resolv.conf",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "var/log/dpkg.log",
    ] {
        assert!(!root.join(leftover).exists(), "{leftover}");
    }
    // The directory is there, and in it at most links to what is left out (dpkg keeps those).
    let pages = fs::read_dir(root.join("usr/share/man/man1")).unwrap();
    let pages = pages.filter(|page| page.as_ref().unwrap().file_type().unwrap().is_file());
    assert_eq!(pages.count(), 0);
    for empty in ["proc", "dev/shm", "var/cache/apt/archives/partial", "tmp"] {
        let count = fs::read_dir(root.join(empty))
            .map(Iterator::count)
            .unwrap_or(0);
        assert_eq!(count, 0, "{empty}");
    }
    assert!(made.size > 50 << 20 && made.config.command == ["/usr/bin/hello"]);
    // Equal content is not made again.
    let start = Instant::now();
    assert_eq!(
        store.images.ensure(&wanted, &Unobserved).await.unwrap(),
        made
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    // The base and the image.
    store.assert_clean(2);

    let unknown = ImageSource::Packages(recipe(&["no-such-package-here"], &[]));
    let problem = store
        .images
        .ensure(&unknown, &Unobserved)
        .await
        .unwrap_err()
        .problem();
    assert_eq!(problem.code, Code::ImageBuildFailed);
    assert!(
        problem
            .details
            .iter()
            .any(|d| d.contains("Unable to locate package no-such-package-here")),
        "{problem:?}"
    );
    let failing = ImageSource::Packages(recipe(&[], &["echo out; echo err >&2; exit 3"]));
    let problem = store
        .images
        .ensure(&failing, &Unobserved)
        .await
        .unwrap_err()
        .problem();
    assert!(problem.what.contains("exit status: 3"), "{problem:?}");
    assert!(
        problem.details.iter().any(|d| d == "out") && problem.details.iter().any(|d| d == "err"),
        "{problem:?}"
    );

    // A cancel ends everything that the command started.
    let mark = format!("{}.5", 40_000 + std::process::id());
    let endless = format!("setsid sleep {mark} & sleep {mark}");
    let watch = std::sync::Arc::new(Watch::default());
    let (images, sink) = (store.images.clone(), watch.clone());
    let building = tokio::spawn(async move {
        images
            .ensure(&ImageSource::Packages(recipe(&[], &[&endless])), &*sink)
            .await
    });
    wait_for("the command to run", || running(&mark) >= 2).await;
    watch
        .cancelled
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let error = building.await.unwrap().unwrap_err();
    assert!(matches!(error, ImageError::Cancelled), "{error}");
    wait_for("its processes to end", || running(&mark) == 0).await;
    store.assert_clean(2);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("staging"), "{mounts}");

    // A daemon that is killed takes everything with it, too.
    let mark = format!("{}.25", 40_000 + std::process::id());
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_build_for_another_test_to_kill"])
        .env(KILLED_DIR, store.dir.path())
        .env(KILLED_RUN, format!("setsid sleep {mark} & sleep {mark}"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the command to run", || running(&mark) >= 2).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    wait_for("its processes to end", || running(&mark) == 0).await;
    assert!(store.pool.list().unwrap().len() > 2, "its staging stays");
    store.images.clean_up().unwrap();
    store.assert_clean(2);
}

const KILLED_DIR: &str = "OFFSHOOT_TEST_KILLED_DIR";
const KILLED_RUN: &str = "OFFSHOOT_TEST_KILLED_RUN";

/// Does nothing by itself: the test above starts it as a process of its own.
#[tokio::test]
async fn a_build_for_another_test_to_kill() {
    let (Some(dir), Ok(run)) = (std::env::var_os(KILLED_DIR), std::env::var(KILLED_RUN)) else {
        return;
    };
    let images = common::open_again(std::path::Path::new(&dir));
    let endless = ImageSource::Packages(recipe(&[], &[&run]));
    images.ensure(&endless, &Unobserved).await.unwrap_err();
}

async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waiting for {what}");
        tokio::task::yield_now().await;
    }
}

/// Processes with that word in their command line.
fn running(mark: &str) -> usize {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
                line.split(|b| *b == 0).any(|word| word == mark.as_bytes())
                    && line.starts_with(b"sleep")
            })
        })
        .count()
}
