//! Redis under redis-benchmark, and beside it a client that counts.

use offshoot_e2e::TestDaemon;
use offshoot_e2e::support::sh;

use super::{PATIENCE, clone_twice, create, log_without, number, report, told, wait_for};

pub(crate) fn whole(daemon: &TestDaemon) {
    create(daemon, "redis");
    let clones = clone_twice(daemon, "redis", |name| {
        number(daemon, name, "server", "redis-cli GET count")
    });
    let ask =
        |name: &str, command: &str| sh(daemon, name, "server", &format!("redis-cli {command}"));
    let all = ["redis", &clones[0].name, &clones[1].name];
    for name in all {
        sh(daemon, name, "count", "kill $(pidof perl)");
        sh(daemon, name, "load", "kill $(pidof redis-benchmark)");
    }
    for name in all {
        let counted = told(&report(daemon, name, "count", 0), "counted to");
        assert_eq!(ask(name, "GET count"), counted.to_string(), "{name}");
        let load = report(daemon, name, "load", 143);
        assert!(!load.contains("rror"), "{name}: {load}");

        wait_for("the log to be written anew", PATIENCE, || {
            let state = ask(name, "INFO persistence");
            state.contains("aof_rewrite_in_progress:0").then_some(())
        });
        let digest = ask(name, "DEBUG DIGEST");
        let check = "redis-check-aof /var/lib/redis/appendonlydir/appendonly.aof.manifest";
        let checked = sh(daemon, name, "server", check);
        assert!(
            checked.contains("All AOF files and manifest are valid"),
            "{name}: {checked}"
        );
        assert_eq!(ask(name, "DEBUG LOADAOF"), "OK", "{name}");
        assert_eq!(
            ask(name, "DEBUG DIGEST"),
            digest,
            "{name}: the log has what the memory has"
        );
        log_without(daemon, name, &["rror", "BUG REPORT", "Bad file"]);
        println!("{name}: counted to {counted}");
    }
    for clone in &clones {
        // What was counted while the host had the parent's name: until the cut, or a few more until it got the clone's.
        let parents = ask(&clone.name, "HGET counted count-1.redis");
        let parents: u64 = parents.parse().expect("a number");
        assert!(
            clone.between.contains(&parents),
            "{}: {parents} of {:?}",
            clone.name,
            clone.between
        );
    }
}
