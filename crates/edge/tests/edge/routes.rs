//! Routes change and processes die; clients do not notice, or are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::StatusCode;
use offshoot_edge_api::{EdgeConfig, EdgeError, ensure_edge, stop};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::kit::{
    A, B, SOON, Server, TestEdge, ask, binary, get, http1, route, routes, signal, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn routes_switch_under_load_without_a_failed_request() {
    const SWITCHES: u64 = 20;
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    // A and B take each other's place, as a swap does
    let file = |version: u64| {
        let (main, other) = if version.is_multiple_of(2) {
            (&b, &a)
        } else {
            (&a, &b)
        };
        let (main_id, other_id) = if version.is_multiple_of(2) {
            (B, A)
        } else {
            (A, B)
        };
        routes(
            version,
            vec![
                route("main.localhost", main_id, &[main.address]),
                route("other.localhost", other_id, &[other.address]),
            ],
        )
    };
    edge.serve(&file(1));
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (stop, answered, address) = (Arc::clone(&stop), Arc::clone(&answered), edge.http());
        clients.spawn(async move {
            let mut client = http1(address).await;
            while !stop.load(Ordering::Relaxed) {
                client.ready().await.expect("the connection stays");
                let answer = client
                    .send_request(get("main.localhost", "/"))
                    .await
                    .expect("an answer");
                assert_eq!(answer.status(), StatusCode::OK);
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert!(body == "a" || body == "b", "{body:?}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for version in 2..=SWITCHES + 1 {
        let before = answered.load(Ordering::Relaxed);
        edge.serve(&file(version));
        let expected = if version.is_multiple_of(2) { "b" } else { "a" };
        assert_eq!(
            ask(edge.http(), get("main.localhost", "/")).await.text(),
            expected
        );
        until("requests between switches", || {
            answered.load(Ordering::Relaxed) > before + 20
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    println!(
        "{} requests, none failed, over {SWITCHES} switches",
        answered.load(Ordering::Relaxed)
    );
}

#[tokio::test]
async fn an_address_used_again_gets_no_old_connection() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    ask(edge.http(), get("a.localhost", "/")).await;
    ask(edge.http(), get("a.localhost", "/")).await;
    assert_eq!(a.connections.load(Ordering::SeqCst), 1);
    edge.serve(&routes(2, vec![route("b.localhost", B, &[a.address])]));
    ask(edge.http(), get("b.localhost", "/")).await;
    assert_eq!(
        a.connections.load(Ordering::SeqCst),
        2,
        "B was handed a connection of A"
    );
}

async fn websocket_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(_)) = socket.next().await {}
            });
        }
    });
    address
}

#[tokio::test]
async fn connections_of_removed_environments_end_and_others_go_on() {
    let edge = TestEdge::start();
    let server = websocket_server().await;
    edge.serve(&routes(
        1,
        vec![
            route("a.localhost", A, &[server]),
            route("b.localhost", B, &[server]),
        ],
    ));
    let open = async |host: &str| {
        let stream = TcpStream::connect(edge.http()).await.unwrap();
        let request = format!("ws://{host}/").into_client_request().unwrap();
        tokio_tungstenite::client_async(request, stream)
            .await
            .unwrap()
            .0
    };
    let (mut a, mut b) = (open("a.localhost").await, open("b.localhost").await);
    // renamed, and with an upstream less: still the same environment
    edge.serve(&routes(
        2,
        vec![
            route("a.localhost", A, &[server]),
            route("c.localhost", B, &[]),
        ],
    ));
    edge.serve(&routes(3, vec![route("c.localhost", B, &[])]));
    let ended = tokio::time::timeout(SOON, a.next())
        .await
        .expect("A's connection stays open");
    assert!(!matches!(ended, Some(Ok(_))));
    let quiet = tokio::time::timeout(std::time::Duration::from_millis(300), b.next()).await;
    assert!(quiet.is_err(), "B's connection ended: {quiet:?}");
    drop(b.close(None).await);
}

#[tokio::test]
async fn a_damaged_file_changes_nothing() {
    let mut edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(7, vec![route("a.localhost", A, &[a.address])]));
    for damage in [
        &b"{\"version\": 8, \"rou"[..],
        b"",
        b"[]",
        br#"{"version":8,"routes":[{"host":"a b","environment":"aaaaaaaa","upstreams":[]}]}"#,
    ] {
        std::fs::write(&edge.config.routes, damage).unwrap();
        let error = edge.control().reload().unwrap_err();
        assert!(matches!(&error, EdgeError::Refused(_)), "{error}");
        let status = edge.control().status().unwrap();
        assert_eq!(status.version, 7);
        assert!(status.last_error.is_some());
        assert_eq!(ask(edge.http(), get("a.localhost", "/")).await.text(), "a");
    }
    // also when the edge starts anew
    stop(&edge.config).unwrap();
    edge.ensure();
    assert_eq!(edge.status.version, 7);
    assert!(edge.status.last_error.is_some());
    // and when the file is gone
    std::fs::remove_file(&edge.config.routes).unwrap();
    let error = edge.control().reload().unwrap_err();
    assert!(error.to_string().contains("is gone"), "{error}");
    stop(&edge.config).unwrap();
    edge.ensure();
    assert_eq!(edge.status.version, 7);
    assert_eq!(ask(edge.http(), get("a.localhost", "/")).await.text(), "a");
    edge.serve(&routes(8, vec![route("b.localhost", A, &[a.address])]));
    assert_eq!(edge.control().status().unwrap().last_error, None);
}

#[tokio::test]
async fn killed_it_comes_back_with_its_routes() {
    let mut edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(3, vec![route("a.localhost", A, &[a.address])]));
    let first = edge.status.pid;
    edge.kill().await;
    assert_ne!(edge.status.pid, first);
    assert_eq!(edge.status.version, 3);
    assert_eq!(ask(edge.http(), get("a.localhost", "/")).await.text(), "a");
}

#[tokio::test]
async fn one_process_per_configuration_and_nobody_s_child() {
    let mut edge = TestEdge::start();
    let first = edge.status.pid;
    edge.ensure();
    assert_eq!(edge.status.pid, first);
    let stat = std::fs::read_to_string(format!("/proc/{first}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_ne!(
        fields[1],
        std::process::id().to_string(),
        "its parent is this test"
    );
    assert_eq!(fields[3], first.to_string(), "it has a session of its own");
    edge.config.limits.idle_seconds += 1;
    edge.ensure();
    assert_ne!(edge.status.pid, first);
}

/// Several parts of the daemon may find it gone at the same moment.
#[tokio::test]
async fn many_who_find_it_gone_start_one() {
    let edge = TestEdge::start();
    stop(&edge.config).unwrap();
    let pids: Vec<_> = std::thread::scope(|scope| {
        let starters: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| ensure_edge(&edge.config, binary()).unwrap().pid))
            .collect();
        starters
            .into_iter()
            .map(|starter| starter.join().unwrap())
            .collect()
    });
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
}

#[tokio::test]
async fn a_taken_address_is_said() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut config = EdgeConfig::new(at("routes.json"), at("edge.sock"));
    config.listen = vec![address];
    let error = ensure_edge(&config, binary()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("cannot listen on {address}")) && text.contains("in use"),
        "{text}"
    );
    stop(&config).unwrap();
}

#[tokio::test]
async fn stopping_lets_requests_finish() {
    let edge = TestEdge::with(|config| config.limits.drain_seconds = 15);
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.localhost", A, &[a.address])]));
    let mut idle = http1(edge.http()).await;
    drop(idle.send_request(get("a.localhost", "/")).await.unwrap());
    let address = edge.http();
    let slow = tokio::spawn(async move { ask(address, get("a.localhost", "/slow")).await });
    until("the slow request arrives", || {
        a.requests.load(Ordering::SeqCst) == 2
    })
    .await;
    let config = edge.config.clone();
    let stopped = tokio::task::spawn_blocking(move || stop(&config));
    assert_eq!(slow.await.unwrap().text(), "a");
    stopped.await.unwrap().unwrap();
    assert!(TcpStream::connect(edge.http()).await.is_err());
    assert!(!edge.config.control.exists() && !edge.config.pid_file().exists());
}

#[tokio::test]
async fn a_hang_up_reloads_and_requests_are_logged() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    routes(5, vec![route("a.localhost", A, &[a.address])])
        .write_atomically(&edge.config.routes)
        .unwrap();
    signal("HUP", edge.status.pid);
    until("version 5", || {
        edge.control().status().unwrap().version == 5
    })
    .await;
    ask(edge.http(), get("A.localhost", "/page?token=secret")).await;
    let path = &edge.config.access_log.as_ref().unwrap().path;
    until("a line", || {
        std::fs::read_to_string(path).is_ok_and(|text| text.ends_with('\n'))
    })
    .await;
    let text = std::fs::read_to_string(path).unwrap();
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["host"], "a.localhost");
    assert_eq!(line["path"], "/page");
    assert_eq!(line["status"], 200);
    assert_eq!(line["environment"], A);
    assert_eq!(line["upstream"], a.address.to_string());
}
