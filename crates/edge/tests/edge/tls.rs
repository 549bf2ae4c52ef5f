//! HTTPS: which certificate is shown, what is refused, and that everything works in it as without.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::{Request, StatusCode};
use offshoot_edge_api::{Certificate, EdgeError, Https, Redirect, Route, RoutesFile, stop};
use offshoot_model::problem::Fault;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{AlertDescription, ProtocolVersion, SupportedProtocolVersion};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::authority::{Authority, Client, HTTP1, alert};
use crate::kit::{
    A, Answer, B, Body, SOON, Server, TestEdge, ask, empty, full, get, route, routes, until,
};

fn edge() -> TestEdge {
    TestEdge::with(|config| {
        config.listen_tls = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        config.limits.header_seconds = 2;
    })
}

fn with(version: u64, of: Vec<Route>, certificates: Vec<Certificate>) -> RoutesFile {
    let mut file = routes(version, of);
    file.certificates = certificates;
    file
}

#[tokio::test]
async fn the_name_chooses_the_certificate_and_the_host_the_environment() {
    let (edge, authority) = (edge(), Authority::new());
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let own = authority.certificate("own", &["own.b.org"]);
    edge.serve(&with(
        1,
        vec![
            route("a.org", A, &[a.address]),
            route("*.b.org", B, &[b.address]),
        ],
        vec![
            authority.certificate("wild", &["*.b.org"]),
            own.clone(),
            authority.certificate("a", &["A.org"]),
        ],
    ));
    assert_eq!(authority.ask(edge.https(), "a.org", "/").await.text(), "a");
    assert_eq!(authority.ask2(edge.https(), "a.org", "/").await.text(), "a");
    let mut kept = authority.http1(edge.https(), "a.org").await;
    for _ in 0..3 {
        kept.ready()
            .await
            .expect("the connection can be used again");
        let answer = kept.send_request(get("a.org", "/")).await.unwrap();
        assert_eq!(Answer::read(answer).await.text(), "a");
    }
    assert_eq!(
        authority.ask(edge.https(), "x.b.org", "/").await.text(),
        "b"
    );
    assert_eq!(
        authority.ask2(edge.https(), "own.b.org", "/").await.text(),
        "b"
    );
    if let Some(six) = edge.status.listen_tls.get(1) {
        assert_eq!(authority.ask(*six, "a.org", "/").await.text(), "a");
    }
    let shown = async |name: &str| {
        let stream = authority.connect(edge.https(), name, HTTP1).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let is_own = |certificate: &CertificateDer<'_>| {
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        *certificate == CertificateDer::from_pem_file(&own.chain).unwrap()
    };
    assert!(is_own(&shown("own.b.org").await), "the wildcard went first");
    assert!(!is_own(&shown("other.b.org").await));
    let headers = authority.ask2(edge.https(), "a.org", "/headers").await;
    assert!(
        headers.text().contains("x-forwarded-proto: https\n"),
        "{}",
        headers.text()
    );
    assert!(
        headers.text().contains("x-forwarded-for: 127.0.0.1\n"),
        "{}",
        headers.text()
    );
    let headers = ask(edge.http(), get("a.org", "/headers")).await;
    assert!(
        headers.text().contains("x-forwarded-proto: http\n"),
        "{}",
        headers.text()
    );
    const OLD: &[&SupportedProtocolVersion] = &[&TLS12];
    const NEW: &[&SupportedProtocolVersion] = &[&TLS13];
    for (versions, number) in [
        (OLD, ProtocolVersion::TLSv1_2),
        (NEW, ProtocolVersion::TLSv1_3),
    ] {
        let client = Client { versions, ..HTTP1 };
        let stream = authority
            .connect(edge.https(), "a.org", client)
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(number));
    }
    let strange = Client {
        alpn: &["ftp"],
        ..HTTP1
    };
    assert_eq!(
        alert(authority.connect(edge.https(), "a.org", strange).await),
        AlertDescription::NoApplicationProtocol
    );
}

#[tokio::test]
async fn an_unknown_name_and_none_are_refused() {
    let (edge, authority) = (edge(), Authority::new());
    let certificate = authority.certificate("a", &["a.org", "*.b.org"]);
    edge.serve(&with(1, vec![route("c.org", A, &[])], vec![certificate]));
    // c.org has a route, but no certificate; a wildcard stands for one label
    for name in ["c.org", "b.org", "x.y.b.org", "x.a.org"] {
        let refused = alert(authority.connect(edge.https(), name, HTTP1).await);
        assert_eq!(refused, AlertDescription::UnrecognisedName, "{name}");
    }
    let silent = Client {
        sni: false,
        ..HTTP1
    };
    let refused = alert(authority.connect(edge.https(), "a.org", silent).await);
    assert_eq!(refused, AlertDescription::UnrecognisedName);
    let known = authority.connect(edge.https(), "x.b.org", HTTP1).await;
    assert!(known.is_ok(), "{known:?}");
}

#[tokio::test]
async fn who_does_not_finish_a_handshake_is_cut_off() {
    let (edge, authority) = (edge(), Authority::new());
    let a = Server::start("a").await;
    let certificate = authority.certificate("a", &["a.org"]);
    edge.serve(&with(
        1,
        vec![route("a.org", A, &[a.address])],
        vec![certificate],
    ));
    // nothing at all; the begin of a long record; no TLS
    for begin in [
        &b""[..],
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\nHost: a.org\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(edge.https()).await.unwrap();
        stream.write_all(begin).await.unwrap();
        let began = Instant::now();
        let mut answer = Vec::new();
        // a reset is an end as well
        let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer))
            .await
            .expect("the connection stays open");
        assert!(began.elapsed() < Duration::from_secs(10), "{begin:?}");
        assert!(!answer.starts_with(b"HTTP"), "{begin:?}");
    }
    // after the handshake a header has its time as well
    let mut idle = authority
        .connect(edge.https(), "a.org", HTTP1)
        .await
        .unwrap();
    let _ = tokio::time::timeout(SOON, idle.read(&mut [0]))
        .await
        .expect("it stays open");
    assert_eq!(authority.ask(edge.https(), "a.org", "/").await.text(), "a");
}

#[tokio::test]
async fn a_route_may_want_https() {
    let (edge, authority) = (edge(), Authority::new());
    let a = Server::start("a").await;
    let mut only = route("a.org", A, &[a.address]);
    only.https = Https::Redirect;
    let mut proof = route("a.org", A, &[a.address]);
    proof.path = "/.well-known/acme-challenge".into();
    edge.serve(&with(
        1,
        vec![only, proof],
        vec![authority.certificate("a", &["a.org"])],
    ));
    let answer = ask(edge.http(), get("A.org:80", "/x/%2e?y=z")).await;
    assert_eq!(answer.status, StatusCode::PERMANENT_REDIRECT);
    let location = format!("https://a.org:{}/x/%2e?y=z", edge.https().port());
    assert_eq!(answer.headers["location"], location);
    assert_eq!(authority.ask(edge.https(), "a.org", "/x").await.text(), "a");
    let open = ask(edge.http(), get("a.org", "/.well-known/acme-challenge/x")).await;
    assert_eq!(open.text(), "a");

    // without an address for it, it cannot be had
    let plain = TestEdge::start();
    let mut only = route("a.org", A, &[a.address]);
    only.https = Https::Redirect;
    routes(1, vec![only])
        .write_atomically(&plain.config.routes)
        .unwrap();
    let error = plain.control().reload().unwrap_err();
    assert!(matches!(&error, EdgeError::Refused(_)), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("a.org") && error.contains("HTTPS"),
        "{error}"
    );
}

#[tokio::test]
async fn a_former_name_leads_to_the_new_one_as_it_was_come_by() {
    let (edge, authority) = (edge(), Authority::new());
    let a = Server::start("a").await;
    let leads = |host: &str, to: &str| Route {
        redirect: Some(Redirect {
            to: to.to_owned(),
            status: 308,
        }),
        ..route(host, A, &[])
    };
    let file = |version, https| {
        let mut new = route("new.org", A, &[a.address]);
        new.https = https;
        let to = [
            ("old.org", "http://new.org:8080"),
            ("far.org", "http://x.org"),
        ];
        let redirects = to.into_iter().map(|(host, to)| leads(host, to));
        let all = redirects.chain([new]).collect();
        let names = ["old.org", "far.org", "new.org"];
        with(version, all, vec![authority.certificate("all", &names)])
    };
    let plain = async |host| {
        let answer = ask(edge.http(), get(host, "/x?y")).await;
        answer.headers["location"].to_str().unwrap().to_owned()
    };
    let secure = async |host| {
        let answer = authority.ask(edge.https(), host, "/x?y").await;
        assert_eq!(answer.status, StatusCode::PERMANENT_REDIRECT);
        answer.headers["location"].to_str().unwrap().to_owned()
    };
    let new = format!("https://new.org:{}/x?y", edge.https().port());
    edge.serve(&file(1, Https::Offer));
    assert_eq!(plain("old.org").await, "http://new.org:8080/x?y");
    assert_eq!(secure("old.org").await, new);
    // two steps are one
    edge.serve(&file(2, Https::Redirect));
    assert_eq!(plain("old.org").await, new);
    assert_eq!(secure("old.org").await, new);
    // what is not ours is as it was told
    assert_eq!(plain("far.org").await, "http://x.org/x?y");
    assert_eq!(secure("far.org").await, "http://x.org/x?y");
}

#[tokio::test]
async fn websockets_pass_in_tls() {
    let (edge, authority) = (edge(), Authority::new());
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
    let certificate = authority.certificate("a", &["a.org"]);
    edge.serve(&with(
        1,
        vec![route("a.org", A, &[address])],
        vec![certificate.clone()],
    ));
    let stream = authority
        .connect(edge.https(), "a.org", HTTP1)
        .await
        .unwrap();
    let request = "wss://a.org/".into_client_request().unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    for message in [Message::text("one"), Message::binary(vec![7u8; 1 << 20])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    // a switch that takes neither the environment nor its certificate away
    edge.serve(&with(
        2,
        vec![route("a.org", A, &[address])],
        vec![certificate],
    ));
    socket.send(Message::text("two")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("two"));
    edge.serve(&routes(3, vec![]));
    let ended = tokio::time::timeout(SOON, socket.next())
        .await
        .expect("it stays open");
    assert!(!matches!(ended, Some(Ok(_))), "{ended:?}");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_changes_nothing() {
    let (mut edge, authority) = (edge(), Authority::new());
    let a = Server::start("a").await;
    let of = || vec![route("a.org", A, &[a.address])];
    let good = authority.certificate("good", &["a.org"]);
    edge.serve(&with(1, of(), vec![good.clone()]));
    let other = authority.certificate("other", &["b.org"]);
    let old = authority.certificate_until("old", &["c.org"], 2_001);
    let nonsense = authority.directory.path().join("nonsense");
    std::fs::write(&nonsense, "nonsense").unwrap();
    let damaged = authority.directory.path().join("damaged");
    std::fs::write(
        &damaged,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let missing = authority.directory.path().join("missing");
    let from = |chain: &Path, key: &Path| Certificate {
        hosts: vec!["b.org".to_owned()],
        chain: chain.to_owned(),
        key: key.to_owned(),
    };
    for (bad, named, why) in [
        (from(&missing, &other.key), &missing, "cannot be read"),
        (from(&other.chain, &missing), &missing, "cannot be read"),
        (
            from(authority.directory.path(), &other.key),
            &authority.directory.path().to_owned(),
            "not a file",
        ),
        (from(&nonsense, &other.key), &nonsense, "no certificate"),
        (from(&damaged, &other.key), &damaged, "no certificate"),
        (from(&other.chain, &nonsense), &nonsense, "no private key"),
        (
            from(&other.chain, &good.key),
            &good.key,
            "is not the key of",
        ),
        (
            from(&old.chain, &old.key),
            &old.chain,
            "expired at 2001-01-01",
        ),
    ] {
        let file = with(2, vec![], vec![good.clone(), bad]);
        file.write_atomically(&edge.config.routes).unwrap();
        let error = edge.control().reload().unwrap_err();
        assert!(matches!(&error, EdgeError::Certificate(_)), "{error}");
        assert_eq!(error.problem().fault, Fault::Host);
        let text = error.to_string();
        assert!(
            text.contains(why) && text.contains(&named.display().to_string()),
            "{text}"
        );
        assert_eq!(edge.control().status().unwrap().version, 1);
        assert_eq!(authority.ask(edge.https(), "a.org", "/").await.text(), "a");
    }
    // one that expires is no reason to serve nothing after a restart
    edge.serve(&with(3, of(), vec![good.clone(), other.clone()]));
    std::fs::copy(&old.chain, &other.chain).unwrap();
    std::fs::copy(&old.key, &other.key).unwrap();
    stop(&edge.config).unwrap();
    edge.ensure();
    assert_eq!(edge.status.version, 3);
    let said = edge.status.last_error.as_deref().unwrap_or_default();
    assert!(said.contains("expired"), "{said}");
    assert_eq!(authority.ask(edge.https(), "a.org", "/").await.text(), "a");
    let refused = alert(authority.connect(edge.https(), "b.org", HTTP1).await);
    assert_eq!(refused, AlertDescription::UnrecognisedName);
    // a new one is shown from the next reload on
    let renewed = authority.certificate("other", &["b.org"]);
    edge.serve(&with(4, of(), vec![good, renewed]));
    let known = authority.connect(edge.https(), "b.org", HTTP1).await;
    assert!(known.is_ok(), "{known:?}");
}

const LARGE: usize = 16 << 20;

fn large() -> Body {
    full(vec![42u8; LARGE])
}

#[tokio::test]
async fn large_bodies_pass_in_tls() {
    let (edge, authority) = (edge(), Authority::new());
    let a = Server::start("a").await;
    let certificate = authority.certificate("a", &["a.org"]);
    edge.serve(&with(
        1,
        vec![route("a.org", A, &[a.address])],
        vec![certificate],
    ));
    let mut one = authority.http1(edge.https(), "a.org").await;
    let mut two = authority.http2(edge.https(), "a.org").await;
    let request = Request::post("/echo").header("host", "a.org");
    let first = one.send_request(request.body(large()).unwrap()).await;
    let request = Request::post("https://a.org/echo").body(large()).unwrap();
    let second = two.send_request(request).await;
    for echo in [first, second] {
        let back = Answer::read(echo.unwrap()).await.body;
        assert!(back.len() == LARGE && back.iter().all(|byte| *byte == 42));
    }
}

/// A server whose second event waits until the test has seen the first.
#[tokio::test]
async fn events_are_not_held_back_in_tls() {
    let (edge, authority) = (edge(), Authority::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(tokio::sync::Notify::new());
    let next = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let begin = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: 0\n\n";
            stream.write_all(begin).await.unwrap();
            next.notified().await;
            stream.write_all(b"data: 1\n\n").await.unwrap();
        }
    });
    let certificate = authority.certificate("a", &["a.org"]);
    edge.serve(&with(
        1,
        vec![route("a.org", A, &[address])],
        vec![certificate],
    ));
    let mut one = authority.http1(edge.https(), "a.org").await;
    let mut two = authority.http2(edge.https(), "a.org").await;
    for old in [true, false] {
        let answer = if old {
            one.send_request(get("a.org", "/")).await
        } else {
            let request = Request::get("https://a.org/").body(empty()).unwrap();
            two.send_request(request).await
        };
        let mut events = answer.unwrap().into_body().into_data_stream();
        let first = tokio::time::timeout(SOON, events.next()).await;
        let first = first.expect("the first event waits for the second");
        assert_eq!(&first.unwrap().unwrap()[..], b"data: 0\n\n");
        seen.notify_one();
        let second = tokio::time::timeout(SOON, events.next()).await.unwrap();
        assert_eq!(&second.unwrap().unwrap()[..], b"data: 1\n\n");
    }
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_lets_requests_finish() {
    let edge = TestEdge::with(|config| {
        config.listen_tls = vec!["127.0.0.1:0".parse().unwrap()];
        config.limits.drain_seconds = 15;
    });
    let authority = Authority::new();
    let a = Server::start("a").await;
    let certificate = authority.certificate("a", &["a.org"]);
    edge.serve(&with(
        1,
        vec![route("a.org", A, &[a.address])],
        vec![certificate],
    ));
    let mut idle = authority
        .connect(edge.https(), "a.org", HTTP1)
        .await
        .unwrap();
    let mut one = authority.http1(edge.https(), "a.org").await;
    let mut two = authority.http2(edge.https(), "a.org").await;
    let request = Request::get("https://a.org/slow").body(empty()).unwrap();
    let slow = async {
        tokio::join!(
            one.send_request(get("a.org", "/slow")),
            two.send_request(request)
        )
    };
    let stop_then = async {
        until("the slow requests arrive", || {
            a.requests.load(Ordering::SeqCst) == 2
        })
        .await;
        let config = edge.config.clone();
        let stopped = tokio::task::spawn_blocking(move || stop(&config));
        let end = tokio::time::timeout(SOON, idle.read(&mut [0])).await;
        (stopped.await, end)
    };
    let ((one, two), (stopped, end)) = tokio::join!(slow, stop_then);
    for answer in [one, two] {
        assert_eq!(Answer::read(answer.unwrap()).await.text(), "a");
    }
    stopped.unwrap().unwrap();
    assert!(end.is_ok(), "an idle connection stays open");
}

#[tokio::test]
async fn a_connection_is_for_hosts_of_its_certificate() {
    let (edge, authority) = (edge(), Authority::new());
    let a = Server::start("a").await;
    let hosts = ["a.org", "x.a.org", "b.org", "plain.org"];
    let all = hosts.map(|host| route(host, A, &[a.address]));
    let certificates = vec![
        authority.certificate("a", &["a.org", "*.a.org"]),
        authority.certificate("b", &["b.org"]),
    ];
    edge.serve(&with(1, all.into(), certificates));
    let mut client = authority.http2(edge.https(), "a.org").await;
    // the last one has no certificate, so no other connection could be better for it
    for (host, status) in [
        ("a.org", 200),
        ("x.a.org", 200),
        ("b.org", 421),
        ("plain.org", 200),
    ] {
        let request = Request::get(format!("https://{host}/"));
        let answer = client
            .send_request(request.body(empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(Answer::read(answer).await.status.as_u16(), status, "{host}");
    }
    assert_eq!(authority.ask(edge.https(), "b.org", "/").await.text(), "a");
}
