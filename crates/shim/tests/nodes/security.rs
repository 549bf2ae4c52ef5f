//! What a node may not do.

use crate::support::*;
use crate::{probe, support::TestNode};
use offshoot_runtime::*;
use std::collections::BTreeMap;

const EPERM: &str = "1";
const ENOSYS: &str = "38";

fn probed(change: impl FnOnce(&mut NodeSpec)) -> BTreeMap<String, String> {
    let node = TestNode::new("").with(|spec| {
        probe::install(spec);
        change(spec);
    });
    let (record, log) = node.run();
    assert_eq!(record.status, 0, "{log}");
    probe::parse(&log)
}

#[test]
fn a_process_may_what_dockers_may_and_less() {
    if !fit() {
        return;
    }
    let seen = probed(|_| {});
    let say = |name: &str| seen.get(name).map_or("", String::as_str);
    assert_eq!((say("io_uring"), say("io_setup")), (ENOSYS, ENOSYS));
    assert_eq!((say("unshare"), say("mount")), (EPERM, EPERM));
    assert_eq!(
        (say("af_vsock"), say("af_alg"), say("mptcp")),
        (EPERM, EPERM, EPERM)
    );
    assert_eq!((say("tcp"), say("raw"), say("thread")), ("0", "0", "7"));
    // Docker's fourteen.
    assert_eq!(
        (say("CapEff"), say("CapBnd")),
        ("00000000a80425fb", "00000000a80425fb")
    );
    assert_eq!(
        (say("CapInh"), say("CapAmb")),
        ("0000000000000000", "0000000000000000")
    );
    assert_eq!((say("NoNewPrivs"), say("Seccomp")), ("1", "2"));
}

#[test]
fn capabilities_are_added_and_dropped() {
    if !fit() {
        return;
    }
    let none = probed(|spec| {
        spec.cap_drop.push("ALL".into());
        spec.no_new_privileges = false;
    });
    assert_eq!(
        (
            none["CapEff"].as_str(),
            none["raw"].as_str(),
            none["NoNewPrivs"].as_str()
        ),
        ("0000000000000000", EPERM, "0")
    );
    let admin = probed(|spec| spec.cap_add.push("SYS_ADMIN".into()));
    assert_eq!(
        (admin["mount"].as_str(), admin["io_uring"].as_str()),
        ("0", ENOSYS)
    );
    let user = probed(|spec| {
        spec.process.user = UserSpec {
            uid: 1000,
            gid: 1000,
            groups: vec![],
        }
    });
    assert_eq!(
        (user["CapEff"].as_str(), user["raw"].as_str()),
        ("0000000000000000", EPERM)
    );
}

/// Docker masks these; here the user namespace must refuse them without a mount each. See docs/nodes.md.
#[test]
fn what_docker_masks_is_refused_by_the_user_namespace() {
    if !fit() {
        return;
    }
    let script = "
        for f in /proc/kcore /proc/timer_list /proc/kmsg /proc/kpagecount /proc/slabinfo /proc/vmallocinfo /sys/kernel/debug/x; do
            head -c1 $f >/dev/null 2>&1 && echo readable $f; done
        for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/panic /proc/sys/vm/drop_caches /proc/sys/fs/file-max \
            /proc/sys/kernel/modprobe /proc/sys/kernel/yama/ptrace_scope /proc/sys/kernel/randomize_va_space /proc/irq/default_smp_affinity \
            /proc/scsi/scsi /proc/acpi/wakeup /proc/mtrr /proc/latency_stats /sys/kernel/mm/transparent_hugepage/enabled \
            /sys/kernel/uevent_helper /sys/power/state; do
            (: < $f) 2>/dev/null || [ ! -e $f ] || echo unreadable $f
            (echo 1 > $f) 2>/dev/null && echo WRITABLE $f; done
        for d in /sys/firmware /sys/devices/virtual/powercap /proc/bus /proc/fs; do
            for f in $(busybox find $d -type f 2>/dev/null | head -n 300); do (echo 1 > $f) 2>/dev/null && echo WRITABLE $f; done; done
        for f in $(busybox find /proc/sys -type f 2>/dev/null | grep -v -e /proc/sys/net/ -e /proc/sys/user/ -e /proc/sys/fs/mqueue/); do
            v=$(cat $f 2>/dev/null) && (echo \"$v\" > $f) 2>/dev/null && echo WRITABLE $f; done
        mknod /tmp/sda b 8 0 2>/dev/null && echo made a device
        (echo 12345 > /proc/sys/kernel/pid_max) 2>/dev/null
        echo $(head -c 3 /dev/zero | busybox wc -c) zeros
        echo done";
    let pid_max = || std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let before = pid_max();
    let node = TestNode::new(script);
    let (_, log) = node.run();
    assert_eq!(pid_max(), before);
    // These belong to the node's own IPC namespace and, since Linux 6.14, to its own PID namespace.
    let own = |line: &str| {
        let names = ["auto_msgmni", "msg", "pid_max", "sem", "shm"];
        names
            .iter()
            .any(|name| line.starts_with(&format!("WRITABLE /proc/sys/kernel/{name}")))
    };
    let bad: Vec<&str> = log
        .lines()
        .filter(|line| !own(line) && !line.starts_with("unreadable"))
        .collect();
    assert_eq!(bad, ["3 zeros", "done"], "{log}");
}

#[test]
fn one_environments_root_is_nobody_in_another() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    let status = node.start().status().unwrap();
    // Through /proc a process of the node could name host paths only if it were root outside.
    let seen = node.exec("ls /proc/1/root/ >/dev/null && echo own; kill -0 1 && echo kill own; busybox ls / | head -c 1000");
    assert!(seen.output.starts_with("own\nkill own\n"));
    assert!(!seen.output.contains("work") && !seen.output.contains("home"));
    let uid = std::fs::read_to_string(format!("/proc/{}/status", status.pid.unwrap())).unwrap();
    let line = uid.lines().find(|l| l.starts_with("Uid:")).unwrap();
    assert_eq!(line.split_whitespace().nth(1), Some("200000"));
}

#[test]
fn only_the_nodes_own_settings_can_be_set() {
    if !fit() {
        return;
    }
    let node = TestNode::new(
        "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni; sleep 1000",
    )
    .with(|spec| {
        spec.sysctls
            .insert("net.core.somaxconn".into(), "77".into());
        spec.sysctls.insert("kernel.shmmni".into(), "99".into());
    });
    node.start();
    node.wait_log("77\n99\n");
    let before = std::fs::read_to_string("/proc/sys/kernel/panic").unwrap();
    let host = TestNode::new("true").with(|spec| {
        spec.sysctls.insert("kernel.panic".into(), "42".into());
    });
    assert!(
        ensure_node(&host.spec)
            .unwrap_err()
            .to_string()
            .contains("kernel.panic")
    );
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/panic").unwrap(),
        before
    );
}
