//! Who a client is: PROXY headers, trusted proxies, and bounds by client.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use hyper::{Request, StatusCode};
use offshoot_edge_api::{PortRoute, Protocol, RoutesFile};
use offshoot_model::traffic::ProxyVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::authority::{Authority, HTTP1};
use crate::kit::{
    A, Answer, SOON, Server, TestEdge, ask, bound, empty, get, http1, http1_on, http2, http2_on,
    policy, route, routes, until,
};

const V1: &[u8] = b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 80\r\n";

/// The same in version 2, with the address 2001:db8::9.
fn v2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    for address in ["2001:db8::9", "::1"] {
        header.extend(address.parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
    header.extend([0x12, 0x67, 0, 80]);
    header
}

async fn begin(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Everything until the other side closes; a reset is an end as well.
async fn rest(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut all))
        .await
        .expect("the connection stays open");
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn load_balancers_tell_the_client() {
    let edge = TestEdge::with(|config| {
        config.proxy_from = vec!["127.0.0.1".parse::<std::net::IpAddr>().unwrap().into()];
        config.listen_tls = vec!["127.0.0.1:0".parse().unwrap()];
        config.limits.header_seconds = 1;
    });
    let authority = Authority::new();
    let a = Server::start("a").await;
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = PortRoute {
        listen: "127.0.0.1:0".parse().unwrap(),
        protocol: Protocol::Tcp,
        environment: A.parse().unwrap(),
        upstreams: vec![echo.local_addr().unwrap()],
    };
    let reloaded = edge.serve(&RoutesFile {
        ports: vec![port],
        certificates: vec![authority.certificate("a", &["a.org"])],
        ..routes(1, vec![route("a.org", A, &[a.address])])
    });

    let expected = [(V1.to_vec(), "203.0.113.9"), (v2(), "2001:db8::9")];
    for (header, address) in &expected {
        let stream = begin(edge.http(), header).await;
        let mut client = http1_on(stream).await;
        // on a kept connection it is told once
        for _ in 0..2 {
            let answer = client.send_request(get("a.org", "/headers")).await.unwrap();
            let answer = Answer::read(answer).await;
            let field = format!("x-forwarded-for: {address}\n");
            assert!(answer.text().contains(&field), "{}", answer.text());
        }
        let mut client = http2_on(begin(edge.http(), header).await).await;
        let request = Request::get("http://a.org/headers").body(empty()).unwrap();
        let answer = Answer::read(client.send_request(request).await.unwrap()).await;
        let field = format!("x-forwarded-for: {address}\n");
        assert!(answer.text().contains(&field), "{}", answer.text());
        let stream = begin(edge.https(), header).await;
        let stream = authority.handshake(stream, "a.org", HTTP1).await.unwrap();
        let mut client = http1_on(stream).await;
        let answer = client.send_request(get("a.org", "/headers")).await.unwrap();
        let answer = Answer::read(answer).await;
        assert!(answer.text().contains(&field), "{}", answer.text());
    }
    // a load balancer that speaks for itself
    let mut client = http1_on(begin(edge.http(), b"PROXY UNKNOWN\r\n").await).await;
    let answer = client.send_request(get("a.org", "/headers")).await.unwrap();
    let answer = Answer::read(answer).await;
    assert!(
        answer.text().contains("x-forwarded-for: 127.0.0.1\n"),
        "{}",
        answer.text()
    );

    // who must begin with a header and does not is not answered
    let plain = "GET / HTTP/1.1\r\nHost: a.org\r\nConnection: close\r\n\r\n";
    assert_eq!(rest(begin(edge.http(), plain.as_bytes()).await).await, "");
    assert_eq!(
        rest(begin(edge.http(), b"PROXY TCP4 1.2.3.4").await).await,
        "",
        "it has its time"
    );
    // who is not named is not believed
    let six = edge.status.listen[1];
    assert!(
        rest(begin(six, plain.as_bytes()).await)
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    let claims = [V1, plain.as_bytes()].concat();
    assert!(
        rest(begin(six, &claims).await)
            .await
            .starts_with("HTTP/1.1 400 ")
    );

    // published ports: the header is the edge's, everything after it the server's
    let mut client = begin(bound(&reloaded.ports[0]), &[V1, b"hello"].concat()).await;
    let (mut server, _) = echo.accept().await.unwrap();
    let mut got = [0; 5];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
    server.write_all(b"there").await.unwrap();
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"there");
    assert_eq!(
        rest(begin(bound(&reloaded.ports[0]), b"not a header").await).await,
        ""
    );

    let log = edge.config.access_log.as_ref().unwrap().path.clone();
    until("the told client is logged", || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.contains(r#""client":"203.0.113.9:4711""#)
            && log.contains(r#""client":"[2001:db8::9]:4711""#)
    })
    .await;
}

#[tokio::test]
async fn only_trusted_proxies_are_believed() {
    let edge = TestEdge::with(|config| config.trust = vec!["127.0.0.0/8".parse().unwrap()]);
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.org", A, &[a.address])]));
    let request = || {
        Request::get("/headers")
            .header("host", "a.org")
            .header("x-forwarded-for", "10.9.9.9, 203.0.113.9")
            .header("x-forwarded-proto", "https")
            .header("X_Forwarded_For", "10.9.9.9")
            .body(empty())
            .unwrap()
    };
    let trusted = ask(edge.http(), request()).await;
    let six = ask(edge.status.listen[1], request()).await;
    for (answer, chain, scheme) in [
        (trusted, "10.9.9.9, 203.0.113.9, 127.0.0.1", "https"),
        (six, "::1", "http"),
    ] {
        let text = answer.text();
        assert!(
            text.contains(&format!("x-forwarded-for: {chain}\n")),
            "{text}"
        );
        assert!(
            text.contains(&format!("x-forwarded-proto: {scheme}\n")),
            "{text}"
        );
        assert!(!text.contains("x_forwarded_for"), "{text}");
    }
}

#[tokio::test]
async fn a_client_has_so_many_connections() {
    let edge = TestEdge::with(|config| config.limits.client_connections = 2);
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.org", A, &[a.address])]));
    let mut first = http1(edge.http()).await;
    let mut second = http1(edge.http()).await;
    for client in [&mut first, &mut second] {
        let answer = client.send_request(get("a.org", "/")).await.unwrap();
        assert_eq!(Answer::read(answer).await.text(), "a");
    }
    assert_eq!(rest(begin(edge.http(), b"").await).await, "", "a third one");
    // another client
    assert_eq!(
        ask(edge.status.listen[1], get("a.org", "/")).await.text(),
        "a"
    );
    drop(first);
    let deadline = Instant::now() + SOON;
    loop {
        let mut client = http1(edge.http()).await;
        if let Ok(answer) = client.send_request(get("a.org", "/")).await {
            assert_eq!(Answer::read(answer).await.text(), "a");
            break;
        }
        assert!(Instant::now() < deadline, "its place is not free");
    }
}

#[tokio::test]
async fn nodes_are_told_the_client() {
    let edge = TestEdge::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let begins: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let seen = Arc::clone(&begins);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            while !all.ends_with(b"\r\n\r\n") || !all.windows(4).any(|w| w == b"GET ") {
                all.push(stream.read_u8().await.unwrap());
            }
            seen.lock().unwrap().push(all);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        }
    });
    for (version, send, text) in [(1, ProxyVersion::V1, "v1"), (2, ProxyVersion::V2, "v2")] {
        edge.serve(&RoutesFile {
            traffic: policy(&format!(r#"{{"send_proxy":"{text}"}}"#)),
            ..routes(version, vec![route("a.org", A, &[address])])
        });
        let stream = TcpStream::connect(edge.http()).await.unwrap();
        let port = stream.local_addr().unwrap().port();
        let mut client = http1_on(stream).await;
        for _ in 0..2 {
            let answer = client.send_request(get("a.org", "/")).await.unwrap();
            assert_eq!(Answer::read(answer).await.text(), "ok");
        }
        let begins = std::mem::take(&mut *begins.lock().unwrap());
        assert_eq!(begins.len(), 2, "a connection for each request");
        let expected = match send {
            ProxyVersion::V1 => {
                let here = edge.http().port();
                format!("PROXY TCP4 127.0.0.1 127.0.0.1 {port} {here}\r\nGET / ").into_bytes()
            }
            ProxyVersion::V2 => {
                let mut header =
                    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
                header.extend(port.to_be_bytes());
                header.extend(edge.http().port().to_be_bytes());
                header.extend(b"GET / ");
                header
            }
        };
        for begin in begins {
            assert!(
                begin.starts_with(&expected),
                "{:?}",
                String::from_utf8_lossy(&begin)
            );
        }
    }
}

#[tokio::test]
async fn clients_that_ask_too_much_wait() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    let serve = |version, bounds: &str| {
        edge.serve(&RoutesFile {
            traffic: policy(&format!(r#"{{"bounds":{{{bounds}}}}}"#)),
            ..routes(version, vec![route("a.org", A, &[a.address])])
        });
    };
    serve(1, r#""client_requests_per_second":1,"client_burst":3"#);
    let mut client = http1(edge.http()).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        let answer = client.send_request(get("a.org", "/")).await.unwrap();
        let answer = Answer::read(answer).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(answer.headers["retry-after"], "1");
        }
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(
        statuses,
        [200, 200, 200, 429, 429],
        "and the connection goes on"
    );
    let other = ask(edge.status.listen[1], get("a.org", "/")).await;
    assert_eq!(other.status, StatusCode::OK, "another client");

    serve(2, r#""requests_per_second":1"#);
    assert_eq!(
        ask(edge.http(), get("a.org", "/")).await.status,
        StatusCode::OK
    );
    let other = ask(edge.status.listen[1], get("a.org", "/")).await;
    assert_eq!(
        other.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "all together"
    );
    assert_eq!(other.headers["retry-after"], "1");

    serve(3, r#""client_requests":1"#);
    let mut busy = http2(edge.http()).await;
    let slow = Request::get("http://a.org/slow").body(empty()).unwrap();
    let before = a.requests.load(std::sync::atomic::Ordering::SeqCst);
    let slow = tokio::spawn(busy.send_request(slow));
    until("the first is under way", || {
        a.requests.load(std::sync::atomic::Ordering::SeqCst) > before
    })
    .await;
    assert_eq!(
        ask(edge.http(), get("a.org", "/")).await.status,
        StatusCode::TOO_MANY_REQUESTS
    );
    slow.abort();
    drop(busy);
    let deadline = Instant::now() + SOON;
    while ask(edge.http(), get("a.org", "/")).await.status != StatusCode::OK {
        assert!(Instant::now() < deadline, "what was given up still counts");
    }
}
