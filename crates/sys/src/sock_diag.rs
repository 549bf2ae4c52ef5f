//! Sockets of a network namespace by netlink (sock_diag(7)), and destroying them.
//!
//! Destroying (`SOCK_DESTROY`, Linux 4.5, `CONFIG_INET_DIAG_DESTROY`) aborts a connection as its own process could:
//! the peer is sent a reset, the process gets `ECONNABORTED`. It needs `CAP_NET_ADMIN` over the user namespace that owns
//! the network namespace; whose socket it is does not matter.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

mod unix;

/// Which kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP, in any state but listening.
    Tcp,
    /// UDP, connected sockets only.
    Udp,
}

/// One socket that has a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Its own address.
    pub local: SocketAddr,
    /// Its peer's address; an IPv4 address inside an IPv6 socket is given as IPv4.
    pub peer: SocketAddr,
    protocol: Protocol,
    family: u8,
    state: u8,
    /// `struct inet_diag_sockid` as the kernel sent it: names the socket when it is to be destroyed.
    id: [u8; SOCKID_LEN],
}

// include/uapi/linux/sock_diag.h, inet_diag.h, netlink.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
const SOCKID_LEN: usize = 48;
const TCP_LISTEN: u32 = 10;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// More than the kernel puts into one message of a dump (`NLMSG_GOODSIZE`, at most 32 KiB).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// No answer for so long means that something is wrong: netlink answers while the request is being sent.
const ANSWER_SECONDS: i64 = 5;

/// A sock_diag socket of the network namespace in which it was opened.
#[derive(Debug)]
pub struct SockDiag {
    fd: OwnedFd,
}

impl SockDiag {
    /// Opens it in the calling thread's network namespace.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        setsockopt(
            &fd,
            sockopt::ReceiveTimeout,
            &TimeVal::seconds(ANSWER_SECONDS),
        )?;
        Ok(Self { fd })
    }

    /// Every socket of `protocol`, IPv4 and IPv6, that has a peer.
    ///
    /// # Errors
    /// What the kernel answered; `ENOENT` when it was built without the protocol's diagnostics.
    pub fn connections(&self, protocol: Protocol) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let states = match protocol {
                Protocol::Tcp => !(1u32 << TCP_LISTEN),
                Protocol::Udp => u32::MAX,
            };
            let request = request(
                SOCK_DIAG_BY_FAMILY,
                NLM_F_DUMP,
                family,
                protocol,
                states,
                &[0; SOCKID_LEN],
            );
            self.exchange(&request, |payload| found.extend(parse(payload, protocol)))?;
        }
        Ok(found)
    }

    /// Destroys a connection; that it is gone already is no error.
    ///
    /// # Errors
    /// What the kernel answered; `EOPNOTSUPP` when it was built without `CONFIG_INET_DIAG_DESTROY`.
    pub fn destroy(&self, connection: &Connection) -> io::Result<Destroyed> {
        let states = 1u32
            .checked_shl(connection.state.into())
            .unwrap_or(u32::MAX);
        let request = request(
            SOCK_DESTROY,
            NLM_F_ACK,
            connection.family,
            connection.protocol,
            states,
            &connection.id,
        );
        match self.exchange(&request, |_| ()) {
            Ok(()) => Ok(Destroyed::Yes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Destroyed::WasGone),
            Err(error) => Err(error),
        }
    }

    /// Sends one request and reads its answer to the end: `DONE` of a dump, or the acknowledgement.
    fn exchange(&self, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        send(self.fd.as_raw_fd(), request, MsgFlags::empty())?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            let len = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut rest = buffer.get(..len).unwrap_or_default();
            while let Some((kind, payload, next)) = split_message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return acknowledgement(payload),
                    _ => each(payload),
                }
                rest = next;
            }
        }
    }
}

/// Whether a connection was there to be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destroyed {
    /// It was, and is no more.
    Yes,
    /// It had gone by itself.
    WasGone,
}

/// `struct inet_diag_req_v2` behind a netlink header.
fn request(
    kind: u16,
    flags: u16,
    family: u8,
    protocol: Protocol,
    states: u32,
    id: &[u8; SOCKID_LEN],
) -> Vec<u8> {
    let protocol = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    let mut body = vec![family, protocol, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    message(kind, flags, &body)
}

/// `body` behind a netlink header.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = NLMSG_HEADER + body.len();
    let mut bytes = Vec::with_capacity(length);
    // one that is no u32 the kernel refuses
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend(1u32.to_ne_bytes()); // sequence number
    bytes.extend(0u32.to_ne_bytes()); // port id: the kernel's
    bytes.extend(body);
    bytes
}

/// The first netlink message in `bytes`: its type, its payload and what follows.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(NLMSG_HEADER..len)?;
    let rest = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload, rest))
}

fn acknowledgement(payload: &[u8]) -> io::Result<()> {
    let code = payload
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

/// `struct inet_diag_msg`; `None` for a socket without a peer.
fn parse(payload: &[u8], protocol: Protocol) -> Option<Connection> {
    let &[family, state, ..] = payload else {
        return None;
    };
    let id: [u8; SOCKID_LEN] = payload.get(4..4 + SOCKID_LEN)?.try_into().ok()?;
    let port = |at: usize| Some(u16::from_be_bytes(id.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| {
        let bytes: [u8; 16] = id.get(at..at + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = bytes;
        Some(match family {
            AF_INET => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            _ => IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(),
        })
    };
    let local = SocketAddr::new(address(4)?, port(0)?);
    let peer = SocketAddr::new(address(20)?, port(2)?);
    (peer.port() != 0).then_some(Connection {
        local,
        peer,
        protocol,
        family,
        state,
        id,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::netns::Netns;

    #[test]
    fn connections_are_listed_and_destroyed() {
        let Ok(netns) = Netns::create() else {
            println!("SKIPPED: network namespaces need root");
            return;
        };
        netns
            .run(|| {
                let up = std::process::Command::new("ip")
                    .args(["link", "set", "lo", "up"])
                    .status()
                    .unwrap();
                assert!(up.success());
                // The client's socket is IPv6 with a mapped IPv4 peer, as Java and Go like them.
                let listener = TcpListener::bind("[::]:0").unwrap();
                let port = listener.local_addr().unwrap().port();
                let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let (_server, _) = listener.accept().unwrap();
                let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
                udp.connect(("127.0.0.1", 9)).unwrap();
                let _unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();

                let diag = SockDiag::open().unwrap();
                let tcp = diag.connections(Protocol::Tcp).unwrap();
                assert_eq!(tcp.len(), 2, "{tcp:?}");
                assert!(
                    tcp.iter()
                        .all(|c| c.peer.ip().is_loopback() && c.peer.is_ipv4()),
                    "{tcp:?}"
                );
                let udp = diag.connections(Protocol::Udp).unwrap();
                assert_eq!(udp.len(), 1, "{udp:?}");
                assert_eq!(udp[0].peer.port(), 9);

                let ours = tcp.iter().find(|c| c.peer.port() == port).unwrap();
                assert_eq!(diag.destroy(ours).unwrap(), Destroyed::Yes);
                let error = client.read(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
                assert_eq!(diag.destroy(ours).unwrap(), Destroyed::WasGone);
                assert_eq!(diag.destroy(&udp[0]).unwrap(), Destroyed::Yes);
            })
            .unwrap();
    }

    #[test]
    fn malformed_answers_end_the_walk() {
        assert!(split_message(&[]).is_none());
        assert!(split_message(&[1, 0, 0, 0, 0, 0]).is_none());
        assert!(split_message(&[255; 16]).is_none());
        assert!(parse(&[2, 1, 0], Protocol::Tcp).is_none());
        assert!(acknowledgement(&[]).is_ok());
    }
}
