//! Connections to servers that are for one client only: for WebSockets, and for servers that want a PROXY header.
//!
//! A PROXY header is about one client, so such a connection is never given to another request, not even of the same
//! client: HTTP keeps no promise about who comes next on a client's own connection (a proxy may be behind it).
//!
//! The library (pingora-proxy 0.9.1, `proxy_handle_upstream`) ends an upgraded connection when it handles the end of
//! the request's empty body after the answer `101`: the end of either body is the end of both. Both are ready when
//! the server answers at once, as servers on the same host do, and then chance decides. The end of the body is always
//! there first, so a connection whose first read is not ready at once makes the order certain.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora_core::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sockets;

/// Connects within a bound.
#[derive(Debug)]
pub(super) struct Connect {
    pub(super) bound: Duration,
    /// Sent before everything else.
    pub(super) header: Option<Vec<u8>>,
    /// Whether it is for a WebSocket.
    pub(super) patient: bool,
}

impl Connect {
    async fn stream(&self, address: &std::net::SocketAddr) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(address).await?;
        sockets::tune(&stream);
        if let Some(header) = &self.header {
            stream.write_all(header).await?;
        }
        Ok(stream)
    }
}

#[async_trait]
impl L4Connect for Connect {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let Some(inet) = address.as_inet() else {
            return Error::e_explain(ErrorType::ConnectError, "not an internet address");
        };
        match timeout(self.bound, self.stream(inet)).await {
            Ok(Ok(stream)) if !self.patient => Ok(Stream::from(stream)),
            Ok(Ok(stream)) => {
                let socket = Patient {
                    stream,
                    waited: false,
                };
                Ok(Stream::from(VirtualSocketStream::new(Box::new(socket))))
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Error::e_because(ErrorType::ConnectRefused, "own connection", error)
            }
            Ok(Err(error)) => Error::e_because(ErrorType::ConnectError, "own connection", error),
            Err(late) => Error::e_because(ErrorType::ConnectTimedout, "own connection", late),
        }
    }
}

/// A connection whose first read waits for a turn.
struct Patient {
    stream: TcpStream,
    waited: bool,
}

impl fmt::Debug for Patient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.waited {
            self.waited = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, content)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl VirtualSocket for Patient {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        // `tune` has set them
        Ok(())
    }
}
