//! Start, end, logs, stop, kill.

use crate::support::*;
use offshoot_runtime::*;
use std::time::{Duration, Instant};

#[test]
fn a_node_prints_and_ends_with_its_status() {
    if !fit() {
        return;
    }
    let node = TestNode::new("echo out; echo err >&2; echo named > /dev/stdout; exit 7");
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
}
