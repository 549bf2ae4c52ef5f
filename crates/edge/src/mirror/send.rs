//! Sending a copy to the mirror, and reading its answer.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use offshoot_model::traffic::ProxyVersion;
use pingora_http::RequestHeader;

use super::answer::Answer;
use crate::plain::{self, Sender};
use crate::table::{Target, Upstream};

/// Tells the mirror that nobody waits for the answer.
pub(crate) const MARK: HeaderName = HeaderName::from_static("x-offshoot-mirror");

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Connections that are kept without use, and for how long.
const KEPT: usize = 64;
const KEPT_FOR: Duration = Duration::from_secs(30);
/// Fields that are about the connection that a request came on.
const OF_CONNECTIONS: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Connections to a mirror that wait for their next request.
#[derive(Default)]
pub(super) struct Connections {
    kept: Mutex<Vec<Kept>>,
}

struct Kept {
    key: u64,
    since: Instant,
    sender: Sender,
}

/// A request for the mirror like the one that was sent to a side; `None` when it cannot be written again.
pub(super) fn request(header: &RequestHeader, body: Vec<u8>) -> Option<Request<Full<Bytes>>> {
    let uri = Uri::try_from(header.raw_path()).ok()?;
    let mut request = Request::builder()
        .method(header.method.clone())
        .uri(uri)
        .body(Full::new(Bytes::from(body)))
        .ok()?;
    let fields = header.headers.iter();
    for (name, value) in fields.filter(|(name, _)| !OF_CONNECTIONS.contains(name)) {
        request.headers_mut().append(name, value.clone());
    }
    request
        .headers_mut()
        .insert(MARK, HeaderValue::from_static("1"));
    Some(request)
}

impl Connections {
    /// Sends a request to a node and reads the whole answer; `None` when there is none.
    pub(super) async fn exchange(
        &self,
        target: &Target,
        proxy: Option<ProxyVersion>,
        request: Request<Full<Bytes>>,
    ) -> Option<Answer> {
        // as with visitors' requests: what must not be sent twice gets a connection that nobody is just closing
        if request.method().is_idempotent()
            && let Some((node, mut sender)) = self.kept(target)
            && let Ok(answer) = sender.send_request(request.clone()).await
        {
            return self.read(answer, node, sender).await;
        }
        let turn = target.turn();
        for tried in 0..target.upstreams.len() {
            let node = target.upstream(turn, tried)?;
            let connected = plain::connect(node.address, proxy);
            let Ok(Ok((mut sender, connection))) = tokio::time::timeout(CONNECT, connected).await
            else {
                continue;
            };
            tokio::spawn(connection);
            let answer = sender.send_request(request).await.ok()?;
            return self.read(answer, node, sender).await;
        }
        None
    }

    async fn read(
        &self,
        answer: http::Response<Incoming>,
        node: Upstream,
        mut sender: Sender,
    ) -> Option<Answer> {
        let (head, mut body) = answer.into_parts();
        let mut answer = Answer::new(head.status.as_u16(), head.headers);
        while let Some(frame) = body.frame().await {
            if let Some(part) = frame.ok()?.data_ref() {
                answer.add(part);
            }
        }
        // it is, in a moment, unless the node closes it
        if sender.ready().await.is_ok() {
            self.keep(node, sender);
        }
        Some(answer)
    }

    fn keep(&self, node: Upstream, sender: Sender) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(Kept {
                key: node.key,
                since: Instant::now(),
                sender,
            });
        }
    }

    /// The connection that was used last, of those to nodes that are still there.
    fn kept(&self, target: &Target) -> Option<(Upstream, Sender)> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(last) = kept.pop() {
            let node = target.upstreams.iter().find(|node| node.key == last.key);
            if last.since.elapsed() < KEPT_FOR
                && last.sender.is_ready()
                && let Some(node) = node
            {
                return Some((*node, last.sender));
            }
        }
        None
    }
}
