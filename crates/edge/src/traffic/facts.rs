//! What a request has that decides who answers it. All of it is the client's word.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::{COOKIE, HeaderValue};
use offshoot_edge_api::normal_path;
use pingora_http::RequestHeader;

/// A request as rules, hashes and goals see it.
pub(crate) struct Facts<'a> {
    header: &'a RequestHeader,
    /// The client's address; an IPv4 address in IPv6's clothes is plain.
    pub(super) client: Option<IpAddr>,
    path: OnceCell<String>,
}

impl<'a> Facts<'a> {
    pub(crate) fn new(header: &'a RequestHeader, client: Option<IpAddr>) -> Self {
        Self {
            header,
            client: client.map(|client| client.to_canonical()),
            path: OnceCell::new(),
        }
    }

    pub(super) fn method(&self) -> &'a str {
        self.header.method.as_str()
    }

    /// Its path in normal form.
    pub(super) fn path(&self) -> &str {
        self.path
            .get_or_init(|| normal_path(self.header.uri.path()))
    }

    /// Values of the header fields of a name, without regard to its case.
    pub(super) fn fields(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let values = self.header.headers.get_all(name).iter();
        values.map(|value| value.as_bytes().trim_ascii())
    }

    /// Values of the cookies of a name, as they are sent.
    pub(super) fn cookies(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        pairs(&self.header.headers).filter_map(move |pair| value_of(pair, name))
    }

    /// Values of the query's parameters of a name, decoded as forms are (URL standard, 5.1).
    pub(super) fn parameters(&self, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
        let query = self.header.uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(query.as_bytes());
        pairs.filter_map(move |(found, value)| (found == name).then_some(value))
    }
}

/// All `name=value` of the `Cookie` fields (RFC 6265, 4.2.1).
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let fields = headers.get_all(COOKIE).iter();
    let pairs = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii)
}

fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

/// Takes a cookie out of a request that goes to an environment, and makes one field of several, as HTTP/1.1 wants it
/// (RFC 9113, 8.2.3). What has neither stays as it was sent.
pub(crate) fn take_cookie(request: &mut RequestHeader, name: &str) {
    let others: Option<Vec<u8>> = {
        let headers = &request.headers;
        let is_ours = |pair: &[u8]| value_of(pair, name).is_some();
        let several = headers.get_all(COOKIE).iter().nth(1).is_some();
        (several || pairs(headers).any(is_ours)).then(|| {
            let others: Vec<_> = pairs(headers)
                .filter(|pair| !pair.is_empty() && !is_ours(pair))
                .collect();
            others.join(&b"; "[..])
        })
    };
    let Some(others) = others else { return };
    request.remove_header(&COOKIE);
    if let Ok(value) = HeaderValue::from_bytes(&others)
        && !value.is_empty()
    {
        // fails only when there are thousands of fields, which were refused before
        let _ = request.insert_header(COOKIE, value);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::traffic) fn request(
        method: &str,
        target: &str,
        fields: &[(&'static str, &str)],
    ) -> RequestHeader {
        let mut request = RequestHeader::build(method, target.as_bytes(), None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn cookies_fields_and_parameters_are_found() {
        let request = request(
            "GET",
            "/a/../b?x=1&x=a+b%26&y&=&%78=3",
            &[
                ("cookie", "a=1; ab=2;a=\"3\"; A=4;a; =; b=x=y"),
                ("Cookie", "a=5"),
                ("X-Country", " AT "),
            ],
        );
        let facts = Facts::new(&request, None);
        let cookies: Vec<_> = facts.cookies("a").collect();
        assert_eq!(cookies, [&b"1"[..], b"\"3\"", b"5"]);
        assert_eq!(facts.cookies("b").next(), Some(&b"x=y"[..]));
        let parameters: Vec<_> = facts.parameters("x").collect();
        assert_eq!(parameters, ["1", "a b&", "3"]);
        assert_eq!(facts.parameters("y").next().as_deref(), Some(""));
        assert_eq!(facts.fields("x-cOUNTRY").next(), Some(&b"AT"[..]));
        assert_eq!(facts.fields("not a name").next(), None);
        assert_eq!(facts.path(), "/b");
    }

    #[test]
    fn only_one_cookie_is_taken_out() {
        for (before, after) in [
            (&["a=1; b=2"][..], Some("a=1; b=2")),
            (&["a=1;b=2;"], Some("a=1;b=2;")),
            (&["ours=x; a=1;; b=2"], Some("a=1; b=2")),
            (&["a=1", "b=2"], Some("a=1; b=2")),
            (&["ours=x"], None),
            (&["oursx=1; xours=2; ours"], Some("oursx=1; xours=2; ours")),
            (&["ours=x", "a=1; ours=y"], Some("a=1")),
            (&[], None),
        ] {
            let fields: Vec<_> = before.iter().map(|value| ("cookie", *value)).collect();
            let mut request = request("GET", "/", &fields);
            take_cookie(&mut request, "ours");
            let mut found = request.headers.get_all(COOKIE).iter();
            let value = found.next().map(|value| value.to_str().unwrap());
            assert_eq!(value, after, "{before:?}");
            assert!(found.next().is_none());
        }
    }
}
