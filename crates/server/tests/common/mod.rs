//! A server over a platform that only pretends, and a client.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod fake;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use offshoot_model::Problem;
use offshoot_server::{Server, ServerConfig, TlsFiles, WebConfig};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use fake::{Fake, event, line, problem};

/// Bound on everything that a test waits for.
pub const SOON: Duration = Duration::from_secs(20);

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub struct TestServer {
    pub fake: Arc<Fake>,
    pub socket: PathBuf,
    pub tcp: SocketAddr,
    /// Where the dashboard is.
    pub web: String,
    pub token: String,
    pub dir: TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl TestServer {
    pub async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let config = ServerConfig {
            instance: "t1".to_owned(),
            socket: dir.path().join("run/offshoot.sock"),
            tcp: Some("127.0.0.1:0".parse().unwrap()),
            token_file: dir.path().join("api-token"),
            web: Some(web(None)),
        };
        let fake = Arc::new(Fake::default());
        let server = Server::bind(&config).await.unwrap();
        let tcp = server.tcp_address().unwrap();
        let web = server.dashboard().unwrap().origin().to_owned();
        let token = std::fs::read_to_string(&config.token_file)
            .unwrap()
            .trim()
            .to_owned();
        let (stop, stopped) = oneshot::channel();
        let platform = Arc::clone(&fake);
        let task = tokio::spawn(async move {
            server
                .run(platform, async { drop(stopped.await) })
                .await
                .unwrap();
        });
        Self {
            fake,
            socket: config.socket,
            tcp,
            web,
            token,
            dir,
            stop: Some(stop),
            task,
        }
    }

    pub async fn unix(&self) -> SendRequest<Body> {
        connect(UnixStream::connect(&self.socket).await.unwrap()).await
    }

    pub async fn over_tcp(&self) -> SendRequest<Body> {
        connect(TcpStream::connect(self.tcp).await.unwrap()).await
    }

    /// Asks on a new connection of the unix socket.
    pub async fn ask(&self, method: Method, path: &str, body: &str) -> Answer {
        send(&mut self.unix().await, request(method, path, body)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.ask(Method::POST, path, body).await
    }

    pub async fn open(&self, request: Request<Body>) -> Response<Incoming> {
        timeout(SOON, self.unix().await.send_request(request))
            .await
            .unwrap()
            .unwrap()
    }

    /// Asks it to end, as a signal would.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has ended.
    pub async fn ended(mut self) -> TempDir {
        self.stop();
        timeout(SOON, self.task).await.unwrap().unwrap();
        self.dir
    }
}

/// A dashboard on a port that the kernel chooses.
pub fn web(tls: Option<TlsFiles>) -> WebConfig {
    WebConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        host: None,
        tls,
        sessions: None,
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// The problem, which must be whole and of that status.
    #[track_caller]
    pub fn problem(&self, status: u16) -> Problem {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert!(
            !problem.what.is_empty() && !problem.what.ends_with('.') && !problem.next.is_empty(),
            "{problem:?}"
        );
        problem
    }
}

pub async fn connect(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
) -> SendRequest<Body> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub fn request(method: Method, path: &str, body: &str) -> Request<Body> {
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/api/v1/{path}")
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .body(full(body.to_owned()))
        .unwrap()
}

pub async fn send(client: &mut SendRequest<Body>, request: Request<Body>) -> Answer {
    let response = timeout(SOON, client.send_request(request))
        .await
        .unwrap()
        .unwrap();
    let (head, body) = response.into_parts();
    let body = timeout(SOON, body.collect())
        .await
        .unwrap()
        .unwrap()
        .to_bytes();
    Answer {
        status: head.status,
        headers: head.headers,
        body,
    }
}

/// The next piece of a stream; `None` at its end.
pub async fn piece(body: &mut Incoming) -> Option<Bytes> {
    loop {
        let frame = timeout(SOON, body.frame())
            .await
            .expect("a piece comes soon")?;
        if let Ok(data) = frame.expect("the stream does not break").into_data() {
            return Some(data);
        }
    }
}

/// Reads until `text` has come; answers all that came.
pub async fn until(body: &mut Incoming, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let piece = piece(body)
            .await
            .unwrap_or_else(|| panic!("the stream ended at {all:?}"));
        all.push_str(std::str::from_utf8(&piece).unwrap());
    }
    all
}
