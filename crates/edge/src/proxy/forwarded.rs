//! What the edge tells environments of clients, and what it believes of what it is told.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use pingora_core::Result;
use pingora_http::RequestHeader;

use super::connection::Scheme;
use super::request;
use crate::clients::within;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// The other side of the connection, or whom its PROXY header told.
    peer: IpAddr,
    /// The client as the edge believes it: `peer`, or whom `peer` tells when it is trusted, with port 0.
    pub(super) client: SocketAddr,
    /// How the client came: as it came to the edge, or as a trusted proxy tells.
    pub(super) scheme: Scheme,
    trusted: bool,
}

impl Origin {
    /// Of a request that came from `peer`.
    pub(super) fn new(
        peer: SocketAddr,
        scheme: Scheme,
        headers: &HeaderMap,
        trust: &[IpNet],
    ) -> Self {
        let client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let peer = client.ip();
        let plain = Self {
            peer,
            client,
            scheme,
            trusted: false,
        };
        if !within(trust, peer) {
            return plain;
        }
        let told = |value: &HeaderValue| match value.as_bytes() {
            b"https" => Some(Scheme::Https),
            b"http" => Some(Scheme::Http),
            _ => None,
        };
        Self {
            client: told_client(headers, trust).map_or(client, |ip| (ip, 0).into()),
            scheme: headers.get(PROTO).and_then(told).unwrap_or(scheme),
            trusted: true,
            ..plain
        }
    }

    /// Writes what the environment is to know, and takes out what it is not to believe.
    pub(super) fn write(&self, request: &mut RequestHeader) -> Result<()> {
        let mut chain = Vec::new();
        if self.trusted {
            for value in request.headers.get_all(FOR) {
                chain.extend_from_slice(value.as_bytes());
                chain.extend_from_slice(b", ");
            }
        }
        chain.extend_from_slice(self.peer.to_string().as_bytes());
        for name in [FOR.as_str(), "x-forwarded-port", "x-real-ip", "proxy"] {
            request.remove_header(name);
        }
        request.remove_header(&FORWARDED);
        for name in lookalikes(&request.headers) {
            request.remove_header(&name);
        }
        if let Ok(chain) = HeaderValue::from_bytes(&chain) {
            request.insert_header(FOR, chain)?;
        }
        request.insert_header(PROTO, self.scheme.name())?;
        if let Some(host) = request::authority(request) {
            request.insert_header("x-forwarded-host", host)?;
        }
        Ok(())
    }
}

/// The last address in the chain that is not trusted itself: what stands before it anyone may have written. Else the
/// first one; `None` when there is none.
fn told_client(headers: &HeaderMap, trust: &[IpNet]) -> Option<IpAddr> {
    let mut client = None;
    for value in headers.get_all(FOR).iter().rev() {
        for part in value.as_bytes().rsplit(|byte| *byte == b',') {
            let Some(address) = address(part) else {
                return client;
            };
            client = Some(address);
            if !within(trust, address) {
                return client;
            }
        }
    }
    client
}

/// An address, with or without a port.
fn address(part: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(part).ok()?.trim();
    let plain = text.trim_start_matches('[').trim_end_matches(']');
    let ip = plain.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|a| a.ip());
    ip.or_else(with_port).map(|ip: IpAddr| ip.to_canonical())
}

/// Fields that a server which takes `_` for `-` (CGI and its descendants do) would read as one of those above, or as one
/// that decides where a request ends or for whom it is.
fn lookalikes(headers: &HeaderMap) -> Vec<HeaderName> {
    let alike = |name: &&HeaderName| {
        let name = name.as_str();
        name.contains('_')
            && matches!(
                name.replace('_', "-").as_str(),
                "x-forwarded-for"
                    | "x-forwarded-proto"
                    | "x-forwarded-host"
                    | "x-forwarded-port"
                    | "x-real-ip"
                    | "content-length"
                    | "transfer-encoding"
            )
    };
    headers.keys().filter(alike).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(peer: &str, fields: &[(&str, &str)]) -> (Origin, RequestHeader) {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in fields {
            request
                .append_header((*name).to_owned(), (*value).to_owned())
                .unwrap();
        }
        let trust = [
            "192.0.2.0/24".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
        ];
        let peer = SocketAddr::new(peer.parse().unwrap(), 4711);
        let origin = Origin::new(peer, Scheme::Http, &request.headers, &trust);
        origin.write(&mut request).unwrap();
        (origin, request)
    }

    #[test]
    fn what_strangers_claim_is_dropped() {
        let (origin, request) = origin(
            "198.51.100.1",
            &[
                ("x-forwarded-for", "203.0.113.9"),
                ("X_Forwarded_For", "203.0.113.9"),
                ("x-forwarded_proto", "https"),
                ("x-forwarded-proto", "https"),
                ("x-real-ip", "203.0.113.9"),
                ("forwarded", "for=203.0.113.9"),
                ("content_length", "5"),
                ("my_own", "stays"),
            ],
        );
        assert_eq!(origin.client.to_string(), "198.51.100.1:4711");
        assert_eq!(origin.scheme, Scheme::Http);
        let mut fields: Vec<_> = request
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        fields.sort();
        let expected = [
            "my_own: stays",
            "x-forwarded-for: 198.51.100.1",
            "x-forwarded-proto: http",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn trusted_proxies_are_believed_up_to_the_first_stranger() {
        let client = |peer: &str, chain: &[&str]| {
            let fields: Vec<_> = chain
                .iter()
                .map(|value| ("x-forwarded-for", *value))
                .collect();
            origin(peer, &fields).0.client.ip().to_string()
        };
        let cases: [(&[&str], &str); 8] = [
            (&[], "192.0.2.1"),
            (&["203.0.113.9"], "203.0.113.9"),
            (&["10.0.0.1, 203.0.113.9"], "203.0.113.9"),
            (&["203.0.113.9, 192.0.2.7"], "203.0.113.9"),
            (
                &["10.0.0.1", "203.0.113.9", "192.0.2.7,[2001:db8::5]:99"],
                "203.0.113.9",
            ),
            (&["203.0.113.9:4711"], "203.0.113.9"),
            (&["203.0.113.9, unknown"], "192.0.2.1"),
            (&["192.0.2.9, 192.0.2.8"], "192.0.2.9"),
        ];
        for (chain, expected) in cases {
            assert_eq!(client("192.0.2.1", chain), expected, "{chain:?}");
        }
        let (origin, request) = origin(
            "::ffff:192.0.2.1",
            &[
                ("x-forwarded-for", "203.0.113.9"),
                ("x-forwarded-proto", "https"),
            ],
        );
        assert_eq!(origin.scheme, Scheme::Https);
        assert_eq!(request.headers["x-forwarded-for"], "203.0.113.9, 192.0.2.1");
        assert_eq!(request.headers["x-forwarded-proto"], "https");
    }
}
