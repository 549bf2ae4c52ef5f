//! Children that CRIU does not need, and where it stops: this program does as CRIU does, with the same shared object before the C library.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs)]

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::libc;

/// What an empty child is called.
const NOBODY: i32 = i32::MAX;
/// The folder that it works in, and what is answered to its stage.
const FOLDER: &str = "OFFSHOOT_KNOWN";
const ANSWER: &str = "ANSWER";

/// Runs one of the ignored tests in a process of its own that has the shared object and these variables; it has to pass.
fn pass(test: &str, folder: &Path, variables: &[(&str, &str)]) {
    let object = folder.join("criu.so");
    fs::write(&object, offshoot_sys::preload::CRIU).unwrap();
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .arg("--test-threads=1")
        .env("LD_PRELOAD", object)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(out.status.success(), "{variables:?}: {out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("1 passed"), "{text}");
}

fn pass_as_criu(folder: &Path, answer: &str) {
    let known = folder.to_str().unwrap();
    pass("as_criu", folder, &[(FOLDER, known), (ANSWER, answer)]);
}

#[test]
fn what_takes_less_time_than_a_child_is_done_without_one() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["empty", "full"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("full/file"), "x").unwrap();
    let sticky = fs::Permissions::from_mode(0o1770);
    fs::set_permissions(dir.path().join("empty"), sticky).unwrap();
    pass_as_criu(dir.path(), "go on");

    let archive = dir.path().join("tmpfs-empty.img");
    let out = Command::new("tar")
        .args(["--numeric-owner", "-tvf"])
        .arg(archive)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(words[..3], ["drwxrwx--T", "0/0", "0"]);
    assert_eq!(words.last(), Some(&"./"));
    assert_eq!(fs::read(dir.path().join("tmpfs-full.img")).unwrap(), b"");
}

#[test]
fn it_does_not_go_on_where_it_is_not_told_to() {
    for answer in ["no", "nothing"] {
        let dir = tempfile::tempdir().unwrap();
        pass_as_criu(dir.path(), answer);
    }
}

#[test]
fn scripts_are_run_at_one_stage() {
    let dir = tempfile::tempdir().unwrap();
    for (wanted, stage, is_run) in [
        (Some("pre-resume"), Some("post-restore"), false),
        (Some("pre-resume"), Some("pre-resume"), true),
        (Some("pre-resume"), None, true),
        (None, Some("post-restore"), true),
    ] {
        let answer = if is_run { "run" } else { "not run" };
        let told = [
            ("OFFSHOOT_STAGE", wanted),
            ("CRTOOLS_SCRIPT_ACTION", stage),
            (ANSWER, Some(answer)),
        ];
        let told: Vec<_> = told
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        pass("as_restoring_criu", dir.path(), &told);
    }
}

#[test]
#[ignore = "run by another, with the shared object"]
fn as_restoring_criu() {
    let child = fork(|| 7);
    if std::env::var(ANSWER).unwrap() == "run" {
        assert!(is_real(child, 7));
    } else {
        assert_eq!(child, NOBODY);
        assert_eq!((ended(child), ended(-1)), (0, -1));
    }
}

#[test]
#[ignore = "run by the others, with the shared object"]
fn as_criu() {
    let answer = std::env::var(ANSWER).unwrap();
    stops(&answer);
    if answer == "go on" {
        has_no_children(&PathBuf::from(std::env::var(FOLDER).unwrap()));
    }
}

fn stops(answer: &str) {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.send(b"\x08\x01").unwrap();
    let mut request = [0_u8; 8];
    // SAFETY: as many bytes as there is room for.
    let got = unsafe { libc::recv(far.as_raw_fd(), request.as_mut_ptr().cast(), 8, 0) };
    assert_eq!(got, 2);
    let reply: &[u8] = match answer {
        "go on" => b"\x08\x06\x18\x01",
        "no" => b"\x08\x06\x18\x00",
        _ => b"",
    };
    near.send(reply).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("freezer.state");
    fs::write(dir.path().join("state"), "FROZEN").unwrap();
    fs::rename(dir.path().join("state"), &path).unwrap();
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    for round in 0..2 {
        // SAFETY: a string.
        let file = unsafe { libc::open64(path.as_ptr(), libc::O_RDWR) };
        let is_open = file >= 0;
        assert_eq!(is_open, round == 1 || answer == "go on");
        if is_open {
            // SAFETY: just opened, and given to nobody.
            unsafe { libc::close(file) };
        }
    }
    near.set_nonblocking(true).unwrap();
    let mut stage = [0_u8; 64];
    let got = near.recv(&mut stage).unwrap();
    assert!(stage[..got].ends_with(b"\x08freezing"));
    assert!(near.recv(&mut stage).is_err(), "it stops once");
}

fn has_no_children(folder: &Path) {
    assert!(is_real(fork(|| 7), 7), "nothing is known");
    open(libc::AT_FDCWD, c"/proc/self/uid_map", 0);
    // SAFETY: a string.
    let this = unsafe { libc::open(c"/proc/self".as_ptr(), libc::O_RDONLY) };
    open(this, c"uid_map", 0);
    assert!(is_real(fork(|| 7), 7));
    open(this, c"gid_map", 0);
    assert_eq!(fork(|| 7), NOBODY);
    assert_eq!(ended(NOBODY), 0);

    let images = CString::new(folder.as_os_str().as_bytes()).unwrap();
    // SAFETY: a string.
    let images = unsafe { libc::open(images.as_ptr(), libc::O_RDONLY) };
    open(images, c"empty", 0);
    open(images, c"tmpfs-empty.img", libc::O_CREAT | libc::O_WRONLY);
    assert_eq!(fork(|| 7), NOBODY);
    assert_eq!(ended(NOBODY), 0);
    open(images, c"full", 0);
    open(images, c"tmpfs-full.img", libc::O_CREAT | libc::O_WRONLY);
    assert!(is_real(fork(|| 7), 7));

    let names = other_names();
    let own = name();
    open(images, c"pstree.img", libc::O_CREAT | libc::O_WRONLY);
    let look = move || {
        // SAFETY: a namespace.
        unsafe { libc::setns(names, libc::CLONE_NEWUTS) };
        SEEN.fetch_add(1, Ordering::Relaxed);
        i32::from(name() != "elsewhere")
    };
    assert_eq!(fork(look), NOBODY);
    assert_eq!(fork(|| 5), NOBODY);
    assert_eq!(SEEN.load(Ordering::Relaxed), 1, "in this process");
    assert_eq!(name(), own, "and it came back");
    assert_eq!((ended(-1), ended(-1)), (5 << 8, 0));
    assert_eq!(ended(-1), -1, "there are no more");
    // one that cannot come back
    let leave = || {
        // SAFETY: a namespace.
        unsafe {
            let network = libc::open(c"/proc/self/ns/net".as_ptr(), libc::O_RDONLY);
            libc::setns(network, libc::CLONE_NEWNET);
        }
        SEEN.fetch_add(1, Ordering::Relaxed);
        9
    };
    assert!(is_real(fork(leave), 9));
    assert_eq!(SEEN.load(Ordering::Relaxed), 1, "in another process");
    assert_eq!(fork(|| 0), NOBODY);
    assert_eq!(ended(-1), 0);
    open(images, c"cgroup.img", libc::O_CREAT | libc::O_WRONLY);
    assert!(is_real(fork(|| 7), 7));
}

static SEEN: AtomicI32 = AtomicI32::new(0);

/// What fork(2) returns in the parent of a child that does `work` and ends so. As after a real one, nothing here has changed.
#[inline(never)]
fn fork(work: impl FnOnce() -> i32) -> i32 {
    let mut here = std::hint::black_box([1_u8; 64]);
    // SAFETY: one thread; the child ends by exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        here.fill(2);
        std::hint::black_box(&mut here);
        let status = work();
        // SAFETY: a number.
        unsafe { libc::exit(status) };
    }
    assert_eq!(std::hint::black_box(here), [1; 64]);
    child
}

/// Whether it is a process, which ended with this status.
fn is_real(child: i32, status: i32) -> bool {
    child > 0 && child != NOBODY && ended(child) == status << 8
}

/// How a child ended, as waitpid(2) tells it; -1 when there is none.
fn ended(child: i32) -> i32 {
    let mut status = 0;
    // SAFETY: room for a number.
    match unsafe { libc::waitpid(child, &raw mut status, 0) } {
        -1 => -1,
        told => {
            assert!(child == -1 || told == child);
            status
        }
    }
}

/// Opens as CRIU does.
fn open(dir: i32, name: &CStr, flags: i32) {
    // SAFETY: a string.
    let file = unsafe { libc::openat64(dir, name.as_ptr(), flags, 0o600) };
    assert!(file >= 0, "{name:?}");
}

/// A namespace in which this host has another name.
fn other_names() -> i32 {
    // SAFETY: strings and descriptors of this function.
    unsafe {
        let own = libc::open(c"/proc/thread-self/ns/uts".as_ptr(), libc::O_RDONLY);
        assert_eq!(libc::unshare(libc::CLONE_NEWUTS), 0);
        let name = c"elsewhere";
        assert_eq!(libc::sethostname(name.as_ptr(), name.count_bytes()), 0);
        let other = libc::open(c"/proc/thread-self/ns/uts".as_ptr(), libc::O_RDONLY);
        assert_eq!(libc::setns(own, libc::CLONE_NEWUTS), 0);
        other
    }
}

fn name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .unwrap()
        .trim()
        .to_owned()
}
