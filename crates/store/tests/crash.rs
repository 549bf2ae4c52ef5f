//! A daemon that is killed while it writes: every transaction is there whole or not at all.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{environment, operation, port};
use offshoot_model::EnvironmentState;
use offshoot_model::operation::OperationState;
use offshoot_store::Store;
use serde_json::json;

const CHILD: &str = "OFFSHOOT_STORE_CRASH_CHILD";

/// The child: writes until it is killed, saying after each transaction what is kept.
#[test]
fn crash_child() {
    let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    let store = Store::open(&path).unwrap();
    let mut out = std::io::stdout();
    for n in 0.. {
        let mut shop = environment(n % 200);
        shop.id = offshoot_model::EnvId::random();
        let mut create = operation(&shop);
        let number = 1000 + u16::try_from(n % 200).unwrap();
        let ports = [port("127.0.0.1", number), port("::1", number)];
        store
            .reserve(&shop, &ports, &create, &json!({"n": n}))
            .unwrap();
        writeln!(out, "kept reserved {} {}", shop.id, create.id).unwrap();
        create.state = OperationState::Done;
        store
            .update_in_one(|tx| {
                tx.set_state(&shop.id, EnvironmentState::Running)?;
                tx.update_operation(&create)
            })
            .unwrap();
        writeln!(out, "kept running {} {}", shop.id, create.id).unwrap();
        if n >= 100 {
            let old = store.environments().unwrap().remove(0);
            store.remove_environment(&old.id).unwrap();
        }
        if n >= 199 {
            for old in store.environments().unwrap() {
                store.remove_environment(&old.id).unwrap();
            }
        }
    }
}

#[test]
fn kill_leaves_whole_transactions() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("db");
    for round in 0..6_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_child", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut last = None;
        let mut seen = 0;
        // Killed after another number of transactions each time, while the next one is under way.
        while seen < 3 + round * 7 {
            let line = lines
                .next()
                .expect("the child goes on until it is killed")
                .unwrap();
            if line.contains("kept ") {
                seen += 1;
                last = Some(line);
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts too.
        for line in lines.map_while(Result::ok) {
            if line.starts_with("kept ") && line.split(' ').count() == 4 {
                last = Some(line);
            }
        }

        let store = Store::open(&path).unwrap();
        let last = last.unwrap();
        let words: Vec<&str> = last.rsplit(' ').collect();
        let (operation_id, env, state) = (words[0], words[1], words[2]);
        let kept = store.environment(&env.parse().unwrap()).unwrap().unwrap();
        if state == "running" {
            assert_eq!(kept.state, EnvironmentState::Running);
            assert!(
                store
                    .operation(operation_id.parse().unwrap())
                    .unwrap()
                    .unwrap()
                    .0
                    .state
                    .is_final()
            );
        }
        let unfinished = store.unfinished_operations().unwrap();
        for environment in store.environments().unwrap() {
            assert_eq!(store.ports(&environment.id).unwrap().len(), 2);
            let open = unfinished
                .iter()
                .any(|(o, _)| o.environment.as_ref() == Some(&environment.id));
            assert_eq!(
                open,
                environment.state == EnvironmentState::Creating,
                "state and operation change together"
            );
        }
        for (o, _) in &unfinished {
            assert!(
                store
                    .environment(o.environment.as_ref().unwrap())
                    .unwrap()
                    .is_some(),
                "no operation without its rows"
            );
        }
        assert_eq!(
            store.last_event().unwrap(),
            store
                .events_after(0, usize::MAX)
                .unwrap()
                .last()
                .unwrap()
                .seq
        );
        for environment in store.environments().unwrap() {
            store.remove_environment(&environment.id).unwrap();
        }
        for (mut o, _) in unfinished {
            o.state = OperationState::Failed;
            store.update_operation(&o).unwrap();
        }
    }
}
