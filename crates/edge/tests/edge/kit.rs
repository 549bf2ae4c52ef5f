//! An edge process per test, servers behind it, clients before it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use offshoot_edge_api::{
    AccessLog, EdgeConfig, EdgeControl, EdgeStatus, PortReport, PortState, Reloaded, Route,
    RoutesFile, Traffic, ensure_edge, stop,
};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// Bound of everything that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) type Body = BoxBody<Bytes, Infallible>;

pub(crate) struct TestEdge {
    pub(crate) config: EdgeConfig,
    pub(crate) status: EdgeStatus,
    _directory: TempDir,
}

impl TestEdge {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut EdgeConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mut config = EdgeConfig::new(at("routes.json"), at("edge.sock"));
        config.listen = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        config.access_log = Some(AccessLog::new(at("access.log")));
        config.limits.drain_seconds = 1;
        change(&mut config);
        let status = ensure_edge(&config, binary()).unwrap();
        Self {
            config,
            status,
            _directory: directory,
        }
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.status.listen[0]
    }

    pub(crate) fn https(&self) -> SocketAddr {
        self.status.listen_tls[0]
    }

    pub(crate) fn control(&self) -> EdgeControl {
        EdgeControl::connect(&self.config.control).unwrap()
    }

    pub(crate) fn serve(&self, file: &RoutesFile) -> Reloaded {
        file.write_atomically(&self.config.routes).unwrap();
        let reloaded = self.control().reload().unwrap();
        assert_eq!(reloaded.version, file.version);
        reloaded
    }

    /// Kills it, and starts it anew when it is gone.
    pub(crate) async fn kill(&mut self) {
        signal("KILL", self.status.pid);
        let control = self.config.control.clone();
        until("the edge ends", || EdgeControl::connect(&control).is_err()).await;
        self.ensure();
    }

    /// Starts it anew, as the daemon does when it finds it gone.
    pub(crate) fn ensure(&mut self) {
        self.status = ensure_edge(&self.config, binary()).unwrap();
    }
}

impl Drop for TestEdge {
    fn drop(&mut self) {
        self.config.limits.drain_seconds = 0;
        if let Err(error) = stop(&self.config) {
            eprintln!("the edge was not stopped: {error}");
        }
        if std::thread::panicking() {
            for path in [
                &self.config.log_file(),
                &self.config.routes.with_file_name("access.log"),
            ] {
                eprintln!("{}", std::fs::read_to_string(path).unwrap_or_default());
            }
        }
    }
}

pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_offshoot-edge"))
}

pub(crate) fn signal(name: &str, pid: u32) {
    let kill = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    assert!(kill.unwrap().success());
}

pub(crate) const A: &str = "aaaaaaaa";
pub(crate) const B: &str = "bbbbbbbb";
pub(crate) const C: &str = "cccccccc";

pub(crate) fn route(host: &str, environment: &str, upstreams: &[SocketAddr]) -> Route {
    Route::new(
        host.into(),
        environment.parse().unwrap(),
        upstreams.to_vec(),
    )
}

pub(crate) fn routes(version: u64, routes: Vec<Route>) -> RoutesFile {
    RoutesFile {
        version,
        routes,
        ..RoutesFile::default()
    }
}

/// A policy of environment [`A`], as people write it; it has no sides.
pub(crate) fn policy(text: &str) -> Vec<Traffic> {
    vec![Traffic {
        environment: A.parse().unwrap(),
        policy: serde_json::from_str(text).unwrap(),
        upstreams: Default::default(),
    }]
}

/// Routes with the policy of one of the environments, and where those that it names answer.
pub(crate) fn with_policy(
    version: u64,
    routes: Vec<Route>,
    owner: &str,
    policy: &str,
    upstreams: &[(&str, &[SocketAddr])],
) -> RoutesFile {
    let upstreams = upstreams.iter();
    let upstreams = upstreams.map(|(id, addresses)| (id.parse().unwrap(), addresses.to_vec()));
    RoutesFile {
        version,
        routes,
        traffic: vec![Traffic {
            environment: owner.parse().unwrap(),
            policy: serde_json::from_str(policy).unwrap(),
            upstreams: upstreams.collect(),
        }],
        ..RoutesFile::default()
    }
}

pub(crate) fn bound(report: &PortReport) -> SocketAddr {
    match report.state {
        PortState::Open { bound } => bound,
        ref other => panic!("{} is {other:?}", report.listen),
    }
}

/// Waits for a condition, with a bound.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An HTTP server behind the edge; ends with the test.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let connections = Arc::new(AtomicUsize::new(0));
        let (requested, connected) = (Arc::clone(&requests), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connected.fetch_add(1, Ordering::SeqCst);
                let requested = Arc::clone(&requested);
                let service = service_fn(move |request| {
                    requested.fetch_add(1, Ordering::SeqCst);
                    answer(name, request)
                });
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .half_close(true)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            requests,
            connections,
            task,
        }
    }
}

async fn answer(
    name: &'static str,
    request: Request<Incoming>,
) -> Result<Response<Body>, hyper::Error> {
    Ok(match request.uri().path() {
        // what was received, a field a line
        "/headers" => {
            let fields = request
                .headers()
                .iter()
                .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()));
            Response::new(full(fields.collect::<String>()))
        }
        // every part as it comes
        "/echo" => {
            let parts = request
                .into_body()
                .into_data_stream()
                .map(|part| Ok(Frame::data(part.unwrap_or_default())));
            Response::new(BodyExt::boxed(StreamBody::new(SyncStream(parts))))
        }
        // all of it, then the answer
        "/sink" => {
            let body = request.into_body().collect().await?.to_bytes();
            Response::new(full(body.len().to_string()))
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Response::new(full(name))
        }
        "/events" => {
            let events = futures::stream::unfold(0, |number| async move {
                if number > 0 {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                Some((
                    Ok(Frame::data(Bytes::from(format!("data: {number}\n\n")))),
                    number + 1,
                ))
            });
            Response::builder()
                .header("content-type", "text/event-stream")
                .body(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(
                    events,
                )))))
                .unwrap()
        }
        // a stream of events that comes to its end
        "/event" => Response::builder()
            .header("content-type", "text/event-stream")
            .body(full("data: 0\n\n"))
            .unwrap(),
        // more than all buffers on the way hold
        "/large" => Response::new(full(vec![7; 32 << 20])),
        path => {
            let status = path.strip_prefix("/status/");
            let status = status.and_then(|status| status.parse().ok());
            let mut response = Response::new(full(name));
            *response.status_mut() = status.unwrap_or(StatusCode::OK);
            response
        }
    })
}

/// Says that a stream that is only ever polled from one place may be shared, as `BoxBody` wants it.
struct SyncStream<S>(S);

impl<S: futures::Stream + Unpin> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.poll_next_unpin(context)
    }
}

pub(crate) fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).boxed()
}

pub(crate) fn empty() -> Body {
    Empty::new().boxed()
}

pub(crate) fn get(host: &str, path: &str) -> Request<Body> {
    Request::builder()
        .uri(path)
        .header("host", host)
        .body(empty())
        .unwrap()
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }
}

pub(crate) type Http1 = hyper::client::conn::http1::SendRequest<Body>;
pub(crate) type Http2 = hyper::client::conn::http2::SendRequest<Body>;

pub(crate) async fn http1(address: SocketAddr) -> Http1 {
    http1_on(TcpStream::connect(address).await.unwrap()).await
}

pub(crate) async fn http2(address: SocketAddr) -> Http2 {
    http2_on(TcpStream::connect(address).await.unwrap()).await
}

/// On a connection that is there, with or without TLS.
pub(crate) async fn http1_on(stream: impl Duplex) -> Http1 {
    let (client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn http2_on(stream: impl Duplex) -> Http2 {
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    client
}

/// What a connection is made of.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Duplex for T {}

/// One request on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, request: Request<Body>) -> Answer {
    let mut client = http1(address).await;
    let response = tokio::time::timeout(SOON, client.send_request(request))
        .await
        .unwrap()
        .unwrap();
    Answer::read(response).await
}

/// One request on an HTTP/2 connection of its own.
pub(crate) async fn ask2(address: SocketAddr, host: &str, path: &str) -> Answer {
    let mut client = http2(address).await;
    let request = Request::builder()
        .uri(format!("http://{host}{path}"))
        .body(empty())
        .unwrap();
    let response = tokio::time::timeout(SOON, client.send_request(request))
        .await
        .unwrap()
        .unwrap();
    Answer::read(response).await
}
