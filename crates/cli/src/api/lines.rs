//! NDJSON: one JSON document per line.

use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use offshoot_model::Problem;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::Client;

/// Longest line in bytes.
const LINE_MAX: usize = 4 << 20;

/// The lines of a response.
pub(crate) struct Lines {
    client: Client,
    body: Incoming,
    buffer: BytesMut,
    /// How far `buffer` was searched for a line end.
    searched: usize,
    /// Longest wait for the next piece; without one for live streams.
    wait: Option<Duration>,
    ended: bool,
}

impl Lines {
    /// Reads `body` line by line, waiting at most `wait` for each piece.
    pub(crate) fn new(client: &Client, body: Incoming, wait: Option<Duration>) -> Self {
        Self {
            client: client.clone(),
            body,
            buffer: BytesMut::new(),
            searched: 0,
            wait,
            ended: false,
        }
    }

    /// The next document; `None` at the end of the stream.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Problem> {
        loop {
            while let Some(line) = self.take_line()? {
                if !line.iter().all(u8::is_ascii_whitespace) {
                    return parse(&line).map(Some);
                }
            }
            if self.ended {
                return Ok(None);
            }
            let frame = match self.wait {
                Some(wait) => timeout(wait, self.body.frame()).await.map_err(|_| {
                    self.client
                        .unreachable(&format!("the answer stopped for {} s", wait.as_secs()))
                })?,
                None => self.body.frame().await,
            };
            match frame {
                Some(frame) => {
                    if let Ok(data) = frame
                        .map_err(|error| self.client.broken(&error))?
                        .into_data()
                    {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => self.ended = true,
            }
        }
    }

    fn take_line(&mut self) -> Result<Option<BytesMut>, Problem> {
        let end = self
            .buffer
            .iter()
            .skip(self.searched)
            .position(|&byte| byte == b'\n');
        if let Some(end) = end {
            let line = self.buffer.split_to(self.searched + end + 1);
            self.searched = 0;
            return Ok(Some(line));
        }
        self.searched = self.buffer.len();
        if self.buffer.len() > LINE_MAX {
            return Err(Problem::internal(format!(
                "the daemon sent a line of more than {LINE_MAX} bytes"
            )));
        }
        if self.ended && !self.buffer.is_empty() {
            self.searched = 0;
            return Ok(Some(self.buffer.split()));
        }
        Ok(None)
    }
}

/// A line is what was asked for, or the problem that ended the stream.
fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(line).map_err(|error| {
        serde_json::from_slice::<Problem>(line).unwrap_or_else(|_| {
            Problem::internal(format!("a line from the daemon is not understood: {error}"))
        })
    })
}
