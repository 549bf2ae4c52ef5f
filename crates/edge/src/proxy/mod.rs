//! HTTP by host name and path.

mod attempt;
mod connection;
mod grpc;
mod pages;
mod redirect;
mod request;
mod tls;
mod upgrade;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, FORWARDED, HeaderMap, HeaderValue, SET_COOKIE};
use jiff::Timestamp;
use offshoot_edge_api::Https;
use pingora_core::protocols::TcpKeepalive;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, HttpProxy, ProxyHttp, Session};

pub(crate) use self::connection::Scheme;
use self::pages::Page;
use crate::access_log::Record;
use crate::hosts::Found;
use crate::mirror::{self, Copying};
use crate::moved::Way;
use crate::server::Edge;
use crate::table::{Answer, Target, Upstream, fresh_key};
use crate::traffic::{COOKIE, Choice, End, Ended, Facts, Owner, Visitor, take_cookie};

/// How long a connection to an upstream is kept without use. Shorter than what common servers keep (nginx 75 s), so
/// that it is rarely the other side that closes.
const KEPT: Duration = Duration::from_secs(30);
/// Connections to upstreams kept without use, all environments together.
const KEPT_CONNECTIONS: usize = 4_096;

/// The HTTP side of the edge.
pub(crate) struct Http {
    edge: Arc<Edge>,
    app: Arc<HttpProxy<Router>>,
}

impl Http {
    pub(crate) fn new(edge: Arc<Edge>) -> Self {
        let conf = ServerConf {
            threads: 1,
            upstream_keepalive_pool_size: KEPT_CONNECTIONS,
            ..ServerConf::default()
        };
        let mut app = HttpProxy::new(
            Router {
                edge: Arc::clone(&edge),
            },
            Arc::new(conf),
        );
        app.handle_init_modules();
        Self {
            edge,
            app: Arc::new(app),
        }
    }
}

/// What the proxy library asks about each request.
pub(crate) struct Router {
    edge: Arc<Edge>,
}

/// A request on its way.
pub(crate) struct Context {
    started: Instant,
    scheme: Scheme,
    host: String,
    /// The client's address.
    client: Option<IpAddr>,
    /// Whose domain was asked for, when an environment answers.
    owner: Option<Arc<Owner>>,
    /// Which of the owner's sides answers, and where.
    side: usize,
    target: Option<Arc<Target>>,
    /// Who asks, when visitors are told apart.
    visitor: Option<Visitor>,
    /// Whether the upstream answered.
    own: bool,
    /// Whether its answer is a WebSocket or an event stream.
    stream: bool,
    /// The status of an answer that lasts, until it is counted.
    lasting: Option<u16>,
    /// Whether it is a gRPC call, and the HTTP status that the status in its trailers is like.
    call: bool,
    call_status: Option<u16>,
    /// Where in the target's upstreams this request begins.
    turn: usize,
    /// Keys of upstreams that this request cannot go to any more.
    tried: Vec<u64>,
    /// Whether it went to another side than the chosen one, and whether it was sent a second time: once each.
    other_side: bool,
    resent: bool,
    /// When it is also copied.
    copy: Option<Box<Copying>>,
    upstream: Option<Upstream>,
    /// Whether a kept connection turned out to be dead: the next attempt takes a new one.
    anew: bool,
}

impl Context {
    /// Who asks, and who answers.
    fn choose(
        &mut self,
        request: &RequestHeader,
        owner: &Owner,
        route: &Arc<Target>,
    ) -> Option<Choice> {
        let facts = Facts::new(request, self.client);
        self.visitor = owner.visitor(&facts);
        owner.choose(&facts, self.visitor.as_ref(), route)
    }

    /// The status that the client got, if any; for a gRPC call the one that its own status is like.
    fn status(&self, session: &Session) -> Option<u16> {
        let written = session.response_written()?;
        let of_call = || self.call_status.or_else(|| grpc::status(&written.headers));
        let of_call = self.call.then(of_call).flatten();
        Some(of_call.unwrap_or(written.status.as_u16()))
    }

    /// How it ended.
    fn ended(&self, session: &Session, error: Option<&Error>) -> Ended {
        Ended {
            status: self.status(session),
            own: self.own,
            end: match error.map(|error| error.esource()) {
                None => End::Complete,
                Some(ErrorSource::Downstream) => End::ClientLeft,
                Some(_) => End::Failed,
            },
            stream: self.stream,
            took: self.started.elapsed(),
        }
    }
}

impl Drop for Context {
    /// Counts what lasted and was ended from outside, of which the library says nothing.
    fn drop(&mut self) {
        if let (Some(status), Some(owner)) = (self.lasting, &self.owner) {
            let ended = Ended {
                status: Some(status),
                own: true,
                end: End::Complete,
                stream: true,
                took: self.started.elapsed(),
            };
            owner.ended(self.side, &ended);
        }
    }
}

#[async_trait]
impl ProxyHttp for Router {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context {
            started: Instant::now(),
            scheme: Scheme::Http,
            host: String::new(),
            client: None,
            owner: None,
            side: 0,
            target: None,
            visitor: None,
            own: false,
            stream: false,
            lasting: None,
            call: false,
            call_status: None,
            turn: 0,
            tried: Vec::new(),
            other_side: false,
            resent: false,
            copy: None,
            upstream: None,
            anew: false,
        }
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<()> {
        ctx.scheme = connection::header_received();
        let limits = &self.edge.config.limits;
        let client = Duration::from_secs(limits.client_seconds);
        // on a WebSocket the client's frames are its body, and it may be silent for long
        let read = if session.is_upgrade_req() {
            Duration::from_secs(limits.tunnel_seconds)
        } else {
            client
        };
        session.set_read_timeout(Some(read));
        session.set_write_timeout(Some(client));
        session.set_total_drain_timeout(Some(Duration::from_secs(5)));
        ctx.call = grpc::is_call(session);
        request::check(session, limits.header_bytes)?;
        ctx.host = request::host(session.req_header())?;
        let client = session.client_addr().and_then(|client| client.as_inet());
        ctx.client = client.map(|client| client.ip().to_canonical());
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        let table = self.edge.table.load();
        let route = match table.find(&ctx.host, session.req_header().uri.path()) {
            Found::Route(route) => route,
            Found::NoPath => {
                pages::send(session, Page::UnknownPath(&ctx.host)).await?;
                return Ok(true);
            }
            Found::NoHost => {
                pages::send(session, Page::UnknownHost(&ctx.host)).await?;
                return Ok(true);
            }
        };
        if route.is_fenced() {
            pages::send(session, Page::Fenced(&ctx.host)).await?;
            return Ok(true);
        }
        if ctx.scheme == Scheme::Http && route.https == Https::Redirect {
            connection::routed(route.environment());
            let origin = redirect::https_origin(&ctx.host, &self.edge.listen_tls);
            redirect::send(session, &origin, 308).await?;
            return Ok(true);
        }
        let (owner, target) = match &route.answer {
            Answer::Environment { owner, target } => (owner, target),
            Answer::Redirect {
                environment,
                to,
                status,
            } => {
                connection::routed(environment);
                redirect::send(session, to, *status).await?;
                return Ok(true);
            }
        };
        let Some(choice) = ctx.choose(session.req_header(), owner, target) else {
            pages::send(session, Page::NotReady(&ctx.host)).await?;
            return Ok(true);
        };
        connection::routed(&choice.target.environment);
        let header = session.req_header();
        if let Some(mirror) = &owner.mirror
            && !session.is_upgrade_req()
            && !ctx.call
            && !wants_events(header)
        {
            ctx.copy = mirror.begin(header, &ctx.host);
        }
        ctx.owner = Some(Arc::clone(owner));
        ctx.side = choice.side;
        ctx.turn = choice.target.turn();
        ctx.target = Some(choice.target);
        Ok(false)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Context,
    ) -> Result<Box<HttpPeer>> {
        let Some(upstream) = ctx.next_upstream().or_else(|| ctx.on_other_side()) else {
            return Error::e_explain(ErrorType::HTTPStatus(503), "no upstream left");
        };
        ctx.upstream = Some(upstream);
        let limits = &self.edge.config.limits;
        let mut peer = HttpPeer::new(upstream.address, false, String::new());
        peer.options.connection_timeout = Some(Duration::from_secs(limits.connect_seconds));
        peer.options.total_connection_timeout = peer.options.connection_timeout;
        let upgrade = session.is_upgrade_req();
        let long = upgrade || ctx.call || wants_events(session.req_header());
        let read = if long {
            limits.tunnel_seconds
        } else {
            limits.upstream_seconds
        };
        peer.options.read_timeout = Some(Duration::from_secs(read));
        peer.options.write_timeout = Some(Duration::from_secs(limits.upstream_seconds));
        peer.options.tcp_keepalive = Some(TcpKeepalive {
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(15),
            count: 4,
            user_timeout: Duration::ZERO,
        });
        if upgrade {
            let bound = Duration::from_secs(limits.connect_seconds);
            peer.options.custom_l4 = Some(Arc::new(upgrade::Connect { bound }));
        }
        let once = !ctx.call && !session.req_header().method.is_idempotent();
        if ctx.call {
            grpc::ask_by(&mut peer);
        }
        if upgrade || ctx.anew || once {
            // a request that must not be sent twice never meets a kept connection that its server is just closing,
            // except a call: by HTTP/2 the server says whether it has seen it
            peer.group_key = fresh_key();
            peer.options.idle_timeout = Some(Duration::ZERO);
        } else {
            peer.group_key = upstream.key;
            peer.options.idle_timeout = Some(KEPT);
        }
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        // the edge is the first to see the client: what the client says of itself here is not believed
        for name in ["x-forwarded-for", "x-forwarded-port", "x-real-ip", "proxy"] {
            request.remove_header(name);
        }
        request.remove_header(&FORWARDED);
        request.remove_header(&mirror::MARK);
        take_cookie(request, COOKIE);
        if let Some(client) = session.client_addr().and_then(|address| address.as_inet()) {
            request.insert_header("x-forwarded-for", client.ip().to_string())?;
        }
        let scheme = HeaderValue::from_static(ctx.scheme.name());
        request.insert_header("x-forwarded-proto", scheme)?;
        if let Some(host) = request::authority(request) {
            request.insert_header("x-forwarded-host", host)?;
        }
        if let Some(copy) = &mut ctx.copy {
            copy.header(request);
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        is_last: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        if let Some(copy) = &mut ctx.copy {
            copy.body(body.as_ref(), is_last);
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        if let Some(copy) = &mut ctx.copy {
            copy.answer(response, is_events(response));
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _is_last: bool,
        ctx: &mut Context,
    ) -> Result<Option<Duration>> {
        if let (Some(copy), Some(part)) = (&mut ctx.copy, body) {
            copy.answer_body(part);
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS
        {
            return Ok(());
        }
        ctx.own = true;
        ctx.stream = response.status == StatusCode::SWITCHING_PROTOCOLS || is_events(response);
        if (ctx.stream || ctx.call)
            && let Some(target) = &ctx.target
        {
            ctx.lasting = Some(response.status.as_u16());
            let path = session.req_header().uri.path();
            connection::lasts(Way::new(&ctx.host, path, &target.environment));
        }
        ctx.answered(response.status.as_u16());
        if let Some(owner) = &ctx.owner {
            let facts = Facts::new(session.req_header(), ctx.client);
            let (visitor, status) = (ctx.visitor.as_mut(), response.status.as_u16());
            let secure = ctx.scheme == Scheme::Https;
            let cookie = owner.answered(ctx.side, visitor, &facts, status, secure);
            if let Some(cookie) = cookie {
                response.append_header(SET_COOKIE, cookie)?;
            }
        }
        Ok(())
    }

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Context,
    ) -> Result<Option<Bytes>> {
        ctx.call_status = grpc::status(trailers);
        Ok(None)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::fd::RawFd,
        _digest: Option<&pingora_core::protocols::Digest>,
        ctx: &mut Context,
    ) -> Result<()> {
        // the address may be another environment's by now: nothing was sent yet, and nothing will be
        if ctx
            .target
            .as_ref()
            .is_some_and(|target| target.environment.is_gone())
        {
            return Error::e_explain(ErrorType::HTTPStatus(503), "the environment was removed");
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if ctx.call && !ctx.anew && *error.etype() == ErrorType::H2Error {
            // a kept connection that ended before the call was sent
            ctx.anew = true;
            error.set_retry(true);
            return error;
        }
        ctx.failed("no connection");
        // nothing was sent, so another upstream may be asked
        let next = ctx.next_upstream().or_else(|| ctx.on_other_side());
        error.set_retry(next.is_some());
        error
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Context,
        reused: bool,
    ) -> Box<Error> {
        let mut error = error.more_context(format!("upstream {peer}"));
        let whole = !session.as_ref().retry_buffer_truncated();
        let again = whole && session.req_header().method.is_idempotent();
        if whole && ctx.call && !ctx.anew && grpc::was_not_seen(&error) {
            ctx.anew = true;
        } else if again {
            // a kept connection that its server closed before it saw the request
            error.retry.decide_reuse(reused);
            ctx.anew = true;
        } else {
            error.set_retry(false);
        }
        if !error.retry() {
            let again = again && session.response_written().is_none();
            error.set_retry(ctx.broke(&error, again));
        }
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Context,
    ) -> FailToProxy {
        let page = Page::for_error(error, &ctx.host);
        let error_code = page.as_ref().map_or(0, Page::status);
        if ctx.call && ctx.own && *error.esource() == ErrorSource::Upstream {
            grpc::break_off(session, error).await;
        } else if let Some(page) = page {
            // after the answer has begun there is no other, and the connection is closed
            pages::send_last(session, page).await;
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Context, _error: &Error) -> bool {
        // the access log has it
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Context) {
        if let Some(copy) = ctx.copy.take() {
            copy.ended(error.is_none() && ctx.own);
        }
        ctx.lasting = None;
        if let Some(owner) = &ctx.owner {
            owner.ended(ctx.side, &ctx.ended(session, error));
        }
        // after what it counts: who sees the number finds the counts
        self.edge.requests.fetch_add(1, Ordering::Release);
        if !self.edge.access_log.is_on() {
            return;
        }
        let request = session.req_header();
        // a client that went away is no error of anyone's
        let error = error.filter(|error| *error.esource() != ErrorSource::Downstream);
        self.edge.access_log.log(Record {
            time: Timestamp::now(),
            client: session.client_addr().map(ToString::to_string),
            protocol: if session.is_http2() { "h2" } else { "http/1.1" },
            scheme: ctx.scheme.name(),
            method: request.method.to_string(),
            host: ctx.host.clone(),
            path: request.uri.path().to_owned(),
            status: ctx.status(session).unwrap_or(0),
            bytes: session.body_bytes_sent(),
            duration_ms: ctx.started.elapsed().as_secs_f64() * 1e3,
            environment: ctx
                .target
                .as_ref()
                .map(|target| target.environment.id.to_string()),
            upstream: ctx.upstream.map(|upstream| upstream.address.to_string()),
            error: error.map(ToString::to_string),
        });
    }
}

/// Whether an answer is server-sent events.
fn is_events(response: &ResponseHeader) -> bool {
    response
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// Whether the client asks for server-sent events, which may be far apart.
fn wants_events(request: &RequestHeader) -> bool {
    request.headers.get_all(ACCEPT).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|text| text.to_ascii_lowercase().contains("text/event-stream"))
    })
}
