//! Connections: accepting them, bounding them, ending them.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::gate::Origin;
use crate::listen::PrivateSocket;
use crate::routes::STREAMS_MAX;
use crate::systemd;

/// Connections at a time on the unix socket; more wait in the kernel's queue.
const UNIX_MAX: usize = 512;
/// Connections at a time on TCP, counted apart: nobody without a token can keep root out.
const TCP_MAX: usize = 128;
/// Longest wait for a request's head, also between two requests.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Largest head of a request in bytes.
const HEAD_MAX: usize = 64 << 10;
/// How long requests may take to finish once the daemon ends.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
/// Pause after a failed accept: the host is out of file descriptors or memory.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers on both sockets until `shutdown` resolves, then until requests have finished or [`DRAIN`] has passed.
pub(crate) async fn accept(
    unix: &PrivateSocket,
    tcp: Option<&TcpListener>,
    router: Router,
    stop: CancellationToken,
    streams: Arc<Semaphore>,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let unix_room = Arc::new(Semaphore::new(UNIX_MAX));
    let tcp_room = Arc::new(Semaphore::new(TCP_MAX));
    let mut open = JoinSet::new();
    loop {
        let next = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = admit(&unix_room, || unix.listener.accept()) => accepted.map(|(room, (stream, _))| {
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                open.spawn(talk(stream, Origin::Unix { uid }, router.clone(), stop.clone(), room));
            }),
            accepted = admit(&tcp_room, || accept_tcp(tcp)) => accepted.map(|(room, stream)| {
                open.spawn(talk(stream, Origin::Tcp, router.clone(), stop.clone(), room));
            }),
        };
        if let Err(error) = next {
            tracing::warn!(%error, "a connection cannot be accepted");
            sleep(ACCEPT_PAUSE).await;
        }
    }
    systemd::notify(systemd::State::Stopping);
    stop.cancel();
    let drained = async {
        while open.join_next().await.is_some() {}
        // Streams that have left HTTP (exec) hold a permit each.
        let _all = streams
            .acquire_many(u32::try_from(STREAMS_MAX).unwrap_or(u32::MAX))
            .await;
    };
    if timeout(DRAIN, drained).await.is_err() {
        tracing::info!(
            connections = open.len(),
            "not all connections have finished; they are cut off"
        );
    }
}

/// Waits for room, then for somebody who takes it. May be dropped at any point.
pub(crate) async fn admit<T, F: Future<Output = io::Result<T>>>(
    room: &Arc<Semaphore>,
    accept: impl FnOnce() -> F,
) -> io::Result<(OwnedSemaphorePermit, T)> {
    let permit = Arc::clone(room)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    Ok((permit, accept().await?))
}

async fn accept_tcp(listener: Option<&TcpListener>) -> io::Result<tokio::net::TcpStream> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    let (stream, _) = listener.accept().await?;
    // Small messages (exec, events) go at once.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Serves one connection. Handlers find `origin` in the extensions of their requests.
pub(crate) async fn talk<S, O>(
    stream: S,
    origin: O,
    router: Router,
    stop: CancellationToken,
    _room: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    O: std::fmt::Debug + Copy + Send + Sync + 'static,
{
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(origin);
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, ?origin, "a connection broke");
    }
}
