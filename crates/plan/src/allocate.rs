//! Gives out what is unique on a host: networks, id ranges, host ports.

use std::collections::BTreeSet;

use ipnet::{Ipv4Net, Ipv6Net};
use offshoot_model::environment::{Placement, PortBinding};
use offshoot_model::manifest::PublishedPort;

/// What the host has to give; from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Each environment gets a /24 of it.
    pub outer_pool: Ipv4Net,
    /// The /24 that nodes see.
    pub inner: Ipv4Net,
    /// Each environment gets a /64 of it, where the host has IPv6.
    pub outer_pool6: Option<Ipv6Net>,
    /// The /64 that nodes see, where the host has IPv6.
    pub inner6: Option<Ipv6Net>,
    /// First id of the first range.
    pub id_base: u32,
    /// Ids in a range.
    pub id_count: u32,
    /// Number of ranges.
    pub id_ranges: u32,
    /// Environments answer at `<name>.<base_domain>`.
    pub base_domain: String,
    /// Port of the edge as people reach it; left out of addresses when 80.
    pub edge_port: u16,
}

impl Host {
    /// The domain of the environment of that name.
    #[must_use]
    pub fn domain(&self, name: &str) -> String {
        format!("{name}.{}", self.base_domain)
    }

    /// The address for a browser.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        match self.edge_port {
            80 => format!("http://{}/", self.domain(name)),
            port => format!("http://{}:{port}/", self.domain(name)),
        }
    }
}

/// What is no longer free.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// Names of environments.
    pub names: BTreeSet<String>,
    /// Networks that the host reaches, by environments or otherwise.
    pub networks: BTreeSet<Ipv4Net>,
    /// Starts of id ranges.
    pub id_bases: BTreeSet<u32>,
    /// Published ports of all environments.
    pub ports: Vec<PortBinding>,
}

/// Nothing of a kind is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// No /24 is free.
    #[error("every /24 of the outer network {0} is taken")]
    Networks(Ipv4Net),
    /// No id range is free.
    #[error("all {0} ranges of user ids are taken")]
    IdRanges(u32),
}

impl Exhausted {
    pub(crate) fn next(&self) -> &'static str {
        match self {
            Self::Networks(_) => {
                "remove environments, or give `network.outer_pool` a larger network"
            }
            Self::IdRanges(_) => "remove environments, or raise `ids.ranges`",
        }
    }
}

/// The first free network and id range. `inner` is the parent's for a clone, so that nothing inside changes.
pub(crate) fn placement(
    host: &Host,
    taken: &Taken,
    inner: Option<&Placement>,
) -> Result<Placement, Exhausted> {
    let overlaps = |net: &Ipv4Net| {
        taken
            .networks
            .iter()
            .any(|other| other.contains(net) || net.contains(other))
    };
    let (index, outer) = host
        .outer_pool
        .subnets(24)
        .into_iter()
        .flatten()
        .enumerate()
        .find(|(_, net)| !overlaps(net))
        .ok_or(Exhausted::Networks(host.outer_pool))?;
    let id_base = (0..host.id_ranges)
        .filter_map(|n| host.id_base.checked_add(n.checked_mul(host.id_count)?))
        .find(|base| !taken.id_bases.contains(base))
        .ok_or(Exhausted::IdRanges(host.id_ranges))?;
    let inner6 = inner.map_or(host.inner6, |parent| parent.inner6);
    let outer6 = inner6.and(host.outer_pool6).and_then(|pool| {
        let network = u128::from(pool.network()) | (u128::try_from(index).ok()? << 64);
        Ipv6Net::new(network.into(), 64).ok()
    });
    Ok(Placement {
        id_base,
        id_count: host.id_count,
        inner: inner.map_or(host.inner, |parent| parent.inner),
        outer,
        inner6: outer6.and(inner6),
        outer6,
    })
}

/// Whether two bindings cannot both listen: same port and protocol, and addresses that are equal or of which one
/// is the wildcard.
#[must_use]
pub(crate) fn collides(a: &PublishedPort, b: &PublishedPort) -> bool {
    let wildcard = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::" || ip == "*";
    a.protocol == b.protocol
        && a.host_port.is_some()
        && a.host_port == b.host_port
        && (a.host_ip == b.host_ip || wildcard(&a.host_ip) || wildcard(&b.host_ip))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn host() -> Host {
        Host {
            outer_pool: "10.208.0.0/22".parse().unwrap(),
            inner: "10.99.0.0/24".parse().unwrap(),
            outer_pool6: Some("fd6f:6666::/48".parse().unwrap()),
            inner6: Some("fd6f:6665::/64".parse().unwrap()),
            id_base: 100_000,
            id_count: 65_536,
            id_ranges: 3,
            base_domain: "localhost".into(),
            edge_port: 8080,
        }
    }

    #[test]
    fn networks_and_ranges_run_out_one_by_one() {
        let host = host();
        let mut taken = Taken::default();
        for n in 0..3u32 {
            let placed = placement(&host, &taken, None).unwrap();
            assert_eq!(placed.outer, format!("10.208.{n}.0/24").parse().unwrap());
            assert_eq!(placed.id_base, 100_000 + n * 65_536);
            assert_eq!(
                placed.outer6,
                Some(format!("fd6f:6666:0:{n}::/64").parse().unwrap())
            );
            taken.networks.insert(placed.outer);
            taken.id_bases.insert(placed.id_base);
        }
        assert_eq!(placement(&host, &taken, None), Err(Exhausted::IdRanges(3)));
        taken.networks.insert("10.208.0.0/16".parse().unwrap());
        assert_eq!(
            placement(&host, &taken, None),
            Err(Exhausted::Networks(host.outer_pool))
        );
    }

    #[test]
    fn a_foreign_route_is_avoided() {
        let mut taken = Taken::default();
        taken.networks.insert("10.208.0.128/25".parse().unwrap());
        assert_eq!(
            placement(&host(), &taken, None).unwrap().outer,
            "10.208.1.0/24".parse().unwrap()
        );
    }
}
