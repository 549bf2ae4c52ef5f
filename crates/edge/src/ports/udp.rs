//! A published UDP port: each client has a socket of its own towards the environment, so that answers find back.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use offshoot_edge_api::Limits;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::sockets;
use crate::table::{Target, Upstream};

/// Largest payload of a datagram over IPv4 is 65,507 bytes (RFC 768), a little more over IPv6.
const DATAGRAM: usize = 65_536;
/// How long one client's full queue may hold up the others.
const SEND: Duration = Duration::from_millis(5);

struct Session {
    socket: Arc<UdpSocket>,
    upstream: Upstream,
    last: Arc<Mutex<Instant>>,
}

type Sessions = Arc<Mutex<HashMap<SocketAddr, Session>>>;

/// Relays until aborted; the sessions end with it.
pub(crate) async fn serve(socket: UdpSocket, target: Arc<ArcSwap<Target>>, limits: Limits) {
    let socket = Arc::new(socket);
    let sessions = Sessions::default();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (size, client) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // an ICMP error of an earlier answer (udp(7)): that client is gone, the others are not
                Err(_) => continue,
            },
            Some(_) = tasks.join_next() => continue,
        };
        let Some(content) = buffer.get(..size) else {
            continue;
        };
        let now = target.load();
        let known = {
            let sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
            let session = sessions
                .get(&client)
                .filter(|session| now.upstreams.contains(&session.upstream));
            session.map(|session| {
                *session.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Arc::clone(&session.socket)
            })
        };
        let upstream = match known {
            Some(upstream) => upstream,
            None => match begin(&sessions, &now, client, &limits).await {
                Ok(Some(session)) => {
                    let upstream = Arc::clone(&session.socket);
                    let idle = Duration::from_secs(limits.udp_idle_seconds);
                    tasks.spawn(answers(
                        session,
                        client,
                        Arc::clone(&socket),
                        Arc::clone(&now),
                        Arc::clone(&sessions),
                        idle,
                    ));
                    upstream
                }
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!(%error, "published port: UDP session");
                    continue;
                }
            },
        };
        // a queue that stays full drops the datagram, as any router would; a refusal shows in `answers`
        let _ = timeout(SEND, upstream.send(content)).await;
    }
}

/// A new session, when there is room and an upstream.
async fn begin(
    sessions: &Sessions,
    target: &Target,
    client: SocketAddr,
    limits: &Limits,
) -> io::Result<Option<Session>> {
    let Some(upstream) = target.upstream(target.turn(), 0) else {
        return Ok(None);
    };
    let any: SocketAddr = if upstream.address.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = Arc::new(sockets::udp_socket(any)?);
    socket.connect(upstream.address).await?;
    let last = Arc::new(Mutex::new(Instant::now()));
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    if sessions.len() >= limits.udp_sessions && !sessions.contains_key(&client) {
        return Ok(None);
    }
    sessions.insert(
        client,
        Session {
            socket: Arc::clone(&socket),
            upstream,
            last: Arc::clone(&last),
        },
    );
    Ok(Some(Session {
        socket,
        upstream,
        last,
    }))
}

/// Sends the environment's datagrams back to the client until both are silent for `idle`.
async fn answers(
    session: Session,
    client: SocketAddr,
    socket: Arc<UdpSocket>,
    target: Arc<Target>,
    sessions: Sessions,
    idle: Duration,
) {
    let relay = async {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let last = *session.last.lock().unwrap_or_else(PoisonError::into_inner);
            match timeout_at(last + idle, session.socket.recv(&mut buffer)).await {
                Ok(Ok(size)) => {
                    *session.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                    if let Some(content) = buffer.get(..size) {
                        let _ = socket.send_to(content, client).await;
                    }
                }
                // the port is closed in the environment: the next datagram begins a new session
                Ok(Err(_)) => return,
                Err(_)
                    if session
                        .last
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .elapsed()
                        >= idle =>
                {
                    return;
                }
                Err(_) => {}
            }
        }
    };
    tokio::select! {
        () = relay => {}
        () = target.environment.gone() => {}
    }
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    // a later session of the same client is not this one's to remove
    if sessions
        .get(&client)
        .is_some_and(|kept| Arc::ptr_eq(&kept.socket, &session.socket))
    {
        sessions.remove(&client);
    }
}
