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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Asks a server that answers these parts, and waits for what it is asked first.
    async fn told(parts: Vec<Vec<u8>>, check: Check) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut asked).await.unwrap() > 0);
            }
            for part in parts {
                // it may have seen enough
                let _ = stream.write_all(&part).await;
                tokio::task::yield_now().await;
            }
            String::from_utf8(asked).unwrap()
        });
        let question = Question {
            check,
            host: "a.test".to_owned(),
            proxy: None,
        };
        let outcome = question.ask(address).await;
        let asked = server.await.unwrap();
        assert!(
            asked.starts_with("GET /well?a=b HTTP/1.1\r\nhost: a.test\r\n"),
            "{asked}"
        );
        outcome
    }

    fn check(body: Option<&str>) -> Check {
        Check {
            path: "/well?a=b".to_owned(),
            timeout_ms: 5_000,
            statuses: vec![(200, 204), (404, 404)],
            body: body.map(str::to_owned),
            ..Check::default()
        }
    }

    fn parts(parts: &[&str]) -> Vec<Vec<u8>> {
        parts.iter().map(|part| part.as_bytes().to_vec()).collect()
    }

    #[tokio::test]
    async fn statuses_and_texts_are_looked_at() {
        let ok = told(parts(&["HTTP/1.1 204 No Content\r\n\r\n"]), check(None)).await;
        assert!(ok.unwrap().starts_with("204 in "));
        let not_found = told(parts(&["HTTP/1.1 404 Not Found\r\n\r\n"]), check(None)).await;
        assert!(not_found.is_ok());
        let moved = told(
            parts(&["HTTP/1.1 301 Moved\r\nlocation: /\r\n\r\n"]),
            check(None),
        )
        .await;
        assert!(moved.unwrap_err().starts_with("301 in "));
        let split = parts(&["HTTP/1.1 200 OK\r\n\r\n", "all i", "s wel", "l"]);
        assert!(told(split, check(Some("is well"))).await.is_ok());
        let without = told(
            parts(&["HTTP/1.1 200 OK\r\n\r\nno"]),
            check(Some("is well")),
        )
        .await;
        assert!(without.unwrap_err().ends_with("without the text"));
    }

    #[tokio::test]
    async fn a_text_further_on_is_not_found() {
        for (length, is_found) in [(BODY_MAX - 4, true), (BODY_MAX - 3, false)] {
            let mut answer = parts(&["HTTP/1.1 200 OK\r\n\r\n"]);
            answer.extend([vec![b'x'; length], b"text".to_vec(), vec![b'x'; 10]]);
            let outcome = told(answer, check(Some("text"))).await;
            assert_eq!(outcome.is_ok(), is_found, "{length}: {outcome:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_said() {
        let ssh = told(parts(&["SSH-2.0-x\r\n"]), check(None)).await;
        assert!(ssh.unwrap_err().starts_with("the answer is not HTTP"));
        let nothing = told(vec![], check(None)).await;
        assert_eq!(
            nothing.unwrap_err(),
            "the connection ended before the answer"
        );
        let short = told(
            parts(&["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nno"]),
            check(Some("x")),
        )
        .await;
        assert_eq!(short.unwrap_err(), "the connection ended before the answer");
        let unwritable = Check {
            path: "/a b".to_owned(),
            ..check(None)
        };
        let question = Question {
            check: unwritable,
            host: "a.test".to_owned(),
            proxy: None,
        };
        let outcome = question.ask("127.0.0.1:1".parse().unwrap()).await;
        assert!(outcome.unwrap_err().starts_with("cannot be asked for"));
    }
}
