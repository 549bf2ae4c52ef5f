//! `GET /metrics`, and nothing else, on an address of its own: what is counted is nobody's who only asks for a page.
//!
//! One request per connection, few connections, all within a bound. The proxy library is not asked: a page that tells
//! of its trouble must not depend on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::text;
use crate::server::Edge;
use crate::sockets;

/// Connections at a time; others wait.
const CONNECTIONS: usize = 8;
/// Longest request.
const REQUEST_MAX: usize = 8 << 10;
/// For a request and its answer together.
const BOUND: Duration = Duration::from_secs(10);

/// Answers at `address` until the edge ends; returns the address with port 0 replaced.
pub(crate) fn listen(edge: &Arc<Edge>, address: SocketAddr) -> io::Result<SocketAddr> {
    let listener = sockets::tcp_listener(address)?;
    let address = listener.local_addr()?;
    tokio::spawn(accept(listener, Arc::clone(edge)));
    Ok(address)
}

async fn accept(listener: TcpListener, edge: Arc<Edge>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let accept = |context: &mut Context<'_>| listener.poll_accept(context);
        let (stream, _) = sockets::accepted("metrics", accept).await;
        let edge = Arc::clone(&edge);
        tokio::spawn(async move {
            let _place = place;
            // who goes away or is too slow gets no page
            let _ = timeout(BOUND, answer(stream, &edge)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, edge: &Edge) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() >= REQUEST_MAX || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request.split(|byte| *byte == b'\r').next();
    let mut words = line.unwrap_or_default().split(|byte| *byte == b' ');
    let (status, page) = match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics")) => ("200 OK", text::page(edge).await),
        (Some(b"GET"), _) => ("404 Not Found", "404: the page is /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "405: GET only\n".to_owned()),
    };
    let header = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nAllow: GET\r\nConnection: close\r\n\r\n",
        page.len()
    );
    stream.write_all(header.as_bytes()).await?;
    stream.write_all(page.as_bytes()).await?;
    stream.shutdown().await
}
