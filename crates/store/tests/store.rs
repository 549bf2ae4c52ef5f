//! What the store promises: all or nothing, no two holders of one thing, order of events.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Barrier;

use common::{environment, operation, port};
use offshoot_model::operation::OperationState;
use offshoot_model::{Code, EnvId, EnvironmentState, Lineage, OperationId};
use offshoot_store::{Retention, Store, StoreError};
use serde_json::{Value, json};
use tempfile::TempDir;

fn store() -> (TempDir, Store) {
    let dir = TempDir::new().unwrap();
    let store = Store::open(&dir.path().join("offshoot.db")).unwrap();
    (dir, store)
}

#[test]
fn a_reservation_is_kept_whole() {
    let (dir, store) = store();
    let shop = environment(1);
    let create = operation(&shop);
    let ports = [
        port("127.0.0.1", 8080),
        port("::1", 8080),
        port("127.0.0.1", 70),
    ];
    let event = store
        .reserve(&shop, &ports, &create, &json!({"steps": 3}))
        .unwrap();
    assert_eq!((event.seq, &event.operation), (1, &create));
    drop(store);

    let store = Store::open(&dir.path().join("offshoot.db")).unwrap();
    assert_eq!(store.environment(&shop.id).unwrap().unwrap(), shop);
    assert_eq!(store.environment_by_name("env-1").unwrap().unwrap(), shop);
    for known in ["env-1", shop.id.as_str()] {
        assert_eq!(store.find_environment(known).unwrap().as_ref(), Some(&shop));
    }
    assert_eq!(store.find_environment("env-2").unwrap(), None);
    assert_eq!(store.environments().unwrap(), std::slice::from_ref(&shop));
    assert_eq!(
        store.ports(&shop.id).unwrap(),
        ports,
        "in the order of the manifest"
    );
    assert_eq!(store.all_ports().unwrap().len(), 3);
    assert_eq!(store.used_outer_networks().unwrap(), [shop.placement.outer]);
    assert_eq!(
        store.used_outer6_networks().unwrap(),
        [shop.placement.outer6.unwrap()]
    );
    assert_eq!(store.used_id_bases().unwrap(), [shop.placement.id_base]);
    assert_eq!(
        store.operation(create.id).unwrap(),
        Some((create.clone(), json!({"steps": 3})))
    );
    assert_eq!(store.unfinished_operations().unwrap().len(), 1);
    assert_eq!(store.events_after(0, 10).unwrap(), [event]);
}

#[test]
fn a_refused_reservation_leaves_nothing() {
    let (_dir, store) = store();
    let shop = environment(1);
    let held = [port("0.0.0.0", 8080)];
    store
        .reserve(&shop, &held, &operation(&shop), &Value::Null)
        .unwrap();

    let try_with = |change: &dyn Fn(&mut offshoot_model::Environment), ports: &[_]| {
        let mut other = environment(2);
        change(&mut other);
        let error = store
            .reserve(&other, ports, &operation(&other), &Value::Null)
            .unwrap_err();
        assert_eq!(store.environments().unwrap().len(), 1);
        assert_eq!(store.operations(10).unwrap().len(), 1);
        assert_eq!(store.all_ports().unwrap().len(), 1);
        assert_eq!(store.last_event().unwrap(), 1);
        error
    };
    let error = try_with(&|e| e.name = shop.name.clone(), &[]);
    assert!(matches!(error, StoreError::NameTaken { .. }), "{error}");
    assert_eq!(error.problem().code, Code::NameTaken);
    let error = try_with(&|e| e.placement.outer = shop.placement.outer, &[]);
    assert!(matches!(error, StoreError::OuterTaken { .. }), "{error}");
    let error = try_with(&|e| e.placement.outer6 = shop.placement.outer6, &[]);
    assert!(matches!(error, StoreError::OuterTaken { .. }), "{error}");
    for base in [
        shop.placement.id_base,
        shop.placement.id_base + 1,
        shop.placement.id_base - 65_535,
    ] {
        let error = try_with(&|e| e.placement.id_base = base, &[]);
        assert!(matches!(error, StoreError::IdRangeTaken { .. }), "{error}");
    }
    let error = try_with(&|_| {}, &[port("127.0.0.1", 81), port("127.0.0.1", 8080)]);
    assert_eq!(
        error.to_string(),
        "port 8080 of 127.0.0.1 is taken by environment env-1"
    );
    assert_eq!(error.problem().code, Code::PortInUse);
    let error = try_with(&|_| {}, &[port("127.0.0.1", 81), port("127.0.0.1", 81)]);
    assert_eq!(
        error.to_string(),
        "port 81 of 127.0.0.1 is taken by environment env-2"
    );
    let mut open = port("127.0.0.1", 81);
    open.port.host_port = None;
    assert!(matches!(
        try_with(&|_| {}, &[open]),
        StoreError::Undecided { .. }
    ));
}

#[test]
fn removal_frees_everything_and_repeats() {
    let (_dir, store) = store();
    let shop = environment(1);
    let ports = [port("127.0.0.1", 8080)];
    store
        .reserve(&shop, &ports, &operation(&shop), &Value::Null)
        .unwrap();
    store.set_node_restarts(&shop.id, "web-1", 1).unwrap();
    store.set_node_restarts(&shop.id, "web-1", 7).unwrap();
    assert_eq!(store.node_restarts(&shop.id, "web-1").unwrap(), 7);
    assert_eq!(store.node_restarts(&shop.id, "web-2").unwrap(), 0);
    store.remove_environment(&shop.id).unwrap();
    store.remove_environment(&shop.id).unwrap();
    assert_eq!(store.node_restarts(&shop.id, "web-1").unwrap(), 0);
    assert_eq!(store.environment(&shop.id).unwrap(), None);
    let error = store
        .set_state(&shop.id, EnvironmentState::Broken)
        .unwrap_err();
    assert_eq!(error.problem().code, Code::EnvironmentUnknown);
    store
        .reserve(&shop, &ports, &operation(&shop), &Value::Null)
        .unwrap();
}

#[test]
fn changes_of_an_environment() {
    let (_dir, store) = store();
    let (shop, mut blog) = (environment(1), environment(2));
    for environment in [&shop, &blog] {
        store
            .reserve(environment, &[], &operation(environment), &Value::Null)
            .unwrap();
    }
    assert!(matches!(
        store.rename(&blog.id, &shop.name),
        Err(StoreError::NameTaken { .. })
    ));
    store.rename(&blog.id, &blog.name).unwrap();
    store.rename(&blog.id, &"news".parse().unwrap()).unwrap();
    store
        .set_state(&blog.id, EnvironmentState::Running)
        .unwrap();
    blog = store.environment_by_name("news").unwrap().unwrap();
    assert_eq!(blog.state, EnvironmentState::Running);
    assert_eq!(store.environment_by_name("env-2").unwrap(), None);

    let operation = OperationId::new();
    blog.lineage = Some(Lineage {
        parent: shop.id.clone(),
        parent_name: shop.name.clone(),
        cut: shop.created,
        operation,
    });
    store.update_environment(&blog).unwrap();
    assert_eq!(store.children(&shop.id).unwrap(), [blog]);
    assert!(store.children(&EnvId::random()).unwrap().is_empty());
    assert!(matches!(
        store.update_environment(&environment(3)),
        Err(StoreError::EnvironmentUnknown { .. })
    ));
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let (_dir, store) = store();
    let shop = environment(1);
    let mut create = operation(&shop);
    store
        .reserve(&shop, &[], &create, &json!({"secret": 1}))
        .unwrap();
    create.state = OperationState::Done;
    let error = store.update_in_one(|tx| {
        tx.set_state(&shop.id, EnvironmentState::Running)?;
        tx.update_operation(&create)?;
        tx.set_state(&EnvId::random(), EnvironmentState::Running)
    });
    assert!(error.is_err());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        store.update_in_one(|tx| {
            tx.set_state(&shop.id, EnvironmentState::Running)?;
            std::panic::resume_unwind(Box::new(()));
            #[allow(unreachable_code)]
            Ok(())
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(
        store.environment(&shop.id).unwrap().unwrap().state,
        EnvironmentState::Creating
    );
    assert_eq!(store.unfinished_operations().unwrap().len(), 1);

    let event = store
        .update_in_one(|tx| {
            tx.set_state(&shop.id, EnvironmentState::Running)?;
            tx.update_operation(&create)
        })
        .unwrap();
    assert_eq!(event.seq, 2, "what was taken back gave no event");
    assert!(store.unfinished_operations().unwrap().is_empty());
    assert_eq!(
        store.operation(create.id).unwrap(),
        Some((create, Value::Null)),
        "the plan goes with its end"
    );
    store
        .read(|tx| tx.set_state(&shop.id, EnvironmentState::Broken))
        .unwrap();
    assert_eq!(
        store.environment(&shop.id).unwrap().unwrap().state,
        EnvironmentState::Running,
        "reading keeps nothing"
    );
}

#[test]
fn operations_newest_first_cancel_and_progress() {
    let (_dir, store) = store();
    let shop = environment(1);
    let all: Vec<_> = (0..5).map(|_| operation(&shop)).collect();
    for operation in &all {
        store.record_operation(operation, &Value::Null).unwrap();
    }
    let ids =
        |list: Vec<offshoot_model::Operation>| list.into_iter().map(|o| o.id).collect::<Vec<_>>();
    assert_eq!(ids(store.operations(2).unwrap()), [all[4].id, all[3].id]);
    assert_eq!(
        store.unfinished_operations().unwrap()[0].0.id,
        all[0].id,
        "oldest first"
    );
    assert!(!store.cancel_requested(all[0].id).unwrap());
    store.request_cancel(all[0].id).unwrap();
    assert!(store.cancel_requested(all[0].id).unwrap());
    assert!(!store.cancel_requested(all[1].id).unwrap());
    assert_eq!(store.save_operation(&all[0], &json!(1)).unwrap().seq, 6);
    let mut first = all[0].clone();
    first.notices.push("half way".to_owned());
    assert_eq!(store.note_progress(&first).unwrap().seq, 7);
    assert_eq!(store.operation(first.id).unwrap(), Some((first, json!(1))));
    let stranger = operation(&shop);
    assert_eq!(store.operation(stranger.id).unwrap(), None);
    for error in [
        store.update_operation(&stranger).unwrap_err(),
        store.note_progress(&stranger).unwrap_err(),
        store.request_cancel(stranger.id).unwrap_err(),
        store.cancel_requested(stranger.id).unwrap_err(),
        store.save_operation(&stranger, &Value::Null).unwrap_err(),
        store.finish_with_removal(&stranger, &shop.id).unwrap_err(),
    ] {
        assert_eq!(error.problem().code, Code::OperationUnknown);
    }
}

#[test]
fn the_past_is_pruned_but_not_lineage() {
    let dir = TempDir::new().unwrap();
    let keep = Retention {
        events: 10,
        operations: 4,
    };
    let store = Store::open_keeping(&dir.path().join("db"), keep).unwrap();
    let mut shop = environment(1);
    let mut cloned = operation(&shop);
    cloned.state = OperationState::Done;
    shop.lineage = Some(Lineage {
        parent: EnvId::random(),
        parent_name: shop.name.clone(),
        cut: shop.created,
        operation: cloned.id,
    });
    store.reserve(&shop, &[], &cloned, &Value::Null).unwrap();
    let running = operation(&shop);
    store.record_operation(&running, &Value::Null).unwrap();
    for _ in 0..30 {
        let mut done = operation(&shop);
        done.state = OperationState::Done;
        store.record_operation(&done, &Value::Null).unwrap();
    }
    let kept = store.operations(100).unwrap();
    assert_eq!(kept.len(), 6, "four ended, one running, one in a lineage");
    assert!(kept.iter().any(|o| o.id == cloned.id) && kept.iter().any(|o| o.id == running.id));
    let events = store.events_after(0, 100).unwrap();
    assert_eq!(
        events.iter().map(|e| e.seq).collect::<Vec<_>>(),
        (23..=32).collect::<Vec<u64>>()
    );
    assert_eq!(store.events_after(30, 1).unwrap()[0].seq, 31);
    assert!(store.events_after(32, 10).unwrap().is_empty());
    assert!(store.events_after(u64::MAX, 10).unwrap().is_empty());
}

#[test]
fn of_many_that_want_the_same_one_gets_it() {
    let (_dir, store) = store();
    let threads = 16;
    let barrier = Barrier::new(threads);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let run = |n: usize| {
            let (store, barrier) = (&store, &barrier);
            scope.spawn(move || {
                let mut mine = environment(u32::try_from(n).unwrap());
                match n % 4 {
                    0 => mine.name = "shop".parse().unwrap(),
                    1 => mine.placement.outer = "10.208.250.0/24".parse().unwrap(),
                    2 => mine.placement.id_base = 500_000,
                    _ => {}
                }
                let ports = if n % 4 == 3 {
                    vec![port("127.0.0.1", 8080)]
                } else {
                    Vec::new()
                };
                barrier.wait();
                (
                    n % 4,
                    store.reserve(&mine, &ports, &operation(&mine), &Value::Null),
                )
            })
        };
        let handles: Vec<_> = (0..threads).map(run).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap())
            .collect()
    });
    for kind in 0..4 {
        let won = outcomes
            .iter()
            .filter(|(k, outcome)| *k == kind && outcome.is_ok())
            .count();
        assert_eq!(won, 1, "of kind {kind}");
    }
    assert_eq!(store.environments().unwrap().len(), 4);
    assert_eq!(store.last_event().unwrap(), 4);
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_kept() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("db");
    std::fs::write(&path, "this is no database, however long one looks at it").unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert_eq!(error.problem().code, Code::HostUnfit);
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let path = dir.path().join("other");
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE theirs (a)")
        .unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(error.to_string().contains("another program's"), "{error}");
}

#[test]
fn a_damaged_file_is_refused() {
    use std::os::unix::fs::FileExt as _;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("db");
    let store = Store::open(&path).unwrap();
    for n in 0..50 {
        let shop = environment(n);
        store
            .reserve(&shop, &[], &operation(&shop), &Value::Null)
            .unwrap();
    }
    drop(store);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for page in 2..8 {
        file.write_all_at(&[0xAA; 2048], page * 4096).unwrap();
    }
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

#[test]
fn a_newer_file_is_refused_and_kept() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("db");
    drop(Store::open(&path).unwrap());
    rusqlite::Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(
        matches!(error, StoreError::Newer { found: 99, .. }),
        "{error:?}"
    );
    let version: i64 = rusqlite::Connection::open(&path)
        .unwrap()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(version, 99);
}

#[test]
fn one_daemon_at_a_time_and_only_root_reads() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, store) = store();
    let shop = environment(1);
    store
        .reserve(&shop, &[], &operation(&shop), &Value::Null)
        .unwrap();
    let error = Store::open(store.path()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o077,
            0,
            "{:?}",
            entry.path()
        );
    }
}

#[test]
fn an_end_changes_the_environment_in_the_same_transaction() {
    let (_dir, store) = store();
    let shop = environment(1);
    let mut change = operation(&shop);
    store.reserve(&shop, &[], &change, &json!(1)).unwrap();
    change.state = OperationState::Done;
    store
        .finish_with_state(&change, &shop.id, EnvironmentState::Running)
        .unwrap();
    assert_eq!(
        store.environment(&shop.id).unwrap().unwrap().state,
        EnvironmentState::Running
    );
    assert!(
        store
            .finish_with_state(&operation(&shop), &shop.id, EnvironmentState::Broken)
            .is_err()
    );
    assert!(
        store
            .finish_with_removal(&operation(&shop), &shop.id)
            .is_err()
    );
    assert_eq!(
        store.environment(&shop.id).unwrap().unwrap().state,
        EnvironmentState::Running,
        "both or neither"
    );
    store.finish_with_removal(&change, &shop.id).unwrap();
    assert_eq!(store.environment(&shop.id).unwrap(), None);
    store.finish_with_removal(&change, &shop.id).unwrap();
    store
        .finish_with_state(&change, &shop.id, EnvironmentState::Broken)
        .unwrap();
}
