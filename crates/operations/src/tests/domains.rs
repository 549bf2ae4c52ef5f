//! Custom domains and swaps: who has what when, and what a failure or a cancel at any call leaves.

use offshoot_model::view::{DomainAddRequest, SwapRequest};
use offshoot_model::{Code, Domain, OperationState};

use super::engine::Act;
use super::*;

pub(super) fn web() -> Vec<Layer> {
    let mut layer = layer("web");
    layer.entry = Some(80);
    vec![layer]
}

pub(super) fn add(environment: &str, hosts: &[&str]) -> Request {
    let domains = hosts.iter().map(|host| Domain::split(host)).collect();
    Request::DomainAdd(environment.to_owned(), DomainAddRequest { domains })
}

pub(super) fn remove(environment: &str, host: &str) -> Request {
    Request::DomainRemove(environment.to_owned(), host.to_owned())
}

pub(super) fn swap(one: &str, other: &str) -> Request {
    swap_with(one, other, |_| ())
}

fn swap_with(one: &str, other: &str, change: fn(&mut SwapRequest)) -> Request {
    let mut request = SwapRequest {
        with: other.to_owned(),
        back: false,
        warm: offshoot_model::domain::Warm::default(),
    };
    change(&mut request);
    Request::Swap(one.to_owned(), request)
}

fn back(one: &str, other: &str) -> Request {
    swap_with(one, other, |request| request.back = true)
}

impl World {
    /// Two environments, `shop` with `a.test` and `b.test`, `next` with `c.test`.
    async fn with_domains() -> Self {
        let world = Self::new();
        world.created("shop", web()).await;
        world.created("next", web()).await;
        world.done(add("shop", &["a.test", "B.test."])).await;
        world.done(add("next", &["c.test"])).await;
        world.engine.calls();
        world
    }

    pub(super) async fn done(&self, request: Request) -> Operation {
        let operation = self.run(request).await;
        assert_eq!(operation.state, OperationState::Done, "{operation:?}");
        operation
    }

    async fn refused(&self, request: Request) -> offshoot_model::Problem {
        self.shared.submit(request).await.unwrap_err()
    }

    pub(super) async fn failed(&self, request: Request) -> offshoot_model::Problem {
        let operation = self.run(request).await;
        assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
        operation.problem.unwrap()
    }

    /// Custom domains of an environment by the store.
    pub(super) fn has(&self, name: &str) -> Vec<String> {
        let domains = self.shared.store.domains(&self.named(name).unwrap().id);
        let domains = domains.unwrap().into_iter();
        domains.map(|d| d.domain().to_string()).collect()
    }

    /// Name of the environment that the edge leads a domain to.
    pub(super) fn leads(&self, host: &str) -> Option<String> {
        let id = self.engine.host().leads.get(host).cloned()?;
        Some(self.shared.by_id(&id).unwrap().name.to_string())
    }

    /// The edge leads every custom domain to who has it by the store, and no other.
    pub(super) fn edge_is_right(&self) {
        let mut known = 0;
        for environment in self.shared.store.environments().unwrap() {
            let name = environment.name.as_str();
            for host in self.has(name) {
                assert_eq!(self.leads(&host).as_deref(), Some(name), "{host}");
                known += 1;
            }
            known += 1;
        }
        assert_eq!(self.engine.host().leads.len(), known);
    }
}

#[tokio::test(start_paused = true)]
async fn a_domain_is_in_use_when_it_is_added_and_not_when_it_is_removed() {
    let world = World::new();
    world.created("shop", web()).await;
    world
        .done(add("shop", &["Shop.Test.", "www.test", "shop.test"]))
        .await;
    assert_eq!(world.engine.calls(), ["expose"]);
    assert_eq!(world.has("shop"), ["shop.test", "www.test"]);
    assert_eq!(world.leads("shop.test").as_deref(), Some("shop"));
    world.done(remove("shop", "SHOP.test")).await;
    assert_eq!(world.engine.calls(), ["expose"]);
    assert_eq!(world.has("shop"), ["www.test"]);
    assert_eq!(world.leads("shop.test"), None);
    let problem = world.refused(remove("shop", "shop.test")).await;
    assert_eq!(problem.code, Code::DomainUnknown);

    // Below its own default domain, and over a rename and a stop.
    world.done(add("shop", &["api.shop.localhost"])).await;
    world.done(super::rename("shop", "store")).await;
    world.done(Request::Stop("store".into())).await;
    world.edge_is_right();
    let reach = world.engine.host().exposed.get("www.test").copied();
    assert_eq!(reach, Some(Reach::Closed));
    world.done(Request::Remove("store".into())).await;
    assert!(world.engine.host().leads.is_empty());
    world.created("shop", web()).await;
    world.done(add("shop", &["www.test"])).await;
}

#[tokio::test(start_paused = true)]
async fn what_another_has_is_refused_with_its_name() {
    let world = World::with_domains().await;
    let problem = world.refused(add("next", &["d.test", "A.TEST"])).await;
    assert_eq!(problem.code, Code::DomainTaken);
    assert_eq!(
        problem.what,
        "the domain a.test belongs to environment shop"
    );
    for (host, part) in [
        ("next.localhost", "default domain of next"),
        ("shop.localhost", "lies below .localhost"),
        ("nobody.localhost", "lies below .localhost"),
        ("api.shop.localhost", "lies below .localhost"),
        ("*.localhost", "lies below .localhost"),
        ("d.test/a/../b", "has a path"),
        ("d.*.test", "not a host name"),
    ] {
        let problem = world.refused(add("next", &[host])).await;
        assert_eq!(problem.code, Code::DomainInvalid, "{host}");
        assert!(problem.what.contains(part), "{problem}");
    }
    assert_eq!(world.refused(add("next", &[])).await.code, Code::BadRequest);
    world.created("bare", vec![layer("db")]).await;
    let problem = world.refused(add("bare", &["d.test"])).await;
    assert_eq!(problem.code, Code::WrongState);
    assert_eq!(world.engine.calls().len(), 0);

    // Of two that ask at once, the one that is first gets it.
    world.engine.hang("expose");
    let first = world.submit(add("shop", &["d.test"])).await;
    world.engine.hangs.notified().await;
    let problem = world.refused(add("next", &["d.test"])).await;
    assert_eq!(problem.code, Code::DomainTaken);
    world.engine.go_on();
    assert_eq!(world.ended(first).await.state, OperationState::Done);
}

#[tokio::test(start_paused = true)]
async fn paths_and_wildcards_are_domains_of_their_own() {
    let world = World::with_domains().await;
    let mixed = ["*.e.test", "a.test/Next/", "a.test/next"];
    world.done(add("next", &mixed)).await;
    world.edge_is_right();
    let has = ["*.e.test", "a.test/Next", "a.test/next", "c.test"];
    assert_eq!(world.has("next"), has);
    assert_eq!(world.leads("a.test").as_deref(), Some("shop"));
    world.done(swap("shop", "next")).await;
    assert_eq!(world.has("shop"), has);
    world.edge_is_right();
    let asked = world.engine.calls();
    for call in ["ask shop for www.e.test/", "ask shop for a.test/next"] {
        assert!(asked.iter().any(|c| c == call), "{asked:?}");
    }
    world.done(remove("shop", "a.test/next/")).await;
    assert_eq!(world.leads("a.test/next"), None);
}

#[tokio::test(start_paused = true)]
async fn a_clone_gets_no_custom_domains() {
    let world = World::with_domains().await;
    world.done(clone_of("shop")).await;
    assert!(world.has("shop-clone").is_empty());
    assert_eq!(world.has("shop"), ["a.test", "b.test"]);
    world.edge_is_right();
}

#[tokio::test(start_paused = true)]
async fn a_failure_leaves_the_domains_as_they_were() {
    for act in [Act::Fail, Act::FailLate] {
        for request in [add("shop", &["b.test", "d.test"]), remove("shop", "a.test")] {
            let world = World::with_domains().await;
            world.engine.host().act_at = Some((0, act));
            world.failed(request).await;
            assert_eq!(world.has("shop"), ["a.test", "b.test"]);
            world.edge_is_right();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_default_domain_wins_over_a_custom_one() {
    let world = World::with_domains().await;
    // As if the base domain had been another when it was added.
    let shop = world.named("shop").unwrap();
    let double = [Domain::of_host("next.localhost")];
    world
        .shared
        .store
        .add_domains(
            &shop.id,
            &double,
            OperationId::new(),
            jiff::Timestamp::now(),
        )
        .unwrap();
    world.done(add("shop", &["d.test"])).await;
    assert_eq!(world.leads("next.localhost").as_deref(), Some("next"));
    assert_eq!(world.leads("d.test").as_deref(), Some("shop"));
}

#[tokio::test(start_paused = true)]
async fn a_swap_asks_the_side_to_come_then_switches_once() {
    let world = World::with_domains().await;
    let request = swap_with("shop", "next", |request| {
        request.warm.paths = vec!["/".into(), "/x".into()];
        request.warm.answers = 2;
    });
    let operation = world.done(request).await;
    let mut wanted = Vec::new();
    for (who, host) in [("next", "a.test"), ("next", "b.test"), ("shop", "c.test")] {
        for path in ["/", "/x"] {
            wanted.extend(vec![format!("ask {who} for {host}{path}"); 2]);
        }
    }
    wanted.push("expose".to_owned());
    assert_eq!(world.engine.calls(), wanted);
    assert_eq!(world.has("shop"), ["c.test"]);
    assert_eq!(world.has("next"), ["a.test", "b.test"]);
    world.edge_is_right();
    let report = operation.swap.unwrap();
    assert_eq!((report.with.as_str(), report.us), ("next", Some(70)));
    assert_eq!(report.version, Some(world.engine.host().version));
    assert!(report.switched.is_some());
    let moved: Vec<_> = report
        .moved
        .iter()
        .map(|moved| format!("{} {} {}", moved.host, moved.from, moved.to))
        .collect();
    assert_eq!(
        moved,
        ["a.test shop next", "b.test shop next", "c.test next shop"]
    );
}

#[tokio::test(start_paused = true)]
async fn when_one_has_no_domains_they_move_and_come_back() {
    let world = World::with_domains().await;
    world.done(remove("next", "c.test")).await;
    let problem = world.failed(back("shop", "next")).await;
    assert!(problem.what.contains("never swapped"), "{problem}");
    world.done(swap("next", "shop")).await;
    assert!(world.has("shop").is_empty());
    world.done(back("shop", "next")).await;
    assert_eq!(world.has("shop"), ["a.test", "b.test"]);
    world.done(back("next", "shop")).await;
    assert_eq!(world.has("next"), ["a.test", "b.test"]);
    world.edge_is_right();

    world.done(add("shop", &["d.test"])).await;
    world.engine.calls();
    let problem = world.failed(back("shop", "next")).await;
    assert_eq!(problem.code, Code::WrongState);
    assert!(
        problem.what.contains("domains of shop changed"),
        "{problem}"
    );
    assert_eq!(problem.details, ["after the swap: none", "now: d.test"]);
    assert_eq!(world.engine.calls().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_swap_that_cannot_be_is_refused() {
    let world = World::new();
    world.created("shop", web()).await;
    world.created("next", web()).await;
    world.created("bare", vec![layer("db")]).await;
    assert_eq!(
        world.refused(swap("shop", "shop")).await.code,
        Code::BadRequest
    );
    let unknown = world.refused(swap("shop", "nobody")).await;
    assert_eq!(unknown.code, Code::EnvironmentUnknown);
    let problem = world.failed(swap("shop", "next")).await;
    assert!(problem.what.contains("nothing to exchange"), "{problem}");
    world.done(add("shop", &["a.test"])).await;
    let problem = world.failed(swap("shop", "bare")).await;
    assert!(problem.what.contains("has no entry"), "{problem}");
    world.done(Request::Stop("next".into())).await;
    world.engine.calls();
    let problem = world.failed(swap("shop", "next")).await;
    assert_eq!(problem.code, Code::WrongState);
    assert!(problem.what.contains("next does not run"), "{problem}");
    assert_eq!(world.engine.calls().len(), 0);
    assert_eq!(world.has("shop"), ["a.test"]);
}

#[tokio::test(start_paused = true)]
async fn good_answers_must_come_in_a_row() {
    let world = World::with_domains().await;
    world
        .engine
        .host()
        .answers
        .extend([200, 200, 503, 404, 200, 301]);
    world.done(swap("shop", "next")).await;
    let calls = world.engine.calls();
    let asked = |host: &str| calls.iter().filter(|call| call.contains(host)).count();
    assert_eq!(
        (asked("a.test"), asked("b.test"), asked("c.test")),
        (6, 3, 3)
    );
}

#[tokio::test(start_paused = true)]
async fn a_cold_side_leaves_everything_and_says_which_request_got_what() {
    let world = World::with_domains().await;
    world.engine.host().answers.extend([502; 10_000]);
    let begun = tokio::time::Instant::now();
    let problem = world.failed(swap("shop", "next")).await;
    assert_eq!(begun.elapsed().as_secs(), 30);
    assert_eq!(problem.code, Code::WarmFailed);
    assert!(problem.what.contains("environment next"), "{problem}");
    assert_eq!(
        problem.details,
        ["GET / with Host a.test at node web-1: status 502"]
    );
    assert!(!world.engine.calls().contains(&"expose".to_owned()));
    assert_eq!(world.has("shop"), ["a.test", "b.test"]);
    world.edge_is_right();

    // One that does not answer at all is not waited for any longer.
    world.engine.host().answers.clear();
    world.engine.hang("ask next for a.test/");
    let begun = tokio::time::Instant::now();
    let problem = world.failed(swap("shop", "next")).await;
    assert_eq!(problem.code, Code::WarmFailed);
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_swap_that_fails_or_is_cancelled_at_any_call_changes_nothing() {
    // Answers that fail are asked for again; the switch is the call that fails it.
    for act in [Act::Fail, Act::FailLate] {
        let world = World::with_domains().await;
        world.engine.host().act_at = Some((9, act));
        let operation = world.run(swap("shop", "next")).await;
        assert_eq!(operation.state, OperationState::Failed, "{act:?}");
        assert_eq!(operation.swap.unwrap().switched, None);
        assert_eq!(world.has("shop"), ["a.test", "b.test"]);
        assert_eq!(world.has("next"), ["c.test"]);
        world.edge_is_right();
        let problem = world.failed(back("shop", "next")).await;
        assert!(problem.what.contains("never swapped"), "{problem}");
    }
    for at in 0..9 {
        let world = World::with_domains().await;
        world.engine.host().act_at = Some((at, Act::Hang));
        let id = world.submit(swap("shop", "next")).await;
        world.engine.hangs.notified().await;
        world.shared.live_of(id).unwrap().cancel();
        assert_eq!(world.ended(id).await.state, OperationState::Cancelled);
        assert_eq!(world.has("shop"), ["a.test", "b.test"], "at {at}");
        world.edge_is_right();
    }
}

#[tokio::test(start_paused = true)]
async fn both_are_held_while_they_are_swapped() {
    let world = World::with_domains().await;
    world.engine.hang("ask next for a.test/");
    let swapping = world.submit(swap("shop", "next")).await;
    world.engine.hangs.notified().await;
    let adding = world.shared.submit(add("next", &["d.test"])).await.unwrap();
    assert_eq!(adding.state, OperationState::Waiting);
    world.engine.go_on();
    world.engine.host().answers.clear();
    assert_eq!(world.ended(swapping).await.state, OperationState::Done);
    assert_eq!(world.ended(adding.id).await.state, OperationState::Done);
    assert_eq!(world.has("next"), ["a.test", "b.test", "d.test"]);
    world.edge_is_right();
}
