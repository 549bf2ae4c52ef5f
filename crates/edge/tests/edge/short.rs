//! Plain requests take a short way past the proxy library. What it forwards, both ways, is what the whole way forwards.
//!
//! The field `X-Real-IP` makes a request go the whole way and goes no further, so each request is made twice. The server
//! tells which way it came: on the short way `X-Forwarded-For` has capitals.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::kit::{A, B, SOON, TestEdge, empty, get, http1, http2, route, routes, until};

/// What a server says: these bytes one after the other, each seen by the edge before the next is sent; then it waits, or closes.
#[derive(Clone)]
struct Said {
    parts: Vec<Vec<u8>>,
    closes: bool,
}

fn said(parts: &[&str]) -> Said {
    Said {
        parts: parts.iter().map(|part| part.as_bytes().to_vec()).collect(),
        closes: false,
    }
}

fn and_closes(parts: &[&str]) -> Said {
    Said {
        closes: true,
        ..said(parts)
    }
}

/// A server that answers every request so, and what it was asked, word for word.
async fn server(says: Said) -> (std::net::SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (says, tell) = (says.clone(), tell.clone());
            tokio::spawn(async move {
                let mut request = Vec::new();
                while stream
                    .read_buf(&mut request)
                    .await
                    .is_ok_and(|read| read > 0)
                {
                    if !request.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let _ = tell.send(String::from_utf8(std::mem::take(&mut request)).unwrap());
                    for part in &says.parts {
                        let _ = stream.write_all(part).await;
                        // whether or not the edge reads them apart, it must make no difference
                        tokio::task::yield_now().await;
                    }
                    if says.closes {
                        return;
                    }
                }
            });
        }
    });
    (address, asked)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Protocol {
    Http1,
    Http2,
}

/// What a client sees of an answer: status, fields and body, or that it broke off.
async fn seen(
    edge: &TestEdge,
    protocol: Protocol,
    whole: bool,
) -> (u16, Vec<String>, Result<Vec<u8>, ()>) {
    let request = match protocol {
        Protocol::Http1 => Request::get("/a?b=c").header("host", "a.localhost"),
        // browsers send cookies one by one
        Protocol::Http2 => Request::get("http://a.localhost/a?b=c").header("cookie", "two=2"),
    };
    let mut request = request
        .header("cookie", "one=1")
        .header("x-twice", "1")
        .header("x-twice", "2")
        .header("accept-encoding", "gzip");
    if whole {
        request = request.header("x-real-ip", "6.6.6.6");
    }
    let request = request.body(empty()).unwrap();
    let answer = match protocol {
        Protocol::Http1 => {
            let mut client = http1(edge.http()).await;
            timeout(SOON, client.send_request(request)).await
        }
        Protocol::Http2 => {
            let mut client = http2(edge.http()).await;
            timeout(SOON, client.send_request(request)).await
        }
    };
    let (head, body) = answer.unwrap().unwrap().into_parts();
    let fields = head.headers.iter().filter(|(name, _)| *name != "date");
    let fields = fields.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
    let mut fields: Vec<_> = fields.collect();
    fields.sort_unstable();
    let body = timeout(SOON, body.collect()).await.unwrap();
    let body = body.map(|body| body.to_bytes().to_vec()).map_err(|_| ());
    assert!(head.headers.contains_key("date"));
    (head.status.as_u16(), fields, body)
}

fn fields(request: &str) -> Vec<String> {
    let mut fields: Vec<_> = request.lines().map(str::to_ascii_lowercase).collect();
    fields.sort_unstable();
    fields
}

#[tokio::test]
async fn both_ways_forward_the_same() {
    let edge = TestEdge::start();
    let length = "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n";
    let large = "x".repeat(100_000);
    let large_head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", large.len());
    let many = "X-Field: some text\r\n".repeat(90);
    let many = format!("{length}{many}\r\nhello");
    let cases = [
        ("length", said(&[length, "\r\nhello"])),
        ("large", said(&[&large_head, &large])),
        (
            "in parts",
            said(&[&length[..20], &length[20..], "\r\nhe", "llo"]),
        ),
        (
            "more than its length",
            and_closes(&[length, "\r\nhello, HTTP/1.1 200 OK"]),
        ),
        (
            "closed after it",
            and_closes(&[length, "Connection: close\r\n\r\nhello"]),
        ),
        (
            "an offer",
            said(&[
                length,
                "Upgrade: h2c\r\nConnection: Upgrade, Keep-Alive\r\nKeep-Alive: timeout=5\r\n\r\nhello",
            ]),
        ),
        ("chunks", said(&[chunked, "\r\n5\r\nhello\r\n0\r\n\r\n"])),
        (
            "chunks in parts",
            said(&[
                chunked,
                "\r\n5\r",
                "\nhel",
                "lo\r\n1",
                "0;a=b\r\n0123456789abcdef\r\n0\r\n",
                "\r\n",
            ]),
        ),
        (
            "trailers",
            said(&[chunked, "\r\n5\r\nhello\r\n0\r\nX-Own: 1\r\n\r\n"]),
        ),
        (
            "chunks and length",
            said(&[chunked, "Content-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]),
        ),
        ("no body", said(&["HTTP/1.1 204 None\r\n\r\n"])),
        (
            "not modified",
            said(&["HTTP/1.1 304 Same\r\nETag: \"a\"\r\n\r\n"]),
        ),
        (
            "error",
            said(&[
                "HTTP/1.1 500 Oh\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\r\noh",
            ]),
        ),
        (
            "until it closes",
            and_closes(&["HTTP/1.1 200 OK\r\n\r\nhello"]),
        ),
        (
            "HTTP/1.0",
            and_closes(&["HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"]),
        ),
        (
            "early hints",
            said(&[
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
                length,
                "\r\nhello",
            ]),
        ),
        ("folded", said(&[length, "X-Own: a\r\n b\r\n\r\nhello"])),
        ("many fields", said(&[&many])),
        (
            "an event",
            and_closes(&["HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 0\n\n"]),
        ),
        ("no answer", and_closes(&[])),
        ("no HTTP", and_closes(&["220 mail\r\n\r\n"])),
        (
            "half a head",
            and_closes(&["HTTP/1.1 200 OK\r\nContent-Le"]),
        ),
        ("half a body", and_closes(&[length, "\r\nhe"])),
        ("half a chunk", and_closes(&[chunked, "\r\n5\r\nhe"])),
        ("no chunks", and_closes(&[chunked, "\r\nhello"])),
    ];
    for (version, (name, says)) in (1..).zip(cases) {
        let (address, mut asked) = server(says).await;
        edge.serve(&routes(version, vec![route("a.localhost", A, &[address])]));
        // twice, so that the second may meet a kept connection
        let protocols = [Protocol::Http1, Protocol::Http2].repeat(2);
        for protocol in protocols {
            let name = format!("{name}, {protocol:?}");
            let short = seen(&edge, protocol, false).await;
            let by_short = asked.recv().await.unwrap();
            let whole = seen(&edge, protocol, true).await;
            let by_whole = asked.recv().await.unwrap();
            assert_eq!(short, whole, "{name}");
            assert!(by_short.contains("X-Forwarded-For"), "{name}: {by_short}");
            assert!(by_short.contains("one=1"), "{name}: {by_short}");
            assert!(by_whole.contains("x-forwarded-for"), "{name}: {by_whole}");
            assert_eq!(fields(&by_short), fields(&by_whole), "{name}");
            assert!(asked.try_recv().is_err(), "{name}: a node is asked once");
        }
    }
}

#[tokio::test]
async fn a_kept_connection_that_its_server_closed_costs_no_request() {
    let edge = TestEdge::start();
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    // it says that it keeps the connection, and does not
    let (address, mut asked) = server(and_closes(&[answer])).await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[address])]));
    let mut client = http1(edge.http()).await;
    for _ in 0..50 {
        let answer = client.send_request(get("a.localhost", "/")).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
        asked.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_leaves_and_an_environment_that_is_removed_end_the_other_side() {
    let edge = TestEdge::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    edge.serve(&routes(1, vec![route("a.localhost", A, &[address])]));
    for (round, begun) in [false, true, true].into_iter().enumerate() {
        let mut client = TcpStream::connect(edge.http()).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n";
        client.write_all(request).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut read = [0; 4_096];
        assert!(server.read(&mut read).await.unwrap() > 0);
        if begun {
            let begin = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin";
            server.write_all(begin).await.unwrap();
            assert!(client.read(&mut read).await.unwrap() > 0);
        }
        let ended = if round < 2 {
            drop(client);
            server.read(&mut read)
        } else {
            edge.serve(&routes(2, vec![route("b.localhost", B, &[address])]));
            client.read(&mut read)
        };
        let ended = timeout(SOON, ended).await.expect("it ends");
        assert!(matches!(ended, Ok(0) | Err(_)), "round {round}: {ended:?}");
    }
    until("what clients left is counted", || {
        edge.control().status().unwrap().requests == 2
    })
    .await;
}

#[tokio::test]
async fn over_http2_too_a_client_that_leaves_and_a_removed_environment_end_the_other_side() {
    let edge = TestEdge::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    edge.serve(&routes(1, vec![route("a.localhost", A, &[address])]));
    let mut client = http2(edge.http()).await;
    for (round, begun) in [false, true, true].into_iter().enumerate() {
        let asked = client.send_request(get("a.localhost", "/"));
        let asked = tokio::spawn(timeout(SOON, asked));
        let (mut server, _) = listener.accept().await.unwrap();
        let mut read = [0; 4_096];
        assert!(server.read(&mut read).await.unwrap() > 0);
        if !begun {
            // gives up this request, and no other
            asked.abort();
        } else {
            let begin = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin";
            server.write_all(begin).await.unwrap();
            let mut body = asked.await.unwrap().unwrap().unwrap().into_body();
            assert_eq!(
                body.frame().await.unwrap().unwrap().into_data().unwrap(),
                "begin"
            );
            if round == 1 {
                drop(body);
            } else {
                edge.serve(&routes(2, vec![route("b.localhost", B, &[address])]));
                let ended = timeout(SOON, body.frame()).await.expect("it ends");
                assert!(ended.unwrap().is_err(), "half an answer is none");
            }
        }
        let ended = timeout(SOON, server.read(&mut read))
            .await
            .expect("it ends");
        assert!(matches!(ended, Ok(0) | Err(_)), "round {round}: {ended:?}");
    }
}

#[tokio::test]
async fn large_answers_over_http2_come_as_fast_as_they_are_read() {
    let edge = TestEdge::start();
    let large: String = ('a'..='z').cycle().take(3_000_000).collect();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", large.len());
    let (address, mut asked) = server(said(&[&head, &large])).await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[address])]));
    let mut client = http2(edge.http()).await;
    let mut answers = Vec::new();
    for _ in 0..2 {
        answers.push(client.send_request(get("a.localhost", "/")));
    }
    for answer in answers {
        // one after the other: flow control holds the second up, and the connection has room for what it sent
        let body = answer.await.unwrap().into_body().collect();
        let body = timeout(SOON, body).await.unwrap().unwrap().to_bytes();
        assert!(body == large.as_bytes());
        assert!(asked.recv().await.unwrap().contains("X-Forwarded-For"));
    }
}

#[tokio::test]
async fn an_answer_that_takes_its_time_comes_and_its_time_is_logged() {
    let edge = TestEdge::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    edge.serve(&routes(1, vec![route("a.localhost", A, &[address])]));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4_096]).await.unwrap() > 0);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
        assert_eq!(stream.read(&mut [0; 4_096]).await.unwrap(), 0, "asked once");
    });
    let answer = crate::kit::ask(edge.http(), get("a.localhost", "/")).await;
    assert_eq!(answer.text(), "ok");
    let log = edge.config.routes.with_file_name("access.log");
    let line = || std::fs::read_to_string(&log).unwrap_or_default();
    until("it is logged", || line().ends_with('\n')).await;
    let line: serde_json::Value = serde_json::from_str(line().trim()).unwrap();
    assert!(line["duration_ms"].as_f64().unwrap() >= 1_500.0, "{line}");
    assert_eq!(line["bytes"], 2);
}
