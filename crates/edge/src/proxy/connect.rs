//! Connections to servers that are for one request only: for WebSockets, for requests with a body, and for servers that
//! want a PROXY header.
//!
//! The library (pingora-proxy 0.9.1, `proxy_handle_upstream`) does not read from a server while it waits to write to it.
//! A server that answers while it reads stops reading when nobody takes its answer, and then both wait for ever. So
//! a connection that cannot write reads ahead: what the server has to say first, before it takes more.
//!
//! A PROXY header is about one client, so such a connection is never given to another request, not even of the same
//! client: HTTP keeps no promise about who comes next on a client's own connection (a proxy may be behind it).
//!
//! It also ends an upgraded connection when it handles the end of
//! the request's empty body after the answer `101`: the end of either body is the end of both. Both are ready when
//! the server answers at once, as servers on the same host do, and then chance decides. The end of the body is always
//! there first, so a connection whose first read is not ready at once makes the order certain.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora_core::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection;
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
        connection::of_body(|body| body.taken(false));
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
            Ok(Ok(stream)) => {
                let socket = Server::new(stream, self.patient);
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

/// Most that is read ahead, bytes. What is written at once is less, so a server that takes as much as it gives goes on.
const AHEAD_MAX: usize = 1 << 20;
const PART: usize = 16 << 10;

/// A connection to a server.
struct Server<S> {
    stream: S,
    /// Whether the first read waits for a turn.
    patient: bool,
    /// What was read while writing had to wait.
    ahead: BytesMut,
    /// How reading ahead ended.
    end: Option<io::Result<()>>,
}

impl<S> Server<S> {
    fn new(stream: S, patient: bool) -> Self {
        Self {
            stream,
            patient,
            ahead: BytesMut::new(),
            end: None,
        }
    }
}

impl<S: AsyncRead + Unpin> Server<S> {
    /// Takes what is there; wakes the writer when there is more.
    fn read_ahead(&mut self, context: &mut Context<'_>) {
        while self.ahead.len() < AHEAD_MAX && self.end.is_none() {
            let mut part = [0; PART];
            let mut part = ReadBuf::new(&mut part);
            match Pin::new(&mut self.stream).poll_read(context, &mut part) {
                Poll::Ready(Ok(())) if part.filled().is_empty() => self.end = Some(Ok(())),
                Poll::Ready(Ok(())) => self.ahead.extend_from_slice(part.filled()),
                Poll::Ready(Err(error)) => self.end = Some(Err(error)),
                Poll::Pending => return,
            }
        }
    }
}

impl<S> fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes read ahead", self.ahead.len())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Server<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.patient {
            self.patient = false;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead.split_to(length));
            return Poll::Ready(Ok(()));
        }
        match self.end.take() {
            Some(Ok(())) => {
                self.end = Some(Ok(()));
                Poll::Ready(Ok(()))
            }
            Some(Err(error)) => {
                self.end = Some(Ok(()));
                Poll::Ready(Err(error))
            }
            None => Pin::new(&mut self.stream).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Server<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, content);
        connection::of_body(|body| body.taken(written.is_ready()));
        if written.is_pending() {
            self.read_ahead(context);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> VirtualSocket for Server<S> {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        // `tune` has set them
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A server that answers as it reads, behind a pipe that holds little; a client that writes everything first.
    #[tokio::test]
    async fn a_server_that_answers_while_it_reads_is_read_ahead() {
        let (near, far) = tokio::io::duplex(4 << 10);
        let echo = tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(far);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let sent: Vec<u8> = (0..500_000_u32).map(|at| (at % 251) as u8).collect();
        let mut server = Server::new(near, true);
        let written = timeout(Duration::from_secs(20), server.write_all(&sent)).await;
        written.expect("it does not wait for ever").unwrap();
        assert!(!server.ahead.is_empty() && server.ahead.len() <= AHEAD_MAX);
        server.shutdown().await.unwrap();
        let mut read = Vec::new();
        server.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, sent);
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_read_ahead_is_bounded() {
        let (near, mut far) = tokio::io::duplex(64);
        let flood = tokio::spawn(async move {
            let part = [7; PART];
            while far.write_all(&part).await.is_ok() {}
        });
        let mut server = Server::new(near, false);
        let stuck = timeout(Duration::from_millis(300), server.write_all(&[0; 1_000])).await;
        stuck.expect_err("nobody reads it");
        assert!(server.ahead.len() < AHEAD_MAX + PART, "{server:?}");
        drop(server);
        flood.await.unwrap();
    }
}
