//! A gRPC service by its frames, and its clients.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use hyper::{HeaderMap, Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::kit::{Duplex, SOON};

/// What happened.
#[derive(Default)]
struct State {
    calls: AtomicUsize,
    connections: AtomicUsize,
    /// How clients ended calls.
    resets: Mutex<Vec<Reason>>,
    /// How many calls are refused before one is not.
    refuses: AtomicUsize,
}

pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    pub(crate) async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            // ends its connections with it
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                serving.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(serve(name, stream, Arc::clone(&serving)));
            }
        });
        Self {
            address,
            state,
            task,
        }
    }

    pub(crate) fn calls(&self) -> usize {
        self.state.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn resets(&self) -> Vec<Reason> {
        self.state.resets.lock().unwrap().clone()
    }

    pub(crate) fn refuse(&self, calls: usize) {
        self.state.refuses.store(calls, Ordering::SeqCst);
    }
}

async fn serve(name: &'static str, stream: TcpStream, state: Arc<State>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        state.calls.fetch_add(1, Ordering::SeqCst);
        let less = |left: usize| left.checked_sub(1);
        if state
            .refuses
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
            .is_ok()
        {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        match request.uri().path() {
            // without a word
            "/drop" => return,
            // an answer, and no more calls on this connection
            "/last" => connection.graceful_shutdown(),
            _ => {}
        }
        tokio::spawn(answer(name, request, respond, Arc::clone(&state)));
    }
}

/// A message in its frame of gRPC: not compressed, its length in four bytes.
pub(crate) fn message(content: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(content.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(content.len()).unwrap());
    framed.put_slice(content);
    framed.freeze()
}

fn status(code: u16) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.into())])
}

async fn answer(
    name: &'static str,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    state: Arc<State>,
) {
    let (head, mut body) = request.into_parts();
    let mut response = Response::builder()
        .header("content-type", "application/grpc")
        .header("x-side", name);
    if head.uri.path() == "/fail" {
        // a status and nothing else
        response = response.header("grpc-status", "5");
        respond
            .send_response(response.body(()).unwrap(), true)
            .unwrap();
        return;
    }
    let mut send = respond
        .send_response(response.body(()).unwrap(), false)
        .unwrap();
    match head.uri.path() {
        // every part as it comes
        "/echo" => {
            while let Some(Ok(part)) = body.data().await {
                body.flow_control().release_capacity(part.len()).unwrap();
                send.send_data(part, false).unwrap();
            }
        }
        // the same, but reads no more than its client takes
        "/patient" => {
            while let Some(Ok(mut part)) = body.data().await {
                let size = part.len();
                while !part.is_empty() {
                    send.reserve_capacity(part.len());
                    let room = std::future::poll_fn(|context| send.poll_capacity(context)).await;
                    let Some(Ok(room)) = room else { return };
                    let now = part.split_to(room.min(part.len()));
                    send.send_data(now, false).unwrap();
                }
                body.flow_control().release_capacity(size).unwrap();
            }
        }
        "/list" => {
            for number in 0..100 {
                let number = message(format!("{number}").as_bytes());
                send.send_data(number, false).unwrap();
            }
        }
        "/sum" => {
            let mut sum = 0;
            while let Some(Ok(part)) = body.data().await {
                body.flow_control().release_capacity(part.len()).unwrap();
                sum += part.len();
            }
            let sum = message(sum.to_string().as_bytes());
            send.send_data(sum, false).unwrap();
        }
        "/headers" => {
            let mut text = format!("{}\n", head.uri);
            for (name, value) in &head.headers {
                text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
            }
            send.send_data(text.into(), false).unwrap();
        }
        // until the client has enough
        "/hang" => {
            send.send_data(message(b"begun"), false).unwrap();
            let reset = std::future::poll_fn(|context| send.poll_reset(context)).await;
            state.resets.lock().unwrap().extend(reset.ok());
            return;
        }
        "/slow" => {
            tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
            send.send_data(message(b"at last"), false).unwrap();
        }
        "/reset" => {
            send.send_data(message(b"begun"), false).unwrap();
            // once it is asked for
            let _ = body.data().await;
            send.send_reset(Reason::ENHANCE_YOUR_CALM);
            return;
        }
        "/broken" => {
            send.send_data(message(b"begun"), false).unwrap();
            send.send_trailers(status(13)).unwrap();
            return;
        }
        _ => send.send_data(message(name.as_bytes()), false).unwrap(),
    }
    send.send_trailers(status(0)).unwrap();
}

/// A client's connection.
pub(crate) async fn client(stream: impl Duplex) -> SendRequest<Bytes> {
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn plain(address: SocketAddr) -> SendRequest<Bytes> {
    client(TcpStream::connect(address).await.unwrap()).await
}

/// A call that has begun.
pub(crate) struct Call {
    pub(crate) response: ResponseFuture,
    pub(crate) send: SendStream<Bytes>,
}

/// Begins a call.
pub(crate) async fn call(
    client: &SendRequest<Bytes>,
    address: &str,
    fields: &[(&str, &str)],
) -> Call {
    let mut request = Request::post(address)
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut client = client.clone().ready().await.unwrap();
    let (response, send) = client
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    Call { response, send }
}

/// How a call went.
#[derive(Debug)]
pub(crate) struct Went {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) content: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Went {
    /// The status that the client gets from it.
    pub(crate) fn code(&self) -> &str {
        let code = |fields: &HeaderMap| fields.get("grpc-status").cloned();
        let found = self.trailers.as_ref().and_then(code);
        let found = found.or_else(|| code(&self.headers));
        match found.as_ref().map(|found| found.to_str().unwrap()) {
            Some("0") => "0",
            Some("5") => "5",
            Some("12") => "12",
            Some("13") => "13",
            Some("14") => "14",
            other => panic!("{other:?} in {self:?}"),
        }
    }

    pub(crate) fn side(&self) -> &str {
        self.headers["x-side"].to_str().unwrap()
    }
}

impl Call {
    /// Sends a last message and reads to the end.
    pub(crate) async fn end(mut self, last: Bytes) -> Result<Went, h2::Error> {
        // an error here shows in the answer
        let _ = self.send.send_data(last, true);
        timeout(SOON, self.read()).await.unwrap()
    }

    async fn read(self) -> Result<Went, h2::Error> {
        let (head, mut body) = self.response.await?.into_parts();
        let mut content = Vec::new();
        while let Some(part) = next(&mut body).await {
            content.extend_from_slice(&part?);
        }
        Ok(Went {
            status: head.status,
            headers: head.headers,
            content,
            trailers: body.trailers().await?,
        })
    }
}

/// The next part of an answer.
pub(crate) async fn next(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let part = timeout(SOON, body.data()).await.unwrap()?;
    if let Ok(part) = &part {
        body.flow_control().release_capacity(part.len()).unwrap();
    }
    Some(part)
}
