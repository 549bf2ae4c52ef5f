//! The edge's own requests to nodes, in plain HTTP/1.1: checks, and copies of visitors' requests.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use offshoot_model::traffic::ProxyVersion;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::sockets;

/// Most that is kept of an answer's header, bytes.
const HEADER_MAX: usize = 128 << 10;

/// A connection that requests can be sent on.
pub(crate) type Sender = SendRequest<Full<Bytes>>;

/// Connects to a node. What is returned second does the reading and writing and ends with the connection: it must be
/// polled.
///
/// # Errors
/// When it accepts no connection.
pub(crate) async fn connect(
    address: SocketAddr,
    proxy: Option<ProxyVersion>,
) -> io::Result<(Sender, impl Future<Output = hyper::Result<()>> + Send)> {
    let mut stream = TcpStream::connect(address).await?;
    sockets::tune(&stream);
    if let Some(version) = proxy {
        stream.write_all(own_connection(version)).await?;
    }
    Builder::new()
        .max_buf_size(HEADER_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)
}

/// How the PROXY protocol says that a connection is the proxy's own and nobody's behind it (`proxy-protocol.txt`, 2.1
/// and 2.2: `UNKNOWN` and `LOCAL`).
fn own_connection(version: ProxyVersion) -> &'static [u8] {
    match version {
        ProxyVersion::V1 => b"PROXY UNKNOWN\r\n",
        ProxyVersion::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    }
}

/// An I/O error in a few words.
pub(crate) fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "no way there".to_owned()
        }
        _ => format!("no connection: {error}"),
    }
}
