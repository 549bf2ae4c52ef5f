//! What a router and a node's link should be: written by the daemon, read by the processes that make them.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use offshoot_model::environment::{MacAddr, Node, Placement};
use offshoot_model::{EnvId, name};
use serde::{Deserialize, Serialize};

use crate::error::NetworkError;

/// Bridge in the router's namespace that all nodes are ports of.
pub const BRIDGE: &str = "br0";
/// The router's link to the host, inside its namespace.
pub const UPLINK: &str = "uplink";
/// A node's interface, inside the node.
pub const NODE_INTERFACE: &str = "eth0";
/// Hardware address of the gateway, the same in every environment: a clone's nodes keep it in their neighbour tables.
pub const BRIDGE_MAC: MacAddr = MacAddr([0x02, 0x6f, 0x66, 0x66, 0x00, 0x01]);
/// Host part of the gateway and name server inside, and of the host's end of the uplink outside.
pub const GATEWAY_HOST: u8 = 1;
/// Host part of the router's end of the uplink.
pub const ROUTER_HOST: u8 = 2;
/// Longest instance name in bytes: with an environment's id it must fit an interface's name (`IFNAMSIZ`).
pub const INSTANCE_MAX: usize = 6;

/// Most names a router answers for, and most nodes one name stands for.
const NAMES_MAX: usize = 4096;
const UPSTREAMS_MAX: usize = 8;
const DNS_NAME_MAX: usize = 253;

/// Names inside an environment: each with the host parts of the nodes that answer to it. For a reverse look-up the
/// first name that stands for one node alone is the answer.
pub type Names = Vec<(String, Vec<u8>)>;

/// One environment's router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterSpec {
    /// The environment.
    pub env: EnvId,
    /// The daemon it belongs to: 1 to 6 of `a-z0-9`.
    pub instance: String,
    /// Its addresses.
    pub placement: Placement,
    /// Directory of its control socket, pid file and log; its alone.
    pub run_dir: PathBuf,
    /// Names that resolve inside.
    pub names: Names,
    /// Where all other names are asked for, from the host's namespace; empty: they do not exist.
    pub upstream_dns: Vec<SocketAddr>,
    /// State of the uplink when the router starts; a router that runs already keeps its own.
    pub gate: Gate,
    /// What becomes of mail to the outside, from before the uplink opens.
    #[serde(default)]
    pub mail: Mail,
}

/// Whether nodes reach servers that take mail outside of the environment ([`offshoot_model::hold::MAIL_PORTS`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mail {
    /// They do.
    #[default]
    Passes,
    /// They are refused.
    Held,
}

/// Whether anything passes between an environment's nodes and what is outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// It does.
    Open,
    /// Nothing passes, in either direction: until a clone's connections to its parent's peers were destroyed.
    Closed,
}

/// Whether a node is cut off from the other nodes; the gateway and what is behind it stay in reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Cut off until [`crate::Router::lift`].
    Yes,
    /// Not cut off.
    No,
}

/// How a node is linked to its environment's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLink {
    /// Run directory of the environment's router; looked up at every attach, because a router may have been started
    /// again since.
    pub router_dir: PathBuf,
    /// Name of the bridge port in the router's namespace, at most 15 bytes.
    pub port_name: String,
    /// Name of the interface in the node's namespace.
    pub ifname: String,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Host part of its addresses.
    pub host: u8,
    /// The environment's addresses.
    pub placement: Placement,
    /// Whether the port begins cut off from the other ports.
    pub ports_isolated: Isolation,
}

impl NodeLink {
    /// The link of `node` to the router at `router_dir`.
    #[must_use]
    pub fn new(
        router_dir: PathBuf,
        node: &Node,
        placement: &Placement,
        ports_isolated: Isolation,
    ) -> Self {
        Self {
            router_dir,
            port_name: format!("n{}", node.host),
            ifname: NODE_INTERFACE.to_owned(),
            mac: node.mac,
            host: node.host,
            placement: placement.clone(),
            ports_isolated,
        }
    }

    /// The node's addresses with their prefix lengths.
    pub(crate) fn addresses(&self) -> Vec<IpNet> {
        inner_addresses(&self.placement, self.host)
    }
}

/// Name of the host's end of an environment's uplink: `<instance>-<env>`.
#[must_use]
pub fn host_link_name(instance: &str, env: &EnvId) -> String {
    format!("{instance}-{env}")
}

/// Name of an instance's nftables table on the host.
#[must_use]
pub fn host_table_name(instance: &str) -> String {
    format!("offshoot_{instance}")
}

/// Checks an instance's name, which becomes part of interface and table names.
///
/// # Errors
/// When it is not 1 to 6 characters of `a-z0-9`.
pub fn check_instance(instance: &str) -> Result<(), NetworkError> {
    let fits = (1..=INSTANCE_MAX).contains(&instance.len())
        && instance
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if fits {
        Ok(())
    } else {
        Err(NetworkError::Invalid(format!(
            "{instance:?} is no instance name: 1 to {INSTANCE_MAX} lower-case letters and digits"
        )))
    }
}

/// Checks that addresses are what translation by prefix needs.
pub(crate) fn check_placement(placement: &Placement) -> Result<(), NetworkError> {
    let whole4 = |net: Ipv4Net| net.prefix_len() == 24 && net == net.trunc();
    let whole6 = |net: Ipv6Net| net.prefix_len() == 64 && net == net.trunc();
    let v6 = match (placement.inner6, placement.outer6) {
        (None, None) => true,
        (Some(inner), Some(outer)) => whole6(inner) && whole6(outer) && inner != outer,
        _ => false,
    };
    if whole4(placement.inner)
        && whole4(placement.outer)
        && placement.inner != placement.outer
        && v6
    {
        Ok(())
    } else {
        Err(NetworkError::Invalid(format!(
            "{placement:?}: networks must be a /24 and /64 each, inner unlike outer"
        )))
    }
}

/// Checks names before a router takes them.
pub(crate) fn check_names(names: &Names) -> Result<(), NetworkError> {
    if names.len() > NAMES_MAX {
        return Err(NetworkError::Invalid(format!(
            "{} names are more than {NAMES_MAX}",
            names.len()
        )));
    }
    let is_dns_name = |text: &str| {
        text.len() <= DNS_NAME_MAX
            && text
                .split('.')
                .all(|l| name::is_label(&l.to_ascii_lowercase().replace('_', "-"), name::LABEL_MAX))
    };
    match names.iter().find(|(text, _)| !is_dns_name(text)) {
        Some((text, _)) => Err(NetworkError::Invalid(format!("{text:?} is no host name"))),
        None => Ok(()),
    }
}

impl RouterSpec {
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        check_instance(&self.instance)?;
        check_placement(&self.placement)?;
        check_names(&self.names)?;
        if self.upstream_dns.len() > UPSTREAMS_MAX {
            return Err(NetworkError::Invalid(format!(
                "more than {UPSTREAMS_MAX} upstream name servers"
            )));
        }
        Ok(())
    }
}

pub(crate) fn inner_addresses(placement: &Placement, host: u8) -> Vec<IpNet> {
    let v4 = Ipv4Net::new(placement.inner_at(host), placement.inner.prefix_len())
        .ok()
        .map(IpNet::V4);
    let v6 = placement.inner6.zip(placement.inner6_at(host));
    let v6 = v6
        .and_then(|(net, at)| Ipv6Net::new(at, net.prefix_len()).ok())
        .map(IpNet::V6);
    v4.into_iter().chain(v6).collect()
}
