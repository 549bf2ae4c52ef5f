//! What CRIU is told by the shared object that it is started with.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Lines and flags of a text like `/proc/<pid>/smaps`.
fn short(smaps: &str) -> Vec<&str> {
    smaps
        .lines()
        .filter(|line| {
            line.starts_with("VmFlags:") || !line.split(' ').next().unwrap().ends_with(':')
        })
        .collect()
}

#[test]
fn criu_is_told_what_is_true() {
    let dir = tempfile::tempdir().unwrap();
    let object = dir.path().join("criu.so");
    fs::write(&object, offshoot_sys::preload::CRIU).unwrap();
    fs::create_dir(dir.path().join("kernel")).unwrap();
    let mut watched = Command::new("python3")
        .args([
            "-c",
            "import mmap; a = mmap.mmap(-1, 1 << 20); print(flush=True); input()",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = watched.id();
    let mut ready = BufReader::new(watched.stdout.take().unwrap());
    ready.read_line(&mut String::new()).unwrap();

    // a restore with log level 4, one with level 1, one without options; and what is none
    let requests = [
        ("0802120708034804a80301", "0802120708034802a80301"),
        ("0802120408034801", "0802120408034801"),
        ("0802", "0802"),
        ("0802127f4804", "0802127f4804"),
        ("ffffffffffffffffffffff", "ffffffffffffffffffffff"),
    ];
    let out = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/preload.py"))
        .arg(pid.to_string())
        .arg(dir.path())
        .args(requests.map(|(sent, _)| sent))
        .env("LD_PRELOAD", &object)
        .env("OFFSHOOT_KNOWN", dir.path())
        .env("OFFSHOOT_KERNEL", dir.path().join("kernel"))
        .output()
        .unwrap();
    watched.kill().unwrap();
    watched.wait().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let seen: Value = serde_json::from_slice(&out.stdout).unwrap();

    let smaps = |name: &str| seen[name][0].as_str().unwrap();
    assert!(smaps("plain").contains("Rss:"));
    assert!(!smaps("known").contains("Rss:"));
    assert_eq!(
        smaps("known").lines().collect::<Vec<_>>(),
        short(smaps("plain"))
    );
    // One line is another: nothing is taken for known.
    assert!(smaps("other").contains("Rss:"));
    for (plain, known) in rows(&seen["plain"]).zip(rows(&seen["known"])) {
        let line = plain[0].as_str().unwrap();
        assert_eq!(plain[0], known[0]);
        assert_eq!(plain[2], known[2], "{line}");
        assert_eq!(plain[1], known[1], "{line}");
    }
    assert!(rows(&seen["known"]).any(|row| row[1].is_null() && row[2] == false));
    assert!(rows(&seen["known"]).any(|row| row[1] == 0o400 && row[2] == true));
    assert!(rows(&seen["known"]).any(|row| row[0].as_str().unwrap().contains("rw-s")));

    const TMPFS: u64 = 0x0102_1994;
    for (round, found) in [false, true].into_iter().enumerate() {
        let kernel = &seen["kernel"][round];
        assert_eq!(
            (&kernel["found"], &kernel["kept"]),
            (&found.into(), &0.into())
        );
        // What it asks next is of another file.
        assert_eq!(kernel["kinds"][0], TMPFS);
    }
    let kept = fs::read_to_string(dir.path().join("kernel/criu.kdat")).unwrap();
    assert_eq!(kept, "found out");

    let got = seen["requests"].as_array().unwrap();
    assert_eq!(got.len(), requests.len());
    for ((sent, expected), got) in requests.iter().zip(got) {
        assert_eq!(got, expected, "{sent}");
    }
    assert_eq!(seen["second"], requests[0].0, "no request comes second");
}

fn rows(seen: &Value) -> impl Iterator<Item = &Value> {
    seen[1].as_array().unwrap().iter()
}
