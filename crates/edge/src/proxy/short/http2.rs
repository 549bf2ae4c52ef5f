//! Clients by HTTP/2.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use pingora_core::protocols::http::v2::server::HttpSession;
use pingora_http::ResponseHeader;

use super::super::Http;
use super::answer::{End, Part};
use super::request::Request;
use super::{Asked, Client, Downstream, Next};

impl Http {
    /// Answers a request, unless it goes the whole way: `Some`, with what is known when a node has it already.
    pub(in super::super) async fn short_http2(
        &self,
        session: &mut HttpSession,
        client: &Client<'_>,
    ) -> Option<Option<Arc<Asked>>> {
        let request = Some(session.req_header()).filter(|_| session.is_body_empty());
        let request = request
            .and_then(|request| Request::of_http2(request, client.address.ip(), client.scheme));
        let Some(request) = request else {
            return Some(None);
        };
        match self.plain(&request, client, session).await {
            Next::Request | Next::Close => None,
            Next::Whole(asked) => Some(asked),
        }
    }
}

/// Dropped before its end it tells the client that the answer is not complete.
impl Downstream for HttpSession {
    const PROTOCOL: &str = "h2";
    type Head = Box<ResponseHeader>;

    async fn left(&mut self) {
        let _ = self.idle().await;
    }

    async fn send(
        &mut self,
        head: Option<Box<ResponseHeader>>,
        part: &Part,
        read: &mut BytesMut,
    ) -> io::Result<()> {
        let end = part.end != End::NotYet;
        let content = content(part, read);
        let only_head = head.is_some() && content.is_empty();
        if let Some(head) = head {
            self.write_response_header(head, end && only_head)
                .map_err(io::Error::other)?;
        }
        if only_head || (content.is_empty() && !end) {
            return Ok(());
        }
        self.write_body(content, end)
            .await
            .map_err(io::Error::other)
    }
}

/// What of the bytes read is content: HTTP/2 has frames of its own instead of chunks.
fn content(part: &Part, read: &mut BytesMut) -> Bytes {
    if let [run] = part.content.as_slice() {
        let mut content = read.split_to(run.end.min(read.len()));
        content.advance(run.start.min(content.len()));
        return content.freeze();
    }
    let runs = part.content.iter();
    let runs: Vec<_> = runs.filter_map(|run| read.get(run.clone())).collect();
    runs.concat().into()
}
