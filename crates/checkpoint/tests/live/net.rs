//! A network for hand-made containers: a namespace with a bridge, whose ports can be isolated from each other.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use offshoot_checkpoint::{Foreign, Isolate, Lease};

use crate::support::{run, until};

/// One environment's network: a namespace with a bridge.
pub(crate) struct Net {
    holder: Child,
}

impl Net {
    pub(crate) fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "1000"])
            .spawn()
            .unwrap();
        let net = Self { holder };
        let ours = fs::read_link("/proc/self/ns/net").unwrap();
        until("the network namespace", || {
            fs::read_link(format!("/proc/{}/ns/net", net.pid())).is_ok_and(|theirs| theirs != ours)
        });
        net.ip(&["link", "add", "br0", "type", "bridge"]);
        net.ip(&["link", "set", "br0", "up"]);
        net
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    pub(crate) fn ip(&self, args: &[&str]) {
        run(Command::new("nsenter")
            .args(["-t", &self.pid().to_string(), "-n", "ip"])
            .args(args));
    }

    /// Lets the nodes reach each other: they begin isolated, and stay so in a clone until all of it is there. A node that is
    /// restored before its peer would be told that the connection is unknown.
    pub(crate) fn connect(&self, addresses: &[&str]) {
        self.isolation(
            &addresses.iter().map(|a| port_name(a)).collect::<Vec<_>>(),
            "off",
        );
    }

    fn isolation(&self, ports: &[String], state: &str) {
        for port in ports {
            self.ip(&[
                "link",
                "set",
                "dev",
                port,
                "type",
                "bridge_slave",
                "isolated",
                state,
            ]);
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Isolates bridge ports from each other, as the router does.
pub(crate) struct Ports<'a>(pub(crate) &'a Net, pub(crate) Vec<String>);

struct PortsLease(u32, Vec<String>);

impl Isolate for Ports<'_> {
    fn isolate(&self, _max: Duration) -> Result<Box<dyn Lease>, Foreign> {
        self.0.isolation(&self.1, "on");
        Ok(Box::new(PortsLease(self.0.pid(), self.1.clone())))
    }
}

impl Lease for PortsLease {
    fn end(self: Box<Self>) -> Result<(), Foreign> {
        Ok(())
    }
}

impl Drop for PortsLease {
    fn drop(&mut self) {
        for port in &self.1 {
            let _ = Command::new("nsenter")
                .args([
                    "-t",
                    &self.0.to_string(),
                    "-n",
                    "ip",
                    "link",
                    "set",
                    "dev",
                    port,
                    "type",
                    "bridge_slave",
                ])
                .args(["isolated", "off"])
                .status();
        }
    }
}

pub(crate) fn port_name(address: &str) -> String {
    format!("p{}", address.rsplit('.').next().unwrap())
}
