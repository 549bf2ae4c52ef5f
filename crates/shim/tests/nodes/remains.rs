//! Half-broken nodes are found and removed, and nothing stays.

use crate::support::*;
use offshoot_runtime::*;
use std::time::Duration;

fn kill9(pid: i32) {
    offshoot_sys::process::Process::open(pid)
        .unwrap()
        .signal(9)
        .unwrap();
    wait_for("the end of a process", || (!alive(pid)).then_some(()));
}

#[test]
fn a_killed_shim_leaves_a_node_that_is_lost_and_is_started_again() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000 & sleep 1000");
    let client = node.start();
    let status = client.status().unwrap();
    kill9(status.shim.unwrap());
    assert_eq!(observe(&node.spec.run_dir).unwrap().state, RunState::Lost);
    assert!(matches!(
        client.wait(Duration::ZERO),
        Err(RuntimeError::NotRunning { .. })
    ));
    assert!(matches!(
        client.stop(15, Duration::ZERO),
        Err(RuntimeError::NotRunning { .. })
    ));
    let main = status.pid.unwrap();
    assert!(alive(main), "it runs on, its pipes broken");
    let again = node.start().status().unwrap();
    assert!(!alive(main) && again.pid != Some(main));
    assert_eq!(again.state, RunState::Running);
}

#[test]
fn a_shim_killed_in_a_freeze_leaves_a_node_that_can_be_removed() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    let client = node.start();
    let _lease = client.freeze(LONG).unwrap();
    let pid = offshoot_runtime::observe(&node.spec.run_dir).unwrap();
    kill9(pid.shim.unwrap());
    assert!(node.cgroup().is_frozen() && alive(pid.pid.unwrap()));
    node.remove();
    assert!(!alive(pid.pid.unwrap()) && !node.cgroup().exists() && !node.spec.run_dir.exists());
    node.remove();
}

#[test]
fn a_stopped_shim_is_removed() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    let status = node.start().status().unwrap();
    let shim = offshoot_sys::process::Process::open(status.shim.unwrap()).unwrap();
    // It can do nothing any more, not even end by itself.
    shim.signal(19).unwrap();
    node.remove();
    assert!(!alive(status.shim.unwrap()) && !alive(status.pid.unwrap()));
}

#[test]
fn a_killed_main_process_is_an_end_like_any_other() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    let client = node.start();
    let status = client.status().unwrap();
    kill9(status.pid.unwrap());
    assert_eq!(client.wait(LONG).unwrap().unwrap().signal, Some(9));
    wait_for("the shim's end", || {
        (!alive(status.shim.unwrap())).then_some(())
    });
    assert_eq!(observe(&node.spec.run_dir).unwrap().state, RunState::Exited);
    assert!(!node.cgroup().exists());
}

#[test]
fn leftovers_without_a_directory_are_found_by_their_cgroup() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    let status = node.start().status().unwrap();
    kill9(status.shim.unwrap());
    std::fs::remove_dir_all(&node.spec.run_dir).unwrap();
    node.remove();
    assert!(!alive(status.pid.unwrap()) && !node.cgroup().exists());
}

#[test]
fn a_start_killed_anywhere_leaves_what_can_be_removed() {
    if !fit() {
        return;
    }
    // The shim is killed after more and more of its start was done.
    for after in 0..12 {
        let node = TestNode::new("sleep 1000");
        let spec = node.spec.clone();
        let starter = std::thread::spawn(move || ensure_node(&spec).map(drop));
        let find = || {
            let spec_path = node.spec.path().into_os_string().into_encoded_bytes();
            let named = |pid: &i32| {
                offshoot_sys::process::arguments(*pid).is_ok_and(|a| a.contains(&spec_path))
            };
            offshoot_sys::process::all()
                .unwrap()
                .into_iter()
                .find(named)
        };
        let shim = wait_for("the shim", find);
        std::thread::sleep(Duration::from_millis(after * 6));
        if let Ok(process) = offshoot_sys::process::Process::open(find().unwrap_or(shim)) {
            let _ = process.signal(9);
        }
        // Whatever the starter says: it was early, or the node had been running.
        let _ = starter.join().unwrap();
        node.remove();
        assert!(
            !node.spec.run_dir.exists() && !node.cgroup().exists(),
            "after {after}"
        );
    }
}

#[test]
fn a_neighbour_is_left_alone() {
    if !fit() {
        return;
    }
    let one = TestNode::new("sleep 1000");
    // Same environment, same instance, another number.
    let other = TestNode::new("sleep 1000").with(|spec| {
        spec.node = format!("{}.web-10", one.spec.node.env()).parse().unwrap();
        spec.run_dir = one.spec.run_dir.with_file_name("web-10");
    });
    one.start();
    let client = other.start();
    one.remove();
    assert_eq!(client.status().unwrap().state, RunState::Running);
    assert_eq!(other.exec("echo fine").output, "fine\n");
    let environment = other.cgroup().freezer().parent().unwrap().to_owned();
    other.remove();
    assert!(
        !environment.exists(),
        "the last node takes the environment's cgroup with it"
    );
}
