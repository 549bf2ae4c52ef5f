//! The example with PostgreSQL and a Python application: made from packages, cloned alive, whole in both.

use std::path::Path;
use std::time::Duration;

use offshoot_e2e::support::{self, SOON};
use offshoot_e2e::{EDGE, TestDaemon, http, wait_for};
use serde_json::Value;

#[test]
fn the_example_is_cloned_alive_with_its_database_session() {
    let daemon = TestDaemon::start_with_packages();
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/postgres-python/compose.yaml");
    let created = daemon.json(&[
        "create",
        "-f",
        &file.display().to_string(),
        "--name",
        "notes",
    ]);
    println!("create: {}", created["steps"]);
    let status = |name: &str| -> Value {
        wait_for(&format!("{name} to answer"), SOON, || {
            daemon.node(name, "/status").ok()
        })
    };
    note(&daemon, "notes", "before the clone");
    let first = status("notes");
    let before = status("notes");
    assert_eq!(
        before["counter"].as_u64(),
        first["counter"].as_u64().map(|n| n + 1)
    );
    assert_eq!(before["database"]["connects"], 1);

    let operation = daemon.json(&["clone", "notes"]);
    println!(
        "frozen for {} ms",
        operation["report"]["freeze_us"].as_u64().unwrap_or(0) / 1000
    );
    for (node, rung) in support::rungs(&operation) {
        assert_eq!(rung, "live", "{node}: {operation:#}");
    }
    for name in ["notes", "notes-clone"] {
        let now = status(name);
        assert_eq!(
            now["started"], before["started"],
            "{name}: the process is the same"
        );
        assert_eq!(
            now["counter"].as_u64(),
            before["counter"].as_u64().map(|n| n + 1),
            "{name}: its memory is"
        );
        for key in ["connects", "backend_pid", "backend_start"] {
            assert_eq!(
                now["database"][key], before["database"][key],
                "{name}: the session is ({key})"
            );
        }
        assert!(
            now["database"]["session_queries"].as_u64()
                > before["database"]["session_queries"].as_u64(),
            "{now}"
        );
    }
    note(&daemon, "notes", "only in the parent");
    note(&daemon, "notes-clone", "only in the clone");
    note(&daemon, "notes-clone", "and another");
    assert_eq!(
        notes(&daemon, "notes"),
        "before the clone\nonly in the parent\n"
    );
    assert_eq!(
        notes(&daemon, "notes-clone"),
        "before the clone\nonly in the clone\nand another\n"
    );

    for name in ["notes", "notes-clone"] {
        let check = "/usr/lib/postgresql/15/bin/pg_amcheck --install-missing --heapallindexed --verbose -d notes 2>&1; echo ended with $?";
        let told = daemon.run(&["exec", name, "postgres", "--", "/bin/sh", "-c", check]);
        assert!(told.trim_end().ends_with("ended with 0"), "{name}: {told}");
        let sums = "psql -d notes -Atc \"SELECT count(*), coalesce(sum(checksum_failures), 0) FROM pg_stat_database\"";
        println!("{name}: {}", support::sh(&daemon, name, "postgres", sums));
    }
    // The clone's database recovers from its disk alone, too.
    daemon.run(&["stop", "notes-clone"]);
    daemon.run(&["start", "notes-clone"]);
    wait_for("the notes to be there", Duration::from_secs(60), || {
        let told = daemon.get("notes-clone", "/").ok()?;
        (told.status == 200 && told.body.ends_with("and another\n")).then_some(())
    });
    // So does a clone of its disks as they are while it runs: what a power failure would leave.
    daemon.run(&["clone", "notes", "--rung", "disk", "--name", "cold"]);
    wait_for("the cold clone to answer", Duration::from_secs(60), || {
        let told = daemon.get("cold", "/").ok()?;
        (told.status == 200 && told.body == "before the clone\nonly in the parent\n").then_some(())
    });
    daemon.finish(&["notes", "notes-clone", "cold"]);
}

fn notes(daemon: &TestDaemon, name: &str) -> String {
    daemon.get(name, "/").expect("it answers").body
}

#[track_caller]
fn note(daemon: &TestDaemon, name: &str, text: &str) {
    let host = format!("{name}.localhost");
    let answer = daemon.inside(|| http::send(EDGE, &host, "POST", "/notes", &[], text.as_bytes()));
    assert_eq!(answer.expect("an answer").status, 201);
}
