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

use crate::{clients, sockets};

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
        // it is the edge's own, and nobody's behind it
        stream
            .write_all(&clients::proxy_header(version, None))
            .await?;
    }
    Builder::new()
        .max_buf_size(HEADER_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)
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

#[cfg(test)]
mod tests {
    use http::Request;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// How a request begins on the wire.
    async fn begins(proxy: Option<ProxyVersion>) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ask = async {
            let (mut sender, connection) = connect(address, proxy).await.unwrap();
            let request = Request::get("/x").body(Full::default()).unwrap();
            let (answer, _) = tokio::join!(sender.send_request(request), connection);
            answer.unwrap_err();
        };
        let read = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut begin = Vec::new();
            while !begin.ends_with(b"\r\n\r\n") || !begin.windows(5).any(|w| w == b"GET /") {
                assert!(stream.read_buf(&mut begin).await.unwrap() > 0);
            }
            begin
        };
        tokio::join!(read, ask).0
    }

    #[tokio::test]
    async fn the_proxy_protocol_says_that_nobody_is_behind_it() {
        assert_eq!(begins(None).await, b"GET /x HTTP/1.1\r\n\r\n");
        let v1 = b"PROXY UNKNOWN\r\nGET /x HTTP/1.1\r\n\r\n";
        assert_eq!(begins(Some(ProxyVersion::V1)).await, v1);
        let v2 = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET /x HTTP/1.1\r\n\r\n";
        assert_eq!(begins(Some(ProxyVersion::V2)).await, v2);
    }

    #[tokio::test]
    async fn what_keeps_a_connection_from_being_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = connect(address, None).await.map(drop).unwrap_err();
        assert_eq!(in_words(&error), "connection refused");
    }
}
