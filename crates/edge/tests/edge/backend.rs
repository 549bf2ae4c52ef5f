//! A server whose answers a test changes while it runs, and which remembers what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::kit::{Body, full};

/// The path that checks ask for.
pub(crate) const CHECK: &str = "/health";

/// What is answered.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) body: Bytes,
    /// Not before this changes.
    pub(crate) hangs: bool,
    /// The connection is closed instead, after the whole request.
    pub(crate) closes: bool,
    /// Every second answer is 500.
    pub(crate) alternates: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            hangs: false,
            closes: false,
            alternates: false,
        }
    }

    pub(crate) fn hanging(self) -> Self {
        Self {
            hangs: true,
            ..self
        }
    }

    pub(crate) fn closing(self) -> Self {
        Self {
            closes: true,
            ..self
        }
    }

    pub(crate) fn alternating(self) -> Self {
        Self {
            alternates: true,
            ..self
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// What it was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

struct State {
    /// To checks, and to everything else.
    check: watch::Sender<Reply>,
    reply: watch::Sender<Reply>,
    checks: Mutex<Vec<Asked>>,
    asked: Mutex<Vec<Asked>>,
}

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    task: Option<JoinHandle<()>>,
}

impl Backend {
    /// One that is well and answers its name.
    pub(crate) async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(State {
            check: watch::Sender::new(Reply::new(200, "all is well")),
            reply: watch::Sender::new(Reply::new(200, name)),
            checks: Mutex::default(),
            asked: Mutex::default(),
        });
        Self {
            address: listener.local_addr().unwrap(),
            task: Some(tokio::spawn(serve(listener, Arc::clone(&state)))),
            state,
        }
    }

    /// Ends it and all its connections.
    pub(crate) async fn kill(&mut self) {
        let task = self.task.take().unwrap();
        task.abort();
        let _ = task.await;
    }

    /// Starts it at the same address.
    pub(crate) async fn revive(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.task = Some(tokio::spawn(serve(listener, Arc::clone(&self.state))));
    }

    pub(crate) fn check(&self, reply: Reply) {
        self.state.check.send_replace(reply);
    }

    pub(crate) fn reply(&self, reply: Reply) {
        self.state.reply.send_replace(reply);
    }

    /// Checks so far.
    pub(crate) fn checks(&self) -> Vec<Asked> {
        self.state.checks.lock().unwrap().clone()
    }

    /// Everything else so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    // ends its connections with it
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, String> {
    let (head, body) = request.into_parts();
    let asked = Asked {
        method: head.method,
        target: head.uri.to_string(),
        headers: head.headers,
        body: body.collect().await.map_err(|e| e.to_string())?.to_bytes(),
    };
    let (reply, all) = match asked.target.as_str() {
        CHECK => (&state.check, &state.checks),
        _ => (&state.reply, &state.asked),
    };
    let number = {
        let mut all = all.lock().unwrap();
        all.push(asked);
        all.len()
    };
    let reply = reply
        .subscribe()
        .wait_for(|reply| !reply.hangs)
        .await
        .unwrap()
        .clone();
    if reply.closes {
        return Err("closed".to_owned());
    }
    let status = match reply.alternates && number.is_multiple_of(2) {
        true => 500,
        false => reply.status,
    };
    let mut response = Response::builder().status(status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(full(reply.body)).unwrap())
}
