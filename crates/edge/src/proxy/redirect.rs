//! Clients that are sent elsewhere, with the path and query they asked for.

use std::borrow::Cow;
use std::net::SocketAddr;

use http::header::HeaderValue;
use offshoot_edge_api::{Https, normal_host};
use pingora_core::{OrErr, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::connection::Scheme;
use super::pages::{self, Page};
use crate::hosts::Found;
use crate::table::Table;

/// Answers with a redirect to the same path and query at another scheme and authority.
pub(super) async fn send(session: &mut Session, origin: &str, status: u16) -> Result<()> {
    let location = location(origin, session.req_header())?;
    let location = &location;
    pages::send(session, Page::Moved { status, location }).await
}

/// Where a redirect leads a client who came this way. To a name of this edge's own it leads by HTTPS when the client came by
/// that, or when the name itself would only send them there.
pub(super) fn origin<'a>(
    to: &'a str,
    came: Scheme,
    table: &Table,
    listeners: &[SocketAddr],
) -> Cow<'a, str> {
    let host = to.strip_prefix("http://").and_then(normal_host);
    let by_https = host.filter(|host| match table.find(host, "/") {
        Found::Route(route) => came == Scheme::Https || route.https == Https::Redirect,
        Found::NoPath => came == Scheme::Https,
        Found::NoHost => false,
    });
    match by_https {
        Some(host) => https_origin(&host, listeners).into(),
        None => to.into(),
    }
}

/// The address of a host name with `https`, at the first of these listeners.
pub(super) fn https_origin(host: &str, listeners: &[SocketAddr]) -> String {
    match listeners.first().map(SocketAddr::port) {
        None | Some(443) => format!("https://{host}"),
        Some(port) => format!("https://{host}:{port}"),
    }
}

/// What no address has is encoded (RFC 3986, 2), so nothing that a client sends ends the field or begins another.
fn location(origin: &str, request: &RequestHeader) -> Result<HeaderValue> {
    let raw = request.raw_path();
    let target = match raw.first() {
        Some(b'/') => raw,
        // a whole address as the target: its path is in the URI (RFC 9112, 3.2.2). `*` and the like have none
        _ => match request.uri.path_and_query() {
            Some(path) if path.as_str().starts_with('/') => path.as_str().as_bytes(),
            _ => b"/",
        },
    };
    let mut text = String::with_capacity(origin.len() + target.len());
    text.push_str(origin);
    for byte in target {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    HeaderValue::from_str(&text).or_err(
        pingora_core::ErrorType::HTTPStatus(400),
        "the path cannot be part of an address",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_stay_and_nothing_gets_out_of_them() {
        for (target, wanted) in [
            (&b"/"[..], "https://b.org/"),
            (b"/a/b?c=d&e=%2F", "https://b.org/a/b?c=d&e=%2F"),
            (b"//evil.org/x", "https://b.org//evil.org/x"),
            (b"/..//@evil.org", "https://b.org/..//@evil.org"),
            (b"*", "https://b.org/"),
            (b"/\xc3\xa4\xff", "https://b.org/%C3%A4%FF"),
            (b"http://a.org/x?y", "https://b.org/x?y"),
            (b"http://a.org", "https://b.org/"),
        ] {
            let request = RequestHeader::build("GET", target, None).unwrap();
            let found = location("https://b.org", &request).unwrap();
            assert_eq!(found, wanted, "{target:?}");
        }
    }

    #[test]
    fn the_usual_port_is_left_out() {
        let at = |port| [SocketAddr::from(([0, 0, 0, 0], port))];
        assert_eq!(https_origin("a.org", &at(443)), "https://a.org");
        assert_eq!(https_origin("a.org", &at(8443)), "https://a.org:8443");
        assert_eq!(https_origin("[::1]", &[]), "https://[::1]");
    }
}
