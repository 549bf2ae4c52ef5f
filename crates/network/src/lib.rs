//! One private network per environment, the same inside in every clone.
//!
//! A router process per environment owns a network namespace with a bridge (the nodes' gateway and name server), an uplink
//! to the host and a one to one translation between the environment's inner addresses and its outer ones, which are its
//! own on the host. See `docs/network.md`.

mod attach;
mod client;
mod command;
mod control;
mod dns;
mod error;
mod files;
mod forward;
mod host;
mod netlink;
mod outside;
pub mod router;
mod rules;
mod setup;
mod spec;
mod sysctl;
mod zone;

pub use attach::{attach, beside_router};
pub use client::{
    IsolationLease, PreparedIsolation, Router, RouterRecord, Started, ensure_router,
    ensure_router_removed, list_routers,
};
pub use control::{PortStatus, RouterStatus};
pub use error::NetworkError;
pub use host::{Forwarding, ForwardingState, ensure_host, ensure_host_removed, forwarding_state};
pub use outside::close_outside;
pub use rules::{host_rules, mail_rules, router_rules};
pub use spec::{
    BRIDGE, BRIDGE_MAC, GATEWAY_HOST, Gate, INSTANCE_MAX, Isolation, Mail, NODE_INTERFACE, Names,
    NodeLink, ROUTER_HOST, RouterSpec, UPLINK, check_instance, host_link_name, host_table_name,
};
