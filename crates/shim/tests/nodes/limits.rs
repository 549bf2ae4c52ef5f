//! Memory, processor, processes, rlimits.

use crate::support::*;
use offshoot_model::manifest::{Limits, Ulimit};
use offshoot_runtime::cgroup::Hierarchies;
use offshoot_runtime::*;

/// What a controller's file says about the node.
fn value(node: &TestNode, v1: &str, v2: &str) -> String {
    let path = node.cgroup();
    let file = match Hierarchies::of_host().unwrap() {
        Hierarchies::V1 { freezer, .. } => {
            let (controller, file) = v1.split_once('/').unwrap();
            let inside = path.freezer();
            freezer
                .with_file_name(controller)
                .join(inside.strip_prefix(&freezer).unwrap())
                .join(file)
        }
        Hierarchies::V2 { .. } => path.freezer().join(v2),
    };
    std::fs::read_to_string(&file)
        .unwrap_or_else(|e| panic!("{}: {e}", file.display()))
        .trim()
        .to_owned()
}

#[test]
fn limits_are_set_and_hold() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000").with(|spec| {
        spec.limits = Limits {
            memory: Some(64 << 20),
            milli_cpus: Some(250),
            pids: Some(20),
        };
    });
    node.start();
    assert_eq!(
        value(&node, "memory/memory.limit_in_bytes", "memory.max"),
        (64 << 20).to_string()
    );
    assert_eq!(value(&node, "pids/pids.max", "pids.max"), "20");
    let quota = value(&node, "cpu/cpu.cfs_quota_us", "cpu.max");
    assert_eq!(quota.split(' ').next().unwrap(), "25000");
    let many = node.exec("for i in $(seq 40); do sleep 1000 >/dev/null 2>&1 & done; wait");
    assert!(many.output.contains("can't fork"), "{}", many.output);
}

#[test]
fn running_out_of_memory_is_told() {
    if !fit() {
        return;
    }
    let node = TestNode::new("x=$(head -c 200000000 /dev/zero | busybox tr '\\0' x); echo ${#x}")
        .with(|spec| spec.limits.memory = Some(32 << 20));
    let (record, _) = node.run();
    assert!(record.out_of_memory, "{record:?}");
}

#[test]
fn resource_limits_are_lowered_to_the_hosts_and_that_is_said() {
    if !fit() {
        return;
    }
    let node = TestNode::new("ulimit -n; ulimit -Hn; ulimit -c; sleep 1000").with(|spec| {
        spec.ulimits.insert(
            "nofile".into(),
            Ulimit {
                soft: 123,
                hard: u64::MAX,
            },
        );
        spec.ulimits
            .insert("core".into(), Ulimit { soft: 0, hard: 0 });
        spec.process.user = UserSpec {
            uid: 1000,
            gid: 1000,
            groups: vec![],
        };
    });
    let client = node.start();
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .maximum
        .unwrap();
    let log = wait_for("three lines", || {
        Some(node.log()).filter(|log| log.lines().count() == 3)
    });
    assert_eq!(
        log.lines().collect::<Vec<_>>(),
        ["123", &most.to_string(), "0"]
    );
    let warnings = client.status().unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("nofile") && w.contains(&most.to_string())),
        "{warnings:?}"
    );
    let unknown = TestNode::new("true").with(|spec| {
        spec.ulimits
            .insert("nonsense".into(), Ulimit { soft: 1, hard: 1 });
    });
    assert!(
        ensure_node(&unknown.spec)
            .unwrap_err()
            .to_string()
            .contains("nonsense")
    );
    assert!(!unknown.spec.run_dir.exists());
}
