//! A published TCP port: bytes both ways, each direction closed on its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;
use std::time::Duration;

use arc_swap::ArcSwap;
use offshoot_edge_api::Protocol;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::moved::moved;
use crate::server::Edge;
use crate::sockets;
use crate::table::Target;

const BUFFER: usize = 32 << 10;

/// Accepts until aborted; connections that were accepted go on.
pub(crate) async fn serve(
    listener: TcpListener,
    listen: SocketAddr,
    target: Arc<ArcSwap<Target>>,
    edge: Arc<Edge>,
) {
    while let Some(place) = edge.place().await {
        let accept = |context: &mut Context<'_>| listener.poll_accept(context);
        let (mut client, peer) = sockets::accepted("published port", accept).await;
        let target = target.load_full();
        let edge = Arc::clone(&edge);
        tokio::spawn(async move {
            let _place = place;
            let relayed = async {
                let bound = Duration::from_secs(edge.config.limits.header_seconds);
                let admitted = timeout(bound, edge.admit(&mut client, peer)).await;
                let Ok(Some((_, _counted))) = admitted else {
                    return;
                };
                if let Some(upstream) = connect(&target, &edge).await {
                    // an error here is one side's reset, which closing tells the other
                    let idle = Duration::from_secs(edge.config.limits.tunnel_seconds);
                    let _ = relay(client, upstream, idle).await;
                }
            };
            tokio::select! {
                () = relayed => {}
                () = target.environment.gone() => {}
                () = moved(&edge, |table| table.port_leads(Protocol::Tcp, listen, &target.environment)) => {}
            }
        });
    }
}

/// The first upstream that accepts, beginning with the one whose turn it is.
async fn connect(target: &Target, edge: &Edge) -> Option<TcpStream> {
    let bound = Duration::from_secs(edge.config.limits.connect_seconds);
    let turn = target.turn();
    for tried in 0.. {
        let upstream = target.upstream(turn, tried)?;
        match timeout(bound, TcpStream::connect(upstream.address)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(upstream = %upstream.address, %error, "published port: connect")
            }
            Err(_) => {
                tracing::debug!(upstream = %upstream.address, "published port: connect timed out")
            }
        }
    }
    None
}

/// Copies until both sides have closed, or neither has sent anything for `idle`.
async fn relay(mut client: TcpStream, mut upstream: TcpStream, idle: Duration) -> io::Result<()> {
    sockets::tune(&client);
    sockets::tune(&upstream);
    let begin = Instant::now();
    let last = AtomicU64::new(0);
    let (client_read, client_write) = client.split();
    let (upstream_read, upstream_write) = upstream.split();
    let both = async {
        tokio::try_join!(
            pump(client_read, upstream_write, begin, &last),
            pump(upstream_read, client_write, begin, &last),
        )
    };
    let silent = async {
        loop {
            let quiet_since = begin + Duration::from_millis(last.load(Ordering::Relaxed));
            if quiet_since.elapsed() >= idle {
                return;
            }
            tokio::time::sleep_until(quiet_since + idle).await;
        }
    };
    tokio::select! {
        ended = both => ended.map(|_| ()),
        () = silent => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    begin: Instant,
    last: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        last.store(
            u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
        match buffer.get(..read) {
            Some(content) if read > 0 => to.write_all(content).await?,
            _ => return to.shutdown().await,
        }
    }
}
