//! Attaching a node: a veth pair from the router's bridge into the node's network namespace.
//!
//! Called by the node's shim after the container was created, and by the runtime's hook before a restore brings sockets
//! back: addresses must be usable at once, so there is nothing to wait for (no duplicate address detection, no carrier).

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use offshoot_sys::netns::{Holder, Netns, Visitor, visit};

use crate::error::NetworkError;
use crate::files::RunDir;
use crate::netlink::{Family, Link, Links, VethEnd, run_here_with};
use crate::spec::{BRIDGE, GATEWAY_HOST, Isolation, NodeLink, check_placement};
use crate::sysctl::{self, Missing};

type Result<T> = std::result::Result<T, NetworkError>;

/// Hash buckets for the TCP connections of a node (ip-sysctl.rst, `tcp_child_ehash_entries`). A namespace usually shares the host's
/// table, of half a million on a large host; in every freeze CRIU asks for the node's sockets, and the kernel looks into each bucket,
/// twice.
pub(crate) const NODE_CONNECTION_BUCKETS: u32 = 16_384;
/// The same for its UDP ports (`udp_child_hash_entries`).
pub(crate) const NODE_PORT_BUCKETS: u32 = 512;
/// With an own table the kernel wants to remember only half as many closed connections as it has buckets; this is what hosts have.
const CLOSED_CONNECTIONS: &str = "131072";

/// Does `work`, which makes a node's network namespace, where that gets a table of connections of its own.
///
/// # Errors
/// [`NetworkError::NoRouter`] when the environment's router does not run.
pub fn beside_router<T: Send>(link: &NodeLink, work: impl FnOnce() -> T + Send) -> Result<T> {
    let router = RunDir::open(&link.router_dir)?.router()?.netns();
    let router =
        router.map_err(|e| NetworkError::io("opening the router's network namespace", e))?;
    let done = visit(|visitor| visitor.enter(&router).map(|()| work()));
    done.and_then(|entered| entered)
        .map_err(|e| NetworkError::io("entering the router's network namespace", e))
}

/// Links the node whose process is `node_pid` to its environment's network, or completes a link that is half there.
/// Runs on threads of its own; the calling thread's namespaces do not change. Takes a few milliseconds.
///
/// # Errors
/// [`NetworkError::NoRouter`] when the environment's router does not run; otherwise what the kernel refused. Calling
/// again is safe.
pub fn attach(node_pid: i32, link: &NodeLink) -> Result<()> {
    check_placement(&link.placement)?;
    let router = RunDir::open(&link.router_dir)?.router()?;
    let router = router
        .netns()
        .map_err(|e| NetworkError::io("opening the router's network namespace", e))?;
    let node = node_netns(node_pid)?;
    let same = |one: &Netns, other: &Netns| one.id().ok() == other.id().ok();
    let host =
        Netns::current().map_err(|e| NetworkError::io("opening the own network namespace", e))?;
    if same(&node, &router) || same(&node, &host) {
        return Err(NetworkError::Invalid(format!(
            "process {node_pid} has no network namespace of its own"
        )));
    }
    let linked = visit(|visitor| link_both(visitor, &router, &node, link));
    linked.map_err(|e| NetworkError::io("starting a thread", e))?
}

/// Does the work on a thread that ends in the node's namespace, with a connection to each side.
fn link_both(visitor: &Visitor, router: &Netns, node: &Netns, link: &NodeLink) -> Result<()> {
    let enter = |netns, what| visitor.enter(netns).map_err(|e| NetworkError::io(what, e));
    run_here_with(async || {
        enter(router, "entering the router's network namespace")?;
        let outer = Links::open()?;
        enter(node, "entering the node's network namespace")?;
        let inner = Links::open()?;

        let there = inner.find(&link.ifname).await?;
        let pair = keep_pair(&outer, link, there.as_ref()).await?;
        if pair == Pair::Missing {
            // Left by a router that was killed a moment ago, whose namespace the kernel has not cleaned up yet.
            inner.ensure_removed(&link.ifname).await?;
        }
        ensure_port(&outer, link, pair, node).await?;
        configure(&inner, link).await?;
        outer.settle(&link.port_name).await
    })
}

/// Whether port and node's interface are two ends of one pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pair {
    There,
    Missing,
}

/// The network namespace of a node's process.
pub(crate) fn node_netns(node_pid: i32) -> Result<Netns> {
    let opened = Holder::open(node_pid).and_then(|holder| holder.netns());
    opened.map_err(|e| {
        NetworkError::io(
            format!("opening the network namespace of process {node_pid}"),
            e,
        )
    })
}

/// Inside the router: keeps the port if `there`, the interface in the node, is its other end, and removes it otherwise.
async fn keep_pair(links: &Links, link: &NodeLink, there: Option<&Link>) -> Result<Pair> {
    match (links.find(&link.port_name).await?, there) {
        (Some(port), Some(there))
            if port.peer == Some(there.index) && there.peer == Some(port.index) =>
        {
            return Ok(Pair::There);
        }
        // Of a node that ended a moment ago, whose namespace the kernel has not cleaned up yet.
        (Some(_), _) => links.ensure_removed(&link.port_name).await?,
        (None, _) => {}
    }
    Ok(Pair::Missing)
}

/// Inside the router: the pair, with its port on the bridge.
async fn ensure_port(links: &Links, link: &NodeLink, pair: Pair, node: &Netns) -> Result<()> {
    if pair == Pair::Missing {
        let bridge = links.get(BRIDGE).await?;
        let near = VethEnd {
            name: &link.port_name,
            mac: None,
        };
        let far = VethEnd {
            name: &link.ifname,
            mac: Some(link.mac),
        };
        links
            .add_veth(&near, Some(bridge.index), &far, node)
            .await?;
    }
    let port = links.get(&link.port_name).await?;
    // Not again on a port that is up: its isolation may have been lifted since.
    if link.ports_isolated == Isolation::Yes && !port.is_up {
        links.isolate_port(port.index).await?;
    }
    links.set_up(port.index).await
}

/// Inside the node: loopback, addresses, default routes.
async fn configure(links: &Links, link: &NodeLink) -> Result<()> {
    let lo = links.get("lo").await?;
    links.set_up(lo.index).await?;
    let interface = links.get(&link.ifname).await?;
    // The gateway is known; advertisements of another one could only come from a neighbour that means no good. And nobody
    // else has these addresses, nor the one that the kernel makes of the hardware address.
    for setting in ["accept_ra", "accept_dad"] {
        sysctl::set(
            &format!("ipv6/conf/{}/{setting}", link.ifname),
            "0",
            Missing::IsFine,
        )?;
    }
    const CLOSED: &str = "ipv4/tcp_max_tw_buckets";
    // If it is another, somebody asked for that.
    if sysctl::get(CLOSED)? == Some((NODE_CONNECTION_BUCKETS / 2).to_string()) {
        sysctl::set(CLOSED, CLOSED_CONNECTIONS, Missing::IsFine)?;
    }
    links.set_mac(interface.index, link.mac).await?;
    links.set_up(interface.index).await?;
    for address in link.addresses() {
        links.ensure_address(interface.index, address).await?;
        let (family, everything, gateway) = match address {
            IpNet::V4(_) => (
                Family::V4,
                Ipv4Net::default().into(),
                Some(IpAddr::V4(link.placement.inner_at(GATEWAY_HOST))),
            ),
            IpNet::V6(_) => (
                Family::V6,
                Ipv6Net::default().into(),
                link.placement.inner6_at(GATEWAY_HOST).map(IpAddr::V6),
            ),
        };
        links.ask_neighbours_often(interface.index, family).await?;
        links
            .ensure_route(interface.index, everything, gateway, address.addr())
            .await?;
    }
    Ok(())
}
