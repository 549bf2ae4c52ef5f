//! TLS on accepted connections: the certificate by the name that the client asks for, and no other.

use offshoot_edge_api::normal_host;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::server::TlsStream;

use crate::certificates::HTTP2;
use crate::server::Edge;

/// A record with the fatal alert `unrecognized_name` (RFC 8446, 5.1 and 6.2). Nothing is encrypted yet when it is
/// sent: it answers the client's first message.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Does the handshake; the caller bounds its time. Returns the connection, whether it speaks HTTP/2, and the name that was asked for; `None` when
/// there is no certificate for the name, or no agreement.
pub(super) async fn accept(
    stream: TcpStream,
    edge: &Edge,
) -> Option<(TlsStream<TcpStream>, bool, String)> {
    let start = match LazyConfigAcceptor::new(Acceptor::default(), stream).await {
        Ok(start) => start,
        Err(error) => {
            tracing::debug!(%error, "no TLS");
            return None;
        }
    };
    let name = start.client_hello().server_name().and_then(normal_host);
    let config = name.and_then(|name| {
        let config = edge.table.load().certificates.find(&name)?;
        Some((name, config))
    });
    let Some((name, config)) = config else {
        let mut stream = start.io;
        // the client may be gone already
        let _ = stream.write_all(&UNRECOGNIZED_NAME).await;
        let _ = stream.shutdown().await;
        return None;
    };
    let stream = match start.into_stream(config).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "no TLS");
            return None;
        }
    };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
    Some((stream, http2, name))
}
