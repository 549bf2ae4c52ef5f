//! The routes as they are served: one immutable table, replaced as a whole.
//!
//! Addresses are used again after an environment is removed, so an upstream is known by a key that is given when it
//! appears in the routes and never again: the pool of kept connections is keyed by it, and a connection of a removed
//! upstream is never handed to another environment.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use offshoot_edge_api::{
    Https, Protocol, Redirect, RoutesFile, Traffic, normal_origin, normal_pattern, normal_prefix,
};
use offshoot_model::id::EnvId;
use tokio::sync::watch;

use crate::certificates::Certificates;
use crate::checks::Watched;
use crate::hosts::{Found, Hosts};
use crate::traffic::saved::Saved;
use crate::traffic::{Owner, Side};

static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

/// A key that no upstream has or had.
pub(crate) fn fresh_key() -> u64 {
    NEXT_KEY.fetch_add(1, Ordering::Relaxed)
}

/// An environment while it has routes.
pub(crate) struct Environment {
    pub(crate) id: EnvId,
    gone: watch::Sender<bool>,
}

impl Environment {
    fn new(id: EnvId) -> Arc<Self> {
        Arc::new(Self {
            id,
            gone: watch::Sender::new(false),
        })
    }

    /// Whether it lost its last route: it was removed.
    pub(crate) fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Waits until it lost its last route.
    pub(crate) async fn gone(&self) {
        // fails only when the sender is dropped, which `self` holds
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }
}

/// A node that answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// Given once: the same address of another environment, or after an absence, has another key.
    pub(crate) key: u64,
}

/// Where a host name or a published port leads.
pub(crate) struct Target {
    pub(crate) environment: Arc<Environment>,
    pub(crate) upstreams: Vec<Upstream>,
    next: AtomicUsize,
}

impl Target {
    /// Where to begin: each call one further, round robin.
    pub(crate) fn turn(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The upstream to ask when `tried` others did not answer; `None` when all were tried.
    pub(crate) fn upstream(&self, turn: usize, tried: usize) -> Option<Upstream> {
        let count = self.upstreams.len();
        if tried >= count {
            return None;
        }
        self.upstreams
            .get(turn.wrapping_add(tried) % count)
            .copied()
    }

    /// The first upstream that fits, from where `turn` begins.
    pub(crate) fn first_upstream(
        &self,
        turn: usize,
        fits: impl Fn(&Upstream) -> bool,
    ) -> Option<Upstream> {
        let begin = turn.checked_rem(self.upstreams.len())?;
        let (later, first) = self.upstreams.split_at_checked(begin)?;
        first.iter().chain(later).copied().find(fits)
    }
}

/// What answers a host name and path.
pub(crate) struct Route {
    /// What requests without TLS get.
    pub(crate) https: Https,
    pub(crate) answer: Answer,
}

/// Who answers.
pub(crate) enum Answer {
    /// An environment.
    Environment {
        owner: Arc<Owner>,
        /// Where the owner answers itself; with sides of its policy, these do.
        target: Arc<Target>,
    },
    /// The edge, for an environment: the client is sent elsewhere.
    Redirect {
        environment: Arc<Environment>,
        /// Scheme and authority.
        to: String,
        status: u16,
    },
    /// The edge, for an environment, with a text.
    Text {
        environment: Arc<Environment>,
        text: String,
    },
}

impl Route {
    pub(crate) fn environment(&self) -> &Arc<Environment> {
        match &self.answer {
            Answer::Environment { owner, .. } => &owner.environment,
            Answer::Redirect { environment, .. } | Answer::Text { environment, .. } => environment,
        }
    }

    fn leads(&self, to: &Arc<Environment>) -> bool {
        match &self.answer {
            Answer::Environment { owner, target } if owner.sides.is_empty() => {
                Arc::ptr_eq(&target.environment, to)
            }
            Answer::Environment { owner, .. } => {
                let mut sides = owner.sides.iter();
                sides.any(|side| Arc::ptr_eq(&side.target.environment, to))
            }
            Answer::Redirect { .. } | Answer::Text { .. } => false,
        }
    }

    /// Whether nobody is let in.
    pub(crate) fn is_fenced(&self) -> bool {
        matches!(&self.answer, Answer::Environment { owner, .. } if owner.is_fenced())
    }
}

/// All routes.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) version: u64,
    hosts: Hosts<Route>,
    pub(crate) ports: Vec<(Protocol, SocketAddr, Arc<Target>)>,
    /// Certificates for HTTPS.
    pub(crate) certificates: Certificates,
    environments: HashMap<EnvId, Arc<Environment>>,
    owners: HashMap<EnvId, Arc<Owner>>,
    /// Policies whose sides are to be checked.
    pub(crate) watched: HashMap<EnvId, Watched>,
    keys: HashMap<(EnvId, SocketAddr), u64>,
    /// What a former edge counted: in the table before the first.
    saved: HashMap<EnvId, Saved>,
}

impl Table {
    /// The table before the first: empty, with what a former edge counted.
    pub(crate) fn before(saved: HashMap<EnvId, Saved>) -> Self {
        Self {
            saved,
            ..Self::default()
        }
    }

    /// The table for a checked file; environments and upstreams that were in `old` stay what they are.
    pub(crate) fn next(old: &Self, file: RoutesFile) -> Self {
        let mut table = Self {
            version: file.version,
            hosts: Hosts::with_capacity(file.routes.len()),
            ..Self::default()
        };
        let mut policies = file
            .traffic
            .into_iter()
            .map(|traffic| (traffic.environment.clone(), traffic))
            .collect();
        for route in file.routes {
            let place = normal_pattern(&route.host).zip(normal_prefix(&route.path));
            let Some((host, path)) = place else { continue };
            let answer = match (route.redirect.as_ref().and_then(redirect), route.text) {
                (Some((to, status)), _) => Answer::Redirect {
                    environment: table.environment(old, &route.environment),
                    to,
                    status,
                },
                (None, Some(text)) => Answer::Text {
                    environment: table.environment(old, &route.environment),
                    text,
                },
                (None, None) => {
                    let owner = table.owner(old, &route.environment, &mut policies);
                    let target = table.target(old, route.environment, route.upstreams);
                    if let Some(watched) = Watched::of(&owner) {
                        let id = owner.environment.id.clone();
                        let watched = table.watched.entry(id).or_insert(watched);
                        watched.add_route(&host, &target);
                    }
                    Answer::Environment { owner, target }
                }
            };
            let https = route.https;
            let route = Arc::new(Route { https, answer });
            table.hosts.insert(host, path, route);
        }
        table.hosts.sort();
        for port in file.ports {
            let target = table.target(old, port.environment, port.upstreams);
            table.ports.push((port.protocol, port.listen, target));
        }
        table
    }

    /// The owner of a route. An environment that is only a side of its policy is in the table too, and not gone.
    fn owner(
        &mut self,
        old: &Self,
        id: &EnvId,
        policies: &mut HashMap<EnvId, Traffic>,
    ) -> Arc<Owner> {
        if let Some(owner) = self.owners.get(id) {
            return Arc::clone(owner);
        }
        let former = old.owners.get(id);
        let policy = policies.remove(id);
        let owner = match former {
            Some(former) if policy.is_none() && former.policy.is_none() => Arc::clone(former),
            former => {
                let environment = self.environment(old, id);
                let (policy, mut upstreams) = policy.map(|p| (p.policy, p.upstreams)).unzip();
                let sides = policy.iter().flat_map(|policy| &policy.sides).map(|side| {
                    let id = side.environment.clone();
                    let addresses = upstreams.as_mut().and_then(|all| all.remove(&id));
                    Side::new(
                        self.target(old, id, addresses.unwrap_or_default()),
                        side.weight,
                    )
                });
                let sides = sides.collect();
                let mirror = policy.as_ref().and_then(|policy| policy.mirror.as_ref());
                let mirror = mirror.map(|mirror| {
                    let id = mirror.environment.clone();
                    let addresses = upstreams.as_mut().and_then(|all| all.remove(&id));
                    self.target(old, id, addresses.unwrap_or_default())
                });
                let former = former.map(Arc::as_ref);
                let saved = old.saved.get(id);
                let owner = Owner::new(environment, policy, sides, former, saved);
                Arc::new(owner.with_care(mirror, former, saved))
            }
        };
        self.owners.insert(id.clone(), Arc::clone(&owner));
        owner
    }

    fn target(&mut self, old: &Self, id: EnvId, addresses: Vec<SocketAddr>) -> Arc<Target> {
        let environment = self.environment(old, &id);
        let upstreams = addresses
            .into_iter()
            .map(|address| {
                let place = (id.clone(), address);
                let key = self.keys.entry(place).or_insert_with_key(|place| {
                    old.keys.get(place).copied().unwrap_or_else(fresh_key)
                });
                Upstream { address, key: *key }
            })
            .collect();
        Arc::new(Target {
            environment,
            upstreams,
            next: AtomicUsize::new(0),
        })
    }

    fn environment(&mut self, old: &Self, id: &EnvId) -> Arc<Environment> {
        let environment = self.environments.entry(id.clone()).or_insert_with(|| {
            old.environments
                .get(id)
                .map_or_else(|| Environment::new(id.clone()), Arc::clone)
        });
        Arc::clone(environment)
    }

    /// Tells the environments that are in `self` but not in `new` that they are gone: their connections end.
    pub(crate) fn retire(&self, new: &Self) {
        for (id, environment) in &self.environments {
            if !new.environments.contains_key(id) {
                environment.gone.send_replace(true);
            }
        }
    }

    /// What answers a host name in its normal form and a path as the client sent it.
    pub(crate) fn find(&self, host: &str, path: &str) -> Found<'_, Route> {
        self.hosts.find(host, path)
    }

    /// Whether a host name and path lead to an environment: as their owner, or as a side of its policy.
    pub(crate) fn leads(&self, host: &str, path: &str, to: &Arc<Environment>) -> bool {
        match self.find(host, path) {
            Found::Route(route) => route.leads(to),
            Found::NoPath | Found::NoHost => false,
        }
    }

    /// Whether a published port leads to an environment.
    pub(crate) fn port_leads(
        &self,
        protocol: Protocol,
        listen: SocketAddr,
        to: &Arc<Environment>,
    ) -> bool {
        self.ports.iter().any(|(of, at, target)| {
            (*of, *at) == (protocol, listen) && Arc::ptr_eq(&target.environment, to)
        })
    }

    /// Number of HTTP routes.
    pub(crate) fn routes(&self) -> usize {
        self.hosts.count()
    }

    /// Environments whose domains lead here: those, or all.
    pub(crate) fn owners(&self, of: &[EnvId]) -> Vec<&Owner> {
        if of.is_empty() {
            return self.owners.values().map(Arc::as_ref).collect();
        }
        let owners = of.iter().filter_map(|id| self.owners.get(id));
        owners.map(Arc::as_ref).collect()
    }

    /// All that was counted, for the next edge.
    pub(crate) fn saved(&self) -> Vec<Saved> {
        let counted = self.owners.values().filter_map(|owner| owner.saved());
        self.saved.values().cloned().chain(counted).collect()
    }

    /// Number of environments.
    pub(crate) fn environments(&self) -> usize {
        self.environments.len()
    }
}

fn redirect(redirect: &Redirect) -> Option<(String, u16)> {
    Some((normal_origin(&redirect.to)?, redirect.status))
}

#[cfg(test)]
mod tests {
    use offshoot_edge_api::Route as FileRoute;

    use super::*;

    impl Table {
        fn host(&self, host: &str) -> Option<&Arc<Target>> {
            match self.find(host, "/") {
                Found::Route(route) => match &route.answer {
                    Answer::Environment { target, .. } => Some(target),
                    Answer::Redirect { .. } | Answer::Text { .. } => None,
                },
                Found::NoPath | Found::NoHost => None,
            }
        }
    }

    fn table(old: &Table, routes: &[(&str, &str, &[&str])]) -> Table {
        let routes = routes
            .iter()
            .map(|(host, environment, upstreams)| {
                let upstreams = upstreams.iter().map(|a| a.parse().unwrap()).collect();
                FileRoute::new((*host).to_owned(), environment.parse().unwrap(), upstreams)
            })
            .collect();
        Table::next(
            old,
            RoutesFile {
                version: old.version + 1,
                routes,
                ..RoutesFile::default()
            },
        )
    }

    #[test]
    fn an_address_used_again_has_another_key() {
        let one = table(
            &Table::default(),
            &[("a.localhost", "aaaaaaaa", &["10.0.0.1:80"])],
        );
        let key = |table: &Table, host: &str| table.host(host).unwrap().upstream(0, 0).unwrap().key;
        let same = table(&one, &[("a.localhost", "aaaaaaaa", &["10.0.0.1:80"])]);
        assert_eq!(key(&one, "a.localhost"), key(&same, "a.localhost"));
        let renamed = table(&same, &[("b.localhost", "aaaaaaaa", &["10.0.0.1:80"])]);
        assert_eq!(key(&one, "a.localhost"), key(&renamed, "b.localhost"));
        let other = table(&same, &[("a.localhost", "bbbbbbbb", &["10.0.0.1:80"])]);
        assert_ne!(key(&one, "a.localhost"), key(&other, "a.localhost"));
        let stopped = table(&same, &[("a.localhost", "aaaaaaaa", &[])]);
        let started = table(&stopped, &[("a.localhost", "aaaaaaaa", &["10.0.0.1:80"])]);
        assert_ne!(key(&one, "a.localhost"), key(&started, "a.localhost"));
    }

    #[test]
    fn only_removed_environments_are_told() {
        let one = table(
            &Table::default(),
            &[
                ("a.localhost", "aaaaaaaa", &[]),
                ("b.localhost", "bbbbbbbb", &[]),
            ],
        );
        let two = table(&one, &[("b.localhost", "bbbbbbbb", &[])]);
        one.retire(&two);
        assert!(one.host("a.localhost").unwrap().environment.is_gone());
        assert!(!two.host("b.localhost").unwrap().environment.is_gone());
    }

    #[test]
    fn upstreams_are_asked_in_turn_and_once_each() {
        let table = table(
            &Table::default(),
            &[("a.localhost", "aaaaaaaa", &["10.0.0.1:80", "10.0.0.2:80"])],
        );
        let target = table.host("a.localhost").unwrap();
        let first = target.turn();
        let order: Vec<_> = (0..3)
            .map(|tried| target.upstream(first, tried).map(|u| u.address.to_string()))
            .collect();
        assert_eq!(
            order,
            [Some("10.0.0.1:80".into()), Some("10.0.0.2:80".into()), None]
        );
        let second = target.turn();
        assert_eq!(
            target.upstream(second, 0).unwrap().address.to_string(),
            "10.0.0.2:80"
        );
        let [one, two] = target.upstreams[..] else {
            panic!("not two")
        };
        assert_eq!(target.first_upstream(second, |_| true), Some(two));
        assert_eq!(
            target.first_upstream(second, |node| *node != two),
            Some(one)
        );
        assert_eq!(target.first_upstream(second, |_| false), None);
    }

    #[test]
    fn redirects_hold_their_environment_and_no_upstream() {
        let mut file = RoutesFile {
            routes: vec![FileRoute::new(
                "Old.org".into(),
                "aaaaaaaa".parse().unwrap(),
                vec![],
            )],
            ..RoutesFile::default()
        };
        file.routes[0].redirect = Some(Redirect {
            to: "https://New.org".into(),
            status: 301,
        });
        let table = Table::next(&Table::default(), file);
        let Found::Route(route) = table.find("old.org", "/x") else {
            panic!("not found")
        };
        assert!(
            matches!(&route.answer, Answer::Redirect { to, status: 301, .. } if to == "https://new.org")
        );
        table.retire(&Table::default());
        assert!(route.environment().is_gone());
    }

    /// `cargo test -p offshoot-edge --release -- --ignored --nocapture many_routes`
    #[test]
    #[ignore = "a measurement"]
    fn many_routes_are_read_and_switched_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("routes.json");
        let mut before = Table::default();
        for count in [1_000_u64, 10_000, 100_000] {
            let routes = (0..count).map(|number| {
                let id = format!("{:08}", number / 4);
                let id: String = id
                    .bytes()
                    .map(|digit| char::from(digit - b'0' + b'a'))
                    .collect();
                let upstream = format!("10.208.{}.{}:80", number / 250 % 250, number % 250);
                let host = match number % 3 {
                    0 => format!("*.shop{number}.example.org"),
                    _ => format!("shop{number}.example.org"),
                };
                let mut route =
                    FileRoute::new(host, id.parse().unwrap(), vec![upstream.parse().unwrap()]);
                if number % 3 == 2 {
                    // a third of all share one host name
                    "one.example.org".clone_into(&mut route.host);
                    route.path = format!("/p{number}/x");
                }
                route
            });
            let file = RoutesFile {
                version: count,
                routes: routes.collect(),
                ..RoutesFile::default()
            };
            file.write_atomically(&path).unwrap();
            let began = std::time::Instant::now();
            let file = RoutesFile::read(&path).unwrap();
            let read = began.elapsed();
            let table = Table::next(&before, file);
            let built = began.elapsed();
            before.retire(&table);
            let switched = began.elapsed();
            assert_eq!(table.routes() as u64, count);
            let began = std::time::Instant::now();
            for number in 0..100_000 {
                let number = number % count;
                let found = match number % 3 {
                    0 => table.find(&format!("a.b.shop{number}.example.org"), "/"),
                    1 => table.find(&format!("shop{number}.example.org"), "/a/b"),
                    _ => table.find("one.example.org", &format!("/a/../p{number}/x/y")),
                };
                assert!(matches!(found, Found::Route(_)));
            }
            println!(
                "{count} routes: read and checked {read:?}, built {:?}, switched {:?}; a look-up {:?}",
                built - read,
                switched - built,
                began.elapsed() / 100_000
            );
            before = table;
        }
    }
}
