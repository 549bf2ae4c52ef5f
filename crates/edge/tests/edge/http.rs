//! What is proxied arrives, both ways, in every protocol.

use std::time::Instant;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Request, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::kit::{A, B, Body, Server, TestEdge, ask, ask2, get, http1, http2, route, routes};

#[tokio::test]
async fn host_names_choose_the_environment() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    edge.serve(&routes(
        1,
        vec![
            route("shop.localhost", A, &[a.address]),
            route("b.localhost", B, &[b.address]),
        ],
    ));
    for host in [
        "shop.localhost",
        "SHOP.localhost",
        "shop.localhost.",
        "shop.localhost:8080",
    ] {
        assert_eq!(ask(edge.http(), get(host, "/")).await.text(), "a", "{host}");
    }
    assert_eq!(ask(edge.http(), get("b.localhost", "/")).await.text(), "b");
    assert_eq!(ask2(edge.http(), "b.localhost", "/").await.text(), "b");
    assert_eq!(
        ask2(edge.http(), "Shop.localhost:99", "/").await.text(),
        "a"
    );
    match edge.status.listen.get(1) {
        Some(six) => assert_eq!(ask(*six, get("b.localhost", "/")).await.text(), "b"),
        None => println!("SKIPPED: the host has no IPv6"),
    }
    assert!(edge.control().status().unwrap().requests >= 7);
}

#[tokio::test]
async fn headers_arrive_as_they_should() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("shop.localhost", A, &[a.address])]));
    let request = Request::builder()
        .uri("/headers")
        .header("host", "Shop.localhost:8080")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-real-ip", "6.6.6.6")
        .header("forwarded", "for=6.6.6.6")
        .header("proxy", "http://evil")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("keep-alive", "timeout=5")
        .header("te", "gzip")
        .header("cookie", "a=b")
        .body(crate::kit::empty())
        .unwrap();
    let answer = ask(edge.http(), request).await;
    let mut fields: Vec<_> = answer.text().lines().collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "cookie: a=b",
            "host: Shop.localhost:8080",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: Shop.localhost:8080",
            "x-forwarded-proto: http",
        ]
    );
    let answer = ask2(edge.http(), "shop.localhost", "/headers").await;
    assert!(
        answer.text().contains("host: shop.localhost\n"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn websockets_pass_and_may_be_silent() {
    let edge = TestEdge::with(|config| config.limits.client_seconds = 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    });
    edge.serve(&routes(1, vec![route("ws.localhost", A, &[address])]));
    let request = "ws://ws.localhost/".into_client_request().unwrap();
    let stream = TcpStream::connect(edge.http()).await.unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
        // longer than what a request's body may pause
        tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    }
    let big = Message::binary(vec![7u8; 1 << 20]);
    socket.send(big.clone()).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), big);
}

/// A body whose parts are sent when the test says so.
fn parts() -> (futures::channel::mpsc::UnboundedSender<Bytes>, Body) {
    let (send, receive) = futures::channel::mpsc::unbounded::<Bytes>();
    (
        send,
        BodyExt::boxed(StreamBody::new(receive.map(|part| Ok(Frame::data(part))))),
    )
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    for version in [1, 2] {
        let (send, body) = parts();
        send.unbounded_send(Bytes::from_static(b"begin")).unwrap();
        let request = Request::post("http://a.localhost/echo").header("host", "a.localhost");
        let response = if version == 1 {
            http1(edge.http())
                .await
                .send_request(request.body(body).unwrap())
                .await
                .unwrap()
        } else {
            http2(edge.http())
                .await
                .send_request(request.body(body).unwrap())
                .await
                .unwrap()
        };
        assert_eq!(response.status(), StatusCode::OK);
        let mut echo = response.into_body().into_data_stream();
        assert_eq!(&echo.next().await.unwrap().unwrap()[..], b"begin");
        // each part is only sent once the one before has come back
        for number in 0..100u32 {
            let part = Bytes::from(format!("part {number} {}", "x".repeat(3_000)));
            send.unbounded_send(part.clone()).unwrap();
            let mut back = Vec::new();
            while back.len() < part.len() {
                back.extend_from_slice(&echo.next().await.unwrap().unwrap());
            }
            assert_eq!(back, part);
        }
        drop(send);
        while let Some(end) = echo.next().await {
            // HTTP/2 may end with an empty frame
            assert!(end.unwrap().is_empty(), "HTTP/{version}");
        }
    }
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    const PARTS: usize = 1_024;
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    let part = Bytes::from(vec![42u8; 64 << 10]);
    let stream = futures::stream::iter(
        std::iter::repeat_n(part.clone(), PARTS).map(|part| Ok(Frame::data(part))),
    );
    let request = Request::post("/echo")
        .header("host", "a.localhost")
        .body(BodyExt::boxed(StreamBody::new(stream)));
    let response = http1(edge.http())
        .await
        .send_request(request.unwrap())
        .await
        .unwrap();
    let mut echo = response.into_body().into_data_stream();
    let mut size = 0;
    while let Some(back) = echo.next().await {
        let back = back.unwrap();
        assert!(back.iter().all(|byte| *byte == 42));
        size += back.len();
    }
    assert_eq!(size, PARTS * part.len());
}

#[tokio::test]
async fn events_arrive_when_they_are_sent() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    let begin = Instant::now();
    let response = http1(edge.http())
        .await
        .send_request(get("a.localhost", "/events"))
        .await
        .unwrap();
    let mut events = response.into_body().into_data_stream();
    assert_eq!(&events.next().await.unwrap().unwrap()[..], b"data: 0\n\n");
    assert!(
        begin.elapsed().as_millis() < 300,
        "the first event waited for the second"
    );
    assert_eq!(&events.next().await.unwrap().unwrap()[..], b"data: 1\n\n");
}

/// An environment is frozen for up to 5 s while it is cloned: its clients wait.
#[tokio::test]
async fn five_seconds_of_silence_are_waited_for() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    let (one, two) = tokio::join!(
        ask(edge.http(), get("a.localhost", "/slow")),
        ask2(edge.http(), "a.localhost", "/slow")
    );
    assert_eq!((one.text(), two.text()), ("a", "a"));
}

#[tokio::test]
async fn connections_to_servers_are_kept() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    for _ in 0..10 {
        assert_eq!(ask(edge.http(), get("a.localhost", "/")).await.text(), "a");
    }
    assert_eq!(a.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

/// The server answers the handshake at once, again and again: the connection must always come to be.
#[tokio::test(flavor = "multi_thread")]
async fn many_websockets_come_to_be() {
    let edge = TestEdge::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                if let Some(Ok(message)) = socket.next().await {
                    let _ = socket.send(message).await;
                }
            });
        }
    });
    edge.serve(&routes(1, vec![route("ws.localhost", A, &[address])]));
    for number in 0..500 {
        let request = "ws://ws.localhost/".into_client_request().unwrap();
        let stream = TcpStream::connect(edge.http()).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
            .await
            .unwrap();
        let message = Message::text(number.to_string());
        socket.send(message.clone()).await.unwrap();
        assert_eq!(
            socket.next().await.unwrap().unwrap(),
            message,
            "connection {number}"
        );
    }
}
