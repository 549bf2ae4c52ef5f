//! HTTP by host name and path.

mod attempt;
mod body;
mod connect;
mod connection;
mod context;
mod forwarded;
mod gather;
mod grpc;
mod guard;
mod pages;
mod redirect;
mod request;
mod short;
mod silence;
mod tls;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, REFERER, SET_COOKIE, USER_AGENT};
use jiff::Timestamp;
use offshoot_edge_api::Https;
use pingora_core::protocols::TcpKeepalive;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, HttpProxy, ProxyHttp, Session};

use self::attempt::may_be_sent_again;
pub(crate) use self::connection::Scheme;
use self::context::Context;
use self::guard::end_unless_continued;
use self::pages::Page;
use self::short::Kept;
use crate::access_log::Record;
use crate::hosts::Found;
use crate::metrics::Refused;
use crate::mirror;
use crate::moved::Way;
use crate::server::Edge;
use crate::table::{Answer, fresh_key};
use crate::traffic::{COOKIE, Facts, Owner, Refusal, take_cookie};

/// How long a connection to an upstream is kept without use. Shorter than what common servers keep (nginx 75 s), so
/// that it is rarely the other side that closes.
const KEPT: Duration = Duration::from_secs(30);
/// Connections to upstreams kept without use, all environments together.
const KEPT_CONNECTIONS: usize = 4_096;

/// The HTTP side of the edge.
pub(crate) struct Http {
    edge: Arc<Edge>,
    app: Arc<HttpProxy<Router>>,
    kept: Arc<Kept>,
}

impl Http {
    /// Within a runtime.
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
        let kept = Arc::new(Kept::default());
        tokio::spawn(Kept::clear(Arc::clone(&kept)));
        Self {
            edge,
            app: Arc::new(app),
            kept,
        }
    }
}

/// What the proxy library asks about each request.
pub(crate) struct Router {
    edge: Arc<Edge>,
}

impl Router {
    /// Answers a request that an owner's bounds do not let in.
    async fn refuse(&self, session: &mut Session, owner: &Owner, refusal: Refusal) -> Result<()> {
        self.edge.counters.refused(refusal.why);
        owner.refused();
        let status = match refusal.why {
            Refused::ClientRate | Refused::ClientRequests => 429,
            Refused::Body => {
                pages::send_last(session, Page::Refused(413)).await;
                return Ok(());
            }
            _ => 503,
        };
        let after = refusal.after.map_or(1, |after| after.as_secs() + 1);
        pages::send(session, Page::Limited { status, after }).await
    }
}

#[async_trait]
impl ProxyHttp for Router {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::new()
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<()> {
        let config = &self.edge.config;
        ctx.call = grpc::is_call(session);
        ctx.guard
            .begin(session, connection::header_received(), config);
        ctx.scheme = ctx.guard.scheme();
        ctx.client = ctx.guard.client();
        request::check(session, config.limits.header_bytes)?;
        ctx.host = request::host(session.req_header())?;
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        let table = self.edge.table.load();
        if ctx.guard.is_misdirected(&ctx.host, &table.certificates) {
            return Error::e_explain(ErrorType::HTTPStatus(421), "another host's certificate");
        }
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
                let origin = redirect::origin(to, ctx.scheme, &table, &self.edge.listen_tls);
                redirect::send(session, &origin, *status).await?;
                return Ok(true);
            }
            Answer::Text { text, .. } => {
                pages::send(session, Page::Text(text)).await?;
                return Ok(true);
            }
        };
        if let Err(refusal) = ctx.guard.admit(owner, session.req_header()) {
            connection::routed(&owner.environment);
            self.refuse(session, owner, refusal).await?;
            return Ok(true);
        }
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

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        is_last: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        ctx.guard.part(session, body.as_ref(), is_last)?;
        if let Some(copy) = &mut ctx.copy {
            copy.body(body.as_ref(), is_last);
        }
        Ok(())
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Context,
    ) -> Result<Box<HttpPeer>> {
        let asked = ctx.guard.asked();
        if let Some(asked) = &asked {
            ctx.answered_by(asked);
        }
        let upstream = asked.as_ref().map(|asked| asked.node);
        let upstream = upstream
            .or_else(|| ctx.next_upstream())
            .or_else(|| ctx.on_other_side());
        let Some(upstream) = upstream else {
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
        let header = ctx.proxy_header(session);
        let sends = !ctx.call && !session.as_mut().is_body_empty();
        let mut alone = upgrade || sends || header.is_some();
        if let Some(asked) = asked {
            alone = true;
            peer.options.custom_l4 = Some(asked);
        } else if alone {
            peer.options.custom_l4 = Some(Arc::new(connect::Connect {
                bound: Duration::from_secs(limits.connect_seconds),
                header,
                patient: upgrade,
            }));
        }
        let once = !ctx.call && !session.req_header().method.is_idempotent();
        if ctx.call {
            grpc::ask_by(&mut peer);
        }
        if alone || ctx.anew || once {
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
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        request.remove_header(&mirror::MARK);
        take_cookie(request, COOKIE);
        ctx.guard.write(request)?;
        if let Some(copy) = &mut ctx.copy {
            copy.header(request);
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        ctx.gives_way(session, response.status.as_u16())?;
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
        end_unless_continued(session);
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
        self.edge
            .counters
            .unreachable
            .fetch_add(1, Ordering::Relaxed);
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
        let again = may_be_sent_again(session);
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
        if let Some(why) = Refused::of_status(error_code) {
            self.edge.counters.refused(why);
        }
        if let Some(owner) = ctx.owner.as_ref().filter(|_| error_code == 413) {
            owner.refused();
        }
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
        let counters = &self.edge.counters;
        counters.bodies(session.body_bytes_read(), session.body_bytes_sent());
        // after what it counts: who sees the number finds the counts
        self.edge.requests.fetch_add(1, Ordering::Release);
        let Some(wanted) = self.edge.access_log.wants() else {
            return;
        };
        let request = session.req_header();
        let field = |name: HeaderName| {
            let value = request.headers.get(name).filter(|_| wanted.fields)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        // a client that went away is no error of anyone's
        let error = error.filter(|error| *error.esource() != ErrorSource::Downstream);
        self.edge.access_log.log(Record {
            time: Timestamp::now(),
            client: ctx.guard.client_socket().map(|client| client.to_string()),
            protocol: if session.is_http2() { "h2" } else { "http/1.1" },
            scheme: ctx.scheme.name(),
            method: request.method.to_string(),
            host: ctx.host.clone(),
            path: request.uri.path().to_owned(),
            query: request
                .uri
                .query()
                .filter(|_| wanted.query)
                .map(str::to_owned),
            referer: wanted.referer(field(REFERER).as_deref()),
            agent: field(USER_AGENT),
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
