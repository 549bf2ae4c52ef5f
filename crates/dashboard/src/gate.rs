//! What every request passes: is it meant for this dashboard, does it come from one of its own pages, who is it.

use std::net::{IpAddr, Ipv4Addr};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Redirect, Response};
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HOST, HeaderName, HeaderValue, ORIGIN,
    REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode, Uri};

use crate::kept;
use crate::sessions::{Doing, Session};
use crate::{Peer, Settings, Transport, Web};

/// No script and no style but the files of the dashboard itself, nothing from elsewhere, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// What browsers say about where a request comes from (W3C Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Sent by htmx with what it asks for.
pub(crate) const HX_REQUEST: HeaderName = HeaderName::from_static("hx-request");
/// Tells htmx to leave the page.
const HX_REDIRECT: HeaderName = HeaderName::from_static("hx-redirect");
/// Where people sign in.
pub(crate) const SIGN_IN: &str = "/sign-in";

/// Lets a request through or answers why not; finds out whose it is; adds the headers that protect pages.
pub(crate) async fn guard(State(web): State<Web>, mut request: Request, next: Next) -> Response {
    let settings = &web.dashboard.settings;
    let refusal = if !is_for(settings, request.uri(), request.headers()) {
        Some((
            StatusCode::MISDIRECTED_REQUEST,
            format!(
                "This is the dashboard at {}. The request is addressed to another host.\n",
                settings.origin
            ),
        ))
    } else if !request.method().is_safe() && !is_own(settings, request.headers()) {
        Some((
            StatusCode::FORBIDDEN,
            "The request comes from a page of another site.\n".to_owned(),
        ))
    } else {
        None
    };
    let mut response = match refusal {
        Some(refusal) => refusal.into_response(),
        None => {
            let session = cookie(request.headers(), &cookie_name(settings)).and_then(|cookie| {
                let doing = doing(&request);
                web.dashboard.sessions.find(cookie, doing, kept::now())
            });
            if let Some(session) = session {
                request.extensions_mut().insert(session);
            }
            next.run(request).await
        }
    };
    protect(settings, response.headers_mut());
    response
}

/// Sends those who are not signed in to where they can.
pub(crate) async fn signed_in(request: Request, next: Next) -> Response {
    if request.extensions().get::<Session>().is_some() {
        return next.run(request).await;
    }
    if request.headers().contains_key(HX_REQUEST) {
        return (StatusCode::UNAUTHORIZED, [(HX_REDIRECT, SIGN_IN)]).into_response();
    }
    if request.method() == Method::GET {
        return Redirect::to(SIGN_IN).into_response();
    }
    (StatusCode::UNAUTHORIZED, "Sign in first.\n").into_response()
}

/// Pages ask by htmx and follow streams; both also happens while nobody looks.
fn doing(request: &Request) -> Doing {
    let headers = request.headers();
    let stream = headers
        .get(ACCEPT)
        .is_some_and(|accept| accept.as_bytes() == b"text/event-stream");
    if request.method() == Method::GET && (stream || headers.contains_key(HX_REQUEST)) {
        Doing::Page
    } else {
        Doing::Person
    }
}

fn protect(settings: &Settings, headers: &mut HeaderMap) {
    let fixed = HeaderValue::from_static;
    headers.insert(CONTENT_SECURITY_POLICY, fixed(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
    headers.insert(X_FRAME_OPTIONS, fixed("DENY"));
    // Not `no-referrer`: forms would then come with `Origin: null` (Fetch, 3.2).
    headers.insert(REFERRER_POLICY, fixed("same-origin"));
    headers.insert("cross-origin-opener-policy", fixed("same-origin"));
    headers.insert("cross-origin-resource-policy", fixed("same-origin"));
    headers
        .entry(CACHE_CONTROL)
        .or_insert_with(|| fixed("no-store"));
    if settings.transport == Transport::Tls {
        headers.insert(STRICT_TRANSPORT_SECURITY, fixed("max-age=31536000"));
    }
}

/// Whether a request names this dashboard. A web page can have its own domain resolve to where the dashboard
/// listens (DNS rebinding); its requests carry the page's domain.
fn is_for(settings: &Settings, uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let names_us = |authority: &Authority| {
        let host = authority.host();
        !authority.as_str().contains('@')
            && (host.eq_ignore_ascii_case(&settings.host)
                || is_loopback(&settings.host) && is_loopback(host))
    };
    Authority::try_from(host.as_bytes()).is_ok_and(|host| names_us(&host))
        && uri.authority().is_none_or(names_us)
}

/// Whether a host as in a URL can be nothing but this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || bare
            .parse()
            .is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
}

/// Whether a change comes from a page of this dashboard, as far as the browser says. The forms' tokens are what
/// counts; this stops the rest earlier.
pub(crate) fn is_own(settings: &Settings, headers: &HeaderMap) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    if !matches!(site, None | Some(b"same-origin" | b"none")) {
        return false;
    }
    let scheme = match settings.transport {
        Transport::Plain => "http",
        Transport::Tls => "https",
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    headers.get(ORIGIN).is_none_or(|origin| {
        host.is_some_and(|host| origin.as_bytes() == format!("{scheme}://{host}").as_bytes())
    })
}

/// Name of the cookie of a session. Cookies are shared by all ports of a host: the instance keeps daemons apart.
pub(crate) fn cookie_name(settings: &Settings) -> String {
    match settings.transport {
        Transport::Plain => format!("offshoot-{}", settings.instance),
        // Browsers take a cookie of this name only over TLS and from this host (RFC 6265bis, 4.1.3.2).
        Transport::Tls => format!("__Host-offshoot-{}", settings.instance),
    }
}

/// The value of a cookie.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(found, value)| (found == name).then_some(value))
}

/// Who asks, for counting failures. Nobody known is everybody.
pub(crate) fn peer(extensions: &http::Extensions) -> IpAddr {
    extensions
        .get()
        .map_or(Ipv4Addr::UNSPECIFIED.into(), |Peer(ip)| *ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(origin: &str, host: &str, transport: Transport) -> Settings {
        Settings {
            instance: "os".to_owned(),
            origin: origin.to_owned(),
            host: host.to_owned(),
            transport,
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn requests_for_other_hosts() {
        let local = settings("http://127.0.0.1:9440", "127.0.0.1", Transport::Plain);
        let far = settings(
            "https://dash.example.org:9440",
            "dash.example.org",
            Transport::Tls,
        );
        let root = Uri::from_static("/");
        for (host, here, there) in [
            ("127.0.0.1:9440", true, false),
            ("localhost", true, false),
            ("[::1]:1", true, false),
            ("dash.example.org:9440", false, true),
            ("DASH.example.org", false, true),
            ("evil.example", false, false),
            ("localhost.evil.example", false, false),
            ("x@127.0.0.1", false, false),
            ("192.0.2.1", false, false),
            ("", false, false),
        ] {
            let headers = headers(&[("host", host)]);
            assert_eq!(is_for(&local, &root, &headers), here, "{host}");
            assert_eq!(is_for(&far, &root, &headers), there, "{host}");
        }
        assert!(!is_for(&local, &root, &HeaderMap::new()));
        let two = headers(&[("host", "localhost"), ("host", "localhost")]);
        assert!(!is_for(&local, &root, &two));
        let absolute = Uri::from_static("http://evil.example/");
        assert!(!is_for(
            &local,
            &absolute,
            &headers(&[("host", "localhost")])
        ));
    }

    #[test]
    fn changes_from_other_pages() {
        let plain = settings("http://127.0.0.1:9440", "127.0.0.1", Transport::Plain);
        let host = ("host", "127.0.0.1:9440");
        let own = |more: &[(&'static str, &'static str)]| {
            let mut all = vec![host];
            all.extend(more);
            is_own(&plain, &headers(&all))
        };
        assert!(own(&[]), "no browser");
        assert!(own(&[("origin", "http://127.0.0.1:9440")]));
        assert!(own(&[("sec-fetch-site", "same-origin")]));
        // Another port of the same host is the same site and another origin.
        assert!(!own(&[("origin", "http://127.0.0.1:3000")]));
        assert!(!own(&[("sec-fetch-site", "same-site")]));
        assert!(!own(&[("sec-fetch-site", "cross-site")]));
        assert!(!own(&[("origin", "null")]));
        assert!(!own(&[("origin", "https://127.0.0.1:9440")]));
    }

    #[test]
    fn cookies() {
        let headers = headers(&[("cookie", "a=1; offshoot-os=x; b=2"), ("cookie", "c=3")]);
        assert_eq!(cookie(&headers, "offshoot-os"), Some("x"));
        assert_eq!(cookie(&headers, "c"), Some("3"));
        assert_eq!(cookie(&headers, "offshoot"), None);
    }
}
