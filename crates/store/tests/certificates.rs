//! Certificates by name, former default domains, and what requests without TLS get.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{environment, operation};
use jiff::Timestamp;
use offshoot_model::certificate::{Certificate, CertificateKind};
use offshoot_model::domain::DomainHttps;
use offshoot_model::{Domain, OperationId};
use offshoot_store::{RedirectedHost, Store};
use serde_json::Value;
use tempfile::TempDir;

fn store() -> (TempDir, Store) {
    let dir = TempDir::new().unwrap();
    let store = Store::open(&dir.path().join("offshoot.db")).unwrap();
    (dir, store)
}

fn certificate(id: &str, names: &[&str]) -> Certificate {
    Certificate {
        id: id.to_owned(),
        kind: CertificateKind::Uploaded,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        automatic: false,
        issuer: "Somebody".to_owned(),
        added: Timestamp::now(),
        not_before: Timestamp::now(),
        not_after: Timestamp::now(),
        renew_at: None,
        failures: 0,
        problem: None,
    }
}

fn all(store: &Store) -> Vec<String> {
    let all = store.certificates().unwrap().into_iter();
    all.map(|one| format!("{}: {}", one.id, one.names.join(" ")))
        .collect()
}

#[test]
fn a_name_has_one_certificate_and_gets_back_what_it_had() {
    let (_dir, store) = store();
    let (one, two) = (certificate("1", &["a", "b"]), certificate("2", &["c"]));
    assert!(store.place_certificate(&one).unwrap().is_empty());
    assert!(store.place_certificate(&two).unwrap().is_empty());
    let new = certificate("3", &["b", "c"]);
    let before = store.place_certificate(&new).unwrap();
    assert_eq!(before, [one.clone(), two.clone()]);
    assert_eq!(all(&store), ["1: a", "3: b c"]);
    // Twice is once.
    assert!(store.place_certificate(&new).unwrap().is_empty());
    assert_eq!(all(&store), ["1: a", "3: b c"]);
    store.take_certificate_back("3", &before).unwrap();
    store.take_certificate_back("3", &before).unwrap();
    assert_eq!(all(&store), ["1: a b", "2: c"]);
    // What another has meanwhile stays there.
    let before = store.place_certificate(&new).unwrap();
    store.place_certificate(&certificate("4", &["c"])).unwrap();
    store.take_certificate_back("3", &before).unwrap();
    assert_eq!(all(&store), ["1: a b", "4: c"]);
}

#[test]
fn names_go_and_come_back_and_the_last_takes_the_certificate_along() {
    let (_dir, store) = store();
    let one = certificate("1", &["a", "b"]);
    store.place_certificate(&one).unwrap();
    store.forget_certificate_name("1", "a").unwrap();
    store.forget_certificate_name("1", "a").unwrap();
    assert_eq!(all(&store), ["1: b"]);
    store.give_certificate_name(&one, "a").unwrap();
    store.give_certificate_name(&one, "a").unwrap();
    assert_eq!(all(&store), ["1: b a"]);
    store.forget_certificate_name("1", "a").unwrap();
    store.forget_certificate_name("1", "b").unwrap();
    assert!(all(&store).is_empty());
    store.update_certificate(&one).unwrap();
    assert!(all(&store).is_empty(), "what is gone does not come back");
    store.give_certificate_name(&one, "b").unwrap();
    assert_eq!(all(&store), ["1: b"]);
}

#[test]
fn former_domains_go_with_their_environment() {
    let (_dir, store) = store();
    let shop = environment(1);
    store
        .reserve(&shop, &[], &operation(&shop), &Value::Null)
        .unwrap();
    let by = OperationId::new();
    let former = |host: &str| RedirectedHost {
        host: host.to_owned(),
        environment: shop.id.clone(),
        added: Timestamp::now(),
    };
    let (one, two) = (former("b.localhost"), former("a.localhost"));
    store.add_redirect(&one, by).unwrap();
    store.add_redirect(&two, OperationId::new()).unwrap();
    assert_eq!(store.redirects().unwrap(), [two.clone(), one]);
    store.take_redirects_back(by).unwrap();
    assert_eq!(store.redirects().unwrap(), std::slice::from_ref(&two));
    store.remove_redirect("a.localhost").unwrap();
    store.remove_redirect("a.localhost").unwrap();
    assert!(store.redirects().unwrap().is_empty());
    store.add_redirect(&two, by).unwrap();
    store.remove_environment(&shop.id).unwrap();
    assert!(store.redirects().unwrap().is_empty());
    assert!(store.add_redirect(&two, by).is_err());
}

#[test]
fn a_domain_says_what_it_does_without_tls() {
    let (_dir, store) = store();
    let shop = environment(1);
    store
        .reserve(&shop, &[], &operation(&shop), &Value::Null)
        .unwrap();
    let domain = Domain::of_host("a.test");
    let missing = store.set_domain_https(&domain, DomainHttps::Redirect);
    assert!(missing.is_err());
    store
        .add_domains(
            &shop.id,
            std::slice::from_ref(&domain),
            OperationId::new(),
            Timestamp::now(),
        )
        .unwrap();
    let https = || store.domains(&shop.id).unwrap()[0].https;
    assert_eq!(https(), DomainHttps::Offer);
    store
        .set_domain_https(&domain, DomainHttps::Redirect)
        .unwrap();
    assert_eq!(https(), DomainHttps::Redirect);
}
