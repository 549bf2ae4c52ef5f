//! A node that runs while its memory still comes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use offshoot_runtime::*;
use offshoot_sys::process;

use crate::restore::{checkpoint, clone_from, criu_dir};
use crate::support::*;
use crate::thin::thin;

/// Whether the memory of a pair is moved out of CRIU's images.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Late,
    AtOnce,
}

/// A parent whose memory was taken and moved out of CRIU's images, and a clone that waits to be started.
struct Pair {
    // first: it is inside the parent's directory, which goes with the parent
    memory: Mounted,
    parent: TestNode,
    clone: TestNode,
}

impl Pair {
    fn of(criu: PathBuf, mib: u64, how: &str, when: When) -> Self {
        let parent = TestNode::new("").with(|spec| {
            bind_usr(spec);
            fs::write(spec.rootfs.join("player.py"), include_str!("player.py")).unwrap();
            let command = format!("/usr/bin/python3 -S -E /player.py {mib} {how}");
            spec.process.args = command.split_whitespace().map(String::from).collect();
            spec.tools.criu_dir = Some(criu);
            spec.init = true;
        });
        parent.start();
        parent.wait_log("ready");
        let memory = Mounted::tmpfs_of(parent.dir.join("memory"), (4 * mib + 512) << 20);
        let images = memory.0.join("images");
        checkpoint(&parent, &images);
        if when == When::Late {
            let moved = thin(&images);
            assert!(moved >= mib * 256, "{moved} pages");
        }
        let clone = clone_from(&parent, images);
        fs::write(clone.spec.rootfs.join("tmp/go"), "").unwrap();
        Self {
            parent,
            clone,
            memory,
        }
    }

    fn new(mib: u64, how: &str) -> Option<Self> {
        if !fs::exists("/usr/bin/python3").unwrap() || !fs::exists("/dev/userfaultfd").unwrap() {
            println!("SKIPPED: needs python3 and /dev/userfaultfd");
            return None;
        }
        let criu = criu_dir().filter(|_| fit())?;
        Some(Self::of(criu, mib, how, When::Late))
    }

    /// Processes that deliver the clone's pages.
    fn sources(&self) -> Vec<process::Process> {
        let spec = self.clone.spec.path().into_os_string().into_encoded_bytes();
        let serves = |pid: i32| {
            let arguments = process::arguments(pid).unwrap_or_default();
            arguments.get(1).is_some_and(|mode| mode == b"memory") && arguments.contains(&spec)
        };
        let all = process::all().unwrap().into_iter();
        all.filter(|pid| serves(*pid))
            .filter_map(|pid| process::Process::open(pid).ok())
            .collect()
    }

    fn source(&self) -> process::Process {
        let first = self.sources().into_iter().min_by_key(process::Process::pid);
        first.expect("a page source")
    }

    fn log_of_shim(&self) -> String {
        fs::read_to_string(self.clone.spec.run_dir.join("shim.log")).unwrap_or_default()
    }

    fn assert_never_wrong(&self) {
        let log = self.clone.log();
        assert!(!log.contains("bad") && !log.contains("Error"), "{log}");
    }
}

#[test]
fn a_node_runs_while_its_memory_comes() {
    let Some(pair) = Pair::new(96, "") else {
        return;
    };
    let began = Instant::now();
    let client = pair.clone.start();
    let started = began.elapsed();
    let to_come = client.status().unwrap().memory_to_come;
    pair.clone.wait_log("first");
    println!(
        "started after {started:?}, first word after {:?}, {to_come} bytes to come",
        began.elapsed()
    );
    assert!(to_come > 0, "{}", pair.log_of_shim());
    wait_for("the end of the checks", || {
        let log = pair.clone.log();
        (log.contains("all ok") && log.contains("other ok")
            || log.contains("bad")
            || log.contains("Error"))
        .then_some(())
    });
    pair.assert_never_wrong();
    client.wait_memory(LONG).unwrap();
    assert_eq!(client.status().unwrap().memory_to_come, 0);
    println!("{}", pair.log_of_shim());
    // Nothing is left of it.
    wait_for("the end of the page source", || {
        pair.sources().is_empty().then_some(())
    });
    for pid in pair.clone.cgroup().processes() {
        let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let watched = |line: &str| line.starts_with("VmFlags") && line.contains(" um");
        assert!(!maps.lines().any(watched), "{maps}");
        for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            assert!(
                !target.to_string_lossy().contains("userfault"),
                "{target:?}"
            );
        }
    }
    // It can be frozen and cut again.
    drop(client.freeze(LONG).unwrap());
    checkpoint(&pair.clone, &pair.memory.0.join("again"));
    assert_eq!(client.status().unwrap().state, RunState::Running);
    pair.assert_never_wrong();
    // The images are used up: nobody can take what is left for the whole.
    client.kill().unwrap();
    let problem = ensure_node(&pair.clone.spec).unwrap_err().problem();
    assert_eq!(problem.code, offshoot_model::Code::RestoreFailed);
    assert_eq!(pair.parent.exec("true").status, 0);
}

#[test]
fn whatever_a_process_does_to_memory_that_still_comes() {
    let Some(pair) = Pair::new(256, "random alone") else {
        return;
    };
    let client = pair.clone.start();
    plays(&pair, &client, Duration::from_micros(100));
    pair.assert_never_wrong();
    client.wait_memory(LONG).unwrap();
}

#[test]
fn whatever_threads_do_at_once_to_memory_that_still_comes() {
    let Some(pair) = Pair::new(256, "threads alone") else {
        return;
    };
    let client = pair.clone.start();
    plays(&pair, &client, Duration::from_millis(5));
    pair.assert_never_wrong();
    client.wait_memory(LONG).unwrap();
}

/// Waits until the node says that all is well, or not. Its page source goes on for `turn` at a time.
fn plays(pair: &Pair, client: &NodeClient, turn: Duration) {
    let source = pair.source();
    // At first it stands most of the time, so that there is something to come for long, and threads wait for it together.
    let began = Instant::now();
    let (mut looks, mut early) = (0, 0);
    wait_for("the end of the play", || {
        if began.elapsed() < Duration::from_secs(8) {
            let _ = source.signal(19);
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = pair.clone.log();
        let _ = source.signal(18);
        std::thread::sleep(turn);
        let said = ["all ok", "bad", "Error"]
            .iter()
            .any(|word| log.contains(word));
        assert!(
            said || !pair.log_of_shim().contains("killed"),
            "{}",
            pair.log_of_shim()
        );
        said.then_some(()).or_else(|| {
            looks += 1;
            early += u32::from(client.status().unwrap().memory_to_come > 0);
            None
        })
    });
    println!("{early} of {looks} times there was something to come");
}

/// Ends one of the processes beside a node whose memory comes: the node ends, and never goes on with wrong memory.
fn ends_with(which: impl Fn(&Pair, &NodeClient)) -> Option<(Pair, Option<ExitRecord>)> {
    let pair = Pair::new(384, "forever")?;
    let client = pair.clone.start();
    which(&pair, &client);
    wait_for("the end of the node", || {
        pair.clone.cgroup().processes().is_empty().then_some(())
    });
    let record = wait_for("the shim's end", || match client.wait(LONG) {
        Ok(record) => Some(record),
        Err(RuntimeError::NotRunning { .. }) => Some(None),
        Err(other) => panic!("{other:?}"),
    });
    wait_for("the end of the page source", || {
        pair.sources()
            .iter()
            .all(|source| !alive(source.pid()))
            .then_some(())
    });
    pair.assert_never_wrong();
    Some((pair, record))
}

#[test]
fn a_node_ends_with_its_page_source() {
    let killed = ends_with(|pair, _| {
        pair.source().signal(9).unwrap();
    });
    if let Some((pair, record)) = killed {
        let record = record.expect("the shim wrote how it ended");
        assert!(record.memory_lost, "{record:?}\n{}", pair.log_of_shim());
    }
}

#[test]
fn a_node_goes_on_without_the_guard() {
    let Some(pair) = Pair::new(128, "forever") else {
        return;
    };
    let client = pair.clone.start();
    let sources = pair.sources();
    assert_eq!(sources.len(), 2);
    let guard = sources.iter().max_by_key(|source| source.pid()).unwrap();
    guard.signal(9).unwrap();
    client.wait_memory(LONG).unwrap();
    pair.clone.wait_log("round");
    pair.assert_never_wrong();
}

#[test]
fn a_node_ends_with_its_shim_while_memory_comes() {
    ends_with(|_, client| {
        let shim = client.status().unwrap().shim.unwrap();
        process::Process::open(shim).unwrap().signal(9).unwrap();
    });
}

/// A measurement: `cargo nextest run -p offshoot-shim --run-ignored only first_instruction`.
#[test]
#[ignore = "takes a minute and needs 6 GiB"]
fn first_instruction_of_a_node_with_a_gibibyte() {
    let Some(criu) = criu_dir().filter(|_| fit()) else {
        return;
    };
    for when in [When::AtOnce, When::Late] {
        let pair = Pair::of(criu.clone(), 1024, "alone", when);
        let began = Instant::now();
        let client = pair.clone.start();
        let started = began.elapsed();
        wait_for("the first word", || {
            pair.clone.log().contains("first").then_some(())
        });
        let first = began.elapsed();
        client.wait_memory(LONG).unwrap();
        let name = if when == When::Late {
            "late"
        } else {
            "at once"
        };
        println!(
            "{name}: restored {started:.1?}, first instruction {first:.1?}, all memory {:.1?}",
            began.elapsed()
        );
        println!("{}", pair.log_of_shim());
    }
}
