//! The short way: plain requests and plain answers, past the proxy library.
//!
//! For each request the library builds two sessions with header maps, channels and tasks. Most requests need none of that:
//! `GET` on a route without a policy, whose answer says how long it is. By HTTP/1.1 they are parsed by the library's parser
//! and both sides pass as bytes; by HTTP/2 the client's side stays the library's, and only the node's is bytes.
//!
//! Nothing is decided here that could be decided otherwise there. What is not plain stays in the connection's buffer and
//! goes the whole way. So does a request whose node gives no plain answer, or none in a moment: the library gets
//! the connection that the answer comes on ([`Asked`]). All pages and failures before an answer's begin are the library's.

mod answer;
mod asked;
mod chunks;
mod http1;
mod http2;
mod kept;
mod request;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use jiff::Timestamp;
use offshoot_edge_api::Https;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::answer::{Answer, End, Head, Part};
pub(super) use self::asked::Asked;
pub(super) use self::http1::{Connection, Whole};
pub(super) use self::kept::Kept;
use self::request::Request;
use super::Http;
use super::connection::Scheme;
use crate::access_log::Record;
use crate::hosts::Found;
use crate::sockets;
use crate::table::{Answer as Answerer, Target, Upstream};
use crate::traffic::{self, Ended, Owner};

/// What is read from a node at once, bytes.
const PART: usize = 16 << 10;
/// The same of a body that is longer than one part.
const LARGE_PART: usize = 64 << 10;
/// How long a node may take for a connection or for its answer's begin until the request goes the whole way.
const PATIENCE: Duration = Duration::from_secs(1);

/// The client's side of a request.
trait Downstream {
    /// As in the access log.
    const PROTOCOL: &str;
    type Head: Head;

    /// Waits until the client is gone.
    async fn left(&mut self);

    /// Sends the head of an answer, if it was not sent before, and the first part of `read`, which may be taken out.
    async fn send(
        &mut self,
        head: Option<Self::Head>,
        part: &Part,
        read: &mut BytesMut,
    ) -> io::Result<()>;
}

/// How a client came.
pub(super) struct Client<'a> {
    pub(super) address: SocketAddr,
    pub(super) scheme: Scheme,
    /// The name that it asked for in the TLS handshake.
    pub(super) name: Option<&'a str>,
}

/// A request under way.
struct Exchange<'a> {
    request: &'a Request,
    client: &'a Client<'a>,
    owner: Arc<Owner>,
    target: Arc<Target>,
    started: Instant,
}

/// What comes after it.
enum Next {
    Request,
    Close,
    Whole(Option<Arc<Asked>>),
}

/// How an answer ended that had begun, or whose client left.
struct Outcome {
    end: traffic::End,
    status: Option<u16>,
    /// Content of its body that was sent, bytes.
    sent: usize,
    node: Upstream,
    error: Option<String>,
}

impl Http {
    /// Where a request leads, when its way has nothing to decide.
    fn exchange<'a>(&self, request: &'a Request, client: &'a Client<'a>) -> Option<Exchange<'a>> {
        if client.name.is_some_and(|name| name != request.host) {
            return None;
        }
        let table = self.edge.table.load();
        let Found::Route(route) = table.find(&request.host, request.path()) else {
            return None;
        };
        let Answerer::Environment { owner, target } = &route.answer else {
            return None;
        };
        let to_https = client.scheme == Scheme::Http && route.https == Https::Redirect;
        if to_https || owner.policy.is_some() {
            return None;
        }
        Some(Exchange {
            request,
            client,
            owner: Arc::clone(owner),
            target: Arc::clone(target),
            started: Instant::now(),
        })
    }

    /// Carries out a plain request, when its way is plain too.
    async fn plain<D: Downstream>(
        &self,
        request: &Request,
        client: &Client<'_>,
        downstream: &mut D,
    ) -> Next {
        let Some(exchange) = self.exchange(request, client) else {
            return Next::Whole(None);
        };
        tokio::select! {
            biased;
            next = self.ask(&exchange, downstream) => next,
            () = exchange.target.environment.gone() => Next::Close,
        }
    }

    async fn ask<D: Downstream>(&self, exchange: &Exchange<'_>, client: &mut D) -> Next {
        let target = &exchange.target;
        let Some(node) = target.first_upstream(target.turn(), |_| true) else {
            return Next::Whole(None);
        };
        let kept = self.kept.take(node.key);
        let reused = kept.is_some();
        let mut server = match kept {
            Some(server) => server,
            None => match timeout(PATIENCE, TcpStream::connect(node.address)).await {
                Ok(Ok(server)) => server,
                // the library asks another, or says that there is none
                _ => {
                    self.edge
                        .counters
                        .unreachable
                        .fetch_add(1, Ordering::Relaxed);
                    return Next::Whole(None);
                }
            },
        };
        if !reused {
            sockets::tune(&server);
        }
        // the address may be another environment's by now: nothing was sent yet, and nothing will be
        if target.environment.is_gone() {
            return Next::Whole(None);
        }
        let mut read = BytesMut::with_capacity(PART);
        let answering = async {
            server.write_all(&exchange.request.head).await?;
            server.read_buf(&mut read).await
        };
        let came = tokio::select! {
            biased;
            came = timeout(PATIENCE, answering) => came,
            () = client.left() => {
                let outcome = Outcome {
                    end: traffic::End::ClientLeft,
                    status: None,
                    sent: 0,
                    node,
                    error: None,
                };
                self.ended::<D>(exchange, outcome);
                return Next::Close;
            }
        };
        if reused && matches!(came, Ok(Ok(0) | Err(_))) {
            // a kept connection that its server was just closing
            return Next::Whole(None);
        }
        let Some(answer) = Answer::read(&read) else {
            return Next::Whole(Some(Arc::new(Asked::new(
                Arc::clone(&exchange.owner),
                Arc::clone(target),
                node,
                exchange.started,
                (server, read.into()),
            ))));
        };
        let outcome = self.answer(answer, (server, read), node, client).await;
        let next = match outcome.end {
            traffic::End::Complete => Next::Request,
            _ => Next::Close,
        };
        self.ended::<D>(exchange, outcome);
        next
    }

    /// Sends an answer to its client as it comes.
    async fn answer<D: Downstream>(
        &self,
        answer: Answer<D::Head>,
        (server, mut read): (TcpStream, BytesMut),
        node: Upstream,
        client: &mut D,
    ) -> Outcome {
        let limits = &self.edge.config.limits;
        let patience = Duration::from_secs(limits.upstream_seconds);
        let bound = Duration::from_secs(limits.client_seconds);
        let mut outcome = Outcome {
            end: traffic::End::Failed,
            status: Some(answer.status),
            sent: 0,
            node,
            error: None,
        };
        let (mut body, mut head, mut part) = (answer.body, Some(answer.head), answer.first);
        read.advance(answer.length);
        let mut server = Some(server);
        loop {
            let exact = part.end == End::Whole && part.length == read.len();
            if let Some(server) = server.take_if(|_| exact && answer.keep) {
                self.kept.keep(node.key, server);
            }
            let sent = timeout(bound, client.send(head.take(), &part, &mut read)).await;
            if !matches!(sent, Ok(Ok(()))) {
                outcome.end = traffic::End::ClientLeft;
                return outcome;
            }
            outcome.sent += part.content_length();
            let Some(server) = server.as_mut().filter(|_| part.end == End::NotYet) else {
                outcome.end = traffic::End::Complete;
                return outcome;
            };
            read.clear();
            read.reserve(LARGE_PART);
            let came = tokio::select! {
                biased;
                came = timeout(patience, server.read_buf(&mut read)) => came,
                () = client.left() => {
                    outcome.end = traffic::End::ClientLeft;
                    return outcome;
                }
            };
            outcome.error = match came {
                Ok(Ok(0)) => Some("the answer broke off".to_owned()),
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(format!("the answer broke off: {error}")),
                Err(late) => Some(format!("the answer stopped: {late}")),
            };
            if outcome.error.is_some() {
                return outcome;
            }
            part = match body.part(&read) {
                Ok(part) => part,
                Err(error) => {
                    outcome.error = Some(error.to_string());
                    return outcome;
                }
            };
        }
    }

    /// Counts a request and logs it.
    fn ended<D: Downstream>(&self, exchange: &Exchange<'_>, outcome: Outcome) {
        let took = exchange.started.elapsed();
        exchange.owner.ended(
            0,
            &Ended {
                status: outcome.status,
                own: outcome.status.is_some(),
                end: outcome.end,
                stream: false,
                took,
            },
        );
        self.edge.counters.bodies(0, outcome.sent);
        // after what it counts: who sees the number finds the counts
        self.edge.requests.fetch_add(1, Ordering::Release);
        let Some(wanted) = self.edge.access_log.wants() else {
            return;
        };
        let request = exchange.request;
        let query = request.query().filter(|_| wanted.query);
        self.edge.access_log.log(Record {
            time: Timestamp::now(),
            client: Some(exchange.client.address.to_string()),
            protocol: D::PROTOCOL,
            scheme: exchange.client.scheme.name(),
            method: "GET".to_owned(),
            host: request.host.clone(),
            path: request.path().to_owned(),
            query: query.map(str::to_owned),
            referer: wanted.referer(request.referer.as_deref()),
            agent: request.agent.clone().filter(|_| wanted.fields),
            status: outcome.status.unwrap_or(0),
            bytes: outcome.sent,
            duration_ms: took.as_secs_f64() * 1e3,
            environment: Some(exchange.target.environment.id.to_string()),
            upstream: Some(outcome.node.address.to_string()),
            error: outcome.error,
        });
    }
}
