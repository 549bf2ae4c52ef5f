//! An environment as it was placed on a host: identity, addresses, nodes, states.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::hold::Hold;
use crate::id::{EnvId, NodeId, OperationId};
use crate::manifest::{Manifest, PublishedPort};
use crate::name::{EnvName, LayerName, VolumeName};

/// An environment: what it should be and where it was placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Identity on the host.
    pub id: EnvId,
    /// Name; the first label of its domain. A rename changes it.
    pub name: EnvName,
    /// Settled state; what runs right now is each node's [`NodeState`].
    pub state: EnvironmentState,
    /// What it is kept from.
    #[serde(default)]
    pub held: Hold,
    /// Where it came from, for clones.
    pub lineage: Option<Lineage>,
    /// When it was created.
    pub created: Timestamp,
    /// What it should be.
    pub manifest: Manifest,
    /// Where it is.
    pub placement: Placement,
    /// Its nodes, by layer and number.
    pub nodes: Vec<Node>,
    /// Its volumes.
    pub volumes: Vec<Volume>,
}

/// What was asked of an environment last; `starts at boot` is `Running`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EnvironmentState {
    /// Being created, by create or clone.
    Creating,
    /// Its nodes should run.
    Running,
    /// Its nodes should not run.
    Stopped,
    /// Being removed.
    Removing,
    /// An operation could neither finish nor be undone; `rm` removes it.
    Broken,
}

/// Where a clone came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The parent.
    pub parent: EnvId,
    /// The parent's name at the cut (the parent may be renamed or removed later).
    pub parent_name: EnvName,
    /// The instant of the cut.
    pub cut: Timestamp,
    /// The operation that cloned it: where its measured freeze is kept.
    pub operation: OperationId,
}

/// Addresses and identity ranges of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// First host uid and gid of its user namespace; inner id 0 maps to it (user_namespaces(7)).
    pub id_base: u32,
    /// Number of mapped ids.
    pub id_count: u32,
    /// Network its nodes see; the same in every clone. Always a /24. `.1` is the gateway and name server.
    pub inner: Ipv4Net,
    /// Network the host sees; unique on the host, same prefix length as `inner`. `.1` is the host's end of the
    /// link, `.2` the environment's router; node `.n` inside is `.n` outside.
    pub outer: Ipv4Net,
    /// As `inner`, /64, where the host has IPv6.
    pub inner6: Option<Ipv6Net>,
    /// As `outer`, /64, where the host has IPv6.
    pub outer6: Option<Ipv6Net>,
}

/// First host part given to a node; below are the gateway, the router and reserve.
pub const FIRST_NODE_HOST: u8 = 10;

impl Placement {
    /// The address at host part `host` of the inner network.
    #[must_use]
    pub fn inner_at(&self, host: u8) -> Ipv4Addr {
        at4(self.inner, host)
    }

    /// The address at host part `host` of the outer network.
    #[must_use]
    pub fn outer_at(&self, host: u8) -> Ipv4Addr {
        at4(self.outer, host)
    }

    /// The IPv6 address at host part `host` of the inner network.
    #[must_use]
    pub fn inner6_at(&self, host: u8) -> Option<Ipv6Addr> {
        self.inner6.map(|net| at6(net, host))
    }

    /// The IPv6 address at host part `host` of the outer network.
    #[must_use]
    pub fn outer6_at(&self, host: u8) -> Option<Ipv6Addr> {
        self.outer6.map(|net| at6(net, host))
    }
}

fn at4(net: Ipv4Net, host: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()) | u32::from(host))
}

fn at6(net: Ipv6Net, host: u8) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(net.network()) | u128::from(host))
}

/// One container of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Identity on the host.
    pub id: NodeId,
    /// Its layer.
    pub layer: LayerName,
    /// Number in its layer, from 1; number 1 is the layer's master.
    pub number: u32,
    /// Host part of its inner and outer address.
    pub host: u8,
    /// Hardware address of its interface; the same in every clone.
    pub mac: MacAddr,
    /// Identifier of the image its root file system was made from, `sha256:...` of the image in the pool.
    pub image: String,
    /// Host name (uts_namespaces(7)).
    pub hostname: String,
}

impl Node {
    /// Name inside the environment, `<layer>-<number>`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.id.name()
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddr(pub [u8; 6]);

impl std::fmt::Display for MacAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A volume of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name in the manifest.
    pub name: VolumeName,
    /// The environment whose directory in the pool holds it: its own, or for `shared` the parent's.
    pub owner: EnvId,
}

/// What a node is doing, as observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum NodeState {
    /// No process.
    Stopped,
    /// Created, its main process not yet started.
    Starting,
    /// Its main process runs.
    Running {
        /// Host pid of the main process.
        pid: i32,
        /// When it was started or restored.
        #[schema(value_type = String)]
        since: Timestamp,
        /// Verdict of its health check.
        health: Health,
    },
    /// Frozen for a cut.
    Frozen {
        /// Host pid of the main process.
        pid: i32,
    },
    /// Its main process ended by itself.
    Exited {
        /// Exit status, or 128 + signal.
        status: i32,
        /// When.
        #[schema(value_type = String)]
        at: Timestamp,
    },
}

/// Verdict of a health check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// The layer has no check.
    #[default]
    None,
    /// Not yet decided.
    Starting,
    /// The last check passed.
    Healthy,
    /// Too many checks in a row failed.
    Unhealthy,
}

/// A published port as placed: which host port leads to which node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct PortBinding {
    /// What was asked for, with `host_port` decided.
    pub port: PublishedPort,
    /// Layer whose nodes answer.
    #[schema(value_type = String)]
    pub layer: LayerName,
}

impl Environment {
    /// Nodes of a layer, by number.
    pub fn nodes_of<'a>(&'a self, layer: &'a LayerName) -> impl Iterator<Item = &'a Node> {
        self.nodes.iter().filter(move |node| &node.layer == layer)
    }

    /// Whether a node must not run: its layer runs jobs, and the environment's jobs are held.
    #[must_use]
    pub fn is_held(&self, node: &Node) -> bool {
        let jobs = |layer: &crate::manifest::Layer| layer.jobs;
        self.held.jobs && self.manifest.layer(&node.layer).is_some_and(jobs)
    }

    /// The node of that name (`<layer>-<n>`), or a layer's first node when only the layer is named.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .or_else(|| self.nodes.iter().find(|node| node.layer.as_str() == name))
    }
}
