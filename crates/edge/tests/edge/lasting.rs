//! What lasts: WebSockets, event streams, gRPC calls and TCP connections, while they last and when their way leads
//! elsewhere.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response};
use offshoot_edge_api::{PortRoute, Protocol, Route, RoutesFile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::authority::{Authority, HTTP1};
use crate::kit::{
    A, B, Duplex, SOON, Server, TestEdge, bound, get, http1, http2, route, routes, until,
    with_policy,
};
use crate::service::{Service, call, message, next, plain};

/// A server of WebSockets that says its name before each text, and sends what else comes back.
async fn sockets(name: &'static str) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    let answer = match message {
                        Message::Text(text) => Message::text(format!("{name} {text}")),
                        Message::Binary(_) => message,
                        _ => continue,
                    };
                    if socket.send(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, task)
}

type Socket<S> = WebSocketStream<S>;

async fn socket<S: Duplex>(stream: S, address: &str) -> Socket<S> {
    let request = address.into_client_request().unwrap();
    let begun = tokio_tungstenite::client_async(request, stream);
    timeout(SOON, begun).await.unwrap().unwrap().0
}

async fn plain_socket(edge: &TestEdge, address: &str) -> Socket<TcpStream> {
    socket(TcpStream::connect(edge.http()).await.unwrap(), address).await
}

async fn said<S: Duplex>(socket: &mut Socket<S>, text: &str) -> Utf8Bytes {
    socket.send(Message::text(text.to_owned())).await.unwrap();
    let answer = timeout(SOON, socket.next()).await.unwrap();
    answer.unwrap().unwrap().into_text().unwrap()
}

/// When it ended.
async fn end<S: Duplex>(mut socket: Socket<S>) -> Instant {
    while let Some(Ok(_)) = timeout(SOON, socket.next()).await.expect("it goes on") {}
    Instant::now()
}

async fn end_of_events(events: Response<Incoming>) -> Instant {
    let read = async {
        let mut events = events.into_body();
        while let Some(Ok(_)) = events.frame().await {}
    };
    timeout(SOON, read).await.expect("they go on");
    Instant::now()
}

/// Longer than anything that moves goes on, by the clock of something else that moves.
async fn after_the_bound(edge: &TestEdge, version: u64, mut file: RoutesFile, server: SocketAddr) {
    let clock = |version, environment: &str, file: &mut RoutesFile| {
        file.version = version;
        file.routes.retain(|route| route.host != "clock.org");
        file.routes.push(route("clock.org", environment, &[server]));
    };
    // twice, since the bound is spread over its last tenth
    for version in [version, version + 2] {
        clock(version, A, &mut file);
        edge.serve(&file);
        let ticking = plain_socket(edge, "ws://clock.org/").await;
        clock(version + 1, B, &mut file);
        edge.serve(&file);
        end(ticking).await;
    }
}

fn quick() -> TestEdge {
    TestEdge::with(|config| {
        config.limits.moved_seconds = 1;
        config.listen_tls = vec!["127.0.0.1:0".parse().unwrap()];
    })
}

#[tokio::test]
async fn whatever_lasts_ends_a_while_after_its_way_leads_elsewhere() {
    let (edge, authority) = (quick(), Authority::new());
    let (of_a, _a) = sockets("a").await;
    let (of_b, _b) = sockets("b").await;
    let events = Server::start("a").await;
    let calls = Service::start("a").await;
    let port = PortRoute {
        listen: "127.0.0.1:0".parse().unwrap(),
        protocol: Protocol::Tcp,
        environment: A.parse().unwrap(),
        upstreams: vec![of_a],
    };
    let led_to = |version, to: &str, sockets: SocketAddr| RoutesFile {
        version,
        routes: vec![
            route("ws.org", to, &[sockets]),
            route("events.org", to, &[events.address]),
            route("calls.org", to, &[calls.address]),
            route("stays.org", A, &[of_a]),
            route("b.org", B, &[of_b]),
        ],
        certificates: vec![authority.certificate("ws", &["ws.org"])],
        ports: vec![PortRoute {
            environment: to.parse().unwrap(),
            upstreams: vec![sockets],
            ..port.clone()
        }],
        ..RoutesFile::default()
    };
    let reloaded = edge.serve(&led_to(1, A, of_a));
    let port = bound(&reloaded.ports[0]);

    let mut ws = plain_socket(&edge, "ws://ws.org/").await;
    let stream = authority.connect(edge.https(), "ws.org", HTTP1).await;
    let mut wss = socket(stream.unwrap(), "wss://ws.org/").await;
    let mut tcp = socket(TcpStream::connect(port).await.unwrap(), "ws://any/").await;
    let mut stays = plain_socket(&edge, "ws://stays.org/").await;
    let mut client1 = http1(edge.http()).await;
    let events1 = client1
        .send_request(get("events.org", "/events"))
        .await
        .unwrap();
    let mut client2 = http2(edge.http()).await;
    let events2 = Request::get("http://events.org/events").body(crate::kit::empty());
    let events2 = client2.send_request(events2.unwrap()).await.unwrap();
    let service = plain(edge.http()).await;
    let begun = call(&service, "http://calls.org/hang", &[]).await;
    let mut answer = begun.response.await.unwrap().into_body();
    assert_eq!(next(&mut answer).await.unwrap().unwrap(), message(b"begun"));

    let switched = Instant::now();
    edge.serve(&led_to(2, B, of_b));
    for socket in [&mut ws, &mut tcp, &mut stays] {
        assert_eq!(said(socket, "on").await, "a on", "it goes on with its side");
    }
    assert_eq!(said(&mut wss, "on").await, "a on");
    let end_of_call = async {
        let error = next(&mut answer).await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
        Instant::now()
    };
    let (ws, wss, tcp, events1, events2, call) = tokio::join!(
        end(ws),
        end(wss),
        end(tcp),
        end_of_events(events1),
        end_of_events(events2),
        end_of_call
    );
    for (what, ended) in [
        ("ws", ws),
        ("wss", wss),
        ("tcp", tcp),
        ("events", events1),
        ("events by HTTP/2", events2),
        ("call", call),
    ] {
        let took = ended - switched;
        assert!(took >= Duration::from_millis(900), "{what}: {took:?}");
    }
    until("the service hears of it", || !calls.resets().is_empty()).await;
    assert_eq!(said(&mut stays, "on").await, "a on");
    let mut anew = plain_socket(&edge, "ws://ws.org/").await;
    assert_eq!(said(&mut anew, "hello").await, "b hello");
    let mut anew = socket(TcpStream::connect(port).await.unwrap(), "ws://any/").await;
    assert_eq!(said(&mut anew, "hello").await, "b hello");
    // two WebSockets, two streams of events and a call, none of them an error
    let counted = || {
        let stats = edge.control().stats(vec![A.parse().unwrap()]).unwrap();
        let side = &stats.owners[0].sides[0];
        (side.requests, side.errors)
    };
    until("all were counted", || counted() == (5, 0)).await;
}

#[tokio::test]
async fn who_is_back_in_time_goes_on() {
    let edge = quick();
    let (of_a, _a) = sockets("a").await;
    let all = |version, environment: &str| {
        routes(
            version,
            vec![
                route("ws.org", environment, &[of_a]),
                route("a.org", A, &[of_a]),
                route("b.org", B, &[of_a]),
            ],
        )
    };
    edge.serve(&all(1, A));
    let mut kept = plain_socket(&edge, "ws://ws.org/").await;
    edge.serve(&all(2, B));
    edge.serve(&all(3, A));
    after_the_bound(&edge, 4, all(4, A), of_a).await;
    assert_eq!(said(&mut kept, "still").await, "a still");
}

/// A policy's sides are where its domain leads: a side that is taken out of it is elsewhere, one without weight is not.
#[tokio::test]
async fn sides_that_are_taken_out_are_left() {
    let edge = quick();
    let (of_a, _a) = sockets("a").await;
    let (of_b, _b) = sockets("b").await;
    let file = |version, routes: &[Route], policy: &str| {
        let all = [(A, &[of_a][..]), (B, &[of_b])];
        let named = all.iter().filter(|(id, _)| policy.contains(id));
        with_policy(
            version,
            routes.to_vec(),
            A,
            policy,
            &named.copied().collect::<Vec<_>>(),
        )
    };
    let both = [route("a.org", A, &[of_a]), route("b.org", B, &[of_b])];
    let side = |id: &str, weight: u32| format!(r#"{{"environment":"{id}","weight":{weight}}}"#);
    let sides = |a, b| format!(r#"{{"sides":[{},{}]}}"#, side(A, a), side(B, b));
    edge.serve(&file(1, &both, &sides(0, 1)));
    let mut on_b = plain_socket(&edge, "ws://a.org/").await;
    assert_eq!(said(&mut on_b, "1").await, "b 1");

    let fenced = sides(1, 0).replace("{\"sides\"", "{\"fence\":true,\"sides\"");
    edge.serve(&file(2, &both, &fenced));
    after_the_bound(&edge, 3, file(3, &both, &sides(1, 0)), of_b).await;
    assert_eq!(said(&mut on_b, "2").await, "b 2");

    edge.serve(&file(7, &both, &format!(r#"{{"sides":[{}]}}"#, side(A, 1))));
    assert_eq!(said(&mut on_b, "3").await, "b 3");
    end(on_b).await;

    // a domain that is taken away leads nowhere
    let gone = plain_socket(&edge, "ws://a.org/").await;
    edge.serve(&routes(8, vec![route("other.org", A, &[of_a])]));
    end(gone).await;
}

#[tokio::test]
async fn nothing_goes_on_where_no_time_is_given() {
    let edge = TestEdge::with(|config| config.limits.moved_seconds = 0);
    let (of_a, _a) = sockets("a").await;
    let file = |version, environment: &str| {
        let stays = route("a.org", A, &[of_a]);
        routes(version, vec![route("ws.org", environment, &[of_a]), stays])
    };
    edge.serve(&file(1, A));
    let socket = plain_socket(&edge, "ws://ws.org/").await;
    let switched = Instant::now();
    edge.serve(&file(2, B));
    assert!(end(socket).await - switched < Duration::from_secs(10));
}

#[tokio::test]
async fn large_messages_pings_and_the_end_pass() {
    let (edge, authority) = (quick(), Authority::new());
    let (of_a, _a) = sockets("a").await;
    let (of_b, _b) = sockets("b").await;
    let side = |id, weight| format!(r#"{{"environment":"{id}","weight":{weight}}}"#);
    let file = |version, a, b| {
        let mut file = with_policy(
            version,
            vec![route("a.org", A, &[of_a])],
            A,
            &format!(r#"{{"sides":[{},{}]}}"#, side(A, a), side(B, b)),
            &[(A, &[of_a]), (B, &[of_b])],
        );
        file.certificates = vec![authority.certificate("a", &["a.org"])];
        file
    };
    edge.serve(&file(1, 1, 1));
    let stream = authority.connect(edge.https(), "a.org", HTTP1).await;
    let mut socket = socket(stream.unwrap(), "wss://a.org/chat").await;
    let side = said(&mut socket, "who").await;
    for version in 2..6 {
        edge.serve(&file(version, version as u32 % 2, 1 - version as u32 % 2));
        assert_eq!(said(&mut socket, "who").await, side);
        let large = Message::binary(vec![7; 16 << 20]);
        socket.send(large.clone()).await.unwrap();
        let back = timeout(SOON, socket.next()).await.unwrap();
        assert!(back.unwrap().unwrap() == large);
    }
    socket.send(Message::Ping("knock".into())).await.unwrap();
    let pong = timeout(SOON, socket.next()).await.unwrap();
    assert_eq!(pong.unwrap().unwrap(), Message::Pong("knock".into()));
    // after the close frame the server answers with its own, and ends
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: "done".into(),
    };
    socket.send(Message::text("last")).await.unwrap();
    socket.close(Some(close.clone())).await.unwrap();
    let last = timeout(SOON, socket.next()).await.unwrap();
    assert!(
        last.unwrap()
            .unwrap()
            .into_text()
            .unwrap()
            .ends_with(" last")
    );
    let answer = timeout(SOON, socket.next()).await.unwrap();
    assert_eq!(answer.unwrap().unwrap(), Message::Close(Some(close)));
    assert!(timeout(SOON, socket.next()).await.unwrap().is_none());
}

/// WebSockets by HTTP/2 (RFC 8441) are not offered, so clients take HTTP/1.1 for them.
#[tokio::test]
async fn websockets_by_http2_are_not_offered() {
    let edge = TestEdge::start();
    let service = Service::start("a").await;
    edge.serve(&routes(1, vec![route("a.org", A, &[service.address])]));
    let client = plain(edge.http()).await;
    // the settings have come once there is an answer
    let went = call(&client, "http://a.org/unary", &[]).await;
    went.end(message(b"?")).await.unwrap();
    assert!(!client.is_extended_connect_protocol_enabled());
}

/// As a database's client does: many exchanges on one connection, some large, while routes come and go.
#[tokio::test]
async fn a_long_tcp_connection_outlasts_reloads() {
    let edge = quick();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // a length, and as many bytes; answered the same way, until the client says no more
        while let Ok(length) = stream.read_u32().await {
            let mut content = vec![0; length as usize];
            stream.read_exact(&mut content).await.unwrap();
            stream.write_u32(length).await.unwrap();
            stream.write_all(&content).await.unwrap();
        }
        stream.write_all(b"bye").await.unwrap();
    });
    let port = |environment: &str| PortRoute {
        listen: "127.0.0.1:0".parse().unwrap(),
        protocol: Protocol::Tcp,
        environment: environment.parse().unwrap(),
        upstreams: vec![server],
    };
    let file = |version: u64| RoutesFile {
        version,
        routes: vec![route(
            "a.org",
            if version.is_multiple_of(2) { A } else { B },
            &[],
        )],
        ports: vec![port(A)],
        ..RoutesFile::default()
    };
    let open = bound(&edge.serve(&file(1)).ports[0]);
    let mut client = TcpStream::connect(open).await.unwrap();
    for version in 2..22 {
        let content = vec![version as u8; if version == 9 { 16 << 20 } else { 100 }];
        let (mut read, mut write) = client.split();
        let sent = async {
            write.write_u32(content.len() as u32).await.unwrap();
            write.write_all(&content).await.unwrap();
        };
        let mut back = vec![0; content.len()];
        let received = async {
            assert_eq!(read.read_u32().await.unwrap() as usize, back.len());
            read.read_exact(&mut back).await.unwrap();
        };
        timeout(SOON, async { tokio::join!(sent, received) })
            .await
            .unwrap();
        assert!(back == content);
        edge.serve(&file(version));
    }
    client.shutdown().await.unwrap();
    let mut rest = String::new();
    timeout(SOON, client.read_to_string(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(rest, "bye");
}
