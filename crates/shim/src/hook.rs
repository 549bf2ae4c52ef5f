//! Run by runc in the middle of a restore, as `createRuntime` hook: CRIU has made the node's namespaces, which are empty, and has not
//! brought its sockets back, which need their addresses.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use offshoot_runtime::{NodeLink, NodeSpec};
use offshoot_sys::process::{self, Visit};

/// Longest container state read from runc, in bytes.
const STATE_MAX: u64 = 1 << 20;

/// Wires the network of the container whose OCI state is on stdin.
pub(crate) fn run(spec: &Path) -> Result<()> {
    let spec = NodeSpec::read(spec)?;
    let mut state = Vec::new();
    std::io::stdin()
        .take(STATE_MAX)
        .read_to_end(&mut state)
        .context("read the container's state")?;
    let state: serde_json::Value =
        serde_json::from_slice(&state).context("understand the container's state")?;
    let pid = state
        .get("pid")
        .and_then(serde_json::Value::as_i64)
        .and_then(|pid| i32::try_from(pid).ok());
    let pid = pid
        .filter(|pid| *pid > 0)
        .context("the container's state has no pid")?;
    // The images hold nothing of the network, its settings included; runc sets them at a fresh start only.
    process::visit(pid, Visit::Network, || {
        for (name, value) in spec
            .sysctls
            .iter()
            .filter(|(name, _)| name.starts_with("net."))
        {
            std::fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value)?;
        }
        Ok(())
    })
    .context("set the node's network settings")?;
    connect(pid, spec.link.as_ref())
}

/// Connects the network namespace of process `pid`; without a link it gets `lo` alone.
pub(crate) fn connect(pid: i32, link: Option<&NodeLink>) -> Result<()> {
    match link {
        Some(link) => Ok(offshoot_network::attach(pid, link)?),
        None => process::visit(pid, Visit::Network, process::loopback_up).context("bring up lo"),
    }
}
