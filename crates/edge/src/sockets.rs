//! Sockets with the options that the edge wants.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp};
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_keepalive, set_socket_reuseaddr, set_tcp_keepcnt, set_tcp_keepidle,
    set_tcp_keepintvl, set_tcp_nodelay, set_tcp_user_timeout,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const BACKLOG: i32 = 4_096;
/// How long nothing is accepted after an error.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

fn open(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(
        family,
        kind,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    if address.is_ipv6() {
        // so that 0.0.0.0 and [::] can be listened on side by side (ipv6(7))
        set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

/// A listening TCP socket. `SO_REUSEADDR` lets it be opened while connections of a former one linger (tcp(7)); it
/// does not let two programs listen on one address.
pub(crate) fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, SocketType::STREAM)?;
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(StdListener::from(socket))
}

/// The next connection, from a listener's `poll_accept`. An error is nobody's end: the edge is out of file descriptors,
/// most likely, and others must close first.
pub(crate) async fn accepted<T>(
    what: &'static str,
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
) -> T {
    loop {
        match poll_fn(&mut accept).await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "{what}: accept");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// A UDP socket at `address`.
pub(crate) fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, SocketType::DGRAM)?;
    bind(&socket, &address)?;
    UdpSocket::from_std(StdUdp::from(socket))
}

/// Ends a client's connection, also one that the edge has closed already, when it takes nothing of what is there for it for
/// so long (`TCP_USER_TIMEOUT`, tcp(7)): otherwise the kernel keeps that for minutes.
pub(crate) fn bound_reading(stream: &TcpStream, bound: Duration) {
    let bound = u32::try_from(bound.as_millis()).unwrap_or(u32::MAX);
    // fails only on a socket that is already dead
    let _ = set_tcp_user_timeout(stream.as_fd(), bound);
}

/// Finds out within two minutes that the other side is gone without a word; sends small writes at once.
pub(crate) fn tune(stream: &TcpStream) {
    let socket = stream.as_fd();
    // each only fails on a socket that is already dead, which the next read tells
    let _ = set_tcp_nodelay(socket, true);
    let _ = set_socket_keepalive(socket, true);
    let _ = set_tcp_keepidle(socket, Duration::from_secs(60));
    let _ = set_tcp_keepintvl(socket, Duration::from_secs(15));
    let _ = set_tcp_keepcnt(socket, 4);
}
