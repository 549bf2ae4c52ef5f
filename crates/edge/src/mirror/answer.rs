//! What is remembered of an answer, and how two of them differ.

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

/// Fields that are not compared, in lower case: what two answers to one request may well differ in (times, ids of
/// requests and sessions), what is said of the connection, and the length, which the body tells. `etag` is compared: it
/// says what the content is.
const IGNORED: [&str; 28] = [
    "age",
    "alt-svc",
    "cf-ray",
    "connection",
    "content-length",
    "date",
    "expires",
    "keep-alive",
    "proxy-connection",
    "request-id",
    "server",
    "server-timing",
    "set-cookie",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-amz-request-id",
    "x-amzn-trace-id",
    "x-b3-traceid",
    "x-correlation-id",
    "x-request-id",
    "x-response-time",
    "x-runtime",
    "x-trace-id",
];

/// An answer, read to its end or not yet.
pub(super) struct Answer {
    pub(super) status: u16,
    headers: HeaderMap,
    hash: Sha256,
    bytes: u64,
}

/// How two answers differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Differing {
    pub(super) status: bool,
    /// Names of fields.
    pub(super) headers: Vec<String>,
    /// Both lengths, when the bodies are not the same.
    pub(super) bodies: Option<(u64, u64)>,
}

impl Differing {
    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Answer {
    pub(super) fn new(status: u16, headers: HeaderMap) -> Self {
        Self {
            status,
            headers,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// More of its body.
    pub(super) fn add(&mut self, part: &[u8]) {
        self.hash.update(part);
        self.bytes += part.len() as u64;
    }

    /// How it differs from another one; fields in `ignore` are not looked at.
    pub(super) fn differing(self, other: Self, ignore: &[HeaderName]) -> Differing {
        let compared =
            |name: &&HeaderName| !IGNORED.contains(&name.as_str()) && !ignore.contains(name);
        let values = |answer: &Self, name| {
            answer
                .headers
                .get_all(name)
                .iter()
                .cloned()
                .collect::<Vec<_>>()
        };
        let only_there = other
            .headers
            .keys()
            .filter(|name| !self.headers.contains_key(*name));
        let names = self.headers.keys().chain(only_there).filter(compared);
        let names = names.filter(|name| values(&self, *name) != values(&other, *name));
        let headers = names.map(ToString::to_string).collect();
        let lengths = (self.bytes, other.bytes);
        Differing {
            status: self.status != other.status,
            headers,
            bodies: (self.hash.finalize() != other.hash.finalize()).then_some(lengths),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, fields: &[(&'static str, &'static str)], parts: &[&str]) -> Answer {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let mut answer = Answer::new(status, headers);
        for part in parts {
            answer.add(part.as_bytes());
        }
        answer
    }

    #[test]
    fn only_what_matters_differs() {
        let one = || {
            answer(
                200,
                &[("date", "a"), ("etag", "1"), ("x-a", "1")],
                &["he", "llo"],
            )
        };
        let same = answer(
            200,
            &[
                ("x-a", "1"),
                ("date", "b"),
                ("etag", "1"),
                ("set-cookie", "x"),
            ],
            &["hello"],
        );
        assert!(one().differing(same, &[]).is_nothing());
        let other = answer(404, &[("etag", "2"), ("x-b", "1")], &["hell"]);
        let found = one().differing(other, &[]);
        assert!(found.status && found.bodies == Some((5, 4)));
        let mut names = found.headers;
        names.sort_unstable();
        assert_eq!(names, ["etag", "x-a", "x-b"]);
        let other = answer(200, &[("etag", "2"), ("x-a", "1")], &["HELLO"]);
        let found = one().differing(other, &["etag".parse().unwrap()]);
        assert_eq!(found.headers, [""; 0]);
        assert_eq!(found.bodies, Some((5, 5)));
    }

    #[test]
    fn a_field_s_values_are_compared_all_and_in_order() {
        let one = || answer(200, &[("vary", "a"), ("vary", "b")], &[]);
        let other = answer(200, &[("vary", "b"), ("vary", "a")], &[]);
        assert_eq!(one().differing(other, &[]).headers, ["vary"]);
        let other = answer(200, &[("vary", "a")], &[]);
        assert_eq!(one().differing(other, &[]).headers, ["vary"]);
    }

    #[test]
    fn ignored_names_are_in_order_and_lower_case() {
        assert!(IGNORED.is_sorted());
        for name in IGNORED {
            assert_eq!(name.parse::<HeaderName>().unwrap().as_str(), name);
        }
    }
}
