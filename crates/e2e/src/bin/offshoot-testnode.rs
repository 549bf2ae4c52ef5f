//! A small server for tests: keeps a value in memory and on disk, and talks without pause to a peer.
//!
//! - `HTTP_PORT` (8080): `GET /` answers what it knows as JSON; `GET /set?v=TEXT` changes the value in memory and
//!   in `/data/value`; `GET /ballast` says whether all of `BALLAST_MIB` MiB of memory are as they were filled;
//!   from `GET /break` to `GET /mend` every answer has status 500. A request for a WebSocket gets one that echoes text behind the host name.
//! - `PEER` (`host:port`): keeps one TCP connection and exchanges growing numbers over it.
//! - `PEER_PORT`: answers such a peer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

#[derive(Default)]
struct Known {
    value: Mutex<String>,
    sent: AtomicU64,
    answered: AtomicU64,
    gaps: AtomicU64,
    connects: AtomicU64,
    ballast: Vec<u8>,
    broken: AtomicBool,
}

/// A page of the ballast: its number, again and again, so that no two pages are the same.
fn ballast_page(number: usize) -> Vec<u8> {
    (number as u32).to_le_bytes().repeat(1024)
}

fn ballast(pages: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(pages << 12);
    for number in 0..pages {
        all.extend_from_slice(&ballast_page(number));
    }
    all
}

fn main() {
    let megabytes: Option<usize> = std::env::var("BALLAST_MIB")
        .ok()
        .and_then(|n| n.parse().ok());
    let known = Arc::new(Known {
        ballast: ballast(megabytes.unwrap_or(0) << 8),
        ..Known::default()
    });
    let boot = uuid::Uuid::new_v4().to_string();
    if let Ok(port) = std::env::var("PEER_PORT") {
        let known = Arc::clone(&known);
        std::thread::spawn(move || answer_peers(&port, &known));
    }
    if let Ok(peer) = std::env::var("PEER") {
        let known = Arc::clone(&known);
        std::thread::spawn(move || talk(&peer, &known));
    }
    let port = std::env::var("HTTP_PORT").unwrap_or_else(|_| "8080".into());
    let listener = TcpListener::bind(format!("[::]:{port}"))
        .or_else(|_| TcpListener::bind(format!("0.0.0.0:{port}")))
        .expect("the HTTP port is free");
    println!("listening on {port}");
    for stream in listener.incoming().flatten() {
        let (known, boot) = (Arc::clone(&known), boot.clone());
        std::thread::spawn(move || drop(serve(stream, &known, &boot)));
    }
}

fn serve(stream: TcpStream, known: &Known, boot: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut close = false;
        let mut websocket = None;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "connection" => close = value.trim().eq_ignore_ascii_case("close"),
                "sec-websocket-key" => websocket = Some(derive_accept_key(value.trim().as_bytes())),
                _ => {}
            }
        }
        if let Some(accept) = websocket {
            write!(
                writer,
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            )?;
            echo(writer);
            return Ok(());
        }
        let path = request.split_whitespace().nth(1).unwrap_or("/");
        if let Some(value) = path.strip_prefix("/set?v=") {
            value.clone_into(&mut known.value.lock().unwrap());
            let written = std::fs::create_dir_all("/data")
                .and_then(|()| std::fs::write("/data/value", value));
            if let Err(error) = written {
                eprintln!("/data/value: {error}");
            }
        }
        match path {
            "/break" => known.broken.store(true, Ordering::SeqCst),
            "/mend" => known.broken.store(false, Ordering::SeqCst),
            _ => {}
        }
        let status = match known.broken.load(Ordering::SeqCst) {
            true => "500 Broken",
            false => "200 OK",
        };
        let whole = (path == "/ballast").then(|| {
            let mut pages = known.ballast.chunks(4096).enumerate();
            pages.all(|(number, page)| page == ballast_page(number))
        });
        let number = |n: &AtomicU64| n.load(Ordering::SeqCst);
        let body = serde_json::json!({
            "boot": boot,
            "hostname": hostname(),
            "value": *known.value.lock().unwrap(),
            "disk": std::fs::read_to_string("/data/value").unwrap_or_default(),
            "sent": number(&known.sent),
            "answered": number(&known.answered),
            "gaps": number(&known.gaps),
            "connects": number(&known.connects),
            "ballast": whole,
        })
        .to_string();
        write!(
            writer,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        if close {
            return Ok(());
        }
    }
}

fn hostname() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.trim().to_owned()
}

fn echo(stream: TcpStream) {
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, None);
    while let Ok(message) = socket.read() {
        let answer = match message {
            Message::Text(text) => Message::text(format!("{} {text}", hostname())),
            _ => continue,
        };
        if socket.send(answer).is_err() {
            return;
        }
    }
}

fn talk(peer: &str, known: &Known) {
    loop {
        if let Ok(stream) = TcpStream::connect(peer) {
            known.connects.fetch_add(1, Ordering::SeqCst);
            let _ = exchange(stream, known);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn exchange(mut stream: TcpStream, known: &Known) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let next = known.sent.fetch_add(1, Ordering::SeqCst) + 1;
        stream.write_all(&next.to_be_bytes())?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        if u64::from_be_bytes(answer) != next {
            known.gaps.fetch_add(1, Ordering::SeqCst);
        }
        known.answered.store(next, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn answer_peers(port: &str, known: &Arc<Known>) {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).expect("the peer port is free");
    for mut stream in listener.incoming().flatten() {
        let known = Arc::clone(known);
        std::thread::spawn(move || {
            let mut last = 0;
            let mut number = [0; 8];
            while stream.read_exact(&mut number).is_ok() {
                let got = u64::from_be_bytes(number);
                if last != 0 && got != last + 1 {
                    known.gaps.fetch_add(1, Ordering::SeqCst);
                }
                last = got;
                known.answered.store(got, Ordering::SeqCst);
                if stream.write_all(&number).is_err() {
                    return;
                }
            }
        });
    }
}
