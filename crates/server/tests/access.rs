//! Who gets in, how much they may send, and how the server ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use bytes::Bytes;
use common::{Body, SOON, TestServer, piece, request, send};
use http::{Method, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use offshoot_model::Code;
use offshoot_server::{ServeError, Server, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

fn with(headers: &[(&'static str, String)]) -> Request<Body> {
    let mut request = request(Method::GET, "version", "");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn tcp_asks_for_the_token() {
    let server = TestServer::start().await;
    let ask = async |headers: &[(&'static str, String)]| {
        send(&mut server.over_tcp().await, with(headers)).await
    };
    let right = format!("Bearer {}", server.token);
    assert_eq!(
        ask(&[("authorization", right.clone())])
            .await
            .status
            .as_u16(),
        200
    );
    assert_eq!(
        ask(&[("authorization", right.replace("Bearer", "bearer"))])
            .await
            .status
            .as_u16(),
        200
    );
    let mut other = server.token.clone();
    other.replace_range(..1, if other.starts_with('0') { "1" } else { "0" });
    for wrong in [
        "Bearer".to_owned(),
        "Bearer x".to_owned(),
        format!("Bearer {other}"),
        format!("Bearer {}x", server.token),
        format!("Bearer {}", &server.token[1..]),
        format!("Basic {}", server.token),
        server.token.clone(),
    ] {
        let answer = ask(&[("authorization", wrong.clone())]).await;
        assert_eq!(answer.problem(401).code, Code::Unauthorized, "{wrong}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(
            !String::from_utf8_lossy(&answer.body).contains(&server.token),
            "the token is told to nobody"
        );
    }
    ask(&[]).await.problem(401);
    let mut client = server.over_tcp().await;
    for path in [
        "/",
        "/api/v1/openapi.json",
        "/api/v1/nothing",
        "/api/v1/environments/shop/nodes/web/exec",
    ] {
        send(&mut client, request(Method::GET, path, ""))
            .await
            .problem(401);
    }
    assert!(server.fake.calls().is_empty());
    assert_eq!(
        server.get("version").await.status.as_u16(),
        200,
        "the unix socket needs none"
    );
    server.ended().await;
}

#[tokio::test]
async fn tcp_answers_only_what_is_addressed_to_this_host() {
    let server = TestServer::start().await;
    let right = ("authorization", format!("Bearer {}", server.token));
    for host in ["evil.example", "localhost.evil.example:80", "192.0.2.1"] {
        let answer = send(
            &mut server.over_tcp().await,
            with(&[right.clone(), ("host", host.to_owned())]),
        )
        .await;
        assert_eq!(answer.problem(421).code, Code::Unauthorized, "{host}");
    }
    for host in [
        server.tcp.to_string(),
        format!("localhost:{}", server.tcp.port()),
    ] {
        let answer = send(
            &mut server.over_tcp().await,
            with(&[right.clone(), ("host", host)]),
        )
        .await;
        assert_eq!(answer.status.as_u16(), 200);
    }
    // Two hosts, and none, as only a hostile or ancient client sends them.
    for head in [
        "GET /api/v1/version HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n",
        "GET /api/v1/version HTTP/1.0\r\n",
    ] {
        let mut stream = TcpStream::connect(server.tcp).await.unwrap();
        let text = format!(
            "{head}Authorization: {}\r\nConnection: close\r\n\r\n",
            right.1
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(
            answer.contains(" 421 ") || answer.contains(" 400 "),
            "{answer}"
        );
    }
    server.ended().await;
}

/// A socket that somebody else could open, as after a careless chmod: the kernel's word on the peer decides.
#[tokio::test]
async fn the_unix_socket_asks_who_the_peer_is() {
    const NOBODY: u32 = 65534;
    let server = TestServer::start().await;
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(server.dir.path(), 0o755);
    open(server.socket.parent().unwrap(), 0o755);
    let script = r#"use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "connect: $!";
        print $s "GET /api/v1/pool HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"; print while <$s>;"#;
    let socket = server.socket.clone();
    let run = async move || {
        let mut command = Command::new("perl");
        command.args(["-e", script]).arg(&socket);
        std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
        tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
    };
    let refused = match run().await {
        Ok(output) => output,
        Err(error) => {
            println!("SKIPPED: perl cannot be run as another user: {error}");
            return;
        }
    };
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("ermission denied"),
        "mode 0600 keeps others out: {said}"
    );
    open(&server.socket, 0o666);
    let answer = run().await.unwrap();
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(
        text.contains(" 401 ") && text.contains("\"unauthorized\""),
        "{text}"
    );
    assert!(server.fake.calls().is_empty());
    server.ended().await;
}

#[tokio::test]
async fn json_bodies_are_bounded() {
    const MAX: usize = 16 << 20;
    let server = TestServer::start().await;
    let padded = |length: usize| format!("{{}}{}", " ".repeat(length - 2));
    let exact = server.post("environments/shop/clone", &padded(MAX)).await;
    assert_eq!(exact.status.as_u16(), 202, "{exact:?}");

    // Said to be larger: refused before it comes.
    let head = format!(
        "POST /api/v1/environments/shop/clone HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        MAX + 1
    );
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = timeout(SOON, stream.read(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(
        answer[..length].starts_with(b"HTTP/1.1 413 "),
        "{}",
        String::from_utf8_lossy(&answer[..length])
    );

    // Not said: refused when it has become too large.
    let pieces = futures::stream::iter(
        (0..)
            .map(|_| Ok(Frame::data(Bytes::from(vec![b' '; 1 << 20]))))
            .take(17),
    );
    let body = StreamBody::new(pieces).boxed_unsync();
    let mut chunked = request(Method::POST, "environments/shop/clone", "");
    *chunked.body_mut() = body;
    let answer = send(&mut server.unix().await, chunked).await;
    assert_eq!(answer.problem(413).code, Code::BadRequest);
    assert_eq!(server.fake.calls().len(), 1);
    server.ended().await;
}

#[tokio::test]
async fn heads_are_bounded() {
    let server = TestServer::start().await;
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    let head = format!(
        "GET /api/v1/version HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(200 << 10)
    );
    // The server may have closed before all is written.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 431 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    server.ended().await;
}

#[tokio::test]
async fn a_client_that_goes_does_not_undo_what_it_asked_for() {
    let server = TestServer::start().await;
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    stream
        .write_all(b"POST /api/v1/environments/shop/stop HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    drop(stream);
    timeout(SOON, async {
        while server.fake.calls.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(server.fake.calls(), ["stop shop"]);
    server.ended().await;
}

#[tokio::test]
async fn the_end_waits_for_requests_and_takes_the_socket_away() {
    let mut server = TestServer::start().await;
    *server.fake.wait_for.lock().unwrap() = Some(2);
    let mut under_way = server.unix().await;
    let mut idle = server.unix().await;
    send(&mut idle, request(Method::GET, "version", "")).await;
    let asked = tokio::spawn(async move {
        send(&mut under_way, request(Method::GET, "environments", "")).await
    });
    timeout(SOON, async {
        while server.fake.inside.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let mut events = server
        .open(request(Method::GET, "events", ""))
        .await
        .into_body();
    server.stop();
    while piece(&mut events).await.is_some() {}
    let fake = std::sync::Arc::clone(&server.fake);
    let (socket, tcp) = (server.socket.clone(), server.tcp);
    fake.go.notify_waiters();
    let answer = timeout(SOON, asked).await.unwrap().unwrap();
    assert_eq!(
        answer.status.as_u16(),
        200,
        "a request that had come is answered"
    );
    let _dir = server.ended().await;
    assert!(!socket.exists());
    assert!(TcpStream::connect(tcp).await.is_err());
}

#[tokio::test]
async fn a_second_daemon_does_not_take_the_socket() {
    let server = TestServer::start().await;
    let config = ServerConfig {
        instance: "t2".to_owned(),
        socket: server.socket.clone(),
        tcp: None,
        token_file: server.dir.path().join("other"),
        web: None,
    };
    let error = Server::bind(&config).await.unwrap_err();
    assert!(matches!(error, ServeError::SocketInUse { .. }), "{error}");
    assert!(!config.token_file.exists(), "without TCP there is no token");
    assert_eq!(server.get("version").await.status.as_u16(), 200);
    let taken = ServerConfig {
        tcp: Some(server.tcp),
        socket: server.dir.path().join("run/2.sock"),
        ..config
    };
    let error = Server::bind(&taken).await.unwrap_err();
    assert_eq!(error.problem().code, Code::PortInUse);
    let outside = ServerConfig {
        tcp: Some("0.0.0.0:0".parse().unwrap()),
        ..taken
    };
    assert!(matches!(
        Server::bind(&outside).await.unwrap_err(),
        ServeError::NotLoopback { .. }
    ));
    server.ended().await;
}
