//! Which requests go the short way, and what is sent for them.
//!
//! A request is plain when nothing about it needs a decision: everything that the library or a filter of ours takes out,
//! changes or refuses makes it go the whole way. The parser is the library's.

use std::fmt::Write;
use std::net::IpAddr;

use http::Method;
use http::header::{COOKIE, HOST, HeaderMap};
use offshoot_edge_api::normal_host;
use pingora_http::RequestHeader;

use super::super::connection::Scheme;
use crate::{mirror, traffic};

/// Fields of a plain request.
const FIELDS_MAX: usize = 64;

/// What came of a request.
pub(super) enum Read {
    /// Not all of its header.
    Part,
    Plain(Box<Request>),
    NotPlain,
}

/// A plain request: HTTP/1.1 or HTTP/2, `GET`, without a body.
pub(super) struct Request {
    /// The host name in its normal form.
    pub(super) host: String,
    /// As the client sent it.
    target: String,
    /// Where its query begins, `?` and all.
    query: usize,
    pub(super) referer: Option<String>,
    pub(super) agent: Option<String>,
    /// What its node gets.
    pub(super) head: Vec<u8>,
}

impl Request {
    /// Reads what came on a connection so far.
    pub(super) fn read(raw: &[u8], client: IpAddr, scheme: Scheme) -> Read {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(raw) {
            Ok(httparse::Status::Partial) => Read::Part,
            Ok(httparse::Status::Complete(length)) if length == raw.len() => {
                let plain = Self::of(request, client, scheme);
                plain.map_or(Read::NotPlain, |request| Read::Plain(Box::new(request)))
            }
            // more than a header: a body, or several requests at once
            _ => Read::NotPlain,
        }
    }

    fn of(request: httparse::Request<'_, '_>, client: IpAddr, scheme: Scheme) -> Option<Self> {
        if request.method != Some("GET") || request.version != Some(1) {
            return None;
        }
        let fields = request.headers.iter();
        let fields = fields.map(|field| (field.name, field.value));
        Self::plain(request.path?, fields, client, scheme)
    }

    /// The same of a request by HTTP/2 that has no body.
    pub(super) fn of_http2(
        request: &RequestHeader,
        client: IpAddr,
        scheme: Scheme,
    ) -> Option<Self> {
        if request.method != Method::GET {
            return None;
        }
        let target = request.uri.path_and_query()?.as_str();
        let headers = &request.headers;
        let authority = request.uri.authority();
        let host = authority.map(|authority| ("host", authority.as_str().as_bytes()));
        let cookie = cookie(headers);
        let others = headers
            .iter()
            .filter(|(name, _)| *name != COOKIE && (*name != HOST || host.is_none()))
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        let cookies = cookie.as_deref().map(|cookie| ("cookie", cookie));
        let fields = host.into_iter().chain(others).chain(cookies);
        if headers.len() > FIELDS_MAX {
            return None;
        }
        Self::plain(target, fields, client, scheme)
    }

    fn plain<'a>(
        target: &str,
        fields: impl Iterator<Item = (&'a str, &'a [u8])>,
        client: IpAddr,
        scheme: Scheme,
    ) -> Option<Self> {
        if !is_plain_target(target) {
            return None;
        }
        let mut head = Vec::with_capacity(1 << 10);
        line(&mut head, &[b"GET ", target.as_bytes(), b" HTTP/1.1"]);
        let (mut authority, mut referer, mut agent) = (None, None, None);
        for (name, value) in fields {
            match Field::of(name, value) {
                Field::NotPlain => return None,
                Field::OfConnection => continue,
                Field::Host if authority.is_some() => return None,
                Field::Host => authority = Some(std::str::from_utf8(value).ok()?),
                Field::Referer => referer = Some(text(value)),
                Field::Agent => agent = Some(text(value)),
                Field::Plain => {}
            }
            line(&mut head, &[name.as_bytes(), b": ", value]);
        }
        let authority = authority?;
        let mut forwarded = String::with_capacity(128);
        write!(
            forwarded,
            "X-Forwarded-For: {}\r\nX-Forwarded-Proto: {}\r\nX-Forwarded-Host: {authority}\r\n\r\n",
            client.to_canonical(),
            scheme.name(),
        )
        .ok()?;
        head.extend_from_slice(forwarded.as_bytes());
        Some(Self {
            host: normal_host(authority)?,
            query: target.find('?').unwrap_or(target.len()),
            target: target.to_owned(),
            referer,
            agent,
            head,
        })
    }

    /// Its path as the client sent it.
    pub(super) fn path(&self) -> &str {
        self.target.get(..self.query).unwrap_or_default()
    }

    /// Its query, if it has one.
    pub(super) fn query(&self) -> Option<&str> {
        self.target.get(self.query..)?.strip_prefix('?')
    }
}

/// All cookies as one field, as HTTP/1.1 wants it (RFC 9113, 8.2.3).
fn cookie(headers: &HeaderMap) -> Option<Vec<u8>> {
    let cookies = headers.get_all(COOKIE).iter();
    let cookies: Vec<_> = cookies.map(|cookie| cookie.as_bytes()).collect();
    (!cookies.is_empty()).then(|| cookies.join(&b"; "[..]))
}

fn line(head: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        head.extend_from_slice(part);
    }
    head.extend_from_slice(b"\r\n");
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// Whether a target is a path, perhaps with a query, of characters that everyone reads the same way (RFC 3986, 3.3 and 3.4).
fn is_plain_target(target: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/%?&=+,:;@!$'()*".contains(&byte);
    target.starts_with('/') && !target.starts_with("//") && target.bytes().all(plain)
}

/// What a field means for a request's way.
#[derive(Debug, PartialEq, Eq)]
enum Field {
    Plain,
    Host,
    Referer,
    Agent,
    /// It is the edge's and says what is so anyway.
    OfConnection,
    NotPlain,
}

impl Field {
    fn of(name: &str, value: &[u8]) -> Self {
        const NOT_PLAIN: [&str; 14] = [
            "content-length",
            "transfer-encoding",
            "expect",
            "upgrade",
            "te",
            "trailer",
            "keep-alive",
            "http2-settings",
            "forwarded",
            "x-real-ip",
            "proxy",
            "proxy-connection",
            "proxy-authenticate",
            "proxy-authorization",
        ];
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let begins = |with: &str| {
            name.get(..with.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(with))
        };
        let not_plain = match name.len() {
            4 if is("host") => return Self::Host,
            7 if is("referer") => return Self::Referer,
            10 if is("user-agent") => return Self::Agent,
            10 if is("connection") => {
                if value.eq_ignore_ascii_case(b"keep-alive") {
                    return Self::OfConnection;
                }
                true
            }
            6 if is("accept") => has(value, b"text/event-stream"),
            6 if is("cookie") => has(value, traffic::COOKIE.as_bytes()),
            _ => {
                name.contains('_')
                    || begins("x-forwarded-")
                    || is(mirror::MARK.as_str())
                    || NOT_PLAIN.iter().any(|other| is(other))
            }
        };
        if not_plain {
            Self::NotPlain
        } else {
            Self::Plain
        }
    }
}

/// Whether a text is in a value, without regard to case.
fn has(value: &[u8], text: &[u8]) -> bool {
    value
        .windows(text.len())
        .any(|part| part.eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &str) -> Option<Box<Request>> {
        let client = "::ffff:192.0.2.7".parse().unwrap();
        match Request::read(raw.as_bytes(), client, Scheme::Https) {
            Read::Plain(request) => Some(request),
            Read::Part | Read::NotPlain => None,
        }
    }

    #[test]
    fn a_plain_request_is_sent_on_as_it_came_and_says_whose_it_is() {
        let raw = "GET /a%20b/?q=1&r HTTP/1.1\r\nHost: Shop.localhost.:8080\r\nUser-Agent: x y\r\n\
             Referer:http://a/?b\r\nConnection: Keep-Alive\r\nCookie: a=b\r\ncookie: c=d\r\nX-Own:  1 \r\n\r\n";
        let request = read(raw).unwrap();
        assert_eq!(request.host, "shop.localhost");
        assert_eq!(
            (request.path(), request.query()),
            ("/a%20b/", Some("q=1&r"))
        );
        assert_eq!(request.agent.as_deref(), Some("x y"));
        assert_eq!(request.referer.as_deref(), Some("http://a/?b"));
        assert_eq!(
            String::from_utf8(request.head).unwrap(),
            "GET /a%20b/?q=1&r HTTP/1.1\r\nHost: Shop.localhost.:8080\r\nUser-Agent: x y\r\nReferer: http://a/?b\r\n\
             Cookie: a=b\r\ncookie: c=d\r\nX-Own: 1\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-Host: Shop.localhost.:8080\r\n\r\n"
        );
        assert_eq!(
            read("GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap().query(),
            None
        );
    }

    #[test]
    fn what_needs_a_decision_is_not_plain() {
        let not_plain = [
            "Host: b",
            "Content-Length: 0",
            "Transfer-Encoding: chunked",
            "Transfer_Encoding: chunked",
            "Expect: 100-continue",
            "Connection: close",
            "Connection: keep-alive, x-own",
            "Upgrade: websocket",
            "Keep-Alive: timeout=5",
            "TE: trailers",
            "Trailer: x",
            "HTTP2-Settings: AAMAAABk",
            "Proxy: http://evil",
            "Proxy-Authorization: x",
            "Forwarded: for=6.6.6.6",
            "X-Real-IP: 6.6.6.6",
            "X-Forwarded-Port: 1",
            "x-forwarded-for: 6.6.6.6",
            "X_Forwarded_For: 6.6.6.6",
            "x-offshoot-mirror: 1",
            "Accept: text/html, TEXT/event-stream",
            "Cookie: a=b; offshoot-visitor=x",
            "Bad Name: x",
            " folded",
        ];
        for field in not_plain {
            let raw = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
            assert!(read(&raw).is_none(), "{field}");
        }
        let whole = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(read(whole).is_some());
        assert!(read(&whole[..whole.len() - 1]).is_none(), "a part");
        assert!(read(&format!("{whole}{whole}")).is_none(), "two at once");
        for begin in [
            "POST / HTTP/1.1",
            "HEAD / HTTP/1.1",
            "GET / HTTP/1.0",
            "GET http://a/ HTTP/1.1",
            "GET //a/ HTTP/1.1",
            "GET * HTTP/1.1",
            "GET /#a HTTP/1.1",
            "GET /{a} HTTP/1.1",
            "GET /\u{e4} HTTP/1.1",
        ] {
            let raw = format!("{begin}\r\nHost: a\r\n\r\n");
            assert!(read(&raw).is_none(), "{begin}");
        }
        for host in ["", "a b", "a:x", "a/b", "\u{e4}"] {
            let raw = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert!(read(&raw).is_none(), "{host}");
        }
        assert!(read("GET / HTTP/1.1\r\n\r\n").is_none(), "no host");
        let many = "a: b\r\n".repeat(FIELDS_MAX);
        assert!(read(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")).is_none());
    }
}
