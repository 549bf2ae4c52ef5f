//! An environment of two nodes with one TCP connection between them.

use crate::net::{Net, Ports, port_name};
use crate::support::*;

/// Counts in Redis over one connection for ever; ends when the connection does.
pub(crate) const CLIENT: &str = r#"
import socket, time, os
while True:
    try: s = socket.create_connection(("10.9.0.2", 6379), timeout=10); break
    except OSError: time.sleep(0.02)
last = 0
while True:
    s.sendall(b"INCR k\r\n")
    answer = b""
    while not answer.endswith(b"\r\n"):
        part = s.recv(100)
        assert part, "closed"
        answer += part
    n = int(answer[1:])
    assert n == last + 1, (n, last)
    last = n
    with open("/data/new", "w") as f: f.write(str(n))
    os.rename("/data/new", "/data/count")
    time.sleep(0.002)
"#;

#[test]
fn a_connection_lives_on_in_both() {
    let Some(criu) = host() else { return };
    let place = Place::new();
    let net = Net::new();
    let db = Make::new(
        &place,
        "db-1",
        300_000,
        &[
            "redis-server",
            "--save",
            "",
            "--protected-mode",
            "no",
            "--bind",
            "0.0.0.0",
        ],
    );
    let db = db.net(&net, "10.9.0.2");
    let db_node = Node::start(&place, &db);
    until("redis", || db_node.output().contains("Ready to accept"));
    let app = Make::new(&place, "app-1", 300_000, &["python3", "-c", CLIENT]).net(&net, "10.9.0.3");
    let app_node = Node::start(&place, &app);
    net.connect(&["10.9.0.2", "10.9.0.3"]);
    until("the client counts", || app_node.number("data/count") > 20);

    let ports = Ports(&net, vec![port_name("10.9.0.2"), port_name("10.9.0.3")]);
    let report = cut(&place, &criu, &[&db_node, &app_node], Some(&ports));
    assert!(
        report
            .nodes
            .iter()
            .all(|n| n.processes >= 1 && n.memory_bytes > 100_000),
        "{report:?}"
    );
    let at_cut =
        std::fs::read_to_string(place.path("rootfs/app-1-clone").join("data/count")).unwrap();
    let at_cut: u64 = at_cut.trim().parse().unwrap();
    until("the source counts on", || {
        app_node.number("data/count") > at_cut + 20
    });

    let clone_net = Net::new();
    let db_clone = clone_of(
        &place,
        &db,
        "db-2",
        500_000,
        Some((&clone_net, "10.9.0.2")),
        &criu,
    );
    let app_clone = clone_of(
        &place,
        &app,
        "app-2",
        500_000,
        Some((&clone_net, "10.9.0.3")),
        &criu,
    );
    clone_net.connect(&["10.9.0.2", "10.9.0.3"]);
    until("the clone counts on", || {
        app_clone.number("data/count") > at_cut + 20
    });
    let (source, clone) = (
        app_node.number("data/count"),
        app_clone.number("data/count"),
    );
    assert!(
        clone < source,
        "the clone goes on from the cut: {clone} {source}"
    );
    // Both on their own: nobody's later changes are the other's.
    db_clone.exec(&["redis-cli", "set", "only", "clone"]);
    assert_eq!(db_node.exec(&["redis-cli", "get", "only"]), "");
    assert_eq!(db_clone.exec(&["redis-cli", "get", "only"]), "clone");
    assert!(
        app_node.is_running()
            && app_clone.is_running()
            && db_node.is_running()
            && db_clone.is_running()
    );
    let owner = std::fs::metadata(format!("/proc/{}", db_clone.pid())).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 500_000);
}
