//! One request, one answer.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderName};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use offshoot_model::{Code, Fault, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Route;

/// Longest wait for the socket to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for the beginning of an answer; a dry run looks at every process of an environment first.
const ANSWER: Duration = Duration::from_secs(120);
/// Longest wait for the next piece of an answer that is not a live stream.
const PIECE: Duration = Duration::from_secs(120);
/// Largest answer that is kept in memory whole.
const ANSWER_MAX: usize = 64 << 20;

/// A request's body.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The daemon behind a unix socket.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon that listens at `socket`. Connects when something is asked.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Reads.
    pub(crate) async fn get<T: DeserializeOwned>(&self, route: &Route) -> Result<T, Problem> {
        self.call(Method::GET, route, None::<&()>).await
    }

    /// Asks for a change.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        route: &Route,
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.call(Method::POST, route, Some(body)).await
    }

    /// Asks for something to be as said.
    pub(crate) async fn set<T: DeserializeOwned>(
        &self,
        route: &Route,
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.call(Method::PUT, route, Some(body)).await
    }

    /// Asks for a change that needs no words.
    pub(crate) async fn post_empty<T: DeserializeOwned>(
        &self,
        route: &Route,
    ) -> Result<T, Problem> {
        self.call(Method::POST, route, None::<&()>).await
    }

    /// Asks for a removal that becomes an operation.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, route: &Route) -> Result<T, Problem> {
        self.call(Method::DELETE, route, None::<&()>).await
    }

    /// Removes at once.
    pub(crate) async fn delete_now(&self, route: &Route) -> Result<(), Problem> {
        let request = build(Method::DELETE, route, &[], empty())?;
        self.send(request).await.map(drop)
    }

    /// Reads a stream.
    pub(crate) async fn stream(
        &self,
        route: &Route,
        headers: &[(HeaderName, String)],
    ) -> Result<Response<Incoming>, Problem> {
        self.send(build(Method::GET, route, headers, empty())?)
            .await
    }

    /// Sends a body of any length. The caller bounds the wait.
    pub(super) async fn put(
        &self,
        route: &Route,
        content_type: &str,
        body: Body,
    ) -> Result<(), Problem> {
        let headers = [(CONTENT_TYPE, content_type.to_owned())];
        self.exchange(build(Method::PUT, route, &headers, body)?)
            .await
            .map(drop)
    }

    /// A connection, for protocols that take over from HTTP.
    pub(crate) async fn connect(&self) -> Result<UnixStream, Problem> {
        match timeout(CONNECT, UnixStream::connect(&self.socket)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(self.unreachable(&error.to_string())),
            Err(_) => Err(self.unreachable(&format!("no answer within {} s", CONNECT.as_secs()))),
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        route: &Route,
        body: Option<&impl Serialize>,
    ) -> Result<T, Problem> {
        let request = match body {
            Some(body) => {
                let json = serde_json::to_vec(body).map_err(|error| {
                    Problem::internal(format!("a request could not be written: {error}"))
                })?;
                let body = Full::new(Bytes::from(json))
                    .map_err(|never| match never {})
                    .boxed_unsync();
                build(
                    method,
                    route,
                    &[(CONTENT_TYPE, "application/json".to_owned())],
                    body,
                )?
            }
            None => build(method, route, &[], empty())?,
        };
        let response = self.send(request).await?;
        let status = response.status();
        let body = self.collect(response.into_body()).await?;
        serde_json::from_slice(&body).map_err(|error| {
            Problem::internal(format!("the daemon's answer to {route} ({status}) is not understood: {error}"))
                .detail("the daemon and this command may be of different versions; `offshoot version` shows both")
        })
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Problem> {
        match timeout(ANSWER, self.exchange(request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.unreachable(&format!("no answer within {} s", ANSWER.as_secs()))),
        }
    }

    async fn exchange(&self, request: Request<Body>) -> Result<Response<Incoming>, Problem> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        // Ends with the last reader of the response.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.collect(response.into_body()).await?;
        Err(problem_of(status, &body))
    }

    async fn collect(&self, mut body: Incoming) -> Result<Bytes, Problem> {
        let mut all = BytesMut::new();
        loop {
            let frame = timeout(PIECE, body.frame()).await.map_err(|_| {
                self.unreachable(&format!("the answer stopped for {} s", PIECE.as_secs()))
            })?;
            let Some(frame) = frame else {
                return Ok(all.freeze());
            };
            if let Ok(data) = frame.map_err(|error| self.broken(&error))?.into_data() {
                if all.len().saturating_add(data.len()) > ANSWER_MAX {
                    return Err(Problem::internal(format!(
                        "the daemon's answer is larger than {ANSWER_MAX} bytes"
                    )));
                }
                all.extend_from_slice(&data);
            }
        }
    }

    /// A connection that ended in the middle.
    pub(super) fn broken(&self, error: &dyn std::error::Error) -> Problem {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        self.unreachable(&text)
    }

    /// The daemon is not there.
    pub(crate) fn unreachable(&self, why: &str) -> Problem {
        let denied = why.contains("ermission denied");
        Problem::new(
            Code::DaemonUnreachable,
            Fault::Host,
            format!("the Offshoot daemon does not answer at {}", self.socket.display()),
            if denied {
                "run the command as root (sudo offshoot ...): whoever can use the socket can do everything root can"
            } else {
                "start it with `systemctl start offshoot` or, by hand, `offshoot serve`; if it listens elsewhere, \
                 say where with --socket or OFFSHOOT_SOCKET"
            },
        )
        .detail(why)
    }
}

pub(super) fn empty() -> Body {
    Full::new(Bytes::new())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn build(
    method: Method,
    route: &Route,
    headers: &[(HeaderName, String)],
    body: Body,
) -> Result<Request<Body>, Problem> {
    let mut request = Request::builder()
        .method(method)
        .uri(route.as_str())
        .header(HOST, "localhost");
    if !headers.iter().any(|(name, _)| name == ACCEPT) {
        request = request.header(ACCEPT, "application/json");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request
        .body(body)
        .map_err(|error| Problem::internal(format!("a request could not be made: {error}")))
}

/// The problem in an answer that is no success.
pub(crate) fn problem_of(status: StatusCode, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body.get(..500).unwrap_or(body))
            .trim()
            .to_owned();
        let problem = Problem::internal(format!("the daemon answered {status} without saying why"));
        if text.is_empty() {
            problem
        } else {
            problem.detail(text)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_without_a_problem_are_told_as_they_are() {
        let problem = problem_of(StatusCode::BAD_GATEWAY, b"<html>proxy</html>");
        assert_eq!(problem.code, Code::Internal);
        assert_eq!(problem.details, ["<html>proxy</html>"]);
        let sent = Problem::new(Code::NameTaken, Fault::Request, "taken", "choose another");
        let body = serde_json::to_vec(&sent).unwrap();
        assert_eq!(problem_of(StatusCode::CONFLICT, &body), sent);
    }
}
