//! Freezing: the lease ends with a word, with its holder, with its deadline.

use crate::support::*;
use offshoot_model::Code;
use offshoot_runtime::*;
use offshoot_sys::process;
use offshoot_sys::threads::share_memory;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TICKS: &str = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done";

fn ticking(node: &TestNode) -> bool {
    let before = node.log().len();
    let deadline = Instant::now() + Duration::from_millis(300);
    while Instant::now() < deadline {
        if node.log().len() > before {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn a_lease_holds_and_is_given_back() {
    if !fit() {
        return;
    }
    let node = TestNode::new(TICKS);
    let client = node.start();
    node.wait_log("5");
    let mut lease = client.freeze(LONG).unwrap();
    println!("frozen in {:?}", lease.took);
    assert!(lease.took < Duration::from_secs(1));
    assert_eq!(client.status().unwrap().state, RunState::Frozen);
    assert!(lease.holds() && !ticking(&node));
    let busy = client.freeze(LONG).unwrap_err().problem();
    assert_eq!(busy.code, Code::Busy);
    let frozen = lease.frozen_at;
    let thawed = lease.thaw().unwrap();
    assert!(thawed > frozen && ticking(&node));
    drop(client.freeze(LONG).unwrap());
    wait_for("the thaw after a drop", || {
        (client.status().unwrap().state == RunState::Running).then_some(())
    });
    assert!(ticking(&node));
}

#[test]
fn nobody_stands_between_vfork_and_execve() {
    if !fit() {
        return;
    }
    if !std::fs::exists("/usr/bin/python3").unwrap() {
        println!("SKIPPED: needs python3");
        return;
    }
    // Four that start programs without end, as shells and cron do: there is nearly always one between the two calls.
    let node = TestNode::new("").with(|spec| {
        bind_usr(spec);
        let program = "import os\nos.fork(), os.fork()\nprint('up', flush=True)\n\
            while True: os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)";
        spec.process.args = ["/usr/bin/python3", "-S", "-E", "-c", program]
            .map(String::from)
            .into();
    });
    let client = node.start();
    node.wait_log("up");
    let (mut seen, mut longest) = (0, Duration::ZERO);
    for _ in 0..60 {
        let mut lease = client.freeze(LONG).unwrap();
        longest = longest.max(lease.took);
        let pids: Vec<i32> = node.cgroup().processes().into_iter().collect();
        for pid in &pids {
            let parent = process::identity(*pid).map_or(0, |child| child.parent);
            if pids.contains(&parent) && share_memory(*pid, parent).is_ok_and(|shares| shares) {
                seen += 1;
            }
        }
        assert!(lease.holds());
        lease.thaw().unwrap();
    }
    println!("the longest of 60 freezes took {longest:?}");
    assert_eq!(seen, 0, "frozen between vfork(2) and execve(2)");
}

#[test]
fn a_lease_ends_at_its_deadline() {
    if !fit() {
        return;
    }
    let node = TestNode::new(TICKS);
    let client = node.start();
    node.wait_log("5");
    let mut lease = client.freeze(Duration::from_millis(150)).unwrap();
    wait_for("the thaw at the deadline", || {
        (!lease.holds()).then_some(())
    });
    assert!(ticking(&node));
    let (frozen, thawed) = (lease.frozen_at, lease.thaw().unwrap());
    let held = thawed.duration_since(frozen);
    assert!(
        held.as_millis() >= 50 && held.as_millis() < 2_000,
        "{held:?}"
    );
}

/// Not a test of its own: holds a freeze until it is killed.
#[test]
#[ignore = "run by a_lease_ends_with_its_holder"]
fn hold_a_freeze() {
    let Some(run_dir) = std::env::var_os("OFFSHOOT_TEST_HOLD") else {
        return;
    };
    let _lease = NodeClient::connect(run_dir.as_ref())
        .unwrap()
        .freeze(LONG)
        .unwrap();
    println!("held");
    std::thread::sleep(LONG);
}

#[test]
fn a_lease_ends_with_its_holder() {
    if !fit() {
        return;
    }
    let node = TestNode::new(TICKS);
    let client = node.start();
    node.wait_log("5");
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "freeze::hold_a_freeze",
            "--nocapture",
        ])
        .env("OFFSHOOT_TEST_HOLD", &node.spec.run_dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the freeze", || {
        (client.status().unwrap().state == RunState::Frozen).then_some(())
    });
    // SIGKILL: nothing of the holder's runs any more.
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait_for("the thaw", || {
        (client.status().unwrap().state == RunState::Running).then_some(())
    });
    assert!(ticking(&node));
}

#[test]
fn stopping_a_frozen_node_thaws_it() {
    if !fit() {
        return;
    }
    let node = TestNode::new("trap 'exit 4' TERM; echo up; while true; do sleep 0.01; done");
    let client = node.start();
    node.wait_log("up");
    let lease = client.freeze(LONG).unwrap();
    assert_eq!(client.stop(15, LONG).unwrap().status, 4);
    drop(lease);
    let node = TestNode::new("sleep 1000");
    let client = node.start();
    let _lease = client.freeze(LONG).unwrap();
    assert_eq!(client.kill().unwrap().signal, Some(9));
}

#[test]
fn a_frozen_node_is_removed() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    let _lease = node.start().freeze(LONG).unwrap();
    node.remove();
    assert_eq!(observe(&node.spec.run_dir).unwrap().state, RunState::Absent);
}

#[test]
fn guests_are_moved_out_of_criu_s_sight_and_frozen_too() {
    if !fit() {
        return;
    }
    let node = TestNode::new(TICKS);
    let client = node.start();
    let what = ExecSpec {
        args: [
            "/bin/sh",
            "-c",
            "while true; do echo x >> /tmp/guest; sleep 0.01; done",
        ]
        .map(String::from)
        .to_vec(),
        ..Default::default()
    };
    let session = exec(&node.spec, &what).unwrap();
    let file = node.spec.rootfs.join("tmp/guest");
    let size = || std::fs::metadata(&file).map_or(0, |m| m.len());
    wait_for("the guest's file", || (size() > 4).then_some(()));
    let lease = client.freeze(LONG).unwrap();
    let main = client.status().unwrap().pid.unwrap();
    let inside =
        std::fs::read_to_string(client.status().unwrap().freezer.join("cgroup.procs")).unwrap();
    for pid in inside.lines().map(|line| line.parse::<i32>().unwrap()) {
        let own = pid == main || offshoot_sys::process::identity(pid).unwrap().parent == main;
        assert!(own, "{pid} in the node's freezer");
    }
    assert!(node.cgroup().processes().contains(&session.pid()));
    let before = size();
    let deadline = Instant::now() + Duration::from_millis(100);
    while Instant::now() < deadline {
        assert_eq!(size(), before);
    }
    lease.thaw().unwrap();
    wait_for("the guest to go on", || (size() > before).then_some(()));
    assert!(!node.cgroup().guest_freezer().exists());
    let pid = session.pid();
    drop(session);
    assert!(!alive(pid));
    assert!(client.guests().unwrap().is_empty());
}

#[test]
fn a_session_begun_in_a_freeze_waits_for_its_end() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    let client = node.start();
    let lease = client.freeze(Duration::from_millis(300)).unwrap();
    let asked = Instant::now();
    assert_eq!(node.exec("echo later").output, "later\n");
    assert!(asked.elapsed() > Duration::from_millis(200));
    drop(lease);
}

#[test]
fn processes_that_change_their_program_all_the_time_are_frozen() {
    if !fit() {
        return;
    }
    // Every session begins as runc, a program of several threads, and becomes another by execve(2).
    let node = TestNode::new("sleep 1000");
    let client = node.start();
    let running = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while running.load(std::sync::atomic::Ordering::Relaxed) {
                    node.exec("true");
                }
            });
        }
        for _ in 0..30 {
            let lease = client.freeze(Duration::from_secs(5));
            let thawed = lease.map(|lease| lease.thaw().is_ok());
            if !matches!(thawed, Ok(true)) {
                running.store(false, std::sync::atomic::Ordering::Relaxed);
                panic!("{thawed:?}");
            }
        }
        running.store(false, std::sync::atomic::Ordering::Relaxed);
    });
}
