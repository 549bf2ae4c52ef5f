//! Traffic policies: kept as they are, gone with their environment, changed together with domains or not at all.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{environment, operation};
use jiff::Timestamp;
use offshoot_model::traffic::{Mirror, Policy, Side};
use offshoot_model::{Code, Domain, EnvId, OperationId};
use offshoot_store::Store;
use serde_json::Value;

fn split(one: &EnvId, other: &EnvId) -> Policy<EnvId> {
    let side = |environment: &EnvId, weight| Side {
        environment: environment.clone(),
        weight,
    };
    Policy {
        sides: vec![side(one, 9), side(other, 1)],
        ..Policy::default()
    }
}

#[test]
fn a_policy_is_kept_replaced_cleared_and_goes_with_its_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("offshoot.db");
    let store = Store::open(&path).unwrap();
    let (shop, next) = (environment(1), environment(2));
    for environment in [&shop, &next] {
        store
            .reserve(environment, &[], &operation(environment), &Value::Null)
            .unwrap();
    }
    assert_eq!(store.policy(&shop.id).unwrap(), None);
    let mut policy = split(&shop.id, &next.id);
    store.set_policy(&shop.id, Some(&policy)).unwrap();
    policy.mirror = Some(Mirror {
        environment: next.id.clone(),
        permille: 10,
        body_bytes: 1,
        ignore: Vec::new(),
    });
    store.set_policy(&shop.id, Some(&policy)).unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.policy(&shop.id).unwrap().as_ref(), Some(&policy));
    assert_eq!(store.policies().unwrap(), [(shop.id.clone(), policy)]);

    // An empty one is none.
    store
        .set_policy(&shop.id, Some(&Policy::default()))
        .unwrap();
    assert!(store.policies().unwrap().is_empty());
    store.set_policy(&shop.id, None).unwrap();

    let kept = split(&next.id, &shop.id);
    store.set_policy(&next.id, Some(&kept)).unwrap();
    store.remove_environment(&next.id).unwrap();
    assert!(store.policies().unwrap().is_empty());
    let gone = store.set_policy(&next.id, Some(&kept)).unwrap_err();
    assert_eq!(gone.problem().code, Code::EnvironmentUnknown);
}

#[test]
fn domains_and_policies_change_together_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("offshoot.db")).unwrap();
    let (shop, next) = (environment(1), environment(2));
    for environment in [&shop, &next] {
        store
            .reserve(environment, &[], &operation(environment), &Value::Null)
            .unwrap();
    }
    let held = Domain::of_host("a.test");
    let by = OperationId::new();
    store
        .add_domains(&shop.id, std::slice::from_ref(&held), by, Timestamp::now())
        .unwrap();
    let policy = split(&shop.id, &next.id);
    store.set_policy(&shop.id, Some(&policy)).unwrap();
    let places = [
        (held, next.id.clone()),
        (Domain::of_host("b.test"), next.id.clone()),
    ];
    store
        .update_in_one(|tx| {
            tx.set_policy(&shop.id, None)?;
            tx.place_domains(&places)
        })
        .unwrap_err();
    assert_eq!(store.policy(&shop.id).unwrap(), Some(policy));
    assert_eq!(store.domains(&shop.id).unwrap().len(), 1);
}
