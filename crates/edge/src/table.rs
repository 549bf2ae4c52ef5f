//! The routes as they are served: one immutable table, replaced as a whole.
//!
//! Addresses are used again after an environment is removed, so an upstream is known by a key that is given when it
//! appears in the routes and never again: the pool of kept connections is keyed by it, and a connection of a removed
//! upstream is never handed to another environment.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use offshoot_edge_api::{Protocol, RoutesFile, normal_host};
use offshoot_model::id::EnvId;
use tokio::sync::watch;

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
}

/// All routes.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) version: u64,
    hosts: HashMap<String, Arc<Target>>,
    pub(crate) ports: Vec<(Protocol, SocketAddr, Arc<Target>)>,
    environments: HashMap<EnvId, Arc<Environment>>,
    keys: HashMap<(EnvId, SocketAddr), u64>,
}

impl Table {
    /// The table for a checked file; environments and upstreams that were in `old` stay what they are.
    pub(crate) fn next(old: &Self, file: RoutesFile) -> Self {
        let mut table = Self {
            version: file.version,
            hosts: HashMap::with_capacity(file.routes.len()),
            ..Self::default()
        };
        for route in file.routes {
            if let Some(host) = normal_host(&route.host) {
                let target = table.target(old, route.environment, route.upstreams);
                table.hosts.insert(host, target);
            }
        }
        for port in file.ports {
            let target = table.target(old, port.environment, port.upstreams);
            table.ports.push((port.protocol, port.listen, target));
        }
        table
    }

    fn target(&mut self, old: &Self, id: EnvId, addresses: Vec<SocketAddr>) -> Arc<Target> {
        let environment = self.environments.entry(id.clone()).or_insert_with(|| {
            old.environments
                .get(&id)
                .map_or_else(|| Environment::new(id.clone()), Arc::clone)
        });
        let environment = Arc::clone(environment);
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

    /// Tells the environments that are in `self` but not in `new` that they are gone: their connections end.
    pub(crate) fn retire(&self, new: &Self) {
        for (id, environment) in &self.environments {
            if !new.environments.contains_key(id) {
                environment.gone.send_replace(true);
            }
        }
    }

    /// Who answers a host name in its normal form.
    pub(crate) fn host(&self, host: &str) -> Option<&Arc<Target>> {
        self.hosts.get(host)
    }

    /// Number of HTTP routes.
    pub(crate) fn routes(&self) -> usize {
        self.hosts.len()
    }

    /// Number of environments.
    pub(crate) fn environments(&self) -> usize {
        self.environments.len()
    }
}

#[cfg(test)]
mod tests {
    use offshoot_edge_api::Route;

    use super::*;

    fn table(old: &Table, routes: &[(&str, &str, &[&str])]) -> Table {
        let routes = routes
            .iter()
            .map(|(host, environment, upstreams)| Route {
                host: (*host).to_owned(),
                environment: environment.parse().unwrap(),
                upstreams: upstreams.iter().map(|a| a.parse().unwrap()).collect(),
            })
            .collect();
        Table::next(
            old,
            RoutesFile {
                version: old.version + 1,
                routes,
                ports: vec![],
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
    }
}
