//! Published ports.

use std::net::SocketAddr;

use offshoot_edge_api::{PortRoute, PortState, Protocol, RoutesFile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::kit::{A, B, SOON, TestEdge, bound};

fn port(
    listen: SocketAddr,
    protocol: Protocol,
    environment: &str,
    upstream: SocketAddr,
) -> PortRoute {
    PortRoute {
        listen,
        protocol,
        environment: environment.parse().unwrap(),
        upstreams: vec![upstream],
    }
}

fn file(version: u64, ports: Vec<PortRoute>) -> RoutesFile {
    RoutesFile {
        version,
        ports,
        ..RoutesFile::default()
    }
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Reads until the client closes its side, then answers with a prefix and all it read.
async fn answers_at_the_end(prefix: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = prefix.as_bytes().to_vec();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            });
        }
    });
    address
}

async fn udp_echo(prefix: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (size, from) = socket.recv_from(&mut buffer).await.unwrap();
            let answer = [prefix.as_bytes(), &buffer[..size]].concat();
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    address
}

async fn exchange(address: SocketAddr, content: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    let sent = async {
        write.write_all(content).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let ((), received) = timeout(SOON, async {
        tokio::join!(sent, read.read_to_end(&mut answer))
    })
    .await
    .unwrap();
    received.unwrap();
    answer
}

#[tokio::test]
async fn tcp_ports_lead_where_the_routes_say() {
    let edge = TestEdge::start();
    let (a, b) = (answers_at_the_end("a").await, answers_at_the_end("b").await);
    let reloaded = edge.serve(&file(1, vec![port(any(), Protocol::Tcp, A, a)]));
    let open = bound(&reloaded.ports[0]);
    let content = vec![b'x'; 3 << 20];
    let answer = exchange(open, &content).await;
    assert_eq!(answer.len(), content.len() + 1);
    assert_eq!(answer[0], b'a');

    // the same port for another environment: a connection that is open goes on with the first
    let mut kept = TcpStream::connect(open).await.unwrap();
    kept.write_all(b"kept").await.unwrap();
    let moved = vec![
        port(any(), Protocol::Tcp, B, b),
        port("127.0.0.1:0".parse().unwrap(), Protocol::Udp, A, a),
    ];
    let reloaded = edge.serve(&file(2, moved));
    assert_eq!(
        bound(&reloaded.ports[0]),
        open,
        "the listener was opened anew"
    );
    assert_eq!(exchange(open, b"new").await, b"bnew");
    kept.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(SOON, kept.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, "akept");

    // removed: the port is closed and so are the connections
    let mut open_one = TcpStream::connect(open).await.unwrap();
    open_one.write_all(b"x").await.unwrap();
    edge.serve(&file(3, vec![]));
    let ended = timeout(SOON, open_one.read(&mut [0; 8]))
        .await
        .expect("the connection stays open");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert!(TcpStream::connect(open).await.is_err());
}

#[tokio::test]
async fn udp_answers_find_their_client() {
    let edge = TestEdge::with(|config| config.limits.udp_sessions = 2);
    let (a, b) = (udp_echo("a").await, udp_echo("b").await);
    let reloaded = edge.serve(&file(1, vec![port(any(), Protocol::Udp, A, a)]));
    let open = bound(&reloaded.ports[0]);
    let client = async || {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(open).await.unwrap();
        socket
    };
    let say = async |socket: &UdpSocket, text: &str| {
        socket.send(text.as_bytes()).await.unwrap();
        let mut buffer = [0; 64];
        let size = timeout(SOON, socket.recv(&mut buffer))
            .await
            .expect("an answer")
            .unwrap();
        String::from_utf8_lossy(&buffer[..size]).into_owned()
    };
    let (one, two, three) = (client().await, client().await, client().await);
    assert_eq!(say(&one, "1").await, "a1");
    assert_eq!(say(&two, "2").await, "a2");
    assert_eq!(say(&one, "3").await, "a3");
    // a third is one too many
    three.send(b"x").await.unwrap();
    assert_eq!(say(&two, "4").await, "a4");
    assert!(
        timeout(
            std::time::Duration::from_millis(200),
            three.recv(&mut [0; 8])
        )
        .await
        .is_err()
    );
    // another environment takes over: also for clients that are known
    edge.serve(&file(2, vec![port(any(), Protocol::Udp, B, b)]));
    assert_eq!(say(&one, "5").await, "b5");
}

#[tokio::test]
async fn a_taken_port_is_reported_and_the_others_work() {
    let edge = TestEdge::start();
    let a = answers_at_the_end("a").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let ports = vec![
        port(address, Protocol::Tcp, A, a),
        port("192.0.2.1:5432".parse().unwrap(), Protocol::Tcp, A, a),
        port(any(), Protocol::Tcp, A, a),
    ];
    let reloaded = edge.serve(&file(1, ports.clone()));
    assert_eq!(reloaded.ports[0].state, PortState::InUse);
    assert!(
        matches!(reloaded.ports[1].state, PortState::Failed { .. }),
        "{:?}",
        reloaded.ports[1]
    );
    assert_eq!(exchange(bound(&reloaded.ports[2]), b"x").await, b"ax");
    // free now: the next reload opens it
    drop(taken);
    let reloaded = edge.serve(&file(2, ports));
    assert_eq!(bound(&reloaded.ports[0]), address);
    assert_eq!(exchange(address, b"y").await, b"ay");
}
