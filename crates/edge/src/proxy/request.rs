//! What a request must be before anything is decided on it.
//!
//! The library refuses a malformed start line, header or chunk, more than one `Host`, a target that contradicts
//! `Host`, and a transfer coding that does not end in `chunked`. Refused here: whatever two servers could read
//! differently, which is how requests are smuggled (RFC 9112, 6.1 and 11.2).

use http::Version;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use offshoot_edge_api::normal_host;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

/// Refuses what is too large or can be read in two ways.
pub(super) fn check(session: &Session, header_bytes: u32) -> Result<()> {
    let refuse = |status, why: &'static str| Error::e_explain(ErrorType::HTTPStatus(status), why);
    let request = session.req_header();
    let mut lengths = request.headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        if lengths.next().is_some() {
            return refuse(400, "more than one Content-Length");
        }
        if length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit) {
            return refuse(400, "Content-Length is not a number");
        }
    }
    if session.is_http2() {
        return Ok(());
    }
    let raw = session.to_h1_raw();
    if raw.len() > usize::try_from(header_bytes).unwrap_or(usize::MAX) {
        return refuse(431, "the header is too large");
    }
    let mut codings = request.headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return refuse(400, "a transfer coding other than chunked");
        }
        // the library takes Content-Length away when both are there
        if request.version != Version::HTTP_11 || names(&raw, b"content-length") {
            return refuse(400, "both Content-Length and Transfer-Encoding");
        }
    }
    Ok(())
}

/// Whether a raw header has a field of that name, in lower case.
fn names(raw: &[u8], name: &[u8]) -> bool {
    raw.split(|byte| *byte == b'\n').any(|line| {
        line.split(|byte| *byte == b':')
            .next()
            .is_some_and(|found| found.trim_ascii().eq_ignore_ascii_case(name))
    })
}

/// The host that a request names, as the client wrote it: by HTTP/2 that may be in the target only.
pub(super) fn authority(request: &RequestHeader) -> Option<HeaderValue> {
    let host = request.headers.get(HOST).cloned();
    host.or_else(|| HeaderValue::from_str(request.uri.authority()?.as_str()).ok())
}

/// The host name that a request is for, in its normal form.
pub(super) fn host(request: &RequestHeader) -> Result<String> {
    let named = match request.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => request
            .headers
            .get(HOST)
            .and_then(|value| value.to_str().ok()),
    };
    match named.and_then(normal_host) {
        Some(host) => Ok(host),
        None => Error::e_explain(ErrorType::HTTPStatus(400), "no host name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_the_raw_header() {
        let raw = b"POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH : 4\r\n\r\n";
        assert!(names(raw, b"content-length"));
        assert!(!names(
            b"POST /content-length HTTP/1.1\r\nx: content-length: 1\r\n\r\n",
            b"content-length"
        ));
    }
}
