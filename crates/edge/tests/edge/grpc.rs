//! gRPC calls reach environments over HTTP/2, and what they say comes back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use hyper::{Request, StatusCode};
use offshoot_edge_api::{EdgeConfig, RoutesFile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::authority::{Authority, HTTP2};
use crate::kit::{
    A, Answer, B, SOON, Server, TestEdge, empty, full, http2, policy, route, routes, until,
    with_policy,
};
use crate::service::{Call, Service, call, client, message, next, plain};

fn with_tls(config: &mut EdgeConfig) {
    config.listen_tls = vec!["127.0.0.1:0".parse().unwrap()];
}

fn lead_to(service: &Service) -> RoutesFile {
    routes(1, vec![route("a.org", A, &[service.address])])
}

/// The next whole message of a bidirectional call.
async fn exchange(call: &mut Call, body: &mut h2::RecvStream, text: &[u8]) {
    let sent = message(text);
    call.send.send_data(sent.clone(), false).unwrap();
    let mut back = Vec::new();
    while back.len() < sent.len() {
        back.extend_from_slice(&next(body).await.unwrap().unwrap());
    }
    assert_eq!(back, sent);
}

/// Calls of all four kinds, and their ends.
async fn all_kinds(client: SendRequest<Bytes>, scheme: &str) {
    let begin = async |path: &str| call(&client, &format!("{scheme}://a.org{path}"), &[]).await;
    let unary = begin("/unary").await.end(message(b"?")).await.unwrap();
    assert_eq!((unary.status, unary.code()), (StatusCode::OK, "0"));
    assert_eq!(unary.content, message(b"a"));
    assert!(unary.trailers.is_some(), "{unary:?}");

    let list = begin("/list").await.end(message(b"?")).await.unwrap();
    let all: Vec<u8> = (0..100)
        .flat_map(|n| message(format!("{n}").as_bytes()))
        .collect();
    assert_eq!((list.content, list.trailers.is_some()), (all, true));

    let mut sum = begin("/sum").await;
    for _ in 0..100 {
        sum.send.send_data(message(&[1; 1_000]), false).unwrap();
    }
    let sum = sum.end(message(b"")).await.unwrap();
    assert_eq!((&sum.content[5..], sum.code()), (&b"100505"[..], "0"));

    let mut both = begin("/echo").await;
    let response = tokio::time::timeout(SOON, &mut both.response).await;
    let mut body = response.unwrap().unwrap().into_body();
    for number in 0..100u32 {
        exchange(&mut both, &mut body, &number.to_be_bytes()).await;
    }
    both.send.send_data(Bytes::new(), true).unwrap();
    assert!(next(&mut body).await.is_none());
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");

    let large = message(&vec![7; 4 << 20]);
    let echo = begin("/echo").await.end(large.clone()).await.unwrap();
    assert!(echo.content == large, "{} bytes", echo.content.len());
    assert_eq!(echo.code(), "0");

    let large = message(&vec![7; 16 << 20]);
    let echo = begin("/patient").await.end(large.clone()).await.unwrap();
    assert!(echo.content == large, "{} bytes", echo.content.len());

    let fail = begin("/fail").await.end(message(b"?")).await.unwrap();
    assert_eq!((fail.status, fail.code()), (StatusCode::OK, "5"));
    assert_eq!((fail.content, fail.trailers), (vec![], None));

    let broken = begin("/broken").await.end(message(b"?")).await.unwrap();
    assert_eq!(broken.code(), "13");
    assert_eq!(broken.content, message(b"begun"));
}

#[tokio::test]
async fn calls_of_every_kind_pass() {
    let (edge, authority) = (TestEdge::with(with_tls), Authority::new());
    let a = Service::start("a").await;
    let mut file = lead_to(&a);
    file.certificates = vec![authority.certificate("a", &["a.org"])];
    edge.serve(&file);
    all_kinds(plain(edge.http()).await, "http").await;
    let stream = authority.connect(edge.https(), "a.org", HTTP2).await;
    all_kinds(client(stream.unwrap()).await, "https").await;
}

#[tokio::test]
async fn deadlines_arrive_and_silence_is_waited_for() {
    let edge = TestEdge::with(|config| {
        config.limits.client_seconds = 1;
        config.limits.upstream_seconds = 1;
        // far above what is sent here
        config.limits.body_rate = 1 << 30;
    });
    let a = Service::start("a").await;
    edge.serve(&lead_to(&a));
    let client = plain(edge.http()).await;
    let fields = [("grpc-timeout", "2S"), ("x-forwarded-for", "6.6.6.6")];
    let headers = call(&client, "http://a.org/headers", &fields).await;
    let headers = headers.end(Bytes::new()).await.unwrap();
    let text = String::from_utf8(headers.content).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "content-type: application/grpc+proto",
            "grpc-timeout: 2S",
            "http://a.org/headers",
            "te: trailers",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: a.org",
            "x-forwarded-proto: http",
        ]
    );
    let mut both = call(&client, "http://a.org/echo", &[]).await;
    let mut body = (&mut both.response).await.unwrap().into_body();
    exchange(&mut both, &mut body, b"before").await;
    let slow = call(&client, "http://a.org/slow", &[]).await;
    let slow = slow.end(message(b"?")).await.unwrap();
    exchange(&mut both, &mut body, b"after").await;
    exchange(&mut both, &mut body, &[7; 1 << 20]).await;
    assert_eq!((slow.code(), &slow.content[5..]), ("0", &b"at last"[..]));
}

#[tokio::test]
async fn either_side_may_break_off() {
    let edge = TestEdge::start();
    let a = Service::start("a").await;
    edge.serve(&lead_to(&a));
    let client = plain(edge.http()).await;
    let mut begun = call(&client, "http://a.org/hang", &[]).await;
    let mut body = (&mut begun.response).await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), message(b"begun"));
    begun.send.send_reset(Reason::CANCEL);
    until("the service hears of it", || a.resets() == [Reason::CANCEL]).await;

    let mut begun = call(&client, "http://a.org/reset", &[]).await;
    let mut body = (&mut begun.response).await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), message(b"begun"));
    begun.send.send_data(message(b"go"), false).unwrap();
    let error = next(&mut body).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    // the connection is as good as before
    let unary = call(&client, "http://a.org/unary", &[]).await;
    assert_eq!(unary.end(message(b"?")).await.unwrap().code(), "0");
}

/// A server that answers everything in HTTP/1.1.
async fn old_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1_024]).await;
            let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(answer).await;
        }
    });
    address
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn what_cannot_be_answered_has_a_status_and_is_counted() {
    let edge = TestEdge::start();
    let a = Service::start("a").await;
    let old = Server::start("old").await;
    edge.serve(&routes(
        1,
        vec![
            route("a.org", A, &[a.address]),
            route("old.org", B, &[old_server().await]),
            route("hyper.org", "dddddddd", &[old.address]),
            route("gone.org", "eeeeeeee", &[nobody()]),
            route("stopped.org", "ffffffff", &[]),
        ],
    ));
    let client = plain(edge.http()).await;
    for (host, code, says) in [
        (
            "nobody.org",
            "12",
            "404: no environment is called nobody.org.",
        ),
        (
            "stopped.org",
            "14",
            "503: the environment behind stopped.org is stopped or not ready yet.",
        ),
        (
            "gone.org",
            "14",
            "503: the environment behind gone.org is stopped or not ready yet.",
        ),
        (
            "old.org",
            "14",
            "502: the environment behind old.org broke off its answer.",
        ),
        (
            "hyper.org",
            "14",
            "502: the environment behind hyper.org broke off its answer.",
        ),
    ] {
        let went = call(&client, &format!("http://{host}/unary"), &[]).await;
        let went = went.end(message(b"?")).await.unwrap();
        assert_eq!((went.status, went.code()), (StatusCode::OK, code), "{host}");
        assert_eq!(went.headers["grpc-message"], says);
        assert_eq!(went.headers["content-type"], "application/grpc");
    }
    // a page for HEAD is as complete
    let head = Request::head("http://gone.org/").body(empty()).unwrap();
    let answer = http2(edge.http()).await.send_request(head).await.unwrap();
    assert_eq!(
        Answer::read(answer).await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    for path in ["/unary", "/broken", "/fail"] {
        let went = call(&client, &format!("http://a.org{path}"), &[]).await;
        went.end(message(b"?")).await.unwrap();
    }
    let of = |id: &str| {
        let stats = edge.control().stats(vec![id.parse().unwrap()]).unwrap();
        let side = &stats.owners[0].sides[0];
        (side.errors, side.classes)
    };
    until("all were counted", || of(A).1 == [0, 1, 0, 1, 1]).await;
    assert_eq!(of(A).0, 1);
    assert_eq!(of(B), (1, [0, 0, 0, 0, 1]));
}

#[tokio::test]
async fn rules_and_visitors_hold_for_calls() {
    let edge = TestEdge::start();
    let (a, b) = (Service::start("a").await, Service::start("b").await);
    let policy = format!(
        r#"{{"sides":[{{"environment":"{A}","weight":50}},{{"environment":"{B}","weight":50}}],
            "sticky":{{"header":"x-user"}}}}"#
    );
    edge.serve(&with_policy(
        1,
        vec![route("a.org", A, &[a.address])],
        A,
        &policy,
        &[(A, &[a.address]), (B, &[b.address])],
    ));
    let client = plain(edge.http()).await;
    let side = async |user: &str| {
        let went = call(&client, "http://a.org/unary", &[("x-user", user)]).await;
        went.end(message(b"?")).await.unwrap().side().to_owned()
    };
    let mut sides = Vec::new();
    for number in 0..32 {
        let user = format!("user {number}");
        let first = side(&user).await;
        assert_eq!(side(&user).await, first, "{user}");
        sides.push(first);
    }
    assert!(sides.iter().any(|s| s == "a") && sides.iter().any(|s| s == "b"));
}

#[tokio::test]
async fn only_what_was_not_seen_is_sent_again() {
    let edge = TestEdge::start();
    let a = Service::start("a").await;
    edge.serve(&lead_to(&a));
    let client = plain(edge.http()).await;
    let code = async |path: &str| {
        let call = call(&client, &format!("http://a.org{path}"), &[]).await;
        call.end(message(b"?")).await.unwrap().code().to_owned()
    };
    assert_eq!(code("/unary").await, "0");
    assert_eq!(code("/unary").await, "0");
    assert_eq!((a.calls(), a.connections()), (2, 1), "connections are kept");

    a.refuse(1);
    assert_eq!(code("/unary").await, "0");
    assert_eq!(a.calls(), 4, "refused, and sent again");
    a.refuse(2);
    assert_eq!(code("/unary").await, "14");
    assert_eq!(a.calls(), 6, "once");
    assert_eq!(code("/drop").await, "14");
    assert_eq!(a.calls(), 7, "nobody knows whether it was seen");

    // nor was it by a node that does not listen
    let nodes = [nobody(), a.address];
    edge.serve(&routes(2, vec![route("a.org", A, &nodes)]));
    for _ in 0..4 {
        assert_eq!(code("/unary").await, "0");
    }

    // each ends the connection that it came on, of which there may be several
    let connections = a.connections();
    for _ in 0..=connections {
        assert_eq!(code("/last").await, "0");
    }
    assert!(a.connections() > connections, "the old ones are closed");
}

/// A node that is told its clients: gives its address, and how each connection began.
async fn told_clients(service: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let headers: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let seen = Arc::clone(&headers);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // a line, or 16 bytes and two addresses with their ports
            let mut header = vec![0; 12];
            stream.read_exact(&mut header).await.unwrap();
            let text = header.starts_with(b"PROXY ");
            while if text {
                !header.ends_with(b"\n")
            } else {
                header.len() < 28
            } {
                header.push(stream.read_u8().await.unwrap());
            }
            seen.lock().unwrap().push(header);
            let mut behind = TcpStream::connect(service).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    (address, headers)
}

#[tokio::test]
async fn nodes_are_told_the_client_of_a_call() {
    let edge = TestEdge::start();
    let a = Service::start("a").await;
    let (address, headers) = told_clients(a.address).await;
    for (version, name, text) in [
        (1, "v1", &b"PROXY TCP4 127.0.0.1 "[..]),
        (2, "v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11"),
    ] {
        edge.serve(&RoutesFile {
            traffic: policy(&format!(r#"{{"send_proxy":"{name}"}}"#)),
            ..routes(version, vec![route("a.org", A, &[address])])
        });
        let stream = TcpStream::connect(edge.http()).await.unwrap();
        let port = stream.local_addr().unwrap().port();
        let client = client(stream).await;
        for (path, sent) in [("/unary", 1), ("/list", 1), ("/echo", 1 << 20)] {
            let call = call(&client, &format!("http://a.org{path}"), &[]).await;
            let went = call.end(message(&vec![7; sent])).await.unwrap();
            assert_eq!(went.code(), "0", "{path}");
        }
        let headers = std::mem::take(&mut *headers.lock().unwrap());
        // a connection for each call: it is about one client
        assert_eq!(headers.len(), 3, "{headers:?}");
        let named = |header: &Vec<u8>| match name {
            "v1" => String::from_utf8_lossy(header).contains(&format!(" {port} ")),
            _ => header.get(24..26) == Some(&port.to_be_bytes()),
        };
        for header in headers {
            assert!(header.starts_with(text) && named(&header), "{header:?}");
        }
    }
}

/// gRPC-Web is made for HTTP/1.1, and so is everything else that only has a similar name.
#[tokio::test]
async fn other_requests_go_by_http1() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.org", A, &[a.address])]));
    for kind in ["application/grpc-web", "application/grpcx", "text/plain"] {
        let request = Request::post("http://a.org/echo").header("content-type", kind);
        let request = request.body(full("as it came")).unwrap();
        let answer = http2(edge.http()).await.send_request(request).await;
        let answer = Answer::read(answer.unwrap()).await;
        assert_eq!(answer.text(), "as it came", "{kind}");
    }
}
