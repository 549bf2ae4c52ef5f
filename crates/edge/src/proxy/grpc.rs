//! gRPC calls: requests over HTTP/2 that only HTTP/2 can carry to a server, for their status is in the trailers.
//!
//! Sources: gRPC over HTTP/2 (`PROTOCOL-HTTP2.md` and `http-grpc-status-mapping.md` of grpc/grpc), and
//! `google/rpc/code.proto` for which HTTP status a code is like.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use pingora_core::protocols::http::ServerSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, RetryType};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::pages::Page;

/// Bytes that a node may have sent and its client has not taken, of a call and so of its connection. The library takes
/// nothing of an answer while it waits for the node to take more of the request, so this is also how far a node that
/// answers while it is asked gets ahead.
const WINDOW: u32 = 1 << 20;
/// Where a call's status is.
const STATUS: &str = "grpc-status";

/// Whether a request is a call: `application/grpc`, also with what it is encoded by (`+proto`), over HTTP/2. gRPC-Web
/// is made for HTTP/1.1, and is not.
pub(super) fn is_call(session: &Session) -> bool {
    let kind = session.req_header().headers.get(CONTENT_TYPE);
    session.is_http2() && kind.is_some_and(|kind| is_grpc(kind.as_bytes()))
}

fn is_grpc(kind: &[u8]) -> bool {
    const NAME: &[u8] = b"application/grpc";
    match kind.split_at_checked(NAME.len()) {
        Some((name, rest)) => {
            name.eq_ignore_ascii_case(NAME)
                && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        }
        None => false,
    }
}

/// Has a node asked by HTTP/2 without TLS, which it is known to speak (RFC 9113, 3.3). One call at a time on a
/// connection: a client that is slow holds up nobody else, and a call that is dropped leaves no connection behind.
pub(super) fn ask_by(peer: &mut HttpPeer) {
    peer.options.set_http_version(2, 2);
    peer.options.max_h2_streams = 1;
    peer.options.h2_stream_window_size = Some(WINDOW);
    peer.options.h2_connection_window_size = Some(WINDOW);
}

/// Whether its server said that it has done nothing with a call: it refused the stream, or ended the connection before
/// it (RFC 9113, 8.7).
pub(super) fn was_not_seen(error: &Error) -> bool {
    matches!(error.retry, RetryType::Decided(true))
}

/// The HTTP status that a code is like (`google/rpc/code.proto`).
fn like(code: u16) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// The HTTP status that the status of a call is like, where these fields have one: trailers, or the header of an answer
/// without any.
pub(super) fn status(fields: &HeaderMap) -> Option<u16> {
    let code = fields.get(STATUS)?.to_str().ok()?.parse().ok()?;
    Some(like(code))
}

/// Answers a call with a page: only a header, which is also the end, and what is wrong in it. Clients show the message.
pub(super) fn send(session: &mut Session, page: &Page<'_>) -> pingora_core::Result<()> {
    let header = Box::new(header(page)?);
    match session.as_downstream_mut() {
        // the library's own way for all protocols leaves the stream open
        ServerSession::H2(stream) => stream.write_response_header(header, true),
        _ => Ok(()),
    }
}

fn header(page: &Page<'_>) -> pingora_core::Result<ResponseHeader> {
    let mut header = ResponseHeader::build(200, Some(3))?;
    header.insert_header(CONTENT_TYPE, "application/grpc")?;
    header.insert_header(STATUS, code_for(page.status()))?;
    let text = page.text();
    header.insert_header(
        "grpc-message",
        message(text.lines().next().unwrap_or_default()),
    )?;
    Ok(header)
}

/// What clients make of an answer with this status that is not of gRPC (`http-grpc-status-mapping.md`).
fn code_for(status: u16) -> HeaderValue {
    HeaderValue::from_static(match status {
        400 | 431 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502..=504 => "14",
        _ => "2",
    })
}

/// Percent-encoded as `PROTOCOL-HTTP2.md` wants it: all but printable ASCII, and `%` itself.
fn message(text: &str) -> String {
    let mut message = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => message.push(char::from(byte)),
            _ => message.push_str(&format!("%{byte:02X}")),
        }
    }
    message
}

/// Ends a call whose answer has begun and broke off, for the reason that its server gave. A connection that ends is an
/// error inside (`INTERNAL_ERROR`); without this the client would hear that somebody cancelled the call.
pub(super) async fn break_off(session: &mut Session, error: &Error) {
    let reason = error
        .root_cause()
        .downcast_ref::<h2::Error>()
        .filter(|error| error.is_reset())
        .and_then(h2::Error::reason);
    let downstream = session.as_downstream_mut();
    match reason {
        Some(reason) if reason != h2::Reason::NO_ERROR => downstream.shutdown_with_reason(reason),
        _ => downstream.shutdown().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_by_their_kind() {
        for (kind, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/GRPC; charset=x", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grp", false),
            ("text/application/grpc", false),
        ] {
            assert_eq!(is_grpc(kind.as_bytes()), is, "{kind}");
        }
    }

    #[test]
    fn messages_are_one_line_of_ascii() {
        assert_eq!(message("100 % of é\n"), "100 %25 of %C3%A9%0A");
        let header = header(&Page::NotReady("a.localhost")).unwrap();
        assert_eq!(header.status.as_u16(), 200);
        assert_eq!(header.headers[STATUS], "14");
        assert_eq!(
            header.headers["grpc-message"],
            "503: the environment behind a.localhost is stopped or not ready yet."
        );
        assert_eq!(status(&header.headers), Some(503));
    }

    #[test]
    fn strange_codes_are_errors_and_strange_fields_are_none() {
        let of = |value: &'static str| {
            let fields = [(STATUS, value)].map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()));
            status(&HeaderMap::from_iter(fields))
        };
        assert_eq!(of("0"), Some(200));
        assert_eq!(of("99"), Some(500));
        assert_eq!(of("-1"), None);
        assert_eq!(of("1e9"), None);
    }
}
