//! The control socket: JSON lines, one request and one answer each.

use std::io;
use std::sync::Arc;
use std::task::Context as Task;
use std::time::Duration;

use anyhow::Context;
use offshoot_edge_api::{CONTROL_LINE_MAX, ControlRequest, Refusal};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::server::Edge;
use crate::sockets;

/// Requests are short, at most some thousand environments' ids; answers may be long.
const REQUEST_MAX: u64 = 64 << 10;
const CLIENTS: usize = 32;
const IDLE: Duration = Duration::from_secs(600);
const WRITE: Duration = Duration::from_secs(10);

/// Listens on the control socket. The pid file's lock is held, so a file that is there is a former edge's.
pub(crate) fn listen(edge: &Arc<Edge>) -> anyhow::Result<JoinHandle<()>> {
    let path = &edge.config.control;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot remove {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok(tokio::spawn(accept(listener, Arc::clone(edge))))
}

async fn accept(listener: UnixListener, edge: Arc<Edge>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let accept = |context: &mut Task<'_>| listener.poll_accept(context);
        let (stream, _) = sockets::accepted("control socket", accept).await;
        let edge = Arc::clone(&edge);
        tokio::spawn(async move {
            let _place = place;
            // a client that goes away or is silent for too long is nobody's problem
            let _ = answer_all(stream, &edge).await;
        });
    }
}

async fn answer_all(stream: UnixStream, edge: &Arc<Edge>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut read).take(REQUEST_MAX);
        tokio::time::timeout(IDLE, limited.read_until(b'\n', &mut line)).await??;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(ControlRequest::Reload(true)) => match edge.reload().await {
                Ok(reloaded) => to_line(&reloaded),
                Err(refusal) => to_line(&refusal),
            },
            Ok(ControlRequest::Status(true)) => to_line(&edge.status().await),
            Ok(ControlRequest::Stats(of)) => {
                let line = to_line(&edge.stats(&of));
                if line.len() as u64 <= CONTROL_LINE_MAX {
                    line
                } else {
                    to_line(&Refusal::of_request(
                        "these counts are longer than an answer: ask for fewer environments'",
                    ))
                }
            }
            Ok(ControlRequest::Back(owner)) => match edge.back(&owner) {
                Some(stats) => to_line(&stats),
                None => to_line(&Refusal::of_request(format!(
                    "{owner} has no policy with checks"
                ))),
            },
            Ok(_) => to_line(&Refusal::of_request("nothing was asked")),
            Err(error) => to_line(&Refusal::of_request(format!("not understood: {error}"))),
        };
        tokio::time::timeout(WRITE, write.write_all(&answer)).await??;
    }
}

fn to_line(answer: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_else(|e| {
        format!("{{\"error\":\"the answer cannot be written: {e}\"}}").into_bytes()
    });
    line.push(b'\n');
    line
}
