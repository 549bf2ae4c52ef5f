//! Schedulers that stand still while jobs are held: started afresh, started later, and brought back from a cut.

use std::fs;

use offshoot_runtime::*;

use crate::restore::{checkpoint, clone_from, criu_dir};
use crate::support::*;
use crate::thin::thin;

/// Appends a line to a file again and again.
const TICK: &str = "while :; do echo tick >> /tmp/ticks; sleep 0.01; done";

/// A node that runs `script`, with a scheduler by its name: a shell called `/sbin/cron`.
fn node(script: &str) -> Option<TestNode> {
    if !fit() {
        return None;
    }
    let Some(shell) = ["/usr/bin/dash", "/usr/bin/bash"]
        .into_iter()
        .find(|path| fs::exists(path).unwrap())
    else {
        println!("SKIPPED: needs dash or bash in /usr/bin");
        return None;
    };
    let node = TestNode::new(script).with(|spec| {
        bind_usr(spec);
        fs::create_dir(spec.rootfs.join("sbin")).unwrap();
        fs::copy(shell, spec.rootfs.join("sbin/cron")).unwrap();
        spec.init = true;
    });
    Some(node)
}

impl TestNode {
    fn ticks(&self) -> usize {
        fs::read(self.spec.rootfs.join("tmp/ticks")).map_or(0, |text| text.len())
    }

    fn wait_more_ticks(&self) {
        let before = self.ticks();
        wait_for("tick", || (self.ticks() > before).then_some(()));
    }

    /// Waits until the node's other process did 20 steps more.
    fn wait_steps(&self) {
        let steps = || self.log().matches("step").count();
        let before = steps();
        wait_for("step", || (steps() >= before + 20).then_some(()));
    }

    fn held(&self) -> Vec<String> {
        observe(&self.spec.run_dir).unwrap().held
    }
}

/// A scheduler in the background, and another process that goes on.
fn both() -> String {
    format!("/sbin/cron -c '{TICK}' & while :; do echo step; sleep 0.01; done")
}

#[test]
fn a_scheduler_that_starts_stands_before_its_first_instruction() {
    let Some(node) = node(&both()) else { return };
    let node = node.with(|spec| spec.hold_jobs = true);
    let client = node.start();
    wait_for("held scheduler", || (node.held().len() == 1).then_some(()));
    node.wait_steps();
    assert_eq!(node.ticks(), 0);
    assert!(
        node.held()[0].starts_with("cron (process "),
        "{:?}",
        node.held()
    );

    // By another's hand, and as one of many programs.
    let other = node.exec(
        "/sbin/cron -c 'echo tick >> /tmp/ticks' > /dev/null 2>&1 & \
         busybox crond -f -c /tmp > /dev/null 2>&1 & echo started",
    );
    assert_eq!(other.output, "started\n");
    wait_for("three held schedulers", || {
        (node.held().len() == 3).then_some(())
    });
    assert_eq!(node.ticks(), 0);

    client.hold_jobs(false).unwrap();
    node.wait_more_ticks();
    assert!(!observe(&node.spec.run_dir).unwrap().jobs_held);
    assert_eq!(node.held(), Vec::<String>::new());
}

#[test]
fn a_node_that_is_a_scheduler_stands_and_stops_at_once() {
    let Some(node) = node("") else { return };
    let node = node.with(|spec| {
        spec.hold_jobs = true;
        spec.init = false;
        spec.process.args = ["/sbin/cron", "-c", TICK].map(String::from).to_vec();
    });
    let client = node.start();
    wait_for("held scheduler", || (node.held().len() == 1).then_some(()));
    let record = client.stop(15, LONG * 10).unwrap();
    assert_eq!((record.signal, node.ticks()), (Some(9), 0));
}

#[test]
fn schedulers_that_run_are_held_and_let_go_again_and_again() {
    let Some(node) = node(&both()) else { return };
    let client = node.start();
    for _ in 0..3 {
        node.wait_more_ticks();
        client.hold_jobs(true).unwrap();
        // What it had begun may still end.
        node.wait_steps();
        let ticks = node.ticks();
        node.wait_steps();
        assert_eq!(node.ticks(), ticks);
        assert_eq!(node.held().len(), 1);
        client.hold_jobs(false).unwrap();
    }
    node.wait_more_ticks();
}

/// A clone of a node whose scheduler is at work; its memory comes with CRIU's images, or partly late.
fn clone_of_one_at_work(late: bool) {
    let Some(criu) = criu_dir() else { return };
    // Large enough to come late.
    let Some(parent) = node(&format!(
        "/sbin/cron -c '{TICK}' & i=0; x=x; while [ $i -lt 22 ]; do x=$x$x; i=$((i+1)); done; while :; do echo step; sleep 0.01; done"
    )) else {
        return;
    };
    let parent = parent.with(|spec| spec.tools.criu_dir = Some(criu));
    let at_work = parent.start();
    parent.wait_log("step");
    parent.wait_more_ticks();
    let memory = Mounted::tmpfs_of(parent.dir.join("memory"), 512 << 20);
    let images = memory.0.join("images");
    // As a cut does it: in a freeze of ours nobody stands between vfork(2) and execve(2), where CRIU can get hold of nobody.
    let frozen = at_work.freeze(LONG).unwrap();
    checkpoint(&parent, &images);
    frozen.thaw().unwrap();
    if late {
        assert!(thin(&images) > 0, "no page was moved");
    }
    let clone = clone_from(&parent, images).with(|spec| spec.hold_jobs = true);
    let ticks = clone.ticks();
    assert!(ticks > 0, "there is something to go on with");
    let client = clone.start();
    clone.wait_steps();
    assert_eq!(clone.ticks(), ticks, "not one instruction of it ran");
    assert_eq!(clone.held().len(), 1, "{:?}", clone.held());
    parent.wait_more_ticks();

    client.hold_jobs(false).unwrap();
    clone.wait_more_ticks();
    clone.wait_steps();
}

#[test]
fn a_scheduler_from_a_cut_does_not_go_on() {
    clone_of_one_at_work(false);
}

#[test]
fn a_scheduler_from_a_cut_does_not_go_on_where_memory_comes_late() {
    if !fs::exists("/dev/userfaultfd").unwrap() {
        println!("SKIPPED: needs /dev/userfaultfd");
        return;
    }
    clone_of_one_at_work(true);
}
