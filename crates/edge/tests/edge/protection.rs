//! What is refused, and what is answered when nobody else can.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::kit::{A, SOON, Server, TestEdge, ask, ask2, full, get, http1, route, routes};

/// Sends bytes as they are and returns all that comes back until the connection is closed.
async fn raw(edge: &TestEdge, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(edge.http()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // a reset is an end as well
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .expect("the connection stays open");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    let cases = [
        "POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 4, 5\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: +4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a.localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.localhost\r\nHost: b.localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a.localhost\r\n\r\n",
        "GET http://b.localhost/ HTTP/1.1\r\nHost: a.localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.localhost/x\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.localhost\r\nX: a\r\n folded\r\n\r\n",
        "nonsense\r\n\r\n",
    ];
    for case in cases {
        let answer = raw(&edge, case.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 "),
            "{case:?} -> {answer:?}"
        );
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "{case:?} -> {answer:?}"
        );
    }
    assert_eq!(
        a.requests.load(Ordering::SeqCst),
        0,
        "a refused request reached the server"
    );
    assert!(
        raw(
            &edge,
            b"CONNECT a.localhost:80 HTTP/1.1\r\nHost: a.localhost:80\r\n\r\n"
        )
        .await
        .contains(" 405 ")
    );
    let fine = raw(
        &edge,
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(fine.starts_with("HTTP/1.1 200 "), "{fine}");
}

#[tokio::test]
async fn sizes_and_slow_clients_are_bounded() {
    let edge = TestEdge::with(|config| {
        config.limits.header_bytes = 8 << 10;
        config.limits.header_seconds = 1;
    });
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    let large = format!(
        "GET / HTTP/1.1\r\nHost: a.localhost\r\nX: {}\r\n\r\n",
        "x".repeat(9 << 10)
    );
    let answer = raw(&edge, large.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");

    // a header that never ends, a byte now and then: the whole header has its time, not each byte
    for begin in [&b"GET / HTTP/1.1\r\nHost: a.loc"[..], b"P", b""] {
        let mut slow = TcpStream::connect(edge.http()).await.unwrap();
        slow.write_all(begin).await.unwrap();
        let began = Instant::now();
        let mut byte = [0];
        loop {
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "{begin:?} kept the connection"
            );
            match tokio::time::timeout(Duration::from_millis(200), slow.read(&mut byte)).await {
                Ok(_) => break,
                Err(_) if begin.is_empty() => {}
                Err(_) => {
                    let _ = slow.write_all(b"R").await;
                }
            }
        }
    }
    assert_eq!(ask(edge.http(), get("a.localhost", "/")).await.text(), "a");
}

#[tokio::test]
async fn an_unknown_host_is_named() {
    let edge = TestEdge::start();
    for answer in [
        ask(edge.http(), get("Nobody.localhost:80", "/")).await,
        ask2(edge.http(), "nobody.localhost", "/").await,
    ] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert!(
            answer.text().contains("nobody.localhost"),
            "{}",
            answer.text()
        );
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    }
    let mut client = http1(edge.http()).await;
    for _ in 0..2 {
        let request = Request::builder()
            .method(Method::HEAD)
            .uri("/")
            .header("host", "x.localhost");
        let answer = client
            .send_request(request.body(crate::kit::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        client
            .ready()
            .await
            .expect("the connection can be used again");
    }
}

#[tokio::test]
async fn a_refused_upstream_is_passed_over_or_said() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    // bound but not listening: refuses, and nobody else gets the port
    let refusing = tokio::net::TcpSocket::new_v4().unwrap();
    refusing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = refusing.local_addr().unwrap();
    edge.serve(&routes(
        1,
        vec![
            route("both.localhost", A, &[refused, a.address]),
            route("none.localhost", A, &[refused]),
            route("stopped.localhost", A, &[]),
        ],
    ));
    for _ in 0..4 {
        assert_eq!(
            ask(edge.http(), get("both.localhost", "/")).await.text(),
            "a"
        );
        let post = Request::post("/")
            .header("host", "both.localhost")
            .body(full("x"))
            .unwrap();
        assert_eq!(ask(edge.http(), post).await.text(), "a");
    }
    for host in ["none.localhost", "stopped.localhost"] {
        for answer in [
            ask(edge.http(), get(host, "/")).await,
            ask2(edge.http(), host, "/").await,
        ] {
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{host}");
            assert_eq!(answer.headers["retry-after"], "2");
            assert!(answer.text().contains(host), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn a_request_that_was_sent_is_not_sent_again() {
    let edge = TestEdge::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let breaks_off = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    let a = Server::start("a").await;
    edge.serve(&routes(
        1,
        vec![route("a.localhost", A, &[breaks_off, a.address])],
    ));
    let mut broken = 0;
    for _ in 0..4 {
        let post = Request::post("/")
            .header("host", "a.localhost")
            .body(full("order"))
            .unwrap();
        let answer = ask(edge.http(), post).await;
        if answer.status == StatusCode::BAD_GATEWAY {
            broken += 1;
        }
    }
    assert_eq!(
        broken, 2,
        "each upstream was asked in turn, none for the other"
    );
    assert_eq!(a.requests.load(Ordering::SeqCst), 2);
}
