//! A request that was sent the short way and is answered the whole way.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use async_trait::async_trait;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora_core::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::table::{Target, Upstream};
use crate::traffic::Owner;

/// A request that a node has, and the connection that its answer comes on.
pub(in super::super) struct Asked {
    pub(in super::super) owner: Arc<Owner>,
    pub(in super::super) target: Arc<Target>,
    pub(in super::super) node: Upstream,
    /// When its header was complete.
    pub(in super::super) started: Instant,
    answering: Mutex<Option<Answering>>,
}

impl Asked {
    /// `read` is what came of the answer so far.
    pub(super) fn new(
        owner: Arc<Owner>,
        target: Arc<Target>,
        node: Upstream,
        started: Instant,
        (stream, read): (TcpStream, Vec<u8>),
    ) -> Self {
        Self {
            owner,
            target,
            node,
            started,
            answering: Mutex::new(Some(Answering {
                stream,
                read,
                at: 0,
            })),
        }
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "asked {}", self.node.address)
    }
}

#[async_trait]
impl L4Connect for Asked {
    async fn connect(&self, _: &SocketAddr) -> Result<Stream> {
        let mut answering = self
            .answering
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(answering) = answering.take() else {
            return Error::e_explain(ErrorType::ConnectError, "its answer was taken already");
        };
        Ok(VirtualSocketStream::new(Box::new(answering)).into())
    }
}

/// A connection whose node has the request: what is written is that request once more, and goes nowhere.
struct Answering {
    stream: TcpStream,
    read: Vec<u8>,
    /// How much of what was read was given on.
    at: usize,
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes given on", self.at, self.read.len())
    }
}

impl AsyncRead for Answering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let rest = this.read.get(this.at..).unwrap_or_default();
        if rest.is_empty() {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let length = rest.len().min(buffer.remaining());
        buffer.put_slice(rest.get(..length).unwrap_or_default());
        this.at += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Answering {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(content.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl VirtualSocket for Answering {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        // `tune` has set them
        Ok(())
    }
}
