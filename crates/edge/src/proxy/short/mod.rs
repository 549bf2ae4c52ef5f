//! The short way: plain requests and plain answers, past the proxy library.
//!
//! For each request the library builds two sessions with header maps, channels and tasks. Most requests need none of that:
//! `GET` by HTTP/1.1 on a route without a policy, whose answer says how long it is. They are parsed by the library's parser
//! and sent on as bytes.
//!
//! Nothing is decided here that could be decided otherwise there. What is not plain stays in the connection's buffer and
//! goes the whole way. So does a request whose node gives no plain answer, or none in a moment: the library gets
//! the connection that the answer comes on ([`Asked`]). All pages and failures before an answer's begin are the library's.

mod answer;
mod asked;
mod chunks;
mod kept;
mod request;

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use offshoot_edge_api::Https;
use pingora_core::protocols::http::date::get_cached_date;
use pingora_core::protocols::l4::stream::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use self::answer::{Answer, End};
pub(super) use self::asked::Asked;
pub(super) use self::kept::Kept;
use self::request::{Read, Request};
use super::Http;
use super::connection::Scheme;
use crate::access_log::Record;
use crate::hosts::Found;
use crate::sockets;
use crate::table::{Answer as Answerer, Target, Upstream};
use crate::traffic::{self, Ended, Owner};

/// A longer header is not plain, bytes. As much is read from a client at once.
const REQUEST_MAX: usize = 8 << 10;
/// What is read from a node at once, bytes.
const PART: usize = 16 << 10;
/// The same of a body that is longer than one part.
const LARGE_PART: usize = 64 << 10;
/// How long a node may take for a connection or for its answer's begin until the request goes the whole way.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a client came.
pub(super) struct Client<'a> {
    pub(super) address: SocketAddr,
    pub(super) scheme: Scheme,
    /// The name that it asked for in the TLS handshake.
    pub(super) name: Option<&'a str>,
}

/// A request that goes the whole way.
pub(super) struct Whole {
    /// When a node has it already.
    pub(super) asked: Option<Arc<Asked>>,
    /// How long its header may take from now on.
    pub(super) header: Duration,
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
    /// Answers requests until one comes that goes the whole way; that one is left in `stream`. `None`: the connection is to be closed.
    pub(super) async fn short(
        &self,
        stream: &mut Stream,
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
                came = timeout(header, self.first(stream, client, &mut raw)) => came,
            };
            let request = came.ok()?.ok()?;
            if raw.is_empty() {
                return None;
            }
            let header_left = header.saturating_sub(began.elapsed());
            let exchange = request
                .as_ref()
                .and_then(|request| self.exchange(request, client));
            let next = match &exchange {
                None => Next::Whole(None),
                // in a box, so that a connection that waits does not hold a place for it
                Some(exchange) => Box::pin(self.carry_out(exchange, stream)).await,
            };
            match next {
                Next::Request => header = Duration::from_secs(limits.idle_seconds),
                Next::Close => return None,
                Next::Whole(asked) => {
                    stream.rewind(&raw);
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
        stream: &mut Stream,
        client: &Client<'_>,
        raw: &mut Vec<u8>,
    ) -> io::Result<Option<Request>> {
        let most = usize::try_from(self.edge.config.limits.header_bytes).unwrap_or(usize::MAX);
        let most = most.min(REQUEST_MAX);
        loop {
            let part = some(stream).await?;
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

    async fn carry_out(&self, exchange: &Exchange<'_>, client: &mut Stream) -> Next {
        let environment = &exchange.target.environment;
        tokio::select! {
            biased;
            next = self.ask(exchange, client) => next,
            () = environment.gone() => Next::Close,
        }
    }

    async fn ask(&self, exchange: &Exchange<'_>, client: &mut Stream) -> Next {
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
        let mut read = Vec::with_capacity(PART);
        let answering = async {
            server.write_all(&exchange.request.head).await?;
            server.read_buf(&mut read).await
        };
        let came = tokio::select! {
            biased;
            came = timeout(PATIENCE, answering) => came,
            () = left(client) => {
                let outcome = Outcome {
                    end: traffic::End::ClientLeft,
                    status: None,
                    sent: 0,
                    node,
                    error: None,
                };
                self.ended(exchange, outcome);
                return Next::Close;
            }
        };
        if reused && matches!(came, Ok(Ok(0) | Err(_))) {
            // a kept connection that its server was just closing
            return Next::Whole(None);
        }
        let Some(answer) = Answer::read(&read, &get_cached_date()) else {
            return Next::Whole(Some(Arc::new(Asked::new(
                Arc::clone(&exchange.owner),
                Arc::clone(target),
                node,
                exchange.started,
                (server, read),
            ))));
        };
        let outcome = self.answer(answer, (server, read), node, client).await;
        let next = match outcome.end {
            traffic::End::Complete => Next::Request,
            _ => Next::Close,
        };
        self.ended(exchange, outcome);
        next
    }

    /// Sends an answer to its client as it comes.
    async fn answer(
        &self,
        answer: Answer,
        (server, mut read): (TcpStream, Vec<u8>),
        node: Upstream,
        client: &mut Stream,
    ) -> Outcome {
        let limits = &self.edge.config.limits;
        let patience = Duration::from_secs(limits.upstream_seconds);
        let mut outcome = Outcome {
            end: traffic::End::Failed,
            status: Some(answer.status),
            sent: 0,
            node,
            error: None,
        };
        let (mut body, mut out, mut part) = (answer.body, answer.head, answer.first);
        read.drain(..answer.length);
        let mut server = Some(server);
        loop {
            let mut content = read.get(..part.length).unwrap_or_default();
            if !out.is_empty() || part.end == End::Trailers {
                out.extend_from_slice(content);
                content = &[];
            }
            if part.end == End::Trailers {
                out.extend_from_slice(b"\r\n");
            }
            let exact = part.end == End::Whole && part.length == read.len();
            if let Some(server) = server.take_if(|_| exact && answer.keep) {
                self.kept.keep(node.key, server);
            }
            let written = async {
                client.write_all(&out).await?;
                client.write_all(content).await?;
                client.flush().await
            };
            let bound = Duration::from_secs(limits.client_seconds);
            if !matches!(timeout(bound, written).await, Ok(Ok(()))) {
                outcome.end = traffic::End::ClientLeft;
                return outcome;
            }
            outcome.sent += part.content;
            let Some(server) = server.as_mut().filter(|_| part.end == End::NotYet) else {
                outcome.end = traffic::End::Complete;
                return outcome;
            };
            out.clear();
            read.clear();
            read.reserve(LARGE_PART);
            let came = tokio::select! {
                biased;
                came = timeout(patience, server.read_buf(&mut read)) => came,
                () = left(client) => {
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
    fn ended(&self, exchange: &Exchange<'_>, outcome: Outcome) {
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
            protocol: "http/1.1",
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

/// What comes first on a connection. It holds no buffer while it waits.
async fn some(stream: &mut Stream) -> io::Result<Vec<u8>> {
    poll_fn(|context| {
        let mut part = [MaybeUninit::uninit(); REQUEST_MAX];
        let mut part = ReadBuf::uninit(&mut part);
        let read = Pin::new(&mut *stream).poll_read(context, &mut part);
        read.map_ok(|()| part.filled().to_vec())
    })
    .await
}

/// Waits until the client is gone. What it sends meanwhile is its next request, or part of it, and stays in `stream`.
async fn left(stream: &mut Stream) {
    match some(stream).await {
        Ok(raw) if !raw.is_empty() => {
            stream.rewind(&raw);
            std::future::pending().await
        }
        _ => {}
    }
}
