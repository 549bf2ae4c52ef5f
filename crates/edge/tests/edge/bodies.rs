//! Request bodies: how long and how slow they may be, and connections after them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, StatusCode};
use offshoot_edge_api::RoutesFile;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::kit::{
    A, Answer, B, SOON, Server, TestEdge, ask, full, get, http1, http2, policy, route, routes,
};
use crate::service::plain;

const LARGE: usize = 16 << 20;

fn post(path: &str, length: usize) -> Request<crate::kit::Body> {
    Request::post(path)
        .header("host", "a.localhost")
        .body(full(Bytes::from(vec![b'x'; length])))
        .unwrap()
}

/// A header and a body of the length it says; returns status and `Connection`.
async fn read_answer(stream: &mut BufReader<TcpStream>) -> (String, String) {
    let (mut status, mut connection, mut length) = (String::new(), String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let line = line.trim_end();
        match line.split_once(": ") {
            _ if line.is_empty() => break,
            Some((name, value)) if name.eq_ignore_ascii_case("connection") => {
                value.clone_into(&mut connection);
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap();
            }
            None if status.is_empty() => line.clone_into(&mut status),
            _ => {}
        }
    }
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    (status, connection)
}

#[tokio::test]
async fn a_connection_goes_on_after_a_large_body() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    // read before it is answered, and answered while it is read; that one is short enough to fit into the sockets'
    // buffers, since the library does not read an answer while it waits to write to the same connection
    for (path, length) in [("/sink", LARGE), ("/echo", 200 << 10)] {
        let mut client = http1(edge.http()).await;
        for turn in 0..3 {
            let answer = client.send_request(post(path, length));
            let answer = tokio::time::timeout(SOON, answer).await.unwrap();
            let answer = answer.unwrap_or_else(|e| panic!("{path}, request {turn}: {e:?}"));
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.headers()["connection"], "keep-alive");
            let all = tokio::time::timeout(SOON, answer.into_body().collect()).await;
            all.unwrap_or_else(|_| panic!("{path}, request {turn} hangs"))
                .unwrap();
        }
    }
}

#[tokio::test]
async fn a_client_may_wait_for_continue() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    let ask = |host: &str, length: usize| {
        format!(
            "POST /sink HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let stream = TcpStream::connect(edge.http()).await.unwrap();
    let mut stream = BufReader::new(stream);
    for _ in 0..3 {
        let header = ask("a.localhost", LARGE);
        stream.get_mut().write_all(header.as_bytes()).await.unwrap();
        let mut lines = String::new();
        while !lines.ends_with("\r\n\r\n") {
            stream.read_line(&mut lines).await.unwrap();
        }
        assert_eq!(lines, "HTTP/1.1 100 Continue\r\n\r\n");
        stream
            .get_mut()
            .write_all(&vec![b'x'; LARGE])
            .await
            .unwrap();
        let mut lines = String::new();
        while !lines.ends_with("\r\n\r\n") {
            stream.read_line(&mut lines).await.unwrap();
        }
        assert!(lines.starts_with("HTTP/1.1 200 "), "{lines}");
        assert!(
            lines
                .to_ascii_lowercase()
                .contains("connection: keep-alive"),
            "{lines}"
        );
        let mut body = [0; 8];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(body, *b"16777216");
    }
    // answered at once: whether a body follows nobody knows, so nothing more is read
    let header = ask("nobody.localhost", 5);
    stream.get_mut().write_all(header.as_bytes()).await.unwrap();
    stream
        .get_mut()
        .write_all(b"GET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n")
        .await
        .unwrap();
    let mut all = String::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_string(&mut all))
        .await
        .unwrap();
    assert!(all.starts_with("HTTP/1.1 404 "), "{all}");
    assert!(
        all.to_ascii_lowercase().contains("connection: close"),
        "{all}"
    );
    assert_eq!(all.matches("HTTP/1.1").count(), 1, "{all}");
}

#[tokio::test]
async fn long_bodies_are_refused() {
    let edge = TestEdge::with(|config| config.limits.body_bytes = 1 << 20);
    let a = Server::start("a").await;
    let file = |version, most: usize| RoutesFile {
        traffic: policy(&format!(r#"{{"bounds":{{"body_bytes":{most}}}}}"#)),
        ..routes(version, vec![route("a.localhost", A, &[a.address])])
    };
    for (version, most) in [(2, 0), (3, 1_000), (4, 8 << 20)] {
        edge.serve(&file(version, most));
        let most = if most == 1_000 { 1_000 } else { 1 << 20 };
        assert_eq!(
            ask(edge.http(), post("/sink", most)).await.text(),
            most.to_string()
        );
        let before = a.requests.load(Ordering::SeqCst);
        let refused = ask(edge.http(), post("/sink", most + 1)).await;
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(
            a.requests.load(Ordering::SeqCst),
            before,
            "it says how long it is"
        );

        // one that does not say
        let stream = TcpStream::connect(edge.http()).await.unwrap();
        let mut stream = BufReader::new(stream);
        let header =
            "POST /sink HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.get_mut().write_all(header.as_bytes()).await.unwrap();
        let mut chunks = Vec::new();
        for _ in 0..=most / 1_000 {
            chunks.extend_from_slice(b"3e8\r\n");
            chunks.extend_from_slice(&[b'x'; 1_000]);
            chunks.extend_from_slice(b"\r\n");
        }
        stream.get_mut().write_all(&chunks).await.unwrap();
        let (status, connection) = tokio::time::timeout(SOON, read_answer(&mut stream))
            .await
            .unwrap();
        assert!(status.contains(" 413 "), "{status}");
        assert_eq!(connection, "close");

        let mut client = http2(edge.http()).await;
        let request = Request::post("http://a.localhost/sink")
            .body(full(Bytes::from(vec![b'x'; most + 1])))
            .unwrap();
        let answer = tokio::time::timeout(SOON, client.send_request(request))
            .await
            .unwrap();
        assert_eq!(answer.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
        let fine = Request::get("http://a.localhost/")
            .body(crate::kit::empty())
            .unwrap();
        let answer = client.send_request(fine).await.unwrap();
        assert_eq!(
            Answer::read(answer).await.text(),
            "a",
            "its connection goes on"
        );
    }
}

#[tokio::test]
async fn slow_bodies_are_refused() {
    let edge = TestEdge::with(|config| {
        config.limits.client_seconds = 1;
        config.limits.body_rate = 1_000;
    });
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    let stream = TcpStream::connect(edge.http()).await.unwrap();
    let (read, mut write) = stream.into_split();
    let header = "POST /sink HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 1000\r\n\r\n";
    write.write_all(header.as_bytes()).await.unwrap();
    // a byte now and then keeps each read within its time
    let drip = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut line = String::new();
    let mut read = BufReader::new(read);
    tokio::time::timeout(SOON, read.read_line(&mut line))
        .await
        .unwrap()
        .unwrap();
    drip.abort();
    assert!(line.starts_with("HTTP/1.1 408 "), "{line}");
    assert_eq!(ask(edge.http(), get("a.localhost", "/")).await.text(), "a");
}

/// A server that takes nothing for some time, then all of it, and answers.
async fn late_taker(bytes: usize) -> (std::net::SocketAddr, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (take, taken) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = taken.await;
        let mut part = vec![0; 1 << 20];
        let mut all = 0;
        while all < bytes {
            all += stream.read(&mut part).await.unwrap();
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
    });
    (address, take)
}

#[tokio::test]
async fn clients_that_go_silent_over_http2_are_cut_off() {
    let edge = TestEdge::with(|config| {
        config.limits.client_seconds = 1;
        config.limits.body_rate = 0;
    });
    let a = Server::start("a").await;
    let (late, take) = late_taker(LARGE).await;
    let hosts = [
        route("a.org", A, &[a.address]),
        route("late.org", B, &[late]),
    ];
    edge.serve(&routes(1, hosts.to_vec()));
    let client = plain(edge.http()).await;
    let begin = async |path: &str| {
        let request = Request::post(path).body(()).unwrap();
        let mut client = client.clone().ready().await.unwrap();
        client.send_request(request, false).unwrap()
    };
    let (silent, mut sent) = begin("http://a.org/sink").await;
    sent.send_data("x".into(), false).unwrap();
    let ended = tokio::time::timeout(SOON, silent).await;
    ended.expect("it waits for the rest").unwrap_err();

    // a slow one is none, on the same connection
    let (slow, mut sent) = begin("http://a.org/sink").await;
    for part in 0..12 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        sent.send_data("x".into(), part == 11).unwrap();
    }
    let slow = tokio::time::timeout(SOON, slow).await.unwrap();
    assert_eq!(slow.unwrap().status(), StatusCode::OK);

    // nor is one that waits because its environment takes nothing
    let mut waiting = http2(edge.http()).await;
    let request = Request::post("http://late.org/").body(full(vec![7; LARGE]));
    let mut answer = tokio::spawn(waiting.send_request(request.unwrap()));
    let early = tokio::time::timeout(Duration::from_secs(4), &mut answer).await;
    early.expect_err("it was ended while it waited");
    take.send(()).unwrap();
    let answer = tokio::time::timeout(SOON, answer).await.unwrap();
    assert_eq!(answer.unwrap().unwrap().status(), StatusCode::OK);
}
