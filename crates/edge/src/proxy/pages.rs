//! The edge's own answers: plain text, so that nothing in them is ever run by a browser.

use bytes::Bytes;
use http::Method;
use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::grpc;
use super::guard::end_unless_continued;

/// Seconds after which a client may try again: nodes start within a few.
const RETRY_SECONDS: u64 = 2;

/// What is answered instead of an environment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Page<'a> {
    /// No environment has the host name.
    UnknownHost(&'a str),
    /// The host name is known, but no route of it has the path.
    UnknownPath(&'a str),
    /// It is elsewhere.
    Moved {
        /// 301, 302, 307 or 308.
        status: u16,
        /// Where.
        location: &'a HeaderValue,
    },
    /// What the route says.
    Text(&'a str),
    /// Its environment is stopped, not yet ready, or does not accept connections.
    NotReady(&'a str),
    /// Its environment lets nobody in.
    Fenced(&'a str),
    /// Its environment's answer broke off or is not HTTP.
    Broken(&'a str),
    /// Its environment did not answer in time.
    Late(&'a str),
    /// The request cannot be served.
    Refused(u16),
    /// It passes a bound of 429 or 503.
    Limited {
        status: u16,
        /// Seconds until it may be asked again.
        after: u64,
    },
}

impl<'a> Page<'a> {
    /// The page for an error; `None` when nobody is there to read it.
    pub(super) fn for_error(error: &Error, host: &'a str) -> Option<Self> {
        use ErrorType::{
            ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout, ConnectionClosed,
            HTTPStatus, ReadError, ReadTimedout, SocketError, WriteError, WriteTimedout,
        };
        Some(match (error.etype(), error.esource()) {
            (HTTPStatus(503), _) => Self::NotReady(host),
            (HTTPStatus(status), _) => Self::Refused(*status),
            (ConnectError | ConnectNoRoute | ConnectRefused | ConnectTimedout | SocketError, _) => {
                Self::NotReady(host)
            }
            (ReadTimedout | WriteTimedout, ErrorSource::Upstream) => Self::Late(host),
            (_, ErrorSource::Upstream) => Self::Broken(host),
            (ReadTimedout, ErrorSource::Downstream) => Self::Refused(408),
            (
                ReadError | WriteError | WriteTimedout | ConnectionClosed,
                ErrorSource::Downstream,
            ) => return None,
            (_, ErrorSource::Downstream) => Self::Refused(400),
            (_, ErrorSource::Internal | ErrorSource::Unset) => Self::Refused(500),
        })
    }

    /// Its HTTP status.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::UnknownHost(_) | Self::UnknownPath(_) => 404,
            Self::Moved { status, .. } => *status,
            Self::Text(_) => 200,
            Self::NotReady(_) | Self::Fenced(_) => 503,
            Self::Broken(_) => 502,
            Self::Late(_) => 504,
            Self::Refused(status) | Self::Limited { status, .. } => *status,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::UnknownHost(host) => {
                format!(
                    "404: no environment is called {host}.\n\n`offshoot ls` says which there are.\n"
                )
            }
            Self::UnknownPath(host) => {
                format!("404: no environment answers this path of {host}.\n")
            }
            Self::Moved { status, .. } => {
                format!("{status}: this is elsewhere, the field Location says where.\n")
            }
            Self::Text(text) => (*text).to_owned(),
            Self::NotReady(host) => format!(
                "503: the environment behind {host} is stopped or not ready yet.\n\n\
                 `offshoot ps` says what its nodes do.\n"
            ),
            Self::Fenced(host) => format!(
                "503: the environment behind {host} lets nobody in for now.\n\n\
                 `offshoot traffic show` says what its policy is.\n"
            ),
            Self::Broken(host) => format!(
                "502: the environment behind {host} broke off its answer.\n\n`offshoot logs` says why.\n"
            ),
            Self::Late(host) => {
                format!(
                    "504: the environment behind {host} did not answer in time.\n\n`offshoot logs` says why.\n"
                )
            }
            Self::Limited { status: 429, .. } => {
                "429: this client asks more than it may just now.\n".to_owned()
            }
            Self::Limited { status, .. } => {
                format!("{status}: more is asked here than may be just now.\n")
            }
            Self::Refused(status) => {
                let reason = http::StatusCode::from_u16(*status)
                    .ok()
                    .and_then(|s| s.canonical_reason());
                format!(
                    "{status}: {}.\n",
                    reason.unwrap_or("this cannot be answered")
                )
            }
        }
    }

    fn header(&self, length: usize) -> Result<ResponseHeader> {
        let mut header = ResponseHeader::build(self.status(), Some(6))?;
        header.insert_header(CONTENT_TYPE, "text/plain; charset=utf-8")?;
        header.insert_header(X_CONTENT_TYPE_OPTIONS, "nosniff")?;
        header.insert_header(CACHE_CONTROL, "no-store")?;
        header.insert_header(CONTENT_LENGTH, length)?;
        if let Self::Moved { location, .. } = self {
            header.insert_header(LOCATION, *location)?;
        }
        if matches!(self, Self::NotReady(_) | Self::Fenced(_) | Self::Broken(_)) {
            header.insert_header(RETRY_AFTER, RETRY_SECONDS)?;
        }
        if let Self::Limited { after, .. } = self {
            header.insert_header(RETRY_AFTER, *after)?;
        }
        Ok(header)
    }
}

/// Answers with a page; the connection can be used again.
pub(super) async fn send(session: &mut Session, page: Page<'_>) -> Result<()> {
    end_unless_continued(session);
    if grpc::is_call(session) && !matches!(page, Page::Moved { .. } | Page::Text(_)) {
        return grpc::send(session, &page);
    }
    let text = page.text();
    let header = Box::new(page.header(text.len())?);
    if session.req_header().method == Method::HEAD {
        session.write_response_header(header, true).await?;
        return match session.is_http2() {
            // there the end is a part of the body's
            true => session.write_response_body(Some(Bytes::new()), true).await,
            false => Ok(()),
        };
    }
    session.write_response_header(header, false).await?;
    session
        .write_response_body(Some(Bytes::from(text)), true)
        .await
}

/// Answers with a page unless an answer has begun, and lets the connection end.
pub(super) async fn send_last(session: &mut Session, page: Page<'_>) {
    session.set_keepalive(None);
    if session
        .response_written()
        .is_some_and(|written| !written.status.is_informational() || written.status == 101)
    {
        return;
    }
    let drains = page.status() == 413 && !session.is_http2();
    if let Err(error) = send(session, page).await {
        tracing::debug!(%error, "page not sent");
    } else if drains {
        // closed at once, the client would be told of its unread bytes (RST) and not of the page; it has a moment
        let _ = session.as_downstream_mut().drain_request_body().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_pages() {
        let page =
            |error: Box<Error>| Page::for_error(&error, "a.localhost").map(|page| page.status());
        assert_eq!(page(Error::new_up(ErrorType::ConnectRefused)), Some(503));
        assert_eq!(page(Error::new_up(ErrorType::ReadTimedout)), Some(504));
        assert_eq!(page(Error::new_up(ErrorType::ConnectionClosed)), Some(502));
        assert_eq!(page(Error::new_down(ErrorType::ReadTimedout)), Some(408));
        assert_eq!(page(Error::new_down(ErrorType::ConnectionClosed)), None);
        assert_eq!(
            page(Error::new_down(ErrorType::InvalidHTTPHeader)),
            Some(400)
        );
        assert_eq!(page(Error::new(ErrorType::HTTPStatus(431))), Some(431));
        assert_eq!(page(Error::new(ErrorType::InternalError)), Some(500));
    }
}
