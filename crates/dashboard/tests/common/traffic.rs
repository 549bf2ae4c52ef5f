//! Traffic to show, and what the platform that only pretends does about it.

use std::time::Duration;

use offshoot_model::certificate::{
    Certificate, CertificateKind, CertificateRequest, CertificatesView,
};
use offshoot_model::domain::{Domain, DomainHttps, DomainView, MovedDomain, SwapReport};
use offshoot_model::operation::{OperationKind, OperationState, StepState};
use offshoot_model::traffic::compare::{Figures, difference, share};
use offshoot_model::traffic::stats::{Difference, Histogram, MirrorStats, NodeHealth, SideHealth};
use offshoot_model::traffic::view::{ChangeView, GoalView, SideView, TrafficReport, TrafficView};
use offshoot_model::{Code, Fault, Operation, Problem};
use offshoot_operations::Request;

use super::fake::Fake;
use super::sample;

fn at(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

/// The domain that somebody else has.
pub const TAKEN: &str = "taken.example.com";

impl Fake {
    /// From now on this is what an environment's policy is and what was counted.
    pub fn put_traffic(&self, name: &str, view: TrafficView) {
        self.traffic.lock().unwrap().insert(name.to_owned(), view);
    }

    pub fn traffic_of(&self, name: &str) -> TrafficView {
        let known = self.traffic.lock().unwrap().get(name).cloned();
        known.unwrap_or_else(|| TrafficView {
            sides: vec![SideView {
                environment: name.to_owned(),
                share: 1.0,
                requests: 12_345,
                errors: 3,
                p50_ms: Some(3.1),
                p95_ms: Some(18.0),
                p99_ms: Some(61.0),
                ..SideView::default()
            }],
            since: Some(at("2026-11-28T09:00:00Z")),
            ..TrafficView::default()
        })
    }

    /// Changes that are about what leads where; `None`: it is another one.
    pub fn change_traffic(&self, request: &Request) -> Option<Result<Operation, Problem>> {
        let done = |kind, name: &str| Some(Ok(sample::operation(kind, name)));
        match request {
            Request::DomainAdd(name, request) => {
                let typed: Vec<_> = request.domains.iter().map(Domain::to_string).collect();
                self.note(format!("domain add {name} {}", typed.join(" ")));
                if typed.iter().any(|domain| domain == TAKEN) {
                    return Some(Err(Problem::new(
                        Code::DomainTaken,
                        Fault::Request,
                        format!("{TAKEN} leads to environment docs"),
                        "take it away first: `offshoot domain rm docs taken.example.com`",
                    )));
                }
                let mut environments = self.environments.lock().unwrap();
                for env in environments.iter_mut().filter(|env| env.name == *name) {
                    env.domains.extend(request.domains.iter().map(domain));
                }
                done(OperationKind::DomainAdd, name)
            }
            Request::DomainRemove(name, gone) => {
                self.note(format!("domain rm {name} {gone}"));
                let mut environments = self.environments.lock().unwrap();
                for env in environments.iter_mut().filter(|env| env.name == *name) {
                    env.domains
                        .retain(|domain| domain.domain().to_string() != *gone);
                }
                done(OperationKind::DomainRemove, name)
            }
            Request::DomainHttps(domain, https) => {
                self.note(format!("domain https {domain} {https}"));
                done(OperationKind::DomainHttps, "shop")
            }
            Request::Swap(name, request) => {
                self.note(format!(
                    "swap {name} {} back {} warm {:?} {} {}",
                    request.with,
                    request.back,
                    request.warm.paths,
                    request.warm.answers,
                    request.warm.timeout_ms
                ));
                Some(self.swap(name, &request.with))
            }
            Request::TrafficSet(name, policy) => {
                let text = serde_json::to_string(policy).unwrap();
                self.note(format!("traffic set {name} {text}"));
                let mut view = self.traffic_of(name);
                view.policy = policy.clone();
                self.put_traffic(name, view);
                done(OperationKind::TrafficSet, name)
            }
            Request::TrafficReplace {
                environment,
                before,
                after,
            } => {
                assert_eq!(**before, self.traffic_of(environment).policy);
                self.change_traffic(&Request::TrafficSet(environment.clone(), after.clone()))
            }
            Request::CertificateAdd(request) => {
                self.note(format!("cert add {request:?}"));
                if let CertificateRequest::Uploaded { chain, .. } = request
                    && !chain.starts_with("-----BEGIN CERTIFICATE-----")
                {
                    return Some(Err(Problem::new(
                        Code::CertificateInvalid,
                        Fault::Request,
                        "the chain has no certificate in it",
                        "paste it as PEM",
                    )));
                }
                done(OperationKind::CertificateAdd, "a certificate")
            }
            Request::CertificateRemove(name) => {
                self.note(format!("cert rm {name}"));
                done(OperationKind::CertificateRemove, name)
            }
            Request::CertificateRenew(name) => {
                self.note(format!("cert renew {name}"));
                done(OperationKind::CertificateRenew, name)
            }
            Request::TrafficClear(name) => {
                self.note(format!("traffic clear {name}"));
                self.traffic.lock().unwrap().remove(name);
                done(OperationKind::TrafficSet, name)
            }
            Request::TrafficRamp(name, request) => {
                let text = serde_json::to_string(request).unwrap();
                self.note(format!("traffic ramp {name} {text}"));
                done(OperationKind::TrafficRamp, name)
            }
            Request::Promote(name, request) => {
                let text = serde_json::to_string(request).unwrap();
                self.note(format!("promote {name} {text}"));
                done(OperationKind::Promote, name)
            }
            _ => None,
        }
    }

    fn swap(&self, name: &str, with: &str) -> Result<Operation, Problem> {
        self.find(with)?;
        let mut environments = self.environments.lock().unwrap();
        let take = |name: &str, all: &mut Vec<offshoot_model::view::EnvironmentView>| {
            let found = all.iter_mut().find(|env| env.name == name).unwrap();
            std::mem::take(&mut found.domains)
        };
        let (one, other) = (take(name, &mut environments), take(with, &mut environments));
        let mut report = SwapReport {
            with: with.to_owned(),
            moved: Vec::new(),
            switched: Some(at("2026-11-28T18:00:00.125Z")),
            us: Some(900),
            version: Some(7),
        };
        for (from, to, domains) in [(name, with, one), (with, name, other)] {
            report.moved.extend(domains.iter().map(|view| MovedDomain {
                host: view.host.clone(),
                path: view.path.clone(),
                from: from.to_owned(),
                to: to.to_owned(),
            }));
            let found = environments.iter_mut().find(|env| env.name == to);
            found.unwrap().domains = domains;
        }
        Ok(Operation {
            swap: Some(report),
            ..sample::operation(OperationKind::Swap, name)
        })
    }

    /// Every side that is up takes requests again.
    pub fn bring_back(&self, name: &str) -> TrafficView {
        self.note(format!("traffic back {name}"));
        let mut view = self.traffic_of(name);
        for health in view
            .sides
            .iter_mut()
            .filter_map(|side| side.health.as_mut())
        {
            health.takes = health.up;
        }
        self.put_traffic(name, view.clone());
        view
    }
}

fn domain(domain: &Domain) -> DomainView {
    DomainView {
        host: domain.host.clone(),
        path: domain.path.clone(),
        added: at("2026-11-28T17:30:00Z"),
        https: DomainHttps::Offer,
        redirect: None,
    }
}

/// A shop of which a tenth goes to its clone, that is checked and copied, with two goals: one clear, one open.
pub fn split() -> TrafficView {
    let goal = |name: &str, counts: (u64, u64), first| GoalView {
        name: name.to_owned(),
        reached: counts.0,
        of: counts.1,
        share: share(counts.0, counts.1),
        beside_first: Option::and_then(first, |first| difference(counts, first)),
    };
    let node = |address: &str, up, since: &str, last: &str| NodeHealth {
        address: address.parse().unwrap(),
        up,
        since: at(since),
        last: last.to_owned(),
    };
    let change = |time: &str, takes, why: &str| ChangeView {
        at: at(time),
        environment: "upgrade".to_owned(),
        takes,
        why: why.to_owned(),
    };
    TrafficView {
        policy: serde_json::from_value(serde_json::json!({
            "sides": [{"environment": "shop", "weight": 90}, {"environment": "upgrade", "weight": 10}],
            "rules": [{"when": [{"header": {"name": "x-country", "values": ["AT", "CH"]}}, {"path": "/new"}], "to": "upgrade"}],
            "failover": {"check": {"path": "/health"}, "passive": {}, "back": "by-hand"},
            "mirror": {"environment": "pr-1284", "permille": 125},
            "goals": [{"name": "paid", "path": "/thanks"}, {"name": "searched", "path": "/search"}],
        }))
        .unwrap(),
        since: Some(at("2026-11-28T09:00:00Z")),
        sides: vec![
            SideView {
                environment: "shop".to_owned(),
                share: 0.9,
                requests: 80_214,
                errors: 96,
                p50_ms: Some(4.2),
                p95_ms: Some(21.0),
                p99_ms: Some(143.0),
                visitors: 8_000,
                goals: vec![
                    goal("paid", (480, 8_000), None),
                    goal("searched", (2_310, 8_000), None),
                ],
                health: Some(SideHealth {
                    up: true,
                    takes: true,
                    nodes: vec![node("10.208.3.10:80", true, "2026-11-28T09:00:02Z", "200 in 2 ms")],
                }),
                ..SideView::default()
            },
            SideView {
                environment: "upgrade".to_owned(),
                share: 0.1,
                requests: 9_070,
                errors: 204,
                p50_ms: Some(3.6),
                p95_ms: Some(26.0),
                p99_ms: Some(1_290.0),
                visitors: 900,
                goals: vec![
                    goal("paid", (81, 900), Some((480, 8_000))),
                    goal("searched", (271, 900), Some((2_310, 8_000))),
                ],
                health: Some(SideHealth {
                    up: true,
                    takes: false,
                    nodes: vec![
                        node("10.208.4.10:80", true, "2026-11-28T17:04:00Z", "200 in 3 ms"),
                        node("10.208.4.15:80", false, "2026-11-28T17:00:01Z", "connection refused"),
                    ],
                }),
                ..SideView::default()
            },
        ],
        refused: 17,
        mirror: Some(copies()),
        changes: vec![
            change("2026-11-28T09:00:02Z", true, "its first checks are good"),
            change("2026-11-28T17:00:01Z", false, "10.208.4.10:80: connection refused"),
        ],
        uncounted: None,
    }
}

/// A ramp under way.
pub fn ramp() -> Operation {
    let figures = |requests, p95| Figures {
        requests,
        errors: requests / 400,
        p95_ms: Some(p95),
    };
    Operation {
        state: OperationState::Running,
        ended: None,
        steps: vec![
            sample::step("preflight", StepState::Done, Some(900)),
            sample::step("ramp", StepState::Running, None),
        ],
        traffic: Some(TrafficReport {
            old: "shop".to_owned(),
            new: "upgrade".to_owned(),
            percent: 10,
            old_figures: Some(figures(3_790, 21.0)),
            new_figures: Some(figures(412, 26.0)),
            keep_until: None,
        }),
        ..sample::operation(OperationKind::TrafficRamp, "shop")
    }
}

fn copies() -> MirrorStats {
    let mut latency = Histogram::default();
    latency.add(Duration::from_millis(5));
    let differs = |path: &str, statuses, headers: &[&str], bodies| Difference {
        at: at("2026-11-28T17:40:00Z"),
        method: "GET".to_owned(),
        host: "shop.example.com".to_owned(),
        path: path.to_owned(),
        statuses,
        headers: headers.iter().map(|name| (*name).to_owned()).collect(),
        bodies,
        ms: (4.0, 9.5),
    };
    MirrorStats {
        compared: 10_031,
        same: 9_997,
        status: 4,
        headers: 9,
        body: 21,
        failed: 1,
        skipped: 2,
        live: latency.clone(),
        copy: latency,
        differences: vec![
            differs("/products/11", (200, 200), &["etag"], Some((5_120, 5_131))),
            differs("/cart", (200, 500), &[], Some((812, 74))),
        ],
    }
}

/// Certificates of the shop: its default domain's by the own authority, its custom one's by ACME, whose renewal fails.
pub fn certificates() -> CertificatesView {
    let certificate = |kind, name: &str, issuer: &str| Certificate {
        id: name.to_owned(),
        kind,
        names: vec![name.to_owned()],
        automatic: kind == CertificateKind::SelfSigned,
        issuer: issuer.to_owned(),
        added: at("2026-11-01T00:00:00Z"),
        not_before: at("2026-11-01T00:00:00Z"),
        not_after: at("2099-01-30T00:00:00Z"),
        renew_at: None,
        failures: 0,
        problem: None,
    };
    CertificatesView {
        served: true,
        certificates: vec![
            certificate(CertificateKind::SelfSigned, "*.localhost", "Offshoot os"),
            Certificate {
                failures: 2,
                problem: Some(Problem::new(
                    Code::AcmeFailed,
                    Fault::Host,
                    "the ACME server could not reach shop.example.com",
                    "see that its name leads to this host",
                )),
                ..certificate(CertificateKind::Acme, "shop.example.com", "Example CA R3")
            },
        ],
    }
}
