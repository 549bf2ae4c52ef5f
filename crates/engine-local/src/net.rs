//! Private networks: names, name servers, links.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use offshoot_engine::Gate;
use offshoot_model::{EnvId, Environment, Node, Problem};
use offshoot_network::{Isolation, Mail, Names, NodeLink, RouterSpec};

use crate::config::LocalConfig;

/// Most name servers taken from the host.
const MOST_SERVERS: usize = 3;

/// Directory of an environment's router.
pub(crate) fn router_dir(config: &LocalConfig, env: &EnvId) -> PathBuf {
    config.run_envs().join(env.as_str()).join("router")
}

/// The router of an environment.
pub(crate) fn router_spec(
    config: &LocalConfig,
    environment: &Environment,
    gate: Gate,
) -> RouterSpec {
    RouterSpec {
        env: environment.id.clone(),
        instance: config.instance.clone(),
        placement: environment.placement.clone(),
        run_dir: router_dir(config, &environment.id),
        names: names(environment),
        upstream_dns: if config.dns.is_empty() {
            host_servers()
        } else {
            config.dns.clone()
        },
        gate: match gate {
            Gate::Open => offshoot_network::Gate::Open,
            Gate::Closed => offshoot_network::Gate::Closed,
        },
        mail: match environment.held.mail {
            true => Mail::Held,
            false => Mail::Passes,
        },
    }
}

/// The link of a node. In a clone whose memory is on its way the nodes are kept apart until all are there.
pub(crate) fn link(
    config: &LocalConfig,
    environment: &Environment,
    node: &Node,
    apart: Isolation,
) -> NodeLink {
    NodeLink::new(
        router_dir(config, &environment.id),
        node,
        &environment.placement,
        apart,
    )
}

/// Names that resolve inside: nodes, host names, layers, and aliases, which several layers may share.
pub(crate) fn names(environment: &Environment) -> Names {
    let mut names: Names = Vec::new();
    for node in &environment.nodes {
        names.push((node.name().to_owned(), vec![node.host]));
        if node.hostname != node.name() {
            names.push((node.hostname.clone(), vec![node.host]));
        }
    }
    for layer in &environment.manifest.layers {
        names.push((
            layer.name.to_string(),
            environment
                .nodes_of(&layer.name)
                .map(|node| node.host)
                .collect(),
        ));
    }
    let mut aliases: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for layer in &environment.manifest.layers {
        for alias in &layer.aliases {
            let hosts = environment.nodes_of(&layer.name).map(|node| node.host);
            aliases.entry(alias).or_default().extend(hosts);
        }
    }
    names.extend(
        aliases
            .into_iter()
            .map(|(alias, hosts)| (alias.to_owned(), hosts)),
    );
    let mut seen = BTreeSet::new();
    names.retain(|(name, _)| seen.insert(name.clone()));
    names
}

/// The host's own name servers (resolv.conf(5)).
fn host_servers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    servers_in(&text)
}

fn servers_in(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| {
            rest.split_whitespace()
                .next()?
                .split('%')
                .next()?
                .parse::<IpAddr>()
                .ok()
        })
        .take(MOST_SERVERS)
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

/// Networks that the host reaches by its routing table (`/proc/net/route`, proc(5)); not the default route, and
/// not links of this instance.
pub(crate) fn reached_networks(instance: &str) -> Result<Vec<ipnet::Ipv4Net>, Problem> {
    let path = Path::new("/proc/self/net/route");
    let text = std::fs::read_to_string(path)
        .map_err(|e| Problem::internal(format!("{} cannot be read: {e}", path.display())))?;
    let own = format!("{instance}-");
    Ok(text
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let interface = fields.next()?;
            let address = u32::from_str_radix(fields.next()?, 16).ok()?.swap_bytes();
            let mask = u32::from_str_radix(fields.nth(5)?, 16).ok()?.swap_bytes();
            let net = ipnet::Ipv4Net::with_netmask(address.into(), mask.into()).ok()?;
            (net.prefix_len() > 0 && !interface.starts_with(&own)).then_some(net)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_the_host() {
        let text = "# nameserver 9.9.9.9\nnameserver 127.0.0.53\nsearch x\n nameserver fe80::1%eth0\nnameserver bad\n";
        let want: Vec<SocketAddr> = vec![
            "127.0.0.53:53".parse().unwrap(),
            "[fe80::1]:53".parse().unwrap(),
        ];
        assert_eq!(servers_in(text), want);
    }
}
