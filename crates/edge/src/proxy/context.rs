//! What is known of a request while it is on its way.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use pingora_core::{Error, ErrorSource};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::connection::Scheme;
use super::grpc;
use super::guard::Guard;
use crate::clients;
use crate::mirror::Copying;
use crate::table::{Target, Upstream};
use crate::traffic::{Choice, End, Ended, Facts, Owner, Visitor};

/// A request on its way.
pub(crate) struct Context {
    pub(super) started: Instant,
    pub(super) scheme: Scheme,
    pub(super) host: String,
    /// The client's address.
    pub(super) client: Option<IpAddr>,
    pub(super) guard: Guard,
    /// Whose domain was asked for, when an environment answers.
    pub(super) owner: Option<Arc<Owner>>,
    /// Which of the owner's sides answers, and where.
    pub(super) side: usize,
    pub(super) target: Option<Arc<Target>>,
    /// Who asks, when visitors are told apart.
    pub(super) visitor: Option<Visitor>,
    /// Whether the upstream answered.
    pub(super) own: bool,
    /// Whether its answer is a WebSocket or an event stream.
    pub(super) stream: bool,
    /// The status of an answer that lasts, until it is counted.
    pub(super) lasting: Option<u16>,
    /// Whether it is a gRPC call, and the HTTP status that the status in its trailers is like.
    pub(super) call: bool,
    pub(super) call_status: Option<u16>,
    /// Where in the target's upstreams this request begins.
    pub(super) turn: usize,
    /// Keys of upstreams that this request cannot go to any more.
    pub(super) tried: Vec<u64>,
    /// Whether it went to another side than the chosen one, and whether it was sent a second time: once each.
    pub(super) other_side: bool,
    pub(super) resent: bool,
    /// When it is also copied.
    pub(super) copy: Option<Box<Copying>>,
    pub(super) upstream: Option<Upstream>,
    /// Whether a kept connection turned out to be dead: the next attempt takes a new one.
    pub(super) anew: bool,
}

impl Context {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            scheme: Scheme::Http,
            host: String::new(),
            client: None,
            guard: Guard::new(),
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

    /// What begins a connection to a node whose owner's policy asks for a PROXY header.
    pub(super) fn proxy_header(&self, session: &Session) -> Option<Vec<u8>> {
        let version = self.owner.as_ref()?.policy.as_ref()?.send_proxy?;
        let here = session.server_addr().and_then(|address| address.as_inet());
        let ends = self.guard.client_socket().zip(here.copied());
        Some(clients::proxy_header(version, ends))
    }

    /// Who asks, and who answers.
    pub(super) fn choose(
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
    pub(super) fn status(&self, session: &Session) -> Option<u16> {
        let written = session.response_written()?;
        let of_call = || self.call_status.or_else(|| grpc::status(&written.headers));
        let of_call = self.call.then(of_call).flatten();
        Some(of_call.unwrap_or(written.status.as_u16()))
    }

    /// How it ended.
    pub(super) fn ended(&self, session: &Session, error: Option<&Error>) -> Ended {
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
