//! What the edge tells of itself: metrics and the access log.

use std::net::SocketAddr;

use hyper::{Request, StatusCode};
use offshoot_edge_api::{LogFormat, RoutesFile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::authority::Authority;
use crate::kit::{
    A, SOON, Server, TestEdge, ask, empty, get, policy, route, routes, signal, until,
};

async fn fetch(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = String::new();
    let read = tokio::time::timeout(SOON, stream.read_to_string(&mut all));
    read.await.unwrap().unwrap();
    all
}

/// Every sample by name and labels; checks that the page is what Prometheus reads.
fn samples(page: &str) -> std::collections::HashMap<String, f64> {
    let (mut samples, mut family) = (std::collections::HashMap::new(), String::new());
    for line in page.lines() {
        if let Some(about) = line.strip_prefix("# TYPE ") {
            let (name, kind) = about.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            name.clone_into(&mut family);
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(sample.starts_with(&family), "{line} is not of {family}");
            let before = samples.insert(sample.to_owned(), value.parse().unwrap());
            assert_eq!(before, None, "{sample} twice");
        }
    }
    samples
}

#[tokio::test]
async fn metrics_are_told() {
    // the kernel chooses a port, which is free again at once
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = free.local_addr().unwrap();
    drop(free);
    let edge = TestEdge::with(|config| config.metrics = Some(metrics));
    let authority = Authority::new();
    let a = Server::start("a").await;
    edge.serve(&RoutesFile {
        traffic: policy(r#"{"bounds":{"client_requests_per_second":1,"client_burst":2}}"#),
        certificates: vec![authority.certificate("a", &["a.org"])],
        ..routes(7, vec![route("a.org", A, &[a.address])])
    });
    for status in [200, 200, 429] {
        assert_eq!(
            ask(edge.http(), get("a.org", "/")).await.status.as_u16(),
            status
        );
    }
    let bad = "GET / HTTP/1.1\r\nHost: a.org\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n";
    assert!(fetch(edge.http(), bad).await.contains(" 400 "));
    std::fs::write(&edge.config.routes, b"nonsense").unwrap();
    edge.control().reload().unwrap_err();

    until("all four are counted", || {
        edge.control().status().unwrap().requests >= 4
    })
    .await;
    let answer = fetch(metrics, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let (header, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(header.starts_with("HTTP/1.1 200 OK\r\n"), "{header}");
    assert!(header.contains("text/plain; version=0.0.4"), "{header}");
    let samples = samples(page);
    for (sample, value) in [
        ("routes_version", 7.0),
        ("refused_total{reason=\"client-rate\"}", 1.0),
        ("refused_total{reason=\"malformed\"}", 1.0),
        ("refused_total{reason=\"rate\"}", 0.0),
        ("reloads_total{result=\"failed\"}", 1.0),
        ("sent_bytes_total", 0.0),
        (
            "certificate_expiry_seconds{host=\"a.org\"}",
            64_060_588_800.0,
        ),
        (
            "domain_requests_total{environment=\"aaaaaaaa\",side=\"aaaaaaaa\",class=\"2xx\"}",
            2.0,
        ),
        (
            "domain_seconds_count{environment=\"aaaaaaaa\",side=\"aaaaaaaa\"}",
            2.0,
        ),
        ("domain_refused_total{environment=\"aaaaaaaa\"}", 1.0),
    ] {
        let found = samples.get(&format!("offshoot_edge_{sample}"));
        if sample == "sent_bytes_total" {
            assert!(found.is_some_and(|bytes| *bytes > 2.0), "{page}");
        } else {
            assert_eq!(found, Some(&value), "{sample}: {page}");
        }
    }
    let other = fetch(metrics, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
    let other = fetch(metrics, "POST /metrics HTTP/1.1\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 405 "), "{other}");
}

#[tokio::test]
async fn the_access_log_can_be_combined_and_moved() {
    let edge = TestEdge::with(|config| {
        config.access_log.as_mut().unwrap().format = LogFormat::Combined;
    });
    let log = edge.config.access_log.as_ref().unwrap().path.clone();
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    let request = || {
        Request::get("/x?secret=1")
            .header("host", "nobody.localhost")
            .header("referer", "http://a.org/p?token=1")
            .header("user-agent", "evil\" 200 \"-\" \t\u{e9}")
            .body(empty())
            .unwrap()
    };
    assert_eq!(
        ask(edge.http(), request()).await.status,
        StatusCode::NOT_FOUND
    );
    until("it is logged", || read(&log).ends_with('\n')).await;
    let line = read(&log);
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    let end = "] \"GET /x HTTP/1.1\" 404 91 \"http://a.org/p\" \"evil\\\" 200 \\\"-\\\" \\t\\xc3\\xa9\"\n";
    let length = line
        .split("404 ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    assert!(line.ends_with(&end.replace("91", length)), "{line}");

    let moved = log.with_extension("moved");
    std::fs::rename(&log, &moved).unwrap();
    signal("USR1", edge.status.pid);
    until("there is a new file", || log.exists()).await;
    ask(edge.http(), request()).await;
    until("it is logged there", || read(&log).ends_with('\n')).await;
    assert_eq!(read(&moved), line);
}
