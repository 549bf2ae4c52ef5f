//! Closing a clone's connections to the outside: their peers talk to the parent and must not hear from two.

use offshoot_model::environment::Placement;
use offshoot_sys::sock_diag::{Connection, Destroyed, Protocol, SockDiag};

use crate::attach::node_netns;
use crate::error::NetworkError;

/// New connections may come up while old ones are destroyed, from programs that run; nodes that are still frozen have none.
const ROUNDS: usize = 3;

/// Destroys, in the network namespace of process `node_pid`, every TCP connection and connected UDP socket whose peer is
/// neither loopback nor in the environment's inner networks. The programs see `ECONNABORTED`. Returns how many there were.
/// Close the gate before, so that the resets this sends reach nobody.
///
/// # Errors
/// What the kernel refused; `EOPNOTSUPP` when it was built without `CONFIG_INET_DIAG_DESTROY`.
pub fn close_outside(node_pid: i32, placement: &Placement) -> Result<u32, NetworkError> {
    let netns = node_netns(node_pid)?;
    let failed = |e| {
        NetworkError::io(
            format!("closing outside connections of process {node_pid}"),
            e,
        )
    };
    let closed = netns.run(|| {
        let diag = SockDiag::open()?;
        let mut closed = 0;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for _ in 0..ROUNDS {
                let connections = diag.connections(protocol)?;
                let mut outside = connections
                    .iter()
                    .filter(|c| is_outside(c, placement))
                    .peekable();
                if outside.peek().is_none() {
                    break;
                }
                for connection in outside {
                    if diag.destroy(connection)? == Destroyed::Yes {
                        closed += 1;
                    }
                }
            }
        }
        Ok(closed)
    });
    closed.and_then(|inner| inner).map_err(failed)
}

fn is_outside(connection: &Connection, placement: &Placement) -> bool {
    let peer = connection.peer.ip().to_canonical();
    let inner = match peer {
        std::net::IpAddr::V4(peer) => placement.inner.contains(&peer),
        std::net::IpAddr::V6(peer) => {
            // Link-local addresses lead no further than the bridge.
            peer.is_unicast_link_local() || placement.inner6.is_some_and(|net| net.contains(&peer))
        }
    };
    // A peer with the same address is the node itself, on loopback under its own name.
    !(inner || peer.is_loopback() || connection.peer.ip() == connection.local.ip())
}
