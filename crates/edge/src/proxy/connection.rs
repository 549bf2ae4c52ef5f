//! A client's connection: which protocol it speaks, and when it has had its time.
//!
//! The proxy library's own accept loop bounds each read but not a whole header, and cannot end a request from
//! outside. Here each request runs beside a watch that ends it: when its header takes too long, when the environment
//! it went to is removed, and, when it lasts, some time after its route leads elsewhere.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pingora_core::apps::{HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{
    H2Accept, HttpSession, default_h2_options, handshake,
};
use pingora_core::protocols::{Digest, GetSocketDigest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::short::{self, Asked, Client, Connection};
use super::silence::Body;
use super::{Http, tls};
use crate::clients;
use crate::metrics::Refused;
use crate::moved::Way;
use crate::sockets;
use crate::table::Environment;

/// How an HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Malformed requests on one HTTP/2 connection before it is closed.
const MALFORMED_MAX: usize = 32;

tokio::task_local! {
    /// Set while a request is processed, so that the library's callbacks reach the request's watch.
    static STAGE: (watch::Sender<Stage>, Arrival, Arc<Body>);
}

/// How a client reaches the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Without TLS.
    Http,
    /// With it.
    Https,
}

impl Scheme {
    /// As in addresses.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

#[derive(Clone)]
enum Stage {
    /// Its header is not complete.
    Header,
    /// It is being answered.
    Received,
    /// It is being answered by an environment.
    Routed(Arc<Environment>),
    /// The same, by something that lasts.
    Lasting(Arc<Way>),
}

/// How a connection came to the edge.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) scheme: Scheme,
    /// The name that its client asked for in the TLS handshake, in normal form.
    pub(super) name: Option<Arc<str>>,
    /// When a node has the request already.
    pub(super) asked: Option<Arc<Asked>>,
}

/// Who came on a connection, and how.
struct Visit {
    peer: SocketAddr,
    arrival: Arrival,
    /// Counts the connection as its client's.
    _counted: clients::Connection,
}

impl Visit {
    /// As the short way knows a client.
    fn client(&self) -> Client<'_> {
        Client {
            address: SocketAddr::new(self.peer.ip().to_canonical(), self.peer.port()),
            scheme: self.arrival.scheme,
            name: self.arrival.name.as_deref(),
        }
    }
}

/// Says that the current request's header is complete; returns how it came.
pub(super) fn header_received() -> Arrival {
    let arrival = STAGE.try_with(|(stage, arrival, _)| {
        stage.send_replace(Stage::Received);
        arrival.clone()
    });
    // every request is processed within the scope
    arrival.unwrap_or(Arrival {
        scheme: Scheme::Http,
        name: None,
        asked: None,
    })
}

/// Says which environment answers the current request.
pub(super) fn routed(environment: &Arc<Environment>) {
    let _ =
        STAGE.try_with(|(stage, ..)| stage.send_replace(Stage::Routed(Arc::clone(environment))));
}

/// Says that the answer to the current request lasts, and where it comes from.
pub(super) fn lasts(way: Way) {
    let _ = STAGE.try_with(|(stage, ..)| stage.send_replace(Stage::Lasting(Arc::new(way))));
}

/// Says what became of the current request's body.
pub(super) fn of_body(tell: impl FnOnce(&Body)) {
    let _ = STAGE.try_with(|(.., body)| tell(body));
}

impl Http {
    /// Accepts until the edge stops.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener, scheme: Scheme) {
        let mut stopping = self.edge.stopping.clone();
        loop {
            let Some(place) = self.edge.place().await else {
                return;
            };
            let accept = |context: &mut Context<'_>| listener.poll_accept(context);
            let (stream, peer) = tokio::select! {
                accepted = sockets::accepted(scheme.name(), accept) => accepted,
                _ = stopping.wait_for(|stop| *stop) => return,
            };
            let http = Arc::clone(&self);
            tokio::spawn(async move {
                // in boxes, here and below: a connection that waits for its next request does not hold a place for
                // more than that
                let begun = Box::pin(http.begin(stream, peer, scheme)).await;
                let Some((connection, http2, visit)) = begun else {
                    return;
                };
                let _place = place;
                if http2 {
                    Box::pin(http.serve_http2(connection, &visit)).await;
                } else {
                    http.serve_http1(connection, &visit).await;
                }
            });
        }
    }

    /// Ends connections that wait for their next request; those that are answering end after it.
    pub(crate) async fn stop(&self) {
        self.app.http_cleanup().await;
    }

    /// Finds out who comes, and by which protocol. `None`: the connection is to be closed.
    async fn begin(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        scheme: Scheme,
    ) -> Option<(Box<Connection>, bool, Box<Visit>)> {
        let bound = Duration::from_secs(self.edge.config.limits.header_seconds);
        sockets::tune(&stream);
        let client = Duration::from_secs(self.edge.config.limits.client_seconds);
        sockets::bound_reading(&stream, client);
        let mut stopping = self.edge.stopping.clone();
        let begin = async {
            let (peer, counted) = self.edge.admit(&mut stream, peer).await?;
            let (connection, http2, name) = match scheme {
                Scheme::Http => {
                    let http2 = begins_http2(&stream).await?;
                    (Connection::of_socket(stream), http2, None)
                }
                Scheme::Https => {
                    let (stream, http2, name) = tls::accept(stream, &self.edge).await?;
                    (Connection::of_tls(stream), http2, Some(Arc::from(name)))
                }
            };
            let arrival = Arrival {
                scheme,
                name,
                asked: None,
            };
            let visit = Visit {
                peer,
                arrival,
                _counted: counted,
            };
            Some((Box::new(connection), http2, Box::new(visit)))
        };
        tokio::select! {
            begun = timeout(bound, begin) => begun.ok()?,
            _ = stopping.wait_for(|stop| *stop) => None,
        }
    }

    async fn serve_http1(&self, mut connection: Box<Connection>, visit: &Visit) {
        let limits = &self.edge.config.limits;
        let mut stopping = self.edge.stopping.clone();
        let client = visit.client();
        let mut bound = Duration::from_secs(limits.header_seconds);
        while let Some(whole) = self
            .short(&mut connection, &client, bound, &mut stopping)
            .await
        {
            let watched = self.whole_http1(*connection, visit, whole);
            let Some(reused) = watched.await else {
                return;
            };
            // the settings are those from above: requests do not change them, except that the connection ends
            let (reused, _) = reused.consume();
            let Ok(reused) = reused.into_any().downcast() else {
                return;
            };
            *connection = Connection::of_library(reused);
            bound = Duration::from_secs(limits.idle_seconds);
        }
    }

    /// Processes one request the whole way. No `async fn`: what it begins with would hold a place while the connection waits.
    fn whole_http1<'a>(
        &'a self,
        connection: Connection,
        visit: &Visit,
        whole: short::Whole,
    ) -> Pin<Box<impl Future<Output = Option<ReusedHttpStream>> + use<'a>>> {
        let stream = connection.into_library(visit.peer);
        let mut session = ServerSession::new_http1(Box::new(stream));
        session.set_keepalive(Some(self.edge.config.limits.idle_seconds));
        let arrival = Arrival {
            asked: whole.asked,
            ..visit.arrival.clone()
        };
        Box::pin(self.watched(session, arrival, whole.header))
    }

    /// Processes one request, at most until its time is over.
    async fn watched(
        &self,
        session: ServerSession,
        arrival: Arrival,
        header: Duration,
    ) -> Option<ReusedHttpStream> {
        let (stage, mut watch) = watch::channel(Stage::Header);
        let body = Arc::new(Body::default());
        let of_http2 = session.is_http2().then(|| Arc::clone(&body));
        let client = Duration::from_secs(self.edge.config.limits.client_seconds);
        let silent = async {
            match of_http2 {
                Some(body) => body.silent(client).await,
                None => std::future::pending().await,
            }
        };
        let over = async {
            let received = watch.wait_for(|stage| !matches!(stage, Stage::Header));
            if timeout(header, received).await.is_err() {
                return;
            }
            loop {
                // a request that one side could not be asked goes to another
                let stage = watch.borrow_and_update().clone();
                let gone = async {
                    match stage {
                        Stage::Routed(environment) => environment.gone().await,
                        Stage::Lasting(way) => way.ended(&self.edge).await,
                        Stage::Header | Stage::Received => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = gone => return,
                    // the sender lives as long as the request
                    Ok(()) = watch.changed() => {}
                }
            }
        };
        tokio::select! {
            reused = STAGE.scope((stage, arrival, body), self.app.process_new_http(session, &self.edge.stopping)) => reused,
            () = over => None,
            () = silent => None,
        }
    }

    async fn serve_http2(&self, connection: Box<Connection>, visit: &Visit) {
        let (stream, outlet) = connection.into_library_held(visit.peer);
        let limits = &self.edge.config.limits;
        let digest = Arc::new(Digest {
            socket_digest: stream.get_socket_digest(),
            ..Digest::default()
        });
        let mut options = default_h2_options();
        options.max_header_list_size(limits.header_bytes);
        options.max_concurrent_streams(limits.streams);
        let abandoned = 2 * usize::try_from(limits.streams).unwrap_or(usize::MAX / 2);
        let header = Duration::from_secs(limits.header_seconds);
        let idle = Duration::from_secs(limits.idle_seconds);
        let Ok(Ok(mut connection)) =
            timeout(header, handshake(Box::new(stream), Some(options))).await
        else {
            return;
        };
        let mut stopping = self.edge.stopping.clone();
        let mut stopped = *stopping.borrow_and_update();
        if stopped {
            connection.graceful_shutdown();
        }
        // each request that goes the whole way holds one more
        let spawned = Arc::new(());
        let client = visit.client();
        // those that go the short way stay here: what several of them have to say goes out at once
        let mut under_way = FuturesUnordered::new();
        let mut used = Instant::now();
        let mut idle_over = pin!(tokio::time::sleep(idle));
        let mut malformed = 0;
        loop {
            let accepted = tokio::select! {
                biased;
                changed = stopping.changed(), if !stopped => {
                    stopped = true;
                    if changed.is_ok() {
                        connection.graceful_shutdown();
                    }
                    continue;
                }
                Some((session, whole)) = under_way.next(), if !under_way.is_empty() => {
                    used = Instant::now();
                    if let Some(asked) = whole {
                        let arrival = Arrival { asked, ..visit.arrival.clone() };
                        self.spawn_watched(session, arrival, header, &spawned);
                    }
                    continue;
                }
                accepted = HttpSession::from_h2_conn(&mut connection, Arc::clone(&digest)) => accepted,
                () = &mut idle_over => {
                    if !under_way.is_empty() || Arc::strong_count(&spawned) > 1 {
                        used = Instant::now();
                    } else if used.elapsed() >= idle {
                        return;
                    }
                    idle_over.as_mut().reset(used + idle);
                    continue;
                }
                // the last: when all of them wait, what they had to say goes out
                _ = outlet.failed() => break,
            };
            used = Instant::now();
            match accepted {
                Ok(Some(H2Accept::Session(mut session))) => {
                    // a client that gives requests up as soon as they began has few open and much work done for it
                    if under_way.len() + Arc::strong_count(&spawned) > abandoned {
                        self.edge.counters.refused(Refused::Streams);
                        break;
                    }
                    let client = &client;
                    under_way.push(async move {
                        let whole = self.short_http2(&mut session, client).await;
                        (session, whole)
                    });
                }
                Ok(Some(H2Accept::Rejected)) if malformed < MALFORMED_MAX => malformed += 1,
                _ => break,
            }
        }
        // requests learn from it that their client left, and are counted
        drop(connection);
        while under_way.next().await.is_some() {}
    }

    /// Processes a request of an HTTP/2 connection the whole way.
    fn spawn_watched(
        &self,
        session: HttpSession,
        arrival: Arrival,
        header: Duration,
        spawned: &Arc<()>,
    ) {
        let spawned = Arc::clone(spawned);
        let http = Self {
            edge: Arc::clone(&self.edge),
            app: Arc::clone(&self.app),
            kept: Arc::clone(&self.kept),
        };
        tokio::spawn(async move {
            let _spawned = spawned;
            http.watched(ServerSession::new_http2(session), arrival, header)
                .await;
        });
    }
}

/// Whether the client speaks HTTP/2 with prior knowledge (RFC 9113, 3.3); `None` when it went away. Looks at the
/// first bytes without taking them.
async fn begins_http2(stream: &TcpStream) -> Option<bool> {
    let mut begin = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut begin).await.ok()?;
        let begin = begin.get(..seen).filter(|begin| !begin.is_empty())?;
        if !PREFACE.starts_with(begin) {
            return Some(false);
        }
        if seen == PREFACE.len() {
            return Some(true);
        }
        // the first bytes of either: the socket stays readable, so look again in a moment
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
