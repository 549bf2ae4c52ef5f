//! What a router makes of its empty namespace: bridge, uplink, routes, rules.

use std::net::IpAddr;

use ipnet::IpNet;
use offshoot_model::environment::Placement;
use offshoot_sys::netns::Netns;
use rtnetlink::packet_route::rule::RuleAction;

use crate::attach::{NODE_CONNECTION_BUCKETS, NODE_PORT_BUCKETS};
use crate::command::Nft;
use crate::error::NetworkError;
use crate::netlink::{Family, Links, VethEnd};
use crate::rules::{mail_rules, router_rules};
use crate::spec::{
    BRIDGE, BRIDGE_MAC, GATEWAY_HOST, Gate, ROUTER_HOST, RouterSpec, UPLINK, host_link_name,
    inner_addresses,
};
use crate::sysctl::{self, Missing};

type Result<T> = std::result::Result<T, NetworkError>;

/// Settings of a router's namespace. A new one takes some from the host and some from the kernel, so all that matter
/// are said.
fn settings(ipv6: bool) -> Result<()> {
    // br_netfilter, once loaded by anyone, hands bridged frames to the IP hooks of every namespace, new ones too.
    for family in ["iptables", "ip6tables", "arptables"] {
        sysctl::set(
            &format!("bridge/bridge-nf-call-{family}"),
            "0",
            Missing::IsFine,
        )?;
    }
    sysctl::set("ipv4/ip_forward", "1", Missing::Fails)?;
    // Since Linux 6.1 and 6.2; before, all namespaces share one table.
    for (table, buckets) in [
        ("tcp_child_ehash_entries", NODE_CONNECTION_BUCKETS),
        ("udp_child_hash_entries", NODE_PORT_BUCKETS),
    ] {
        sysctl::set(
            &format!("ipv4/{table}"),
            &buckets.to_string(),
            Missing::IsFine,
        )?;
    }
    for scope in ["all", "default"] {
        sysctl::set(&format!("ipv4/conf/{scope}/rp_filter"), "0", Missing::Fails)?;
        sysctl::set(
            &format!("ipv4/conf/{scope}/send_redirects"),
            "0",
            Missing::Fails,
        )?;
        sysctl::set(
            &format!("ipv4/conf/{scope}/accept_redirects"),
            "0",
            Missing::Fails,
        )?;
        // Bridge ports need no addresses; the two interfaces that do are switched on by name.
        sysctl::set(
            &format!("ipv6/conf/{scope}/accept_ra"),
            "0",
            Missing::IsFine,
        )?;
        sysctl::set(
            &format!("ipv6/conf/{scope}/accept_dad"),
            "0",
            Missing::IsFine,
        )?;
    }
    sysctl::set("ipv6/conf/default/disable_ipv6", "1", Missing::IsFine)?;
    if ipv6 {
        sysctl::set("ipv6/conf/all/forwarding", "1", Missing::Fails)?;
    }
    Ok(())
}

/// Sets up everything inside the router's namespace (the calling thread's) but the uplink, which the host side makes
/// at the same time. Returns the rules' nft, still running.
pub(crate) fn settings_and_rules(spec: &RouterSpec) -> Result<Nft> {
    settings(spec.placement.inner6.is_some())?;
    Nft::apply(&(router_rules(&spec.placement) + &mail_rules(spec.mail)))
}

/// The bridge with the gateway's addresses; returns its index.
pub(crate) async fn ensure_bridge(links: &Links, placement: &Placement) -> Result<u32> {
    let lo = links.get("lo").await?;
    links.set_up(lo.index).await?;
    let bridge = links.ensure_bridge(BRIDGE, BRIDGE_MAC).await?;
    if placement.inner6.is_some() {
        sysctl::set(
            &format!("ipv6/conf/{BRIDGE}/disable_ipv6"),
            "0",
            Missing::Fails,
        )?;
    }
    for address in inner_addresses(placement, GATEWAY_HOST) {
        links.ensure_address(bridge.index, address).await?;
    }
    Ok(bridge.index)
}

/// Host side of the uplink: makes the pair with its far end in `router`, gives it the host's address and routes the
/// outer networks to it. Runs in the namespace of whoever started the router.
pub(crate) async fn make_uplink(links: &Links, spec: &RouterSpec, router: &Netns) -> Result<()> {
    let name = host_link_name(&spec.instance, &spec.env);
    // A router that was killed leaves its link behind for as long as the kernel takes to clean its namespace up.
    links.ensure_removed(&name).await?;
    let near = VethEnd {
        name: &name,
        mac: None,
    };
    let far = VethEnd {
        name: UPLINK,
        mac: None,
    };
    links.add_veth(&near, None, &far, router).await?;
    let index = links.get(&name).await?.index;
    sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0", Missing::IsFine)?;
    links.set_up(index).await?;
    for (net, host, router) in outer(&spec.placement) {
        links.ensure_address(index, host.into()).await?;
        links.ensure_route(index, router.into(), None, host).await?;
        links.ensure_route(index, net, Some(router), host).await?;
    }
    Ok(())
}

/// Router side of the uplink, once it is there: address and default routes.
pub(crate) async fn configure_uplink(links: &Links, placement: &Placement) -> Result<()> {
    let index = links.get(UPLINK).await?.index;
    if placement.outer6.is_some() {
        sysctl::set(
            &format!("ipv6/conf/{UPLINK}/disable_ipv6"),
            "0",
            Missing::Fails,
        )?;
    }
    links.set_up(index).await?;
    for (net, host, router) in outer(placement) {
        links.ensure_address(index, router.into()).await?;
        links.ensure_route(index, host.into(), None, router).await?;
        let everything = match net {
            IpNet::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpNet::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        links
            .ensure_route(index, everything, Some(host), router)
            .await?;
    }
    Ok(())
}

/// Opens or closes the uplink for the nodes. Closed by policy routing, not by taking the link down (which would lose its
/// routes) and not by nft (a process to start): what nodes send outward vanishes, so that no application sees an error;
/// what comes from outside is told that there is no way, so that whoever tries may try again soon.
pub(crate) async fn set_gate(links: &Links, gate: Gate, placement: &Placement) -> Result<()> {
    let families: &[Family] = if placement.inner6.is_some() {
        &[Family::V4, Family::V6]
    } else {
        &[Family::V4]
    };
    for &family in families {
        for (input, action) in [
            (UPLINK, RuleAction::Unreachable),
            (BRIDGE, RuleAction::Blackhole),
        ] {
            match gate {
                Gate::Closed => links.ensure_input_rule(input, action, family).await?,
                Gate::Open => {
                    links
                        .ensure_input_rule_removed(input, action, family)
                        .await?
                }
            }
        }
    }
    Ok(())
}

/// Outer networks with the host's and the router's address in each.
fn outer(placement: &Placement) -> Vec<(IpNet, IpAddr, IpAddr)> {
    let v4 = (
        IpNet::V4(placement.outer),
        IpAddr::V4(placement.outer_at(GATEWAY_HOST)),
        IpAddr::V4(placement.outer_at(ROUTER_HOST)),
    );
    let v6 = placement
        .outer6
        .zip(placement.outer6_at(GATEWAY_HOST))
        .zip(placement.outer6_at(ROUTER_HOST));
    let v6 = v6.map(|((net, host), router)| (IpNet::V6(net), IpAddr::V6(host), IpAddr::V6(router)));
    std::iter::once(v4).chain(v6).collect()
}
