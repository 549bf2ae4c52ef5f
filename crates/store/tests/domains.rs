//! Custom domains: one holder each, changes as a whole, and files of the schema before them.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{environment, operation};
use jiff::Timestamp;
use offshoot_model::operation::OperationState;
use offshoot_model::{Code, Domain, EnvId, Environment, OperationId};
use offshoot_store::{LastSwap, SCHEMA_VERSION, Store, StoreError};
use serde_json::Value;
use tempfile::TempDir;

/// A store with two environments.
fn two() -> (TempDir, Store, Environment, Environment) {
    let dir = TempDir::new().unwrap();
    let store = Store::open(&dir.path().join("offshoot.db")).unwrap();
    let (shop, blog) = (environment(1), environment(2));
    for environment in [&shop, &blog] {
        store
            .reserve(environment, &[], &operation(environment), &Value::Null)
            .unwrap();
    }
    (dir, store, shop, blog)
}

fn domain(host: &str) -> Domain {
    Domain::of_host(host)
}

fn hosts(store: &Store, id: &EnvId) -> Vec<String> {
    let domains = store.domains(id).unwrap();
    domains.into_iter().map(|domain| domain.host).collect()
}

fn add(store: &Store, id: &EnvId, hosts: &[&str]) -> OperationId {
    let by = OperationId::new();
    let domains: Vec<_> = hosts.iter().map(|host| domain(host)).collect();
    store
        .add_domains(id, &domains, by, Timestamp::now())
        .unwrap();
    by
}

#[test]
fn a_domain_has_one_holder_and_an_addition_is_whole() {
    let (_dir, store, shop, blog) = two();
    let first = add(&store, &shop.id, &["b.test", "a.test"]);
    assert_eq!(hosts(&store, &shop.id), ["a.test", "b.test"]);
    let at = store.domains(&shop.id).unwrap()[0].added;

    let error = store
        .add_domains(
            &blog.id,
            &[domain("c.test"), domain("a.test")],
            OperationId::new(),
            Timestamp::now(),
        )
        .unwrap_err();
    assert_eq!(error.problem().code, Code::DomainTaken);
    assert_eq!(
        error.to_string(),
        "the domain a.test belongs to environment env-1"
    );
    assert!(hosts(&store, &blog.id).is_empty(), "all or none");

    // What it has stays as it is, also when what was added beside it is taken back.
    let second = add(&store, &shop.id, &["a.test", "d.test"]);
    assert_eq!(store.domains(&shop.id).unwrap()[0].added, at);
    store.take_domains_back(second).unwrap();
    store.take_domains_back(second).unwrap();
    assert_eq!(hosts(&store, &shop.id), ["a.test", "b.test"]);
    store.take_domains_back(first).unwrap();
    assert!(hosts(&store, &shop.id).is_empty());

    let nobody = store.add_domains(
        &EnvId::random(),
        &[domain("a.test")],
        OperationId::new(),
        Timestamp::now(),
    );
    assert!(matches!(nobody, Err(StoreError::EnvironmentUnknown { .. })));
}

#[test]
fn other_paths_of_a_host_are_other_domains() {
    let (_dir, store, shop, blog) = two();
    add(&store, &shop.id, &["a.test"]);
    let below = Domain::split("a.test/blog");
    store
        .add_domains(
            &blog.id,
            std::slice::from_ref(&below),
            OperationId::new(),
            Timestamp::now(),
        )
        .unwrap();
    let holder = store.domain_holder(&below).unwrap().unwrap();
    assert_eq!((holder.environment, holder.domain), (blog.id, below));
}

#[test]
fn what_leaves_is_nobody_s_until_it_is_gone() {
    let (_dir, store, shop, blog) = two();
    add(&store, &shop.id, &["a.test"]);
    let mut removal = operation(&shop);
    store.record_operation(&removal, &Value::Null).unwrap();
    let leave = || store.let_domain_leave(&shop.id, &domain("a.test"), removal.id);
    leave().unwrap();
    leave().unwrap();
    assert!(hosts(&store, &shop.id).is_empty());
    let other = store.let_domain_leave(&shop.id, &domain("a.test"), OperationId::new());
    assert_eq!(other.unwrap_err().problem().code, Code::DomainUnknown);
    for id in [&shop.id, &blog.id] {
        let again = store.add_domains(
            id,
            &[domain("a.test")],
            OperationId::new(),
            Timestamp::now(),
        );
        assert!(matches!(again, Err(StoreError::DomainTaken { .. })));
    }
    let moved = store.place_domains(&[(domain("a.test"), blog.id.clone())]);
    assert!(matches!(moved, Err(StoreError::DomainsChanged { .. })));

    store.let_domains_stay(removal.id).unwrap();
    assert_eq!(hosts(&store, &shop.id), ["a.test"]);

    leave().unwrap();
    removal.state = OperationState::Done;
    store.finish_with_domains_gone(&removal).unwrap();
    assert_eq!(store.domain_holder(&domain("a.test")).unwrap(), None);
    add(&store, &blog.id, &["a.test"]);
}

#[test]
fn domains_change_hands_together_or_not_at_all() {
    let (_dir, store, shop, blog) = two();
    add(&store, &shop.id, &["a.test", "b.test"]);
    add(&store, &blog.id, &["c.test"]);
    let to = |host, id: &EnvId| (domain(host), id.clone());
    let swapped = [
        to("a.test", &blog.id),
        to("b.test", &blog.id),
        to("c.test", &shop.id),
    ];
    for _ in 0..2 {
        store.place_domains(&swapped).unwrap();
        assert_eq!(hosts(&store, &shop.id), ["c.test"]);
        assert_eq!(hosts(&store, &blog.id), ["a.test", "b.test"]);
    }
    let error = store.place_domains(&[to("a.test", &shop.id), to("none.test", &shop.id)]);
    assert!(matches!(error, Err(StoreError::DomainsChanged { .. })));
    assert_eq!(hosts(&store, &shop.id), ["c.test"], "all or none");
}

#[test]
fn the_last_swap_of_two_is_remembered_whoever_asks() {
    let (_dir, store, shop, blog) = two();
    assert_eq!(store.last_swap(&shop.id, &blog.id).unwrap(), None);
    let mut swap = operation(&shop);
    store.record_operation(&swap, &Value::Null).unwrap();
    swap.state = OperationState::Done;
    for hosts in [["a.test", "b.test"], ["c.test", "d.test"]] {
        let last = LastSwap {
            one: (shop.id.clone(), vec![domain(hosts[0])]),
            other: (blog.id.clone(), vec![domain(hosts[1])]),
        };
        store.finish_with_swap(&swap, &last).unwrap();
        assert_eq!(
            store.last_swap(&shop.id, &blog.id).unwrap(),
            Some(last.clone())
        );
        let turned = LastSwap {
            one: last.other,
            other: last.one,
        };
        assert_eq!(store.last_swap(&blog.id, &shop.id).unwrap(), Some(turned));
    }
    store.remove_environment(&blog.id).unwrap();
    assert_eq!(store.last_swap(&shop.id, &blog.id).unwrap(), None);
}

#[test]
fn domains_go_with_their_environment() {
    let (_dir, store, shop, blog) = two();
    add(&store, &shop.id, &["a.test"]);
    store.remove_environment(&shop.id).unwrap();
    assert_eq!(store.domain_holder(&domain("a.test")).unwrap(), None);
    add(&store, &blog.id, &["a.test"]);
}

#[test]
fn a_file_of_schema_1_is_brought_along_with_all_it_has() {
    let (dir, store, shop, _) = two();
    drop(store);
    let path = dir.path().join("offshoot.db");
    // As the version before left it: the tables of schema 1, nothing else.
    let sql = rusqlite::Connection::open(&path).unwrap();
    for table in ["domains", "swaps", "certificates", "policies", "redirects"] {
        sql.execute_batch(&format!("DROP TABLE {table}")).unwrap();
    }
    sql.execute_batch("UPDATE environments SET document = json_remove(document, '$.held')")
        .unwrap();
    sql.pragma_update(None, "user_version", 1).unwrap();
    let text: String = sql
        .query_row("SELECT document FROM operations LIMIT 1", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert!(!text.contains("swap"), "as it was written then: {text}");
    drop(sql);

    let store = Store::open(&path).unwrap();
    assert_eq!(store.environment(&shop.id).unwrap().unwrap(), shop);
    assert_eq!(store.operations(10).unwrap().len(), 2);
    add(&store, &shop.id, &["a.test"]);
    drop(store);
    let version: i64 = rusqlite::Connection::open(&path)
        .unwrap()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(version, SCHEMA_VERSION);
    let store = Store::open(&path).unwrap();
    assert_eq!(hosts(&store, &shop.id), ["a.test"], "not a second time");
}
