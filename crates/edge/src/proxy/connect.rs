//! Connections to servers that are for one request only: for WebSockets, for requests with a body, and for servers that
//! want a PROXY header.
//!
//! The library (pingora-proxy 0.9.1, `proxy_handle_upstream`) does not read from a server while it waits to write to it.
//! A server that answers while it reads stops reading when nobody takes its answer, and then both wait until their time is
//! over. So a connection that cannot write reads ahead: what the server has to say first, before it takes more. A server
//! that gives as much as it takes (an echo, a filter) has at most the kernel's buffers to say; tcp(7) lets those grow far.
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
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// Most that is read ahead on one connection, bytes: more than the buffers of both its ends hold where nobody changed them
/// (`tcp_rmem`, 6 MiB, and `tcp_wmem`, 4 MiB; tcp(7)).
const AHEAD_MAX: usize = 64 << 20;
/// So much may every connection read ahead.
const AHEAD_OWN: usize = 1 << 20;
/// And more only while all of them together hold less than this.
const AHEAD_TOGETHER: usize = 256 << 20;
const PART: usize = 16 << 10;

/// What all connections have read ahead, bytes.
static TOGETHER: AtomicUsize = AtomicUsize::new(0);

/// What was read while writing had to wait.
#[derive(Default)]
struct Ahead(BytesMut);

impl Ahead {
    fn has_room(&self) -> bool {
        let together = TOGETHER.load(Ordering::Relaxed);
        self.0.len() < AHEAD_OWN || (self.0.len() < AHEAD_MAX && together < AHEAD_TOGETHER)
    }

    fn add(&mut self, part: &[u8]) {
        TOGETHER.fetch_add(part.len(), Ordering::Relaxed);
        self.0.extend_from_slice(part);
    }

    fn take(&mut self, length: usize) -> BytesMut {
        let taken = self.0.split_to(length.min(self.0.len()));
        TOGETHER.fetch_sub(taken.len(), Ordering::Relaxed);
        if self.0.is_empty() {
            self.0 = BytesMut::new();
        }
        taken
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.take(usize::MAX);
    }
}

/// A connection to a server.
struct Server<S> {
    stream: S,
    /// Whether the first read waits for a turn.
    patient: bool,
    ahead: Ahead,
    /// How reading ahead ended.
    end: Option<io::Result<()>>,
}

impl<S> Server<S> {
    fn new(stream: S, patient: bool) -> Self {
        Self {
            stream,
            patient,
            ahead: Ahead::default(),
            end: None,
        }
    }
}

impl<S: AsyncRead + Unpin> Server<S> {
    /// Takes what is there; wakes the writer when there is more.
    fn read_ahead(&mut self, context: &mut Context<'_>) {
        while self.ahead.has_room() && self.end.is_none() {
            let mut part = [0; PART];
            let mut part = ReadBuf::new(&mut part);
            match Pin::new(&mut self.stream).poll_read(context, &mut part) {
                Poll::Ready(Ok(())) if part.filled().is_empty() => self.end = Some(Ok(())),
                Poll::Ready(Ok(())) => self.ahead.add(part.filled()),
                Poll::Ready(Err(error)) => self.end = Some(Err(error)),
                Poll::Pending => return,
            }
        }
    }
}

impl<S> fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes read ahead", self.ahead.0.len())
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
        let ahead = self.ahead.take(buffer.remaining());
        if !ahead.is_empty() {
            buffer.put_slice(&ahead);
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
        assert!(!server.ahead.0.is_empty());
        server.shutdown().await.unwrap();
        let mut read = Vec::new();
        server.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, sent);
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_read_ahead_is_bounded() {
        let (near, mut far) = tokio::io::duplex(PART);
        let flood = tokio::spawn(async move {
            let part = [7; PART];
            while far.write_all(&part).await.is_ok() {}
        });
        let mut server = Server::new(near, false);
        let mut stuck = std::pin::pin!(server.write_all(&[0; 2 * PART]));
        let full = async {
            while TOGETHER.load(Ordering::Relaxed) < AHEAD_MAX {
                let _ = timeout(Duration::from_millis(1), &mut stuck).await;
            }
        };
        timeout(Duration::from_secs(60), full).await.unwrap();
        let more = timeout(Duration::from_millis(300), &mut stuck).await;
        more.expect_err("nobody reads it");
        let ahead = server.ahead.0.len();
        assert!((AHEAD_MAX..AHEAD_MAX + PART).contains(&ahead), "{server:?}");
        drop(server);
        assert!(TOGETHER.load(Ordering::Relaxed) < AHEAD_OWN);
        flood.await.unwrap();
    }
}
