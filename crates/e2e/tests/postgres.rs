//! The example with PostgreSQL and a Python application: made from packages, cloned alive, whole in both.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use offshoot_e2e::support::{self, SOON};
use offshoot_e2e::{TestDaemon, wait_for};
use serde_json::Value;

/// Where packages are asked for inside the daemon's namespace, which has no way out of its own.
const PROXY: &str = "127.0.0.1:3142";

#[test]
fn the_example_is_cloned_alive_with_its_database_session() {
    let settings = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        "Acquire::http::Proxy \"http://{PROXY}\";\nAcquire::https::Proxy \"http://{PROXY}\";\n\
         Acquire::http::Pipeline-Depth \"0\";\n"
    );
    fs::write(settings.path(), text).expect("a file");
    let daemon = TestDaemon::start_with(&[("APT_CONFIG", &settings.path().display().to_string())]);
    let proxy = daemon.inside(|| TcpListener::bind(PROXY).expect("a free port"));
    std::thread::spawn(move || relay(&proxy));

    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/postgres-python/compose.yaml");
    let created = daemon.json(&[
        "create",
        "-f",
        &file.display().to_string(),
        "--name",
        "notes",
    ]);
    println!("create: {}", created["steps"]);
    let status = |name: &str| -> Value {
        wait_for(&format!("{name} to answer"), SOON, || {
            daemon.node(name, "/status").ok()
        })
    };
    note(&daemon, "notes", "before the clone");
    let first = status("notes");
    let before = status("notes");
    assert_eq!(
        before["counter"].as_u64(),
        first["counter"].as_u64().map(|n| n + 1)
    );
    assert_eq!(before["database"]["connects"], 1);

    let operation = daemon.json(&["clone", "notes"]);
    println!(
        "frozen for {} ms",
        operation["report"]["freeze_us"].as_u64().unwrap_or(0) / 1000
    );
    for (node, rung) in support::rungs(&operation) {
        assert_eq!(rung, "live", "{node}: {operation:#}");
    }
    for name in ["notes", "notes-clone"] {
        let now = status(name);
        assert_eq!(
            now["started"], before["started"],
            "{name}: the process is the same"
        );
        assert_eq!(
            now["counter"].as_u64(),
            before["counter"].as_u64().map(|n| n + 1),
            "{name}: its memory is"
        );
        for key in ["connects", "backend_pid", "backend_start"] {
            assert_eq!(
                now["database"][key], before["database"][key],
                "{name}: the session is ({key})"
            );
        }
        assert!(
            now["database"]["session_queries"].as_u64()
                > before["database"]["session_queries"].as_u64(),
            "{now}"
        );
    }
    note(&daemon, "notes", "only in the parent");
    note(&daemon, "notes-clone", "only in the clone");
    note(&daemon, "notes-clone", "and another");
    assert_eq!(
        notes(&daemon, "notes"),
        "before the clone\nonly in the parent\n"
    );
    assert_eq!(
        notes(&daemon, "notes-clone"),
        "before the clone\nonly in the clone\nand another\n"
    );

    for name in ["notes", "notes-clone"] {
        let check = "/usr/lib/postgresql/15/bin/pg_amcheck --install-missing --heapallindexed --verbose -d notes 2>&1; echo ended with $?";
        let told = daemon.run(&["exec", name, "postgres", "--", "/bin/sh", "-c", check]);
        assert!(told.trim_end().ends_with("ended with 0"), "{name}: {told}");
        let sums = "psql -d notes -Atc \"SELECT count(*), coalesce(sum(checksum_failures), 0) FROM pg_stat_database\"";
        println!("{name}: {}", support::sh(&daemon, name, "postgres", sums));
    }
    // The clone's database recovers from its disk alone, too.
    daemon.run(&["stop", "notes-clone"]);
    daemon.run(&["start", "notes-clone"]);
    wait_for("the notes to be there", Duration::from_secs(60), || {
        let told = daemon.get("notes-clone", "/").ok()?;
        (told.status == 200 && told.body.ends_with("and another\n")).then_some(())
    });
    // So does a clone of its disks as they are while it runs: what a power failure would leave.
    daemon.run(&["clone", "notes", "--rung", "disk", "--name", "cold"]);
    wait_for("the cold clone to answer", Duration::from_secs(60), || {
        let told = daemon.get("cold", "/").ok()?;
        (told.status == 200 && told.body == "before the clone\nonly in the parent\n").then_some(())
    });
    daemon.finish(&["notes", "notes-clone", "cold"]);
}

fn notes(daemon: &TestDaemon, name: &str) -> String {
    daemon.get(name, "/").expect("it answers").body
}

#[track_caller]
fn note(daemon: &TestDaemon, name: &str, text: &str) {
    let answer = daemon.inside(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:8080")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "POST /notes HTTP/1.1\r\nHost: {name}.localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = answer.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

/// Fetches for the daemon what it asks for: each connection one request, or a tunnel.
fn relay(proxy: &TcpListener) {
    for client in proxy.incoming().flatten() {
        std::thread::spawn(move || drop(pass_on(&client)));
    }
}

fn pass_on(client: &TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim_end().is_empty() {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let request = head.first().cloned().ok_or_else(invalid)?;
    let mut words = request.split(' ');
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().ok_or_else(invalid)?,
    );
    let mut writer = client.try_clone()?;
    if method == "CONNECT" {
        let server = TcpStream::connect(target)?;
        writer.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let (mut up, mut down) = (server.try_clone()?, server);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut reader, &mut up);
            let _ = up.shutdown(std::net::Shutdown::Write);
        });
        std::io::copy(&mut down, &mut writer)?;
        return Ok(());
    }
    let rest = target.strip_prefix("http://").ok_or_else(invalid)?;
    let (host, path) = rest.split_once('/').ok_or_else(invalid)?;
    let address = if host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut server = TcpStream::connect(address)?;
    let kept = head.iter().skip(1).filter(|line| {
        let line = line.to_ascii_lowercase();
        !line.starts_with("connection:") && !line.starts_with("proxy-")
    });
    let mut ask = format!("{method} /{path} HTTP/1.1\r\nConnection: close\r\n");
    kept.for_each(|line| ask.push_str(&format!("{line}\r\n")));
    ask.push_str("\r\n");
    server.write_all(ask.as_bytes())?;
    std::io::copy(&mut server, &mut writer)?;
    writer.shutdown(std::net::Shutdown::Both)
}
