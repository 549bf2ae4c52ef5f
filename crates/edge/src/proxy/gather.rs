//! Fewer and larger writes towards clients.
//!
//! The proxy library writes an answer's header and each part of its body by themselves, and flushes where a client may be
//! waiting. Between two flushes small parts are collected here, and go out together with a large one: a system call and
//! a packet instead of two or three.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is collected at most, bytes: a header and a small body. Memory that waits for nothing: it is given back at each
/// flush.
const COLLECTED_MAX: usize = 4 << 10;
/// The same for HTTP/2: as much as a TLS record holds (RFC 8446, 5.1).
const HELD_MAX: usize = 16 << 10;

/// A connection that collects small writes until a flush.
pub(super) struct Gather<S> {
    stream: S,
    collected: Vec<u8>,
    most: usize,
}

impl<S> Gather<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            collected: Vec::new(),
            most: COLLECTED_MAX,
        }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.collected.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, &self.collected))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.collected.drain(..sent);
        }
        self.collected = Vec::new();
        Poll::Ready(Ok(()))
    }
}

impl<S> fmt::Debug for Gather<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes collected", self.collected.len())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            if this.collected.len() + content.len() <= this.most {
                this.collected.extend_from_slice(content);
                return Poll::Ready(Ok(content.len()));
            }
            if this.collected.is_empty() {
                return Pin::new(&mut this.stream).poll_write(context, content);
            }
            let both = [IoSlice::new(&this.collected), IoSlice::new(content)];
            let sent = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, &both))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_content = sent.saturating_sub(this.collected.len());
            this.collected.drain(..sent.min(this.collected.len()));
            if of_content > 0 {
                return Poll::Ready(Ok(of_content));
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> VirtualSocket for Gather<S> {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        // `tune` has set them on the TCP socket
        Ok(())
    }
}

/// What a client's connection is to the proxy.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The same for HTTP/2, where many answers share a connection. Its library (h2) flushes after each part of each of them, so a
/// flush sends nothing here: whoever drives the connection says when everything was written that there is ([`Held::failed`]).
#[derive(Clone)]
pub(super) struct Held(Arc<Mutex<Gather<Box<dyn Duplex>>>>);

impl Held {
    pub(super) fn new(stream: Box<dyn Duplex>) -> Self {
        Self(Arc::new(Mutex::new(Gather {
            stream,
            collected: Vec::new(),
            most: HELD_MAX,
        })))
    }

    /// Sends what was collected, each time that it is polled. Ends when that cannot be done.
    pub(super) async fn failed(&self) -> io::Error {
        poll_fn(|context| match self.gather().poll_send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            _ => Poll::Pending,
        })
        .await
    }

    fn gather(&self) -> MutexGuard<'_, Gather<Box<dyn Duplex>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.gather().fmt(f)
    }
}

impl AsyncRead for Held {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.gather()).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.gather()).poll_write(context, content)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.gather()).poll_shutdown(context)
    }
}

impl VirtualSocket for Held {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        // `tune` has set them on the TCP socket
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn run(future: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future);
    }

    proptest! {
        /// Whatever is written arrives, in order, through a pipe of any size.
        #[test]
        fn everything_arrives_in_order(
            parts in prop::collection::vec((0usize..9_000, any::<bool>()), 0..12),
            pipe in 1usize..5_000,
        ) {
            run(async {
                let (near, mut far) = tokio::io::duplex(pipe);
                let total: usize = parts.iter().map(|(length, _)| length).sum();
                let sent: Vec<u8> = (0..total).map(|at| (at % 251) as u8).collect();
                let read = tokio::spawn(async move {
                    let mut read = Vec::new();
                    far.read_to_end(&mut read).await.unwrap();
                    read
                });
                let mut stream = Gather::new(near);
                let mut rest = &sent[..];
                for (length, flush) in parts {
                    let (part, after) = rest.split_at(length);
                    stream.write_all(part).await.unwrap();
                    if flush {
                        stream.flush().await.unwrap();
                    }
                    rest = after;
                }
                stream.shutdown().await.unwrap();
                drop(stream);
                assert_eq!(read.await.unwrap(), sent);
            });
        }
    }

    #[test]
    fn nothing_goes_out_before_it_must_and_nothing_is_kept_after() {
        run(async {
            let (near, mut far) = tokio::io::duplex(64 << 10);
            let mut stream = Gather::new(near);
            stream.write_all(b"header").await.unwrap();
            stream.write_all(b"body").await.unwrap();
            assert_eq!(stream.collected, b"headerbody");
            stream.flush().await.unwrap();
            assert_eq!(stream.collected.capacity(), 0);
            let mut read = [0; 64];
            assert_eq!(far.read(&mut read).await.unwrap(), 10);
        });
    }

    #[test]
    fn by_http2_answers_go_out_together_when_it_is_said() {
        run(async {
            let (near, mut far) = tokio::io::duplex(64 << 10);
            let held = Held::new(Box::new(near));
            let mut stream = held.clone();
            for _ in 0..3 {
                stream.write_all(b"answer").await.unwrap();
                stream.flush().await.unwrap();
            }
            assert_eq!(held.gather().collected.len(), 18);
            assert!(held.failed().now_or_never().is_none());
            assert_eq!(held.gather().collected.capacity(), 0);
            let mut read = [0; 64];
            assert_eq!(far.read(&mut read).await.unwrap(), 18);
            stream.write_all(b"bye").await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(far.read(&mut read).await.unwrap(), 3);
            drop(far);
            stream.write_all(b"nobody").await.unwrap();
            let error = held.failed().now_or_never().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        });
    }
}
