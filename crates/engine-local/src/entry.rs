//! One request straight to an entry node, as the edge would send it: whether it is ready for people.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use offshoot_model::{Environment, Node};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for one answer, from connecting to the end of its body.
const ANSWER: Duration = Duration::from_secs(10);
/// Most of a body that is read: what matters is that the node gets so far.
const BODY_MAX: usize = 1 << 20;

/// `GET path` with `host` as its host: the status, or why there is none.
pub(crate) async fn ask(
    environment: &Environment,
    node: &Node,
    host: &str,
    path: &str,
) -> Result<u16, String> {
    let (_, port) = environment
        .manifest
        .entry()
        .ok_or_else(|| format!("environment {} has no entry", environment.name))?;
    let address = SocketAddr::new(environment.placement.outer_at(node.host).into(), port);
    match timeout(ANSWER, exchange(address, host, path)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

async fn exchange(address: SocketAddr, host: &str, path: &str) -> Result<u16, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| format!("it accepts no connection: {error}"))?;
    let broken = |error: hyper::Error| format!("its answer broke off or is not HTTP: {error}");
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get(path)
        .header("host", host)
        .header("user-agent", "offshoot-warm")
        .header("x-forwarded-host", host)
        .header("x-forwarded-proto", "http")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("it cannot be asked for: {error}"))?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let (head, mut body) = answer.into_parts();
        let mut seen = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(broken)?;
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > BODY_MAX {
                break;
            }
        }
        Ok(head.status.as_u16())
    };
    // The connection does the reading and writing; the answer is there before it ends, or it says why not.
    tokio::select! {
        biased;
        answer = answer => answer,
        ended = async {
            match connection.await {
                Ok(()) => std::future::pending().await,
                Err(error) => error,
            }
        } => Err(broken(ended)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Asks a server that answers these bytes; gives the outcome and what it was asked.
    async fn told(answer: &'static [u8]) -> (Result<u16, String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut buffer = [0; 512];
                let read = stream.read(&mut buffer).await.unwrap();
                assert!(read > 0, "the request ends");
                asked.extend_from_slice(&buffer[..read]);
            }
            stream.write_all(answer).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        let outcome = exchange(address, "shop.test", "/login?a=1").await;
        (outcome, server.await.unwrap())
    }

    #[tokio::test]
    async fn the_host_is_asked_for_and_the_status_told() {
        let (status, asked) = told(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno").await;
        assert_eq!(status, Ok(503));
        assert!(asked.starts_with("GET /login?a=1 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nhost: shop.test\r\n"), "{asked}");
        let (status, _) = told(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
        assert_eq!(status, Ok(200));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_said() {
        for bytes in [
            &b"SSH-2.0-x\r\n"[..],
            b"",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nno",
        ] {
            let (outcome, _) = told(bytes).await;
            let why = outcome.unwrap_err();
            assert!(why.contains("broke off or is not HTTP"), "{why}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let why = exchange(address, "a", "/").await.unwrap_err();
        assert!(why.contains("accepts no connection"), "{why}");
    }
}
