//! What is refused, and what is answered when nobody else can.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::kit::{A, SOON, Server, TestEdge, ask, ask2, full, get, http1, route, routes, until};

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

#[tokio::test]
async fn nothing_is_smuggled() {
    // what could still become a body is waited for
    let edge = TestEdge::with(|config| config.limits.client_seconds = 1);
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    let chunked = "POST /sink HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    // sizes that are none, and ends of lines that are none
    let bodies = [
        "ffffffffffffffffff\r\nx\r\n0\r\n\r\n",
        "-1\r\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
        "1 1\r\nx\r\n0\r\n\r\n",
        "g\r\nx\r\n0\r\n\r\n",
        "1\r\nxy\r\n0\r\n\r\n",
    ];
    for body in bodies {
        let second = "GET /smuggled HTTP/1.1\r\nHost: a.localhost\r\n\r\n";
        let answer = raw(&edge, format!("{chunked}{body}{second}").as_bytes()).await;
        assert!(
            answer.matches("HTTP/1.1 ").count() <= 1,
            "{body:?} -> {answer:?}"
        );
        assert!(!answer.contains(" 200 "), "{body:?} -> {answer:?}");
    }
    let long = format!("{chunked}1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(100 << 10));
    assert!(
        !raw(&edge, long.as_bytes()).await.contains(" 200 "),
        "an endless chunk extension"
    );
    let headers: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX: a\rHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX y: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding\x0b: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    ];
    for header in headers {
        let answer = raw(&edge, header).await;
        let shown = String::from_utf8_lossy(header);
        assert!(
            answer.starts_with("HTTP/1.1 400 "),
            "{shown:?} -> {answer:?}"
        );
    }
    // fields about one connection go no further, named ones neither
    let answer = raw(
        &edge,
        b"GET /headers HTTP/1.1\r\nHost: a.localhost\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\n\
          Keep-Alive: 5\r\nProxy-Authorization: x\r\nUpgrade: h2c\r\nX-Other: 1\r\n\r\n",
    )
    .await
    .to_ascii_lowercase();
    for field in ["x-mine", "\nte:", "upgrade: h2c", "keep-alive: 5"] {
        assert!(!answer.contains(field), "{field}: {answer}");
    }
    assert!(answer.contains("x-other: 1"), "{answer}");
}

/// Counts its open connections, and never answers.
async fn silent() -> (std::net::SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (open, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (now, peak) = (Arc::clone(&open), Arc::clone(&most));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let now = Arc::clone(&now);
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {}
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, open, most)
}

#[tokio::test]
async fn requests_that_are_given_up_are_bounded() {
    let streams = 4;
    let edge = TestEdge::with(|config| config.limits.streams = streams);
    let (address, open, most) = silent().await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[address])]));
    let mut client = crate::kit::http2(edge.http()).await;
    // each is dropped, and so reset, soon after it is sent
    for _ in 0..1_000 {
        if client.ready().await.is_err() {
            break;
        }
        let request = Request::get("http://a.localhost/").body(crate::kit::empty());
        let answer = client.send_request(request.unwrap());
        let _ = tokio::time::timeout(Duration::from_micros(300), answer).await;
    }
    let most = most.load(Ordering::SeqCst);
    assert!(most > 0, "none reached the server");
    // the server may hear of an end after the next beginning
    assert!(most <= 4 * streams as usize, "{most} at a time");
    until("what was given up has ended", || {
        open.load(Ordering::SeqCst) == 0
    })
    .await;
}
