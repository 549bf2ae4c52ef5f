//! Start, end, logs, stop, kill.

use crate::support::*;
use offshoot_runtime::logs::LINE_MAX;
use offshoot_runtime::*;
use std::time::{Duration, Instant};

#[test]
fn a_node_prints_and_ends_with_its_status() {
    if !fit() {
        return;
    }
    let node = TestNode::new("echo out; echo err >&2; echo named > /dev/stdout; cat; exit 7");
    let (record, log) = node.run();
    assert_eq!(
        (record.status, record.signal, record.out_of_memory),
        (7, None, false)
    );
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "named", "out"]);
    let status = observe(&node.spec.run_dir).unwrap();
    assert_eq!(
        (status.state, status.exit),
        (RunState::Exited, Some(record))
    );
    assert!(!node.cgroup().exists());
    // Again, over what the first run left; its record is not the old one.
    let (again, _) = node
        .with(|spec| spec.process.args = vec!["/bin/true".into()])
        .run();
    assert_eq!(again.status, 0);
}

#[test]
fn a_program_that_is_not_there_is_a_problem_and_leaves_nothing() {
    if !fit() {
        return;
    }
    let node = TestNode::new("").with(|spec| spec.process.args = vec!["/bin/nonsense".into()]);
    let problem = ensure_node(&node.spec).unwrap_err().problem();
    assert_eq!(problem.code, offshoot_model::Code::StartFailed);
    assert!(
        problem.details.iter().any(|d| d.contains("nonsense")),
        "{problem:#?}"
    );
    assert!(!node.spec.run_dir.exists() && !node.cgroup().exists());
}

#[test]
fn a_closed_directory_on_the_way_is_named() {
    if !fit() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let node = TestNode::new("true");
    std::fs::set_permissions(&node.dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let error = ensure_node(&node.spec).unwrap_err().to_string();
    assert!(
        error.contains(&node.dir.display().to_string()) && error.contains("o+x"),
        "{error}"
    );
}

#[test]
fn starting_twice_is_starting_once() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    let first = node.start().status().unwrap();
    let second = node.start().status().unwrap();
    assert_eq!((first.pid, first.shim), (second.pid, second.shim));
    assert_eq!(first.state, RunState::Running);
    assert_eq!(
        observe(&node.dir.join("nowhere")).unwrap().state,
        RunState::Absent
    );
}

#[test]
fn the_shim_outlives_whoever_started_it() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    let status = node.start().status().unwrap();
    let shim = offshoot_sys::process::identity(status.shim.unwrap()).unwrap();
    assert_ne!(shim.parent, std::process::id().cast_signed());
    // Its children, the node's main process among them, are its own.
    let main = offshoot_sys::process::identity(status.pid.unwrap()).unwrap();
    assert_eq!(main.parent, status.shim.unwrap());
}

#[test]
fn stop_asks_then_kills() {
    if !fit() {
        return;
    }
    let polite =
        TestNode::new("trap 'echo bye; exit 3' TERM; echo up; while true; do sleep 0.05; done");
    let client = polite.start();
    polite.wait_log("up");
    assert_eq!(client.stop(15, LONG).unwrap().status, 3);
    assert!(polite.log().contains("bye"));
    // Once more: it ended already.
    assert_eq!(client.stop(15, LONG).unwrap().status, 3);

    let deaf = TestNode::new("trap '' TERM; echo up; while true; do sleep 0.05; done");
    let client = deaf.start();
    deaf.wait_log("up");
    let asked = Instant::now();
    let record = client.stop(15, Duration::from_millis(300)).unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert_eq!((record.status, record.signal), (137, Some(9)));
    assert_eq!(client.wait(LONG).unwrap(), Some(record));
}

#[test]
fn kill_ends_what_the_main_process_started() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000 & sleep 1000 & echo up; wait");
    let client = node.start();
    node.wait_log("up");
    let pids = wait_for("three processes", || {
        Some(node.cgroup().processes()).filter(|pids| pids.len() == 3)
    });
    assert_eq!(client.kill().unwrap().signal, Some(9));
    assert!(pids.into_iter().all(|pid| !alive(pid)));
}

#[test]
fn signals_reach_the_main_process() {
    if !fit() {
        return;
    }
    let node = TestNode::new("trap 'echo got hup' HUP; echo up; while true; do sleep 0.05; done");
    let client = node.start();
    node.wait_log("up");
    client.signal(1).unwrap();
    node.wait_log("got hup");
    assert!(client.signal(0x1000).is_err());
    assert_eq!(client.wait(Duration::from_millis(1)).unwrap(), None);
}

#[test]
fn a_flood_of_output_is_rotated_and_stops_nobody() {
    if !fit() {
        return;
    }
    // 48 MiB and one line that is too long.
    let node = TestNode::new(
        "yes $(head -c 900 /dev/zero | busybox tr '\\0' y) | head -c 50000000; head -c 40000 /dev/zero | busybox tr '\\0' x; echo; echo end",
    );
    let (record, log) = node.run();
    assert_eq!(record.status, 0);
    assert!(log.ends_with("end\n"));
    assert!(log.lines().all(|line| line.len() <= LINE_MAX));
    let size: u64 = std::fs::read_dir(&node.spec.log_dir)
        .unwrap()
        .map(|f| f.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size > 24 << 20 && size < 33 << 20, "{size}");
    let tail = read_logs(
        &node.spec.log_dir,
        LogQuery {
            tail: Some(4),
            since: None,
        },
    )
    .unwrap();
    let tail: Vec<LogLine> = tail.map(Result::unwrap).collect();
    let continues: Vec<bool> = tail.iter().map(|l| l.continues).collect();
    assert_eq!(continues, [true, true, false, false]);
}

#[test]
fn an_init_reaps_and_passes_signals() {
    if !fit() {
        return;
    }
    // The orphan's parent ends at once; without an init nobody would reap it.
    let script = "(sleep 0.01 & exec true); trap 'echo got term; exit 5' TERM; echo up; while true; do sleep 0.05; done";
    let node = TestNode::new(script).with(|spec| spec.init = true);
    let client = node.start();
    node.wait_log("up");
    let zombies = || {
        node.exec("grep -h State /proc/[0-9]*/status")
            .output
            .contains('Z')
    };
    wait_for("no zombies", || (!zombies()).then_some(()));
    assert!(
        node.exec("cat /proc/1/cmdline")
            .output
            .starts_with("/.offshoot-init")
    );
    assert_eq!(client.stop(15, LONG).unwrap().status, 5);
    assert!(node.log().contains("got term"));
    let missing = TestNode::new("").with(|spec| {
        spec.init = true;
        spec.process.args = vec!["nonsense".into()];
    });
    assert_eq!(missing.run().0.status, 127);
}

#[test]
fn several_nodes_run_side_by_side() {
    if !fit() {
        return;
    }
    let nodes: Vec<TestNode> = (0..8)
        .map(|i| TestNode::new(&format!("echo i am {i}; sleep 1000")))
        .collect();
    std::thread::scope(|scope| {
        for (i, node) in nodes.iter().enumerate() {
            scope.spawn(move || {
                let client = node.start();
                node.wait_log(&format!("i am {i}"));
                assert_eq!(node.exec("echo $HOSTNAME").output, "web-1.test\n");
                client.kill().unwrap();
                node.remove();
            });
        }
    });
}
