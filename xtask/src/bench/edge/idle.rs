//! What a connection costs that waits for its next request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};

use super::servers::{HOST, Server};
use crate::interrupt;

/// What one server needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Idle {
    /// Memory of its own for each connection.
    pub(super) bytes_per_connection: f64,
}

/// Opens that many connections, one request each, and looks at the server's memory before and after.
pub(super) fn measure(server: &Server, connections: usize) -> anyhow::Result<Idle> {
    // what the first connections bring along is not theirs
    let warm: Vec<_> = (0..64)
        .map(|_| asked(server.http))
        .collect::<anyhow::Result<_>>()?;
    let before = server.memory();
    let mut kept = Vec::with_capacity(connections);
    for _ in 0..connections {
        interrupt::check()?;
        kept.push(asked(server.http)?);
    }
    let after = server.memory();
    drop(warm);
    #[expect(clippy::cast_precision_loss, reason = "bytes for people")]
    let bytes_per_connection = after.saturating_sub(before) as f64 / connections as f64;
    Ok(Idle {
        bytes_per_connection,
    })
}

/// A connection that was asked something, was answered, and is kept.
fn asked(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET /1k HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let read = stream.read(&mut part).context("no answer")?;
        answer.extend_from_slice(part.get(..read).unwrap_or_default());
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
        if head.is_some_and(|head| answer.len() >= head + 4 + 1024) {
            return Ok(stream);
        }
        if read == 0 {
            bail!(
                "the connection was closed: {}",
                String::from_utf8_lossy(&answer)
            );
        }
    }
}
