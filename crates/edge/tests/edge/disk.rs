//! A disk without room for the access log: requests go on.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use hyper::StatusCode;

use crate::backend::Backend;
use crate::kit::{A, TestEdge, ask, get, route, routes, until};

const ROOM: u64 = 256 << 10;

/// A small file system of its own; unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={ROOM}");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "offshoot-test"])
            .arg(directory.path())
            .output();
        let mounted = mount.is_ok_and(|mount| mount.status.success());
        mounted.then_some(Self(directory))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Takes all the room that is left.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[0; 1_024]).is_ok() {}
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_is_said_once() {
    let Some(small) = Small::mount() else {
        println!("SKIPPED: no file system can be mounted here");
        return;
    };
    let log = small.0.path().join("access.log");
    let edge = TestEdge::with(|config| config.access_log.as_mut().unwrap().path.clone_from(&log));
    let a = Backend::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    let served = async |count: usize| {
        for _ in 0..count {
            let answer = ask(edge.http(), get("a.localhost", "/")).await;
            assert_eq!(answer.status, StatusCode::OK);
        }
    };
    let lines = || fs::read_to_string(&log).unwrap().lines().count();
    let said = |what: &str| {
        let messages = fs::read_to_string(edge.config.log_file()).unwrap();
        messages.lines().filter(|line| line.contains(what)).count()
    };
    served(20).await;
    until("the log is written", || lines() == 20).await;

    let filler = small.0.path().join("filler");
    fill(&filler);
    served(20).await;
    until("it is said", || said("cannot be written") > 0).await;
    // each of these is a batch of its own, or almost
    for _ in 0..20 {
        served(5).await;
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    assert_eq!(said("cannot be written"), 1, "once, not for each line");

    fs::remove_file(filler).unwrap();
    let before = lines();
    served(20).await;
    until("the log is written again", || lines() >= before + 20).await;
    for line in fs::read_to_string(&log).unwrap().lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("whole lines");
    }
    let lost = 160 - lines();
    println!(
        "figures: full disk: 160 requests answered, none failed; {lost} lines lost, said once"
    );
}
