//! People use an environment while it is cloned, and while others come and go: they notice nothing.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use offshoot_e2e::support::{ONE, PAIR, SOON, answers, node, rungs, sh};
use offshoot_e2e::{EDGE, TestDaemon, http, wait_for};
use serde_json::Value;
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

/// Clients that come without pause, each request over a connection of its own.
#[derive(Default)]
struct Crowd {
    leave: AtomicBool,
    answered: AtomicU64,
    longest_ms: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Crowd {
    /// One of them, in the daemon's network namespace, until all leave.
    fn come(&self, daemon: &TestDaemon, address: SocketAddr, host: &str) {
        daemon.inside(|| {
            while !self.leave.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = http::get(address, host, "/");
                let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.longest_ms.fetch_max(took, Ordering::Relaxed);
                match answer {
                    Ok(answer) if answer.status == 200 => {
                        self.answered.fetch_add(1, Ordering::Relaxed);
                    }
                    other => {
                        let told = format!("{address} after {took} ms: {other:?}");
                        self.failures.lock().expect("not poisoned").push(told);
                    }
                }
            }
        });
    }

    /// One who connects and goes away again without a word.
    fn look_in(&self, daemon: &TestDaemon, address: SocketAddr) {
        daemon.inside(|| {
            while !self.leave.load(Ordering::Relaxed) {
                let seen = TcpStream::connect_timeout(&address, Duration::from_secs(10));
                if let Err(error) = seen {
                    let told = format!("{address}: connecting: {error}");
                    self.failures.lock().expect("not poisoned").push(told);
                }
            }
        });
    }
}

/// Sends the crowd home, also when the test fails in between.
struct SendHome<'a>(&'a Crowd);

impl Drop for SendHome<'_> {
    fn drop(&mut self) {
        self.0.leave.store(true, Ordering::Relaxed);
    }
}

/// Who answers a first packet at this port never gets a third: its connections stay half open.
fn drop_answers(daemon: &TestDaemon, port: u16) {
    let rules = format!(
        "table inet knock {{\nchain answers {{\ntype filter hook input priority 0;\n\
         tcp sport {port} tcp flags & (syn | ack) == (syn | ack) drop\n}}\n}}\n"
    );
    let ruled = daemon.inside(|| Command::new("nft").arg(rules).output());
    let ruled = ruled.expect("nft is there");
    assert!(ruled.status.success(), "{ruled:?}");
}

/// Half-open connections of a node, by its own kernel tables.
fn half_open(daemon: &TestDaemon, environment: &str, node: &str) -> usize {
    let table = sh(
        daemon,
        environment,
        node,
        "cat /proc/net/tcp /proc/net/tcp6",
    );
    table.lines().filter(|line| line.contains(" 03 ")).count()
}

#[test]
fn clones_are_live_and_no_request_fails_while_connections_come_and_go() {
    let daemon = TestDaemon::start();
    daemon.create("shop", PAIR);
    daemon.node("shop", "/set?v=kept").expect("it answers");
    let before = answers(&daemon, "shop");
    let outer = |node_name: &str| -> SocketAddr {
        let outer = node(&daemon, "shop", node_name)["outer"].clone();
        let address = outer.as_str().expect("an outer address");
        format!("{address}:8080").parse().expect("an address")
    };
    let (web, db) = (outer("web-1"), outer("db-1"));
    let knocked = SocketAddr::new(db.ip(), 9000);
    drop_answers(&daemon, knocked.port());
    let crowd = Crowd::default();
    std::thread::scope(|scope| {
        let _home = SendHome(&crowd);
        for address in [web, web, db, EDGE] {
            let (crowd, daemon) = (&crowd, &daemon);
            scope.spawn(move || crowd.come(daemon, address, "shop.localhost"));
        }
        scope.spawn(|| crowd.look_in(&daemon, db));
        for round in 0..6 {
            let then = crowd.answered.load(Ordering::Relaxed);
            wait_for("the crowd to be served", SOON, || {
                (crowd.answered.load(Ordering::Relaxed) > then + 100).then_some(())
            });
            let tried =
                daemon.inside(|| TcpStream::connect_timeout(&knocked, Duration::from_millis(50)));
            assert!(tried.is_err(), "the answer is dropped");
            assert!(half_open(&daemon, "shop", "db") > 0);
            let operation = daemon.json(&["clone", "shop", "--name", "copy"]);
            for (node, rung) in rungs(&operation) {
                assert_eq!(rung, "live", "{round}, {node}: {operation:#}");
            }
            println!(
                "frozen for {} ms after {then} requests",
                operation["report"]["freeze_us"].as_u64().unwrap_or(0) / 1000
            );
            let seen = answers(&daemon, "copy");
            assert_eq!(
                (
                    &seen["boot"],
                    &seen["value"],
                    &seen["connects"],
                    &seen["gaps"]
                ),
                (&before["boot"], &"kept".into(), &1.into(), &0.into()),
                "{seen}"
            );
            daemon.run(&["rm", "-f", "copy"]);
        }
    });
    println!(
        "{} requests, the longest took {} ms",
        crowd.answered.load(Ordering::Relaxed),
        crowd.longest_ms.load(Ordering::Relaxed)
    );
    let failures = crowd.failures.into_inner().expect("not poisoned");
    assert!(
        failures.is_empty(),
        "{} requests failed: {:#?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    let after = answers(&daemon, "shop");
    assert_eq!(
        (&after["boot"], &after["connects"], &after["gaps"]),
        (&before["boot"], &1.into(), &0.into())
    );
    daemon.finish(&["shop"]);
}

/// Opens a WebSocket to an environment, through the edge.
fn websocket(daemon: &TestDaemon, environment: &str) -> WebSocket<TcpStream> {
    let stream = daemon
        .inside(|| TcpStream::connect(EDGE))
        .expect("the edge");
    stream.set_read_timeout(Some(SOON)).expect("a socket");
    let url = format!("ws://{environment}.localhost:8080/");
    client(url, stream).expect("a WebSocket").0
}

/// What comes back for this text.
fn echoed(socket: &mut WebSocket<TcpStream>, text: &str) -> String {
    socket.send(Message::text(text)).expect("it is open");
    match socket.read().expect("an answer") {
        Message::Text(text) => text.to_string(),
        other => panic!("{other:?} came back"),
    }
}

/// Asks several environments over one HTTP/2 connection, without TLS and an upgrade; gives their nodes' host names.
fn over_http2(daemon: &TestDaemon, environments: &[&str]) -> Vec<String> {
    let asked = async {
        let stream = tokio::net::TcpStream::connect(EDGE).await?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let ask = |environment: &str| {
            let mut sender = sender.clone();
            let request = Request::get(format!("http://{environment}.localhost:8080/"))
                .body(Empty::<Bytes>::new());
            async move {
                let answer = sender.send_request(request?).await?;
                anyhow::ensure!(answer.status() == 200, "{}", answer.status());
                let body = answer.into_body().collect().await?.to_bytes();
                let seen: Value = serde_json::from_slice(&body)?;
                Ok(seen["hostname"].as_str().unwrap_or_default().to_owned())
            }
        };
        // All on their way before the first is answered.
        let asked: Vec<_> = environments
            .iter()
            .map(|name| tokio::spawn(ask(name)))
            .collect();
        let mut seen = Vec::new();
        for answer in asked {
            seen.push(answer.await??);
        }
        anyhow::Ok(seen)
    };
    let asked = daemon.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { tokio::time::timeout(SOON, asked).await? })
    });
    asked.expect("answers over HTTP/2")
}

#[test]
fn every_protocol_leads_to_its_environment_while_routes_change() {
    let daemon = TestDaemon::start();
    let file = daemon.create("shop", ONE);
    daemon.create("other", ONE);
    let mut open = websocket(&daemon, "shop");
    let mut theirs = websocket(&daemon, "other");
    assert_eq!(echoed(&mut open, "hello"), "web-1.shop hello");
    assert_eq!(echoed(&mut theirs, "hello"), "web-1.other hello");

    let changes: &[(&[&str], &[&str])] = &[
        (
            &["create", "-f", &file, "--name", "third"],
            &["shop", "other", "third"],
        ),
        (&["rename", "third", "fourth"], &["shop", "other", "fourth"]),
        (
            &["clone", "shop"],
            &["shop", "shop-clone", "other", "fourth"],
        ),
        (&["stop", "fourth"], &["shop", "shop-clone", "other"]),
        (&["rm", "-f", "fourth", "shop-clone"], &["other", "shop"]),
    ];
    for (change, reached) in changes {
        daemon.run(change);
        assert_eq!(
            echoed(&mut open, "still here"),
            "web-1.shop still here",
            "{change:?}"
        );
        assert_eq!(
            echoed(&mut theirs, "me too"),
            "web-1.other me too",
            "{change:?}"
        );
        let expected: Vec<_> = reached.iter().map(|name| format!("web-1.{name}")).collect();
        assert_eq!(over_http2(&daemon, reached), expected, "{change:?}");
        for name in *reached {
            assert_eq!(answers(&daemon, name)["hostname"], format!("web-1.{name}"));
            let mut fresh = websocket(&daemon, name);
            assert_eq!(echoed(&mut fresh, "hi"), format!("web-1.{name} hi"));
        }
    }
    for gone in ["third", "fourth", "shop-clone"] {
        assert_eq!(
            daemon.get(gone, "/").expect("the edge answers").status,
            404,
            "{gone}"
        );
    }

    // Its own new name changes nothing for who is connected; its end does.
    daemon.run(&["rename", "shop", "store"]);
    assert_eq!(echoed(&mut open, "renamed"), "web-1.store renamed");
    assert_eq!(
        over_http2(&daemon, &["store", "other"]),
        ["web-1.store", "web-1.other"]
    );
    daemon.run(&["rm", "-f", "other"]);
    assert!(
        theirs.read().is_err(),
        "a removed environment's connections end"
    );
    assert_eq!(echoed(&mut open, "alone"), "web-1.store alone");
    daemon.finish(&["store"]);
}
