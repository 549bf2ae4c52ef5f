//! Clients by HTTP/1.1.

use std::future::poll_fn;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::l4::virt::{VirtualSocket, VirtualSocketStream};
use pingora_core::protocols::{GetSocketDigest, SocketDigest};
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::super::Http;
use super::super::gather::{Duplex, Gather, Held};
use super::answer::{End, Part};
use super::request::{Read, Request};
use super::{Asked, Client, Downstream, Next};

/// A longer header is not plain, bytes. As much is read from a client at once.
const REQUEST_MAX: usize = 8 << 10;

/// A client's connection.
pub(in super::super) struct Connection {
    wire: Wire,
    /// What was read of it and is still to be answered.
    ahead: Vec<u8>,
}

/// The library's takes much more memory, so it is made when the library needs it.
enum Wire {
    Socket(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Library(Box<Stream>),
}

/// A request that goes the whole way.
pub(in super::super) struct Whole {
    /// When a node has it already.
    pub(in super::super) asked: Option<Arc<Asked>>,
    /// How long its header may take from now on.
    pub(in super::super) header: Duration,
}

impl Http {
    /// Answers requests until one comes that goes the whole way; that one is left in `connection`. `None`: it is to be closed.
    pub(in super::super) async fn short(
        &self,
        connection: &mut Connection,
        client: &Client<'_>,
        mut header: Duration,
        stopping: &mut watch::Receiver<bool>,
    ) -> Option<Whole> {
        let limits = &self.edge.config.limits;
        loop {
            let began = Instant::now();
            let mut raw = Vec::new();
            let came = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return None,
                came = timeout(header, self.first(connection, client, &mut raw)) => came,
            };
            let request = came.ok()?.ok()?;
            if raw.is_empty() {
                return None;
            }
            let header_left = header.saturating_sub(began.elapsed());
            // in a box, so that a connection that waits does not hold a place for it
            let next = match request {
                Some(request) => Box::pin(self.plain(&request, client, connection)).await,
                None => Next::Whole(None),
            };
            match next {
                Next::Request => header = Duration::from_secs(limits.idle_seconds),
                Next::Close => return None,
                Next::Whole(asked) => {
                    connection.back(raw);
                    return Some(Whole {
                        asked,
                        header: header_left,
                    });
                }
            }
        }
    }

    /// What comes first on a connection, as bytes and as the plain request that it is, if it is one. No bytes: the client went away.
    async fn first(
        &self,
        connection: &mut Connection,
        client: &Client<'_>,
        raw: &mut Vec<u8>,
    ) -> io::Result<Option<Box<Request>>> {
        let most = usize::try_from(self.edge.config.limits.header_bytes).unwrap_or(usize::MAX);
        let most = most.min(REQUEST_MAX);
        loop {
            let part = connection.some().await?;
            raw.extend_from_slice(&part);
            if part.is_empty() || raw.len() > most {
                return Ok(None);
            }
            match Request::read(raw, client.address.ip(), client.scheme) {
                Read::Part => {}
                Read::Plain(request) => return Ok(Some(request)),
                Read::NotPlain => return Ok(None),
            }
        }
    }
}

impl Connection {
    pub(in super::super) fn of_socket(stream: TcpStream) -> Self {
        Self::of(Wire::Socket(stream))
    }

    pub(in super::super) fn of_tls(stream: TlsStream<TcpStream>) -> Self {
        Self::of(Wire::Tls(Box::new(stream)))
    }

    /// As the library gave it back.
    pub(in super::super) fn of_library(stream: Box<Stream>) -> Self {
        Self::of(Wire::Library(stream))
    }

    fn of(wire: Wire) -> Self {
        let ahead = Vec::new();
        Self { wire, ahead }
    }

    /// For the library, which is told that this is the client.
    pub(in super::super) fn into_library(self, client: SocketAddr) -> Stream {
        let mut stream = match self.wire {
            Wire::Socket(stream) => library(stream.as_raw_fd(), client, Gather::new(stream)),
            Wire::Tls(stream) => library(stream.as_raw_fd(), client, Gather::new(stream)),
            Wire::Library(stream) => *stream,
        };
        if !self.ahead.is_empty() {
            stream.rewind(&self.ahead);
        }
        stream
    }

    /// The same for HTTP/2, with what sends what the library has written.
    pub(in super::super) fn into_library_held(self, client: SocketAddr) -> (Stream, Held) {
        let (fd, stream): (_, Box<dyn Duplex>) = match self.wire {
            Wire::Socket(stream) => (stream.as_raw_fd(), Box::new(stream)),
            Wire::Tls(stream) => (stream.as_raw_fd(), stream),
            Wire::Library(stream) => (stream.as_raw_fd(), stream),
        };
        let held = Held::new(stream);
        let mut stream = library(fd, client, held.clone());
        if !self.ahead.is_empty() {
            stream.rewind(&self.ahead);
        }
        (stream, held)
    }

    /// Puts back what was read.
    fn back(&mut self, mut raw: Vec<u8>) {
        raw.append(&mut self.ahead);
        self.ahead = raw;
    }

    /// What comes first. It holds no buffer while it waits.
    async fn some(&mut self) -> io::Result<Vec<u8>> {
        if !self.ahead.is_empty() {
            return Ok(mem::take(&mut self.ahead));
        }
        poll_fn(|context| self.poll_wire(context)).await
    }

    fn poll_wire(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        let mut part = [MaybeUninit::uninit(); REQUEST_MAX];
        let mut part = ReadBuf::uninit(&mut part);
        let read = Pin::new(self.stream()).poll_read(context, &mut part);
        ready!(read)?;
        Poll::Ready(Ok(part.filled().to_vec()))
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = self.stream();
        stream.write_all(bytes).await?;
        stream.flush().await
    }

    fn stream(&mut self) -> &mut dyn Duplex {
        match &mut self.wire {
            Wire::Socket(stream) => stream,
            Wire::Tls(stream) => stream,
            Wire::Library(stream) => stream,
        }
    }
}

fn library(fd: RawFd, client: SocketAddr, stream: impl VirtualSocket + 'static) -> Stream {
    let digest = SocketDigest::from_raw_fd(fd);
    let _ = digest.peer_addr.set(Some(client.into()));
    let mut stream: Stream = VirtualSocketStream::new(Box::new(stream)).into();
    stream.set_socket_digest(digest);
    stream
}

impl Downstream for Connection {
    const PROTOCOL: &str = "http/1.1";
    type Head = Vec<u8>;

    /// What the client sends meanwhile is its next request, or part of it, and is kept.
    async fn left(&mut self) {
        if self.ahead.is_empty() {
            match self.some().await {
                Ok(raw) if !raw.is_empty() => self.ahead = raw,
                _ => return,
            }
        }
        std::future::pending().await
    }

    async fn send(
        &mut self,
        head: Option<Vec<u8>>,
        part: &Part,
        read: &mut BytesMut,
    ) -> io::Result<()> {
        let content = read.get(..part.length).unwrap_or_default();
        let trailers = part.end == End::Trailers;
        if head.is_none() && !trailers {
            return self.write(content).await;
        }
        let mut whole = head.unwrap_or_default();
        whole.extend_from_slice(content);
        if trailers {
            whole.extend_from_slice(b"\r\n");
        }
        self.write(&whole).await
    }
}
