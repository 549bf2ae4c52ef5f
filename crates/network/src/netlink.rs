//! rtnetlink(7) in the words of this crate: with its submodule the only one that knows the netlink library.
//!
//! A [`Links`] speaks to the network namespace of the thread that opened it, for as long as it lives.

mod ports;

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use offshoot_sys::netns::{Netns, visit};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::neighbour_table::{
    NeighbourTableAttribute, NeighbourTableMessage, NeighbourTableParameter,
};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use offshoot_model::environment::MacAddr;

use crate::error::NetworkError;

pub(crate) use ports::{PortSwitch, Position};

type Result<T> = std::result::Result<T, NetworkError>;

/// A connection to the kernel's routing sockets of one network namespace.
#[derive(Clone)]
pub(crate) struct Links(Handle);

/// What is known of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Index of the other end of a veth pair, in its own namespace.
    pub(crate) peer: Option<u32>,
    /// As a bridge's port: cut off from other cut-off ports.
    pub(crate) isolated: bool,
    /// Switched on.
    pub(crate) is_up: bool,
    /// Able to send: on, with carrier, and the kernel knows.
    pub(crate) is_active: bool,
}

/// One end of a veth pair that is to be made.
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<MacAddr>,
}

/// Runs `work` with a connection in the calling thread's namespace, on a thread of its own: the caller's may belong to an
/// async runtime, which another one must not block.
pub(crate) fn run_here<T, F>(work: impl FnOnce(Links) -> F + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    visit(|_| run_here_with(async || work(Links::open()?).await))
        .map_err(|e| NetworkError::io("starting a thread", e))?
}

/// Runs `work`, which opens its connections itself. Not from inside an async runtime.
pub(crate) fn run_here_with<T>(work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| NetworkError::io("starting a runtime", e))?;
    runtime.block_on(work())
}

impl Links {
    /// Opens a connection; needs a runtime.
    pub(crate) fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|e| NetworkError::io("opening a netlink socket", e))?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// The interface called `name`.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<Link>> {
        let found = self
            .0
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await;
        match found.map_err(errno) {
            Ok(message) => Ok(message.map(|m| Link::from(&m))),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(NetworkError::io(
                format!("looking for interface {name}"),
                error,
            )),
        }
    }

    /// The interface called `name`, which must be there.
    pub(crate) async fn get(&self, name: &str) -> Result<Link> {
        self.find(name).await?.ok_or_else(|| {
            NetworkError::io(
                format!("looking for interface {name}"),
                io::Error::from(io::ErrorKind::NotFound),
            )
        })
    }

    /// The ports of the bridge with this index.
    pub(crate) async fn ports(&self, bridge: u32) -> Result<Vec<Link>> {
        let mut request = self
            .0
            .link()
            .get()
            .set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        request
            .message_mut()
            .attributes
            .push(LinkAttribute::Controller(bridge));
        let messages: Vec<LinkMessage> = request
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("listing a bridge's ports", e))?;
        // The kernel's filter is best effort; the attribute is the truth.
        let ours = |m: &&LinkMessage| m.attributes.contains(&LinkAttribute::Controller(bridge));
        Ok(messages.iter().filter(ours).map(Link::from).collect())
    }

    /// Makes a bridge that floods and forwards at once: no spanning tree, no multicast snooping (there is no querier).
    pub(crate) async fn ensure_bridge(&self, name: &str, mac: MacAddr) -> Result<Link> {
        if self.find(name).await?.is_none() {
            let message = LinkBridge::new(name)
                .mcast_snooping(false)
                .address(mac.0.to_vec())
                .up()
                .build();
            let made = self.0.link().add(message).execute().await;
            made.map_err(|e| failed(format!("making bridge {name}"), e))?;
        }
        self.get(name).await
    }

    /// Makes a veth pair: `near` here, `far` in `far_netns`. `controller` is the bridge `near` becomes a port of. Both begin
    /// down: the kernel opens each before it knows the other (`ENOTCONN`).
    pub(crate) async fn add_veth(
        &self,
        near: &VethEnd<'_>,
        controller: Option<u32>,
        far: &VethEnd<'_>,
        far_netns: &Netns,
    ) -> Result<()> {
        let far_message = end(LinkMessageBuilder::<LinkUnspec>::default(), far)
            .name(far.name)
            .setns_by_fd(far_netns.as_fd().as_raw_fd())
            .build();
        let mut message = end(LinkVeth::new(near.name, far.name), near)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far_message)));
        if let Some(controller) = controller {
            message = message.controller(controller);
        }
        let made = self.0.link().add(message.build()).execute().await;
        made.map_err(|e| {
            failed(
                format!("making the veth pair {} - {}", near.name, far.name),
                e,
            )
        })
    }

    /// Removes the interface called `name`, if it is there.
    pub(crate) async fn ensure_removed(&self, name: &str) -> Result<()> {
        let Some(link) = self.find(name).await? else {
            return Ok(());
        };
        match self.0.link().del(link.index).execute().await.map_err(errno) {
            Err(error) if !is_gone(&error) => Err(NetworkError::io(
                format!("removing interface {name}"),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// Brings the interface up.
    pub(crate) async fn set_up(&self, index: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.0
            .link()
            .change(message)
            .execute()
            .await
            .map_err(|e| failed(format!("bringing interface {index} up"), e))
    }

    /// Waits until an interface that has carrier can send. The end of a veth pair that was switched on first drops everything
    /// until the kernel's link watch has run, which may take a second. Since Linux 6.5 asking for the link makes it run.
    pub(crate) async fn settle(&self, name: &str) -> Result<()> {
        let until = Instant::now() + SETTLE_TIMEOUT;
        while !self.get(name).await?.is_active {
            if Instant::now() > until {
                return Err(NetworkError::Timeout {
                    what: format!("interface {name} coming up"),
                    after: SETTLE_TIMEOUT,
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Sets the interface's hardware address.
    pub(crate) async fn set_mac(&self, index: u32, mac: MacAddr) -> Result<()> {
        let message = LinkUnspec::new_with_index(index)
            .address(mac.0.to_vec())
            .build();
        let done = self.0.link().change(message).execute().await;
        done.map_err(|e| failed(format!("setting the hardware address {mac}"), e))
    }

    /// Cuts one bridge port off from the other ports that are.
    pub(crate) async fn isolate_port(&self, index: u32) -> Result<()> {
        let done = self
            .0
            .link()
            .set_port(ports::isolation_message(index, true))
            .execute()
            .await;
        done.map_err(|e| failed(format!("isolating bridge port {index}"), e))
    }

    /// Gives the interface an address; no duplicate address detection (nobody else is on these links).
    pub(crate) async fn ensure_address(&self, index: u32, net: IpNet) -> Result<()> {
        let mut request = self
            .0
            .address()
            .add(index, net.addr(), net.prefix_len())
            .replace();
        if net.addr().is_ipv6() {
            let message = request.message_mut();
            message.header.flags = AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request
            .execute()
            .await
            .map_err(|e| failed(format!("adding address {net}"), e))
    }

    /// A route to `to` out of the interface: straight onto the link, or by way of `via`.
    pub(crate) async fn ensure_route(
        &self,
        index: u32,
        to: IpNet,
        via: Option<IpAddr>,
        source: IpAddr,
    ) -> Result<()> {
        let message = match (to, via, source) {
            (IpNet::V4(to), via, IpAddr::V4(source)) => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(to.network(), to.prefix_len())
                    .output_interface(index)
                    .pref_source(source);
                match via {
                    Some(IpAddr::V4(via)) => route.gateway(via).onlink().build(),
                    _ => route.scope(RouteScope::Link).build(),
                }
            }
            (IpNet::V6(to), via, IpAddr::V6(source)) => {
                let route = RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(to.network(), to.prefix_len())
                    .output_interface(index)
                    .pref_source(source);
                match via {
                    Some(IpAddr::V6(via)) => route.gateway(via).onlink().build(),
                    _ => route.build(),
                }
            }
            _ => {
                return Err(NetworkError::Invalid(format!(
                    "route to {to} from {source}: mixed families"
                )));
            }
        };
        let done = self.0.route().add(message).replace().execute().await;
        done.map_err(|e| failed(format!("adding a route to {to}"), e))
    }

    /// Has the interface ask for a neighbour's hardware address every 50 ms, for 3 s, instead of once a second. A node that
    /// asked while nodes were cut off from each other would stand still for up to a second after that was lifted.
    /// (By netlink, because /proc/sys has no neighbour settings in namespaces of other users, net/core/neighbour.c.)
    pub(crate) async fn ask_neighbours_often(&self, index: u32, family: Family) -> Result<()> {
        let mut table = NeighbourTableMessage::default();
        let (address_family, name) = match family {
            Family::V4 => (AddressFamily::Inet, "arp_cache"),
            Family::V6 => (AddressFamily::Inet6, "ndisc_cache"),
        };
        table.header.family = address_family;
        table.attributes = vec![
            NeighbourTableAttribute::Name(name.to_owned()),
            NeighbourTableAttribute::Parms(vec![
                NeighbourTableParameter::Ifindex(index),
                NeighbourTableParameter::RetransTime(NEIGHBOUR_RETRY_MS),
                NeighbourTableParameter::McastProbes(NEIGHBOUR_TRIES),
            ]),
        ];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::SetNeighbourTable(table));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let what = || format!("setting how often {name} asks");
        let mut answers = self
            .0
            .clone()
            .request(request)
            .map_err(|e| failed(what(), e))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(NetworkError::io(what(), error.to_io()));
            }
        }
        Ok(())
    }

    /// Adds the policy routing rule "what comes in at `input` meets `action`" before all others but the local table.
    pub(crate) async fn ensure_input_rule(
        &self,
        input: &str,
        action: RuleAction,
        family: Family,
    ) -> Result<()> {
        let request = self
            .0
            .rule()
            .add()
            .input_interface(input)
            .action(action)
            .priority(INPUT_RULE_PRIORITY);
        let done = match family {
            Family::V4 => request.v4().execute().await,
            Family::V6 => request.v6().execute().await,
        };
        match done.map_err(errno) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(NetworkError::io(
                format!("adding a rule for {input}"),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// Removes what [`Links::ensure_input_rule`] added.
    pub(crate) async fn ensure_input_rule_removed(
        &self,
        input: &str,
        action: RuleAction,
        family: Family,
    ) -> Result<()> {
        let mut rule = RuleMessage::default();
        rule.header.family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        rule.header.action = action;
        rule.attributes = vec![
            RuleAttribute::Iifname(input.to_owned()),
            RuleAttribute::Priority(INPUT_RULE_PRIORITY),
        ];
        match self.0.rule().del(rule).execute().await.map_err(errno) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetworkError::io(
                format!("removing the rule for {input}"),
                error,
            )),
            _ => Ok(()),
        }
    }
}

/// Address family of a policy routing rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

const SETTLE_TIMEOUT: Duration = Duration::from_secs(3);
const NEIGHBOUR_RETRY_MS: u64 = 50;
const NEIGHBOUR_TRIES: u32 = 60;

/// After the local table (0), before the main one (32766); ip-rule(8).
const INPUT_RULE_PRIORITY: u32 = 1;

fn end<T>(message: LinkMessageBuilder<T>, end: &VethEnd<'_>) -> LinkMessageBuilder<T> {
    match end.mac {
        Some(mac) => message.address(mac.0.to_vec()),
        None => message,
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let is_up = message.header.flags.contains(LinkFlags::Up);
        let mut link = Self {
            index: message.header.index,
            is_up,
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::OperState(state) => link.is_active = *state == State::Up,
                LinkAttribute::Link(peer) => link.peer = Some(*peer),
                LinkAttribute::LinkInfo(infos) => link.isolated = infos.iter().any(is_isolated),
                _ => {}
            }
        }
        link
    }
}

fn is_isolated(info: &LinkInfo) -> bool {
    match info {
        LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
            port.contains(&InfoBridgePort::Isolated(true))
        }
        _ => false,
    }
}

const ENODEV: i32 = 19;

/// The interface went away between two requests.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ENODEV) || error.kind() == io::ErrorKind::NotFound
}

fn errno(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

fn failed(what: impl Into<String>, error: rtnetlink::Error) -> NetworkError {
    NetworkError::io(what, errno(error))
}
