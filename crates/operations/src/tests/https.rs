//! Certificates: they come, go and are renewed, as a whole, over failure and crash; redirects to HTTPS and of former names.

use std::path::Path;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use offshoot_certificates::{Authority, Files, Issued, Order, Own, Proof};
use offshoot_model::certificate::{Certificate, CertificateKind, CertificateRequest};
use offshoot_model::domain::DomainHttps;
use offshoot_model::view::RenameRequest;
use offshoot_model::{Code, Problem};

use super::domains::{add, web};
use super::engine::Act;
use super::*;
use crate::https::Https;

const PROOF: &str = "/.well-known/acme-challenge/token";

/// What a daemon on this host is told.
pub(super) fn settings(dir: &Path, engine: &Arc<Pretend>) -> Https {
    let files = Files::new(dir.join("certificates"));
    let server = Server {
        engine: Arc::clone(engine),
        own: Arc::new(own(&dir.join("server"))),
    };
    Https {
        served: engine.host().https,
        own: Arc::new(Own::new(files.clone(), "os".to_owned())),
        files,
        acme: Some(Arc::new(server)),
    }
}

fn own(dir: &Path) -> Own {
    Own::new(Files::new(dir.to_owned()), "server".to_owned())
}

/// An ACME server that only pretends. What it is asked are calls of the host, so they fail and hang as others do.
#[derive(Debug)]
struct Server {
    engine: Arc<Pretend>,
    own: Arc<Own>,
}

struct Ordered {
    engine: Arc<Pretend>,
    own: Arc<Own>,
    names: Vec<String>,
    proofs: Vec<Proof>,
}

#[async_trait]
impl Authority for Server {
    async fn order(&self, names: &[String]) -> Result<Box<dyn Order>, Problem> {
        self.engine.call("order", |_| ()).await?;
        let proof = |name: &String| Proof {
            host: name.clone(),
            token: "token".to_owned(),
            text: format!("proof of {name}"),
        };
        Ok(Box::new(Ordered {
            engine: Arc::clone(&self.engine),
            own: Arc::clone(&self.own),
            names: names.to_vec(),
            proofs: names.iter().map(proof).collect(),
        }))
    }
}

#[async_trait]
impl Order for Ordered {
    fn proofs(&self) -> &[Proof] {
        &self.proofs
    }

    async fn validate(&mut self) -> Result<(), Problem> {
        let texts = self
            .engine
            .call("validate", |host| host.texts.clone())
            .await?;
        for proof in &self.proofs {
            let own = texts.get(&format!("{}{PROOF}", proof.host));
            let wildcard = || {
                let (_, parent) = proof.host.split_once('.')?;
                texts.get(&format!("*.{parent}{PROOF}"))
            };
            let found = own.or_else(wildcard);
            assert_eq!(found, Some(&proof.text), "{texts:?}");
        }
        Ok(())
    }

    async fn finalise(&mut self) -> Result<Issued, Problem> {
        self.engine.call("finalise", |_| ()).await?;
        self.own.issue(&self.names)
    }
}

pub(super) fn acme(names: &[&str]) -> Request {
    let domains = names.iter().map(|name| (*name).to_owned()).collect();
    Request::CertificateAdd(CertificateRequest::Acme { domains })
}

fn self_signed(names: &[&str]) -> Request {
    let domains = names.iter().map(|name| (*name).to_owned()).collect();
    Request::CertificateAdd(CertificateRequest::SelfSigned { domains })
}

/// A certificate that somebody brings.
pub(super) fn bought(names: &[&str]) -> Issued {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    own(dir.path()).issue(&names).unwrap()
}

pub(super) fn upload(issued: Issued, domains: &[&str]) -> Request {
    Request::CertificateAdd(CertificateRequest::Uploaded {
        chain: issued.chain,
        key: issued.key,
        domains: domains.iter().map(|name| (*name).to_owned()).collect(),
    })
}

impl World {
    /// As with domains, and HTTPS is served.
    async fn with_https() -> Self {
        let engine: Arc<Pretend> = Arc::default();
        engine.host().https = true;
        let world = Self::on(Arc::new(tempfile::tempdir().unwrap()), engine);
        world.created("shop", web()).await;
        world.created("next", web()).await;
        world.run(add("shop", &["a.test", "b.test"])).await;
        world.engine.calls();
        world
    }

    fn certificates(&self) -> Vec<Certificate> {
        let mut all = self.shared.store.certificates().unwrap();
        all.retain(|one| !one.automatic);
        all
    }

    /// Whether a certificate is shown for a name.
    pub(super) fn certified(&self, name: &str) -> bool {
        self.shown(name).is_some()
    }

    /// The certificate shown for a name.
    fn shown(&self, name: &str) -> Option<String> {
        self.engine.host().certificates.get(name).cloned()
    }

    /// The edge shows what the store has, whose files are all there are, and no proof is left.
    pub(super) fn https_is_right(&self) {
        let mut known = 0;
        let all = self.shared.store.certificates().unwrap();
        let served = self.engine.host().https;
        for one in &all {
            assert!(self.shared.settings.https.files.has(&one.id), "{one:?}");
            for name in one.names.iter().filter(|_| served) {
                assert_eq!(self.shown(name).as_deref(), Some(one.id.as_str()), "{name}");
                known += 1;
            }
        }
        assert_eq!(self.engine.host().certificates.len(), known);
        assert!(self.engine.host().texts.is_empty());
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("certificates")) else {
            return;
        };
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let id = name.split('.').next().unwrap();
            let expected = id == "ca" || all.iter().any(|one| one.id == id);
            assert!(expected, "{name} is left over");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_somebody_brings_is_checked_before_anything_changes() {
    let world = World::with_https().await;
    let mut other_key = bought(&["a.test"]);
    other_key.key = bought(&["a.test"]).key;
    for (request, part) in [
        (upload(other_key, &[]), "not the key"),
        (
            upload(bought(&["a.test"]), &["a.test", "b.test"]),
            "not for b.test",
        ),
        (upload(bought(&["a.test"]), &["a.test/x"]), "path"),
    ] {
        let problem = world.shared.submit(request).await.unwrap_err();
        assert!(problem.what.contains(part), "{problem}");
    }
    assert_eq!(world.engine.calls().len(), 0);
    assert!(world.certificates().is_empty());
    world.https_is_right();

    let operation = world
        .done(upload(bought(&["a.test", "*.b.test"]), &[]))
        .await;
    assert_eq!(operation.subject, "a.test, *.b.test");
    assert!(operation.notices.is_empty(), "{operation:?}");
    assert_eq!(world.certificates()[0].kind, CertificateKind::Uploaded);
    assert_eq!(world.certificates()[0].renew_at, None);
    world.https_is_right();
    // No key is in the journal.
    for name in ["offshoot.db", "offshoot.db-wal"] {
        let bytes = std::fs::read(world.dir.path().join(name)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("PRIVATE KEY") && !text.contains("BEGIN"));
    }
    let problem = world
        .shared
        .submit(Request::CertificateRenew("a.test".into()))
        .await
        .unwrap_err();
    assert_eq!(problem.code, Code::WrongState);

    // A name has one certificate; the other goes with its last.
    let first = world.certificates()[0].id.clone();
    let operation = world.done(upload(bought(&["*.b.test"]), &[])).await;
    assert!(operation.notices[0].contains("*.b.test has another"));
    assert_eq!(world.certificates().len(), 2);
    world.https_is_right();
    world.done(self_signed(&["A.test"])).await;
    assert!(world.certificates().iter().all(|one| one.id != first));
    world.https_is_right();
    world
        .done(Request::CertificateRemove("a.test".into()))
        .await;
    world
        .done(Request::CertificateRemove("*.b.test".into()))
        .await;
    assert!(world.certificates().is_empty());
    world.https_is_right();
    let problem = world
        .shared
        .submit(Request::CertificateRemove("a.test".into()))
        .await
        .unwrap_err();
    assert_eq!(problem.code, Code::CertificateUnknown);
}

#[tokio::test(start_paused = true)]
async fn without_https_certificates_are_kept_and_it_is_said() {
    let world = World::new();
    world.created("shop", web()).await;
    let operation = world.done(self_signed(&["a.test"])).await;
    assert!(operation.notices[0].contains("edge.listen_tls"));
    assert_eq!(world.certificates().len(), 1);
    assert!(world.engine.host().certificates.is_empty());
    // No default domain has one, and nobody is sent where nothing is.
    assert_eq!(world.shared.store.certificates().unwrap().len(), 1);
    world.done(add("shop", &["a.test"])).await;
    let redirect = Request::DomainHttps("a.test".into(), DomainHttps::Redirect);
    let operation = world.done(redirect).await;
    assert!(operation.notices[0].contains("edge.listen_tls"));
    assert!(world.engine.host().only_https.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_acme_server_sees_the_proof_and_nobody_after_it() {
    let world = World::with_https().await;
    world.done(add("next", &["*.c.test"])).await;
    world.engine.calls();
    let operation = world
        .done(acme(&["a.test", "x.c.test", "shop.localhost"]))
        .await;
    let steps: Vec<_> = operation
        .steps
        .iter()
        .map(|step| step.name.as_str())
        .collect();
    let wanted = [
        "order", "validate", "finalise", "look", "record", "route", "tidy",
    ];
    assert_eq!(steps, wanted);
    let calls = [
        "order", "expose", "validate", "expose", "finalise", "expose",
    ];
    assert_eq!(world.engine.calls(), calls);
    assert_eq!(world.certificates().len(), 1);
    world.https_is_right();
    for (name, code) in [
        ("*.c.test", Code::DomainInvalid),
        ("d.test", Code::DomainUnknown),
        ("c.test", Code::DomainUnknown),
    ] {
        let problem = world.shared.submit(acme(&[name])).await.unwrap_err();
        assert_eq!(problem.code, code, "{problem}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_that_fails_or_is_cancelled_leaves_what_was() {
    for at in 0..6 {
        for act in [Act::Fail, Act::FailLate, Act::Hang] {
            let world = World::with_https().await;
            world.done(self_signed(&["a.test"])).await;
            let before = world.shown("a.test");
            world.engine.calls();
            world.engine.host().act_at = Some((at, act));
            let id = world.submit(acme(&["a.test"])).await;
            if act == Act::Hang {
                world.engine.hangs.notified().await;
                world.shared.live_of(id).unwrap().cancel();
                world.engine.go_on();
            }
            let operation = world.ended(id).await;
            // The last call is the one that shows it, after which it is no longer cancelled.
            if act != Act::Hang {
                assert_eq!(operation.state, OperationState::Failed, "{at} {act:?}");
            }
            if operation.state != OperationState::Done {
                assert_eq!(world.shown("a.test"), before, "{at} {act:?}");
            }
            world.https_is_right();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_due_is_renewed_and_what_fails_waits() {
    let world = World::with_https().await;
    world.done(acme(&["a.test", "b.test"])).await;
    let first = world.certificates().remove(0);
    let due = first.renew_at.unwrap();
    world
        .shared
        .renew_due(due - SignedDuration::from_secs(1))
        .await
        .unwrap();
    assert_eq!(world.certificates(), std::slice::from_ref(&first));

    world.engine.fail("validate");
    let mut waited = Vec::new();
    for failures in 1..=6 {
        let at = world.certificates()[0].renew_at.unwrap();
        world.shared.renew_due(at).await.unwrap();
        let now = world.certificates().remove(0);
        assert_eq!((&now.id, now.failures), (&first.id, failures));
        assert!(now.problem.is_some());
        assert_eq!(world.shown("a.test").as_ref(), Some(&first.id));
        let wait = now.renew_at.unwrap().duration_since(Timestamp::now());
        waited.push(wait.as_mins() as f64 / 60.0);
        world.https_is_right();
    }
    for (wait, hours) in waited.into_iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 24.0]) {
        assert!(
            (hours - 0.1..hours * 1.11).contains(&wait),
            "{wait} of {hours}"
        );
    }
    let last = world.shared.store.operations(1).unwrap().remove(0);
    assert_eq!(last.kind, offshoot_model::OperationKind::CertificateRenew);
    assert_eq!(last.state, OperationState::Failed);

    world.engine.go_on();
    let at = world.certificates()[0].renew_at.unwrap();
    world.shared.renew_due(at).await.unwrap();
    let now = world.certificates().remove(0);
    assert_ne!(now.id, first.id);
    assert_eq!((now.failures, &now.problem), (0, &None));
    assert_eq!(now.names, first.names);
    world.https_is_right();

    // The domain is gone: nobody could prove it.
    world.done(super::domains::remove("shop", "a.test")).await;
    world.shared.renew_due(now.renew_at.unwrap()).await.unwrap();
    let now = world.certificates().remove(0);
    assert_eq!(now.problem.unwrap().code, Code::DomainUnknown);
}

#[tokio::test(start_paused = true)]
async fn default_domains_have_certificates_by_themselves() {
    let world = World::with_https().await;
    let automatic = || {
        let all = world.shared.store.certificates().unwrap();
        all.into_iter()
            .filter(|one| one.automatic)
            .flat_map(|one| one.names)
            .collect::<Vec<_>>()
    };
    assert_eq!(automatic(), ["next.localhost", "shop.localhost"]);
    world.https_is_right();
    world.done(super::rename("shop", "store")).await;
    assert_eq!(automatic(), ["next.localhost", "store.localhost"]);
    world.https_is_right();
    // One that somebody brings goes before, and is left alone.
    world.done(upload(bought(&["next.localhost"]), &[])).await;
    assert_eq!(automatic(), ["store.localhost"]);
    world.https_is_right();
    let mut own = world.shared.store.certificates().unwrap();
    own.retain(|one| one.automatic);
    world
        .shared
        .renew_due(own[0].renew_at.unwrap())
        .await
        .unwrap();
    own[0].renew_at = Some(Timestamp::now());
    world.shared.store.update_certificate(&own[0]).unwrap();
    world.shared.renew_due(Timestamp::now()).await.unwrap();
    assert_ne!(world.shown("store.localhost"), Some(own[0].id.clone()));
    world.https_is_right();
    // Who comes by a former name is told the new one by HTTPS.
    world.done(renamed("store", "mart")).await;
    assert_eq!(automatic(), ["mart.localhost", "store.localhost"]);
    world.https_is_right();
    world.done(Request::Remove("mart".into())).await;
    assert!(automatic().is_empty());
    world.https_is_right();
}

#[tokio::test(start_paused = true)]
async fn a_certificate_stays_with_its_host_in_a_swap() {
    let world = World::with_https().await;
    world.done(self_signed(&["a.test"])).await;
    world
        .done(Request::DomainHttps("a.test".into(), DomainHttps::Redirect))
        .await;
    let shown = world.shown("a.test");
    assert!(shown.is_some());
    assert_eq!(world.leads("a.test").as_deref(), Some("shop"));
    world.done(super::domains::swap("shop", "next")).await;
    assert_eq!(world.leads("a.test").as_deref(), Some("next"));
    assert_eq!(world.shown("a.test"), shown);
    assert!(world.engine.host().only_https.contains("a.test"));
    world.https_is_right();
}

#[tokio::test(start_paused = true)]
async fn a_domain_sends_to_https_when_it_is_told_to() {
    let world = World::with_https().await;
    let redirect = || Request::DomainHttps("A.test".into(), DomainHttps::Redirect);
    let operation = world.done(redirect()).await;
    assert!(operation.notices[0].contains("no certificate is for a.test"));
    assert!(world.engine.host().only_https.contains("a.test"));
    for act in [Act::Fail, Act::FailLate] {
        world.engine.calls();
        world.engine.host().act_at = Some((0, act));
        let offer = Request::DomainHttps("a.test".into(), DomainHttps::Offer);
        world.failed(offer).await;
        assert!(world.engine.host().only_https.contains("a.test"));
    }
    world.engine.host().act_at = None;
    world
        .done(Request::DomainHttps("a.test".into(), DomainHttps::Offer))
        .await;
    assert!(world.engine.host().only_https.is_empty());
    let unknown = Request::DomainHttps("d.test".into(), DomainHttps::Offer);
    let problem = world.shared.submit(unknown).await.unwrap_err();
    assert_eq!(problem.code, Code::DomainUnknown);
}

pub(super) fn renamed(name: &str, to: &str) -> Request {
    let request = RenameRequest {
        name: to.to_owned(),
        redirect: true,
    };
    Request::Rename(name.to_owned(), request)
}

#[tokio::test(start_paused = true)]
async fn a_former_name_leads_on_until_another_has_it() {
    let world = World::new();
    world.created("shop", web()).await;
    let led = || {
        world
            .engine
            .host()
            .redirects
            .clone()
            .into_iter()
            .collect::<Vec<_>>()
    };
    let to = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    for act in [Act::Fail, Act::FailLate] {
        world.engine.calls();
        world.engine.host().act_at = Some((1, act));
        world.failed(renamed("shop", "store")).await;
        assert!(led().is_empty());
        world.edge_is_right();
    }
    world.engine.host().act_at = None;
    world.done(renamed("shop", "store")).await;
    assert_eq!(led(), [to("shop.localhost", "http://store.localhost")]);
    world.done(super::rename("store", "mart")).await;
    assert_eq!(led(), [to("shop.localhost", "http://mart.localhost")]);
    let views = world
        .shared
        .domain_views(&world.named("mart").unwrap())
        .unwrap();
    assert_eq!(views[0].redirect.as_deref(), Some("http://mart.localhost/"));

    // An environment of that name wins, for good.
    world.created("shop", web()).await;
    assert!(led().is_empty());
    world.done(Request::Remove("shop".into())).await;
    assert!(led().is_empty());
    world.edge_is_right();

    world.done(renamed("mart", "store")).await;
    world.engine.calls();
    world.engine.host().act_at = Some((0, Act::FailLate));
    world
        .failed(super::domains::remove("store", "mart.localhost"))
        .await;
    assert_eq!(led(), [to("mart.localhost", "http://store.localhost")]);
    world.engine.host().act_at = None;
    world
        .done(super::domains::remove("store", "mart.localhost"))
        .await;
    assert!(led().is_empty());

    // Back and forth, and with the environment.
    world.done(renamed("store", "mart")).await;
    world.done(renamed("mart", "store")).await;
    assert_eq!(led(), [to("mart.localhost", "http://store.localhost")]);
    world.done(Request::Remove("store".into())).await;
    assert!(led().is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_one_s_own_ports_fail_a_change() {
    let world = World::with_https().await;
    let shop = world.named("shop").unwrap();
    world.engine.host().ports_taken.insert(shop.id.clone());
    let operation = world.done(super::domains::swap("shop", "next")).await;
    assert!(
        operation.notices[0].contains("0.0.0.0:1/tcp"),
        "{operation:?}"
    );
    let operation = world.done(add("next", &["d.test"])).await;
    assert!(
        operation.notices[0].contains("0.0.0.0:1/tcp"),
        "{operation:?}"
    );
    world.done(Request::Stop("next".into())).await;
    world.done(Request::Start("next".into())).await;
    world.done(Request::Stop("shop".into())).await;
    let problem = world.failed(Request::Start("shop".into())).await;
    assert_eq!(problem.code, Code::PortInUse);
    assert_eq!(problem.details, ["0.0.0.0:1/tcp: another program has it"]);
}
