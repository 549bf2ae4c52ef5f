//! An edge that is told to stop: what is under way ends well, and nothing new begins.

use std::time::Instant;

use bytes::Bytes;
use h2::client::SendRequest;
use hyper::{Request, StatusCode};
use offshoot_edge_api::EdgeControl;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::kit::{A, Answer, SOON, Server, TestEdge, get, http1, route, routes, signal, until};
use crate::service::{Service, call, message, next};

/// A call that is begun and answered on this connection, or why not.
async fn unary(client: &SendRequest<Bytes>) -> Result<StatusCode, h2::Error> {
    let mut client = client.clone().ready().await?;
    let request = Request::post("http://a.org/unary")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (answer, _) = client.send_request(request, true)?;
    Ok(answer.await?.status())
}

#[tokio::test]
async fn http2_connections_are_told_and_end_with_their_last_call() {
    let edge = TestEdge::with(|config| config.limits.drain_seconds = 60);
    let a = Service::start("a").await;
    edge.serve(&routes(1, vec![route("a.org", A, &[a.address])]));
    let stream = TcpStream::connect(edge.http()).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    assert_eq!(unary(&client).await.unwrap(), StatusCode::OK);
    let mut both = call(&client, "http://a.org/echo", &[]).await;
    let mut body = (&mut both.response).await.unwrap().into_body();
    let idle = TcpStream::connect(edge.http()).await.unwrap();
    let (_idle, idle) = h2::client::handshake(idle).await.unwrap();
    let idle = tokio::spawn(idle);

    let began = Instant::now();
    signal("TERM", edge.status.pid);
    // GOAWAY without an error: what is under way goes on, and clients begin nothing new here (RFC 9113, 6.8)
    let refused = async {
        while let Ok(status) = unary(&client).await {
            assert_eq!(status, StatusCode::OK);
        }
    };
    timeout(SOON, refused).await.expect("it takes new calls");
    timeout(SOON, idle).await.unwrap().unwrap().unwrap();
    for text in [&b"still"[..], b"here"] {
        both.send.send_data(message(text), false).unwrap();
        let mut back = Vec::new();
        while back.len() < message(text).len() {
            let part = timeout(SOON, next(&mut body)).await.unwrap();
            back.extend_from_slice(&part.unwrap().unwrap());
        }
        assert_eq!(back, message(text));
    }
    assert!(!connection.is_finished());
    both.send.send_data(Bytes::new(), true).unwrap();
    assert!(next(&mut body).await.is_none());
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    timeout(SOON, connection).await.unwrap().unwrap().unwrap();
    let gone = || EdgeControl::connect(&edge.config.control).is_err();
    until("the edge ends", gone).await;
    assert!(began.elapsed() < SOON, "long before its bound");
}

#[tokio::test]
async fn http1_connections_end_with_their_answer() {
    let edge = TestEdge::with(|config| config.limits.drain_seconds = 60);
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.org", A, &[a.address])]));
    let mut kept = http1(edge.http()).await;
    let answer = kept.send_request(get("a.org", "/")).await.unwrap();
    assert_eq!(Answer::read(answer).await.text(), "a");
    let mut silent = TcpStream::connect(edge.http()).await.unwrap();
    let mut busy = http1(edge.http()).await;
    let slow = busy.send_request(get("a.org", "/slow"));
    let requests = || a.requests.load(std::sync::atomic::Ordering::SeqCst);
    let slow = tokio::spawn(slow);
    until("it is asked", || requests() == 2).await;

    signal("TERM", edge.status.pid);
    // who has not asked is let go at once, long before the slow answer
    let end = timeout(SOON, silent.read(&mut [0])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    until("kept connections end", || kept.is_closed()).await;
    assert!(!slow.is_finished());
    let answer = timeout(SOON, slow).await.unwrap().unwrap().unwrap();
    assert_eq!(Answer::read(answer).await.text(), "a");
    let gone = || EdgeControl::connect(&edge.config.control).is_err();
    until("the edge ends", gone).await;
    assert!(TcpStream::connect(edge.http()).await.is_err());
}
