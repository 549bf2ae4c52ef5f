//! What protects the edge, environments and other clients from a request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT};
use offshoot_edge_api::EdgeConfig;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::body::Body;
use super::connection::{self, Arrival, Scheme};
use super::forwarded::Origin;
use super::short::Asked;
use super::{grpc, silence};
use crate::certificates::Certificates;
use crate::clients::Client;
use crate::metrics::Refused;
use crate::traffic::{Owner, Refusal, UnderWay};

/// How long an answered client may go on with a body that nobody wants, until the connection is closed.
const DRAIN: Duration = Duration::from_secs(5);

/// What is known of a request and bounds it.
pub(super) struct Guard {
    arrival: Option<Arrival>,
    origin: Option<Origin>,
    body: Body,
    /// Counts the request as under way while it is there.
    under_way: Option<UnderWay>,
}

impl Guard {
    pub(super) fn new() -> Self {
        Self {
            arrival: None,
            origin: None,
            body: Body::new(0, 0, Duration::ZERO),
            under_way: None,
        }
    }

    /// The header is complete.
    pub(super) fn begin(&mut self, session: &mut Session, arrival: Arrival, config: &EdgeConfig) {
        let limits = &config.limits;
        let client = Duration::from_secs(limits.client_seconds);
        let peer = session.client_addr().and_then(|address| address.as_inet());
        if let Some(peer) = peer.copied() {
            let headers = &session.req_header().headers;
            self.origin = Some(Origin::new(peer, arrival.scheme, headers, &config.trust));
        }
        self.arrival = Some(arrival);
        // the messages of a gRPC call may be far apart
        let rate = match grpc::is_call(session) {
            true => 0,
            false => limits.body_rate,
        };
        self.body = Body::new(limits.body_bytes, rate, client);
        // of HTTP/1 the library looks itself, and asking it for a body begins one
        if session.is_http2() && (grpc::is_call(session) || session.as_mut().is_body_empty()) {
            connection::of_body(silence::Body::over);
        }
        // on a WebSocket the client's frames are its body, and it may be silent for long
        let read = if session.is_upgrade_req() {
            Duration::from_secs(limits.tunnel_seconds)
        } else {
            client
        };
        session.set_read_timeout(Some(read));
        session.set_write_timeout(Some(client));
        session.set_total_drain_timeout(Some(DRAIN));
        // by default a `100 Continue` that goes to the client makes the library close the connection after the answer
        let session = session.as_downstream_mut();
        session.set_close_on_response_before_downstream_finish(false);
    }

    /// Takes what the request's node said so far, when it has the request already.
    pub(super) fn asked(&mut self) -> Option<Arc<Asked>> {
        self.arrival.as_mut()?.asked.take()
    }

    /// The client's address, as far as it is known.
    pub(super) fn client(&self) -> Option<IpAddr> {
        self.origin.map(|origin| origin.client.ip())
    }

    /// The same with a port, 0 when a trusted proxy did not tell it.
    pub(super) fn client_socket(&self) -> Option<SocketAddr> {
        self.origin.map(|origin| origin.client)
    }

    /// How the client came.
    pub(super) fn scheme(&self) -> Scheme {
        self.origin.map_or(Scheme::Http, |origin| origin.scheme)
    }

    /// Whether the connection was made for another host with another certificate: then it is not the place to ask
    /// (RFC 9110, 15.5.20). A client that keeps one connection for names of one certificate is right to do so.
    pub(super) fn is_misdirected(&self, host: &str, certificates: &Certificates) -> bool {
        let asked = self
            .arrival
            .as_ref()
            .and_then(|arrival| arrival.name.as_deref());
        asked.is_some_and(|asked| asked != host && !certificates.are_one(asked, host))
    }

    /// Whether an owner's bounds let the request in, and a body as long as it says.
    pub(super) fn admit(&mut self, owner: &Owner, request: &RequestHeader) -> Result<(), Refusal> {
        if let Some(bounds) = owner.bounds() {
            if let Some(client) = self.client() {
                self.under_way =
                    owner
                        .state
                        .bounds
                        .admit(Client::of(client), bounds, Instant::now())?;
            }
            self.body.at_most(bounds.body_bytes);
        }
        let length = request.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length| !self.body.fits(length)) {
            return Err(Refusal {
                why: Refused::Body,
                after: None,
            });
        }
        Ok(())
    }

    /// Counts the next part of the body.
    pub(super) fn part(
        &mut self,
        session: &Session,
        part: Option<&Bytes>,
        is_last: bool,
    ) -> Result<()> {
        connection::of_body(match is_last {
            true => silence::Body::over,
            false => silence::Body::part,
        });
        let Some(part) = part.filter(|_| !session.was_upgraded()) else {
            return Ok(());
        };
        self.body
            .part(part.len(), Instant::now())
            .map_err(|status| {
                let mut error = Error::new_down(ErrorType::HTTPStatus(status.as_u16()));
                error.set_context("the body is too long or too slow");
                error
            })
    }

    /// What is sent to a node, perhaps for the second time.
    pub(super) fn write(&mut self, request: &mut RequestHeader) -> Result<()> {
        self.body.again();
        match &self.origin {
            Some(origin) => origin.write(request),
            None => Ok(()),
        }
    }
}

/// A client that waits for `100 Continue` and is answered otherwise may send the body or not (RFC 9110, 10.1.1): what it
/// sends next could be read as either, so the connection ends with the answer.
pub(super) fn end_unless_continued(session: &mut Session) {
    if session.req_header().headers.contains_key(EXPECT) && session.response_written().is_none() {
        session.set_keepalive(None);
    }
}
