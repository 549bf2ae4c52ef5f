//! Published ports: TCP and UDP by address, opened and closed as the routes say.

mod tcp;
mod udp;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use offshoot_edge_api::{PortReport, PortState, Protocol};
use tokio::task::JoinHandle;

use crate::server::Edge;
use crate::sockets;
use crate::table::{Table, Target};

/// All published ports.
#[derive(Default)]
pub(crate) struct Ports {
    open: HashMap<(Protocol, SocketAddr), OpenPort>,
    reports: Vec<PortReport>,
}

struct OpenPort {
    bound: SocketAddr,
    target: Arc<ArcSwap<Target>>,
    task: JoinHandle<()>,
}

impl Ports {
    /// Opens and closes ports so that they are those of `table`. One that cannot be opened is reported, and tried
    /// again the next time.
    pub(crate) async fn apply(&mut self, edge: &Arc<Edge>, table: &Table) {
        let wanted: HashMap<_, _> = table
            .ports
            .iter()
            .map(|(protocol, listen, target)| ((*protocol, *listen), target))
            .collect();
        // first close, so that an address can pass from a wildcard to a single one and back
        for (_, port) in self.open.extract_if(|key, _| !wanted.contains_key(key)) {
            close(port).await;
        }
        self.reports.clear();
        for (protocol, listen, target) in &table.ports {
            let state = match self.open.get(&(*protocol, *listen)) {
                Some(port) => {
                    port.target.store(Arc::clone(target));
                    PortState::Open { bound: port.bound }
                }
                None => match open(edge, *protocol, *listen, target) {
                    Ok(port) => {
                        let bound = port.bound;
                        self.open.insert((*protocol, *listen), port);
                        PortState::Open { bound }
                    }
                    Err(error) => {
                        tracing::warn!(%listen, %protocol, %error, "published port not opened");
                        if error.kind() == io::ErrorKind::AddrInUse {
                            PortState::InUse
                        } else {
                            PortState::Failed {
                                error: error.to_string(),
                            }
                        }
                    }
                },
            };
            self.reports.push(PortReport {
                listen: *listen,
                protocol: *protocol,
                state,
            });
        }
    }

    /// Every port of the table as it stands.
    pub(crate) fn reports(&self) -> Vec<PortReport> {
        self.reports.clone()
    }

    /// Stops accepting; TCP connections go on.
    pub(crate) async fn close_listeners(&mut self) {
        for (_, port) in self.open.drain() {
            close(port).await;
        }
    }
}

fn open(
    edge: &Arc<Edge>,
    protocol: Protocol,
    listen: SocketAddr,
    target: &Arc<Target>,
) -> io::Result<OpenPort> {
    let target = Arc::new(ArcSwap::new(Arc::clone(target)));
    let (bound, task) = match protocol {
        Protocol::Tcp => {
            let listener = sockets::tcp_listener(listen)?;
            (
                listener.local_addr()?,
                tokio::spawn(tcp::serve(
                    listener,
                    listen,
                    Arc::clone(&target),
                    Arc::clone(edge),
                )),
            )
        }
        Protocol::Udp => {
            let socket = sockets::udp_socket(listen)?;
            (
                socket.local_addr()?,
                tokio::spawn(udp::serve(
                    socket,
                    Arc::clone(&target),
                    edge.config.limits.clone(),
                )),
            )
        }
    };
    Ok(OpenPort {
        bound,
        target,
        task,
    })
}

/// Waits for the task's end: only then is the socket closed and the address free.
async fn close(port: OpenPort) {
    port.task.abort();
    let _ = port.task.await;
}
