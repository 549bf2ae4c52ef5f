//! One check: a request to a node, and whether its answer is a good one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use offshoot_model::traffic::{Check, ProxyVersion};

use crate::plain;

/// Most of a body that is looked at, bytes.
const BODY_MAX: usize = 64 << 10;

/// What is asked, of every node of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) check: Check,
    /// `Host` of the request.
    pub(super) host: String,
    pub(super) proxy: Option<ProxyVersion>,
}

impl Question {
    /// Asks a node: what came of it in a few words, as [`Ok`] when it is well.
    pub(super) async fn ask(&self, address: SocketAddr) -> Result<String, String> {
        let bound = Duration::from_millis(self.check.timeout_ms);
        match tokio::time::timeout(bound, self.exchange(address)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer in {} ms", bound.as_millis())),
        }
    }

    async fn exchange(&self, address: SocketAddr) -> Result<String, String> {
        let request = Request::get(&self.check.path)
            .header(HOST, &self.host)
            .header(USER_AGENT, "offshoot-check")
            .header(CONNECTION, "close")
            .body(Full::<Bytes>::default())
            .map_err(|error| format!("cannot be asked for: {error}"))?;
        let began = Instant::now();
        let (mut sender, connection) = plain::connect(address, self.proxy)
            .await
            .map_err(|error| plain::in_words(&error))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let status = answer.status().as_u16();
            let with_text = match &self.check.body {
                Some(text) => contains(answer.into_body(), text.as_bytes()).await?,
                None => true,
            };
            let ms = began.elapsed().as_millis();
            if !self.is_good(status) {
                Err(format!("{status} in {ms} ms"))
            } else if !with_text {
                Err(format!("{status} in {ms} ms, without the text"))
            } else {
                Ok(format!("{status} in {ms} ms"))
            }
        };
        // the connection does the reading and writing; that it ends is said by the answer
        tokio::select! {
            biased;
            answer = answer => answer,
            () = async { let _ = connection.await; std::future::pending().await } => Err(String::new()),
        }
    }

    fn is_good(&self, status: u16) -> bool {
        let ranges = self.check.statuses.iter();
        ranges
            .into_iter()
            .any(|(from, to)| (*from..=*to).contains(&status))
    }
}

/// Whether the first part of a body has this text in it.
async fn contains(mut body: Incoming, text: &[u8]) -> Result<bool, String> {
    let mut begin: Vec<u8> = Vec::new();
    let mut searched = 0;
    loop {
        let rest = begin.get(searched..).unwrap_or_default();
        if rest.windows(text.len().max(1)).any(|window| window == text) {
            return Ok(true);
        }
        searched = begin.len().saturating_sub(text.len());
        if begin.len() >= BODY_MAX {
            return Ok(false);
        }
        match body.frame().await {
            Some(frame) => {
                let frame = frame.map_err(broken)?;
                let data = frame.data_ref().map_or(&[][..], |data| data);
                let rest = BODY_MAX - begin.len();
                begin.extend_from_slice(data.get(..rest).unwrap_or(data));
            }
            None => return Ok(false),
        }
    }
}

fn broken(error: hyper::Error) -> String {
    if error.is_parse() {
        format!("the answer is not HTTP: {error}")
    } else {
        "the connection ended before the answer".to_owned()
    }
}
