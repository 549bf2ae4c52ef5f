//! Who a connection's client is, and how many connections it has.
//!
//! A client is an IPv4 address or an IPv6 /64: a household or a host has a whole /64 and would otherwise be many.

mod proxy_header;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use tokio::net::TcpStream;

pub(crate) use self::proxy_header::{HeaderError, write as proxy_header};
use crate::metrics::Refused;
use crate::server::Edge;

/// What bounds are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Client(IpAddr);

impl Client {
    /// The client with this address.
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & (u128::MAX << 64);
                Ipv6Addr::from_bits(network).into()
            }
            v4 => v4,
        })
    }
}

/// Whether an address is in one of the networks; `::ffff:192.0.2.1` is 192.0.2.1.
pub(crate) fn within(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Connections of each client that has any.
#[derive(Default)]
pub(crate) struct Connections(Mutex<HashMap<Client, usize>>);

impl Connections {
    /// One more connection, unless the client has `bound` (0: none) already.
    fn open(self: &Arc<Self>, client: Client, bound: usize) -> Option<Connection> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_default();
        if bound > 0 && *count >= bound {
            return None;
        }
        *count += 1;
        Some(Connection {
            client,
            all: Arc::clone(self),
        })
    }
}

/// A connection that is counted until it is dropped.
pub(crate) struct Connection {
    client: Client,
    all: Arc<Connections>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

impl Edge {
    /// Who a new connection's client is: the one that its PROXY header tells where one must be, else the other side.
    /// The caller bounds the time. `None`: the connection is to be closed.
    pub(crate) async fn admit(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
    ) -> Option<(SocketAddr, Connection)> {
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        let client = match self.told(stream, peer).await {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(%peer, %error, "no PROXY header");
                self.counters.refused(Refused::ProxyHeader);
                return None;
            }
        };
        let bound = self.config.limits.client_connections;
        let connection = self.client_connections.open(Client::of(client.ip()), bound);
        if connection.is_none() {
            self.counters.refused(Refused::ClientConnections);
        }
        Some((client, connection?))
    }

    async fn told(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
    ) -> Result<SocketAddr, HeaderError> {
        if !within(&self.config.proxy_from, peer.ip()) {
            return Ok(peer);
        }
        Ok(proxy_header::receive(stream).await?.unwrap_or(peer))
    }
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Client {
        Client::of(text.parse().unwrap())
    }

    #[test]
    fn a_client_is_an_address_or_a_network() {
        assert_eq!(client("192.0.2.1"), client("::ffff:192.0.2.1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:0:0:1"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        let networks = ["192.0.2.0/24".parse().unwrap()];
        assert!(within(&networks, "::ffff:192.0.2.9".parse().unwrap()));
        assert!(!within(&networks, "::192.0.2.9".parse().unwrap()));
    }

    #[test]
    fn connections_are_counted_and_forgotten() {
        let all = Arc::new(Connections::default());
        let one = client("192.0.2.1");
        let first = all.open(one, 2).unwrap();
        let _second = all.open(one, 2).unwrap();
        assert!(all.open(one, 2).is_none());
        assert!(all.open(client("192.0.2.2"), 2).is_some());
        drop(first);
        let third = all.open(one, 2);
        assert!(third.is_some());
        drop((third, _second));
        assert!(all.0.lock().unwrap().is_empty());
        let many: Vec<_> = (0..100).map(|_| all.open(one, 0).unwrap()).collect();
        assert_eq!(many.len(), 100);
    }
}
