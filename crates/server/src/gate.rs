//! Who may ask: root on the unix socket, whoever has the token on TCP.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::{AUTHORIZATION, HOST};
use http::uri::Authority;
use http::{HeaderMap, StatusCode, Uri};
use offshoot_model::{Code, Fault, Problem};

use crate::answer::ApiError;
use crate::config::is_loopback;
use crate::token::Token;

/// Where a request came from; set for each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The unix socket, and the peer's user as the kernel knows it (`SO_PEERCRED`, unix(7)).
    Unix {
        /// User id, where the kernel says one.
        uid: Option<u32>,
    },
    /// Loopback TCP.
    Tcp,
}

/// What is asked of those who come.
#[derive(Debug)]
pub(crate) struct Gate {
    owner: u32,
    token: Option<Token>,
}

impl Gate {
    /// Lets in root and `owner` on the unix socket, and `token` on TCP.
    pub(crate) fn new(owner: u32, token: Option<Token>) -> Self {
        Self { owner, token }
    }

    fn judge(&self, origin: Origin, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        match origin {
            Origin::Unix { uid: Some(uid) } if uid == 0 || uid == self.owner => Ok(()),
            Origin::Unix { .. } => Err(Problem::new(
                Code::Unauthorized,
                Fault::Request,
                "only root may use this socket",
                "run the command as root, for instance with sudo",
            )
            .into()),
            Origin::Tcp if !is_for_this_host(uri, headers) => Err(ApiError::with_status(
                StatusCode::MISDIRECTED_REQUEST,
                Problem::new(
                    Code::Unauthorized,
                    Fault::Request,
                    "the request is addressed to another host",
                    "address it to localhost, 127.0.0.1 or [::1]",
                ),
            )),
            Origin::Tcp if self.token.as_ref().is_some_and(|token| bearer(headers).is_some_and(|t| token.is(t))) => {
                Ok(())
            }
            Origin::Tcp => Err(Problem::new(
                Code::Unauthorized,
                Fault::Request,
                "the request has no token, or a wrong one",
                "send Authorization: Bearer and the text of the file api-token in the daemon's state directory",
            )
            .into()),
        }
    }
}

/// Lets a request through or answers why not.
pub(crate) async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    // Without an origin the request did not come through a connection of ours: nobody.
    let origin = request
        .extensions()
        .get()
        .copied()
        .unwrap_or(Origin::Unix { uid: None });
    match gate.judge(origin, request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            tracing::debug!(?origin, path = request.uri().path(), "refused");
            error.into_response()
        }
    }
}

/// Whether the request names this host. A web page can have its own domain resolve to loopback and send requests
/// there (DNS rebinding); those carry the page's domain.
fn is_for_this_host(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let names_us = |authority: &Authority| {
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        host.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(is_loopback)
    };
    Authority::try_from(host.as_bytes()).is_ok_and(|host| names_us(&host))
        && uri.authority().is_none_or(names_us)
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (all.next()?.as_bytes(), all.next()) else {
        return None;
    };
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(http::HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn hosts() {
        let root: Uri = "/".parse().unwrap();
        for good in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1",
            "127.0.0.1:7463",
            "[::1]",
            "[::1]:7463",
        ] {
            assert!(is_for_this_host(&root, &headers(&[(HOST, good)])), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.0.2.1",
            "[::]",
            "a@localhost:x",
            "::1",
        ] {
            assert!(!is_for_this_host(&root, &headers(&[(HOST, bad)])), "{bad}");
        }
        assert!(!is_for_this_host(&root, &headers(&[])));
        assert!(!is_for_this_host(
            &root,
            &headers(&[(HOST, "localhost"), (HOST, "localhost")])
        ));
        let absolute: Uri = "http://evil.example/".parse().unwrap();
        assert!(!is_for_this_host(
            &absolute,
            &headers(&[(HOST, "localhost")])
        ));
    }

    #[test]
    fn tokens() {
        for (value, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("", None),
        ] {
            assert_eq!(
                bearer(&headers(&[(AUTHORIZATION, value)])),
                token.map(str::as_bytes),
                "{value:?}"
            );
        }
        assert_eq!(bearer(&headers(&[])), None);
        assert_eq!(
            bearer(&headers(&[
                (AUTHORIZATION, "Bearer a"),
                (AUTHORIZATION, "Bearer b")
            ])),
            None
        );
    }

    #[test]
    fn users() {
        let gate = Gate::new(1000, None);
        let judge = |origin| {
            gate.judge(origin, &Uri::default(), &headers(&[(HOST, "localhost")]))
                .is_ok()
        };
        assert!(judge(Origin::Unix { uid: Some(0) }));
        assert!(judge(Origin::Unix { uid: Some(1000) }));
        assert!(!judge(Origin::Unix { uid: Some(1001) }));
        assert!(!judge(Origin::Unix { uid: None }));
        assert!(!judge(Origin::Tcp), "no token, nobody");
    }
}
