//! What a request has that decides who answers it. All of it is the client's word.

use std::net::IpAddr;

use pingora_http::RequestHeader;

/// A request as rules and hashes see it.
pub(crate) struct Facts<'a> {
    pub(crate) header: &'a RequestHeader,
    /// The client's address; an IPv4 address in IPv6's clothes is plain.
    pub(crate) client: Option<IpAddr>,
}
