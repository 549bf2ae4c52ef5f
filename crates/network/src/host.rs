//! The host's part: one nftables table per instance, and forwarding, which the host's owner decides about.

use ipnet::{Ipv4Net, Ipv6Net};

use crate::command::Nft;
use crate::error::NetworkError;
use crate::rules::host_rules;
use crate::spec::{check_instance, host_table_name};
use crate::sysctl::{self, Missing};

/// What may be done about the host's forwarding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// Nothing: without it environments reach the host and are reached from it, and nothing beyond.
    Leave,
    /// Turn it on where an outer network needs it.
    Enable,
}

/// Whether the host forwards packets between its interfaces (`ip_forward`, ip-sysctl.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardingState {
    /// IPv4.
    pub v4: bool,
    /// IPv6; `None` when the kernel has no IPv6.
    pub v6: Option<bool>,
}

const FORWARD4: &str = "ipv4/ip_forward";
const FORWARD6: &str = "ipv6/conf/all/forwarding";

/// Whether the host (the calling thread's network namespace) forwards. For `doctor`: when it does not, environments
/// cannot reach anything beyond the host.
///
/// # Errors
/// When /proc/sys cannot be read.
pub fn forwarding_state() -> Result<ForwardingState, NetworkError> {
    let on = |value: String| value != "0";
    Ok(ForwardingState {
        v4: sysctl::get(FORWARD4)?.is_some_and(on),
        v6: sysctl::get(FORWARD6)?.map(on),
    })
}

/// Puts the instance's table into the calling thread's network namespace (replacing the one that is there, at once) and
/// returns how forwarding stands afterwards. The outer pools are the networks all outer networks are taken from.
///
/// # Errors
/// When nft fails or a setting cannot be written.
pub fn ensure_host(
    instance: &str,
    outer_pool: Ipv4Net,
    outer_pool6: Option<Ipv6Net>,
    forwarding: Forwarding,
) -> Result<ForwardingState, NetworkError> {
    check_instance(instance)?;
    Nft::apply(&host_rules(instance, outer_pool, outer_pool6))?.wait()?;
    let state = forwarding_state()?;
    if forwarding == Forwarding::Enable {
        if !state.v4 {
            sysctl::set(FORWARD4, "1", Missing::Fails)?;
        }
        if outer_pool6.is_some() && state.v6 == Some(false) {
            keep_router_advertisements()?;
            sysctl::set(FORWARD6, "1", Missing::Fails)?;
        }
    }
    forwarding_state()
}

/// A forwarding host stops listening to router advertisements and would lose its own IPv6 with them, unless
/// `accept_ra` is 2 (ip-sysctl.rst). Only interfaces that listen now are changed.
fn keep_router_advertisements() -> Result<(), NetworkError> {
    let dir = std::fs::read_dir("/proc/sys/net/ipv6/conf");
    let dir = dir.map_err(|e| NetworkError::io("listing /proc/sys/net/ipv6/conf", e))?;
    for entry in dir.flatten() {
        let name = entry.file_name();
        let Some(name) = name
            .to_str()
            .filter(|n| !matches!(*n, "all" | "default" | "lo"))
        else {
            continue;
        };
        let setting = format!("ipv6/conf/{name}/accept_ra");
        if sysctl::get(&setting)?.as_deref() == Some("1") {
            sysctl::set(&setting, "2", Missing::IsFine)?;
        }
    }
    Ok(())
}

/// Removes the instance's table; forwarding stays as it is.
///
/// # Errors
/// When nft fails.
pub fn ensure_host_removed(instance: &str) -> Result<(), NetworkError> {
    check_instance(instance)?;
    let table = host_table_name(instance);
    // `delete` of what is not there fails in nft before 1.0.8, so it is made first.
    Nft::apply(&format!("table inet {table}\ndelete table inet {table}\n"))?.wait()
}
