//! Equal memory of an environment and its clone is kept once, by the kernel's merging thread, which is found afterwards as it was.

use std::path::Path;
use std::time::Duration;

use offshoot_e2e::support::{pids, rungs};
use offshoot_e2e::{TestDaemon, wait_for};
use offshoot_sys::merge::{self, Merger, Run, Settings};

const HEAVY: &str = r#"
services:
  web:
    image: IMAGE
    environment: {BALLAST_MIB: "64"}
    stop_grace_period: 200ms
    x-offshoot: {entry: 8080}
"#;
/// Pages of the ballast.
const PAGES: u64 = 64 << 8;

/// The host's merging thread; put back however the test ends.
struct Host {
    merger: Merger,
    found: Settings,
}

impl Host {
    fn fit() -> Option<Self> {
        let merger = Merger::at(Path::new(merge::DIR));
        match merger.settings() {
            Ok(found) if found.run == Run::Stands && merge::can_be_allowed() => {
                return Some(Self { merger, found });
            }
            Ok(_) if merge::can_be_allowed() => {
                println!("SKIPPED: somebody else merges this host's memory");
            }
            _ => println!("SKIPPED: needs Linux 6.7 with CONFIG_KSM"),
        }
        None
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.merger
            .set(&self.found)
            .expect("the host can be put back");
    }
}

/// How many pages of an environment's main processes are kept once with others.
fn merged(daemon: &TestDaemon, environment: &str) -> u64 {
    let of = |(_, pid): (String, i64)| {
        std::fs::read_to_string(format!("/proc/{pid}/ksm_merging_pages"))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    pids(daemon, environment).into_iter().filter_map(of).sum()
}

#[test]
fn equal_memory_of_clones_is_kept_once() {
    let Some(host) = Host::fit() else {
        return;
    };
    let mut daemon = TestDaemon::start_sharing();
    daemon.create("shop", HEAVY);
    wait_for("the parent", Duration::from_secs(60), || {
        daemon.node("shop", "/set?v=kept").ok()
    });
    assert_eq!(host.merger.settings().unwrap(), host.found, "no clone yet");
    let clone = |from: &str, name: &str| {
        let operation = daemon.json(&["clone", from, "--name", name]);
        assert_eq!(rungs(&operation)["web-1"], "live", "{operation:#}");
    };
    let wait_merged = |names: &[&str]| {
        for name in names {
            wait_for(
                &format!("shared memory of {name}"),
                Duration::from_secs(120),
                || (merged(&daemon, name) > PAGES * 8 / 10).then_some(()),
            );
            let answer = daemon.node(name, "/ballast").expect("it answers");
            assert_eq!(
                (&answer["ballast"], &answer["value"]),
                (&true.into(), &"kept".into())
            );
        }
    };
    clone("shop", "second");
    wait_merged(&["shop", "second"]);
    // What is shared comes along, and is shared with one more.
    clone("second", "third");
    wait_merged(&["shop", "second", "third"]);
    wait_for("it merges", Duration::from_secs(60), || {
        let now = host.merger.settings().unwrap();
        // In a cut it rests for a minute.
        (now.run == Run::Merges && now.sleep_millisecs < 60_000).then_some(())
    });
    // A daemon that ends puts it back; the next one takes it again, and knows what a killed one found.
    daemon.terminate();
    assert_eq!(host.merger.settings().unwrap(), host.found);
    daemon.launch(&[]);
    daemon.wait_up();
    wait_for("it merges again", Duration::from_secs(60), || {
        (host.merger.settings().unwrap().run == Run::Merges).then_some(())
    });
    daemon.kill();
    daemon.launch(&[]);
    daemon.wait_up();
    daemon.run(&["rm", "--force", "second", "third"]);
    wait_for("the host as it was", Duration::from_secs(60), || {
        (host.merger.settings().unwrap() == host.found).then_some(())
    });
    let answer = daemon.node("shop", "/ballast").expect("it answers");
    assert_eq!(answer["ballast"], true);
    daemon.finish(&["shop"]);
}
