//! Thousands of clients that take their time: the others do not notice, and each slow one is cut off at its bound.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use offshoot_load::percentile;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::authority::Authority;
use crate::backend::{Backend, Reply};
use crate::kit::{A, B, C, SOON, TestEdge, get, http1_on, route, routes, until};

/// Bounds of the edges of these tests, seconds: longer than it takes to connect so many.
const BOUND: u64 = 20;
/// Longer than any of it takes, also on a busy machine.
const LONG: Duration = Duration::from_secs(90);
/// Slow clients that come at once.
const AT_ONCE: usize = 200;
/// Between two bytes of a slow client.
const DRIP: Duration = Duration::from_secs(2);
/// More than all buffers on the way to one slow reader hold.
const LARGE: usize = 16 << 20;
/// Memory that may stay in use more than before, KiB.
const MEMORY_LEFT: u64 = 64 << 10;
/// Slow clients of one address.
const OF_ONE: usize = 1_000;

/// What a slow client is slow at.
#[derive(Clone, Copy, PartialEq)]
enum Slow {
    Header,
    Body,
    Reading,
}

/// Sends what it is slow at, and the rest in drops, until it is cut off; whether it was, once all are over.
async fn dawdle(
    address: SocketAddr,
    from: Ipv4Addr,
    begin: Arc<[u8]>,
    slow: Slow,
    mut over: watch::Receiver<bool>,
) -> bool {
    let socket = TcpSocket::new_v4().unwrap();
    if slow == Slow::Reading {
        socket.set_recv_buffer_size(4_096).unwrap();
    }
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    // one that is cut off before it has sent all is cut off as well
    let _ = stream.write_all(&begin).await;
    if slow == Slow::Reading {
        over.changed().await.unwrap();
        return ends(&mut stream).await.is_some_and(|read| read < LARGE);
    }
    loop {
        tokio::select! {
            read = ends(&mut stream) => return read.is_some(),
            _ = over.changed() => return ends(&mut stream).await.is_some(),
            // a body's next part would be in its time
            () = tokio::time::sleep(DRIP), if slow == Slow::Header => {
                let _ = stream.write_all(b"x").await;
            }
        }
    }
}

/// How much came until the connection ended, if it did.
async fn ends(stream: &mut TcpStream) -> Option<usize> {
    let mut buffer = vec![0; 4_096];
    let mut all = 0;
    let end = async {
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            all += read;
        }
    };
    let ended = tokio::time::timeout(LONG, end).await;
    ended.is_ok().then_some(all)
}

/// Asks again and again on new connections until told to stop: how long each answer took, or why there was none.
async fn good(edge: SocketAddr, stop: watch::Receiver<bool>) -> (Vec<Duration>, Vec<String>) {
    let (mut took, mut failed) = (Vec::new(), Vec::new());
    while !*stop.borrow() {
        let began = Instant::now();
        match tokio::time::timeout(SOON, one(edge)).await {
            Ok(Ok(StatusCode::OK)) => took.push(began.elapsed()),
            other => failed.push(format!("{other:?}")),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    took.sort();
    (took, failed)
}

async fn one(edge: SocketAddr) -> Result<StatusCode, String> {
    let stream = TcpStream::connect(edge).await.map_err(|e| e.to_string())?;
    let mut client = http1_on(stream).await;
    let answer = client.send_request(get("good.localhost", "/")).await;
    Ok(answer.map_err(|e| e.to_string())?.status())
}

/// Memory that a process has, KiB: `VmRSS` of proc_pid_status(5).
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

/// Raises the limit of open files as far as it goes; how many connections the edge can hold then.
fn fit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    let files = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from((files - files / 8) / 2).unwrap()
}

/// What there was while slow clients were there.
struct Seen {
    most: usize,
    cut: usize,
    after: Duration,
    memory: (u64, u64, u64),
    given_back: bool,
    took: Vec<Duration>,
    failed: Vec<String>,
}

/// Lets these come, keeps them until the edge has cut off all, and asks beside them all the time.
async fn endure(edge: &TestEdge, address: SocketAddr, all: Vec<(Arc<[u8]>, Slow)>) -> Seen {
    let count = all.len();
    let connections = || edge.control().status().unwrap().connections;
    // those that wait for a client
    let idle = connections();
    let (over, is_over) = watch::channel(false);
    let beside = tokio::spawn(good(edge.http(), is_over.clone()));
    let before = memory(edge.status.pid);
    let began = Instant::now();
    let mut slow = JoinSet::new();
    for (number, (begin, kind)) in all.into_iter().enumerate() {
        let from = Ipv4Addr::new(127, 1, 0, u8::try_from(number / OF_ONE).unwrap() + 1);
        slow.spawn(dawdle(address, from, begin, kind, is_over.clone()));
        if number % AT_ONCE == 0 {
            // no faster than the kernel's queue is emptied, so that no connection is tried again after a second
            until("they have places", || {
                let cut_off = began.elapsed() > Duration::from_secs(BOUND);
                cut_off || connections() + AT_ONCE > number
            })
            .await;
        }
    }
    let (mut most, mut with) = (0, 0);
    loop {
        let now = connections();
        most = most.max(now.saturating_sub(idle));
        with = with.max(memory(edge.status.pid));
        // the good one may have a place
        if most > count / 2 && now <= idle + 1 {
            break;
        }
        assert!(began.elapsed() < LONG, "{now} of {most} are still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = began.elapsed();
    // the allocator gives back what is free bit by bit, while requests come
    let with_these = || memory(edge.status.pid);
    let given_back = tokio::time::timeout(SOON, async {
        while with_these() > before + MEMORY_LEFT {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let given_back = given_back.await.is_ok();
    let memory = (before, with, with_these());
    over.send_replace(true);
    let cut = slow.join_all().await.into_iter().filter(|cut| *cut).count();
    let (took, failed) = beside.await.unwrap();
    Seen {
        most,
        cut,
        after,
        memory,
        given_back,
        took,
        failed,
    }
}

impl Seen {
    fn print(&self, what: &str) {
        let of = |percent| percentile(&self.took, percent).unwrap_or_default();
        let (before, with, after) = self.memory;
        println!(
            "figures: {what}: {} connections at a time, {} cut off, the last after {:.1?} (bound {BOUND} s); \
             meanwhile {} new clients were answered, p50 {:.1?}, p99 {:.1?}, slowest {:.1?}, failures {}; \
             memory of the edge {} MiB before, {} with them, {} after",
            self.most,
            self.cut,
            self.after,
            self.took.len(),
            of(50),
            of(99),
            of(100),
            self.failed.len(),
            before >> 10,
            with >> 10,
            after >> 10,
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_slow_clients_harm_nobody_and_are_cut_off() {
    let count = fit().saturating_sub(300).min(10_000);
    if count < 1_000 {
        println!("SKIPPED: the limit of open files (ulimit -Hn) allows {count} connections");
        return;
    }
    let edge = TestEdge::with(|config| {
        config.limits.header_seconds = BOUND;
        config.limits.client_seconds = BOUND;
    });
    let (a, slow) = (Backend::start("a").await, Backend::start("slow").await);
    let large = Backend::start("large").await;
    large.reply(Reply::new(200, vec![7; LARGE]));
    edge.serve(&routes(
        1,
        vec![
            route("good.localhost", A, &[a.address]),
            route("large.localhost", B, &[large.address]),
            route("slow.localhost", C, &[slow.address]),
        ],
    ));
    let header: Arc<[u8]> = Arc::from(&b"GET / HTTP/1.1\r\nHost: good.localhost\r\nX: "[..]);
    let body: Arc<[u8]> =
        Arc::from(&b"POST / HTTP/1.1\r\nHost: slow.localhost\r\nContent-Length: 9\r\n\r\nx"[..]);
    let read: Arc<[u8]> = Arc::from(&b"GET / HTTP/1.1\r\nHost: large.localhost\r\n\r\n"[..]);
    let kinds = (0..count).map(|number| match number % 20 {
        0 => (Arc::clone(&read), Slow::Reading),
        1..=4 => (Arc::clone(&body), Slow::Body),
        _ => (Arc::clone(&header), Slow::Header),
    });
    let seen = endure(&edge, edge.http(), kinds.collect()).await;
    seen.print("slow clients");
    assert_eq!(seen.failed, Vec::<String>::new());
    assert!(seen.most >= count * 9 / 10, "{} of {count}", seen.most);
    assert_eq!(seen.cut, count, "cut off");
    assert!(seen.took.len() > 50);
    assert!(seen.given_back, "memory stayed: {:?} KiB", seen.memory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_harm_nobody_and_are_cut_off() {
    let count = 2_000.min(fit().saturating_sub(300));
    let edge = TestEdge::with(|config| {
        config.listen_tls = vec!["127.0.0.1:0".parse().unwrap()];
        config.limits.header_seconds = BOUND;
    });
    let (authority, a) = (Authority::new(), Backend::start("a").await);
    let mut file = routes(1, vec![route("good.localhost", A, &[a.address])]);
    file.certificates = vec![authority.certificate("good", &["good.localhost"])];
    edge.serve(&file);
    let whole = authority.hello("good.localhost");
    // half a message, and a whole one that nothing follows
    let half: Arc<[u8]> = whole.get(..whole.len() / 2).unwrap().into();
    let whole: Arc<[u8]> = whole.into();
    let kinds = (0..count).map(|number| match number % 2 {
        0 => (Arc::clone(&half), Slow::Header),
        _ => (Arc::clone(&whole), Slow::Body),
    });
    let seen = endure(&edge, edge.https(), kinds.collect()).await;
    seen.print("half-open handshakes");
    assert_eq!(seen.failed, Vec::<String>::new());
    assert!(seen.most >= count * 9 / 10, "{} of {count}", seen.most);
    assert_eq!(seen.cut, count, "cut off");
    let served = authority.ask(edge.https(), "good.localhost", "/").await;
    assert_eq!(served.text(), "a");
    assert!(seen.given_back, "memory stayed: {:?} KiB", seen.memory);
}

/// Slow clients of one address that take as many places as they get; how long others wait for theirs.
async fn others_wait(edge: &TestEdge, taken: usize) -> Duration {
    let a = Backend::start("a").await;
    edge.serve(&routes(1, vec![route("good.localhost", A, &[a.address])]));
    let mut slow = Vec::new();
    for _ in 0..PLACES {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind((Ipv4Addr::new(127, 1, 0, 1), 0).into())
            .unwrap();
        let mut stream = socket.connect(edge.http()).await.unwrap();
        // those that are too many are closed
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nX: ").await;
        slow.push(stream);
    }
    let connections = || edge.control().status().unwrap().connections;
    until("places are taken", || connections() >= taken).await;
    let began = Instant::now();
    let all = (0..5).map(|_| tokio::time::timeout(SOON, one(edge.http())));
    for answer in futures::future::join_all(all).await {
        assert_eq!(answer.unwrap(), Ok(StatusCode::OK));
    }
    began.elapsed()
}

const PLACES: usize = 60;

fn small(client_connections: usize) -> TestEdge {
    TestEdge::with(|config| {
        config.limits.connections = PLACES;
        config.limits.client_connections = client_connections;
        config.limits.header_seconds = 5;
    })
}

#[tokio::test]
async fn one_client_cannot_take_all_places_unless_it_may() {
    let bounded = others_wait(&small(PLACES / 2), PLACES / 2).await;
    let all = others_wait(&small(0), PLACES).await;
    println!(
        "figures: {PLACES} places, slow clients of one address (bound 5 s): others were answered after {bounded:.1?} \
         when it may have half of them, after {all:.1?} when it may have all"
    );
    assert!(bounded < Duration::from_secs(2), "{bounded:?}");
    assert!(all > Duration::from_secs(2), "they had places");
}
