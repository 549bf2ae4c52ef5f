//! Cut while the node writes as fast as it can: memory and disk are of one instant.

use crate::net::Net;
use crate::support::*;

/// Redis that writes every command to disk, and a client that never stops.
const WRITER: &str = r#"
import os, socket, subprocess, time
subprocess.Popen(["redis-server", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", "/data",
                  "--auto-aof-rewrite-percentage", "0"])
while True:
    try: s = socket.create_connection(("127.0.0.1", 6379)); break
    except OSError: time.sleep(0.02)
n = 0
while True:
    s.sendall(b"INCR k\r\n" * 50)
    answers = b""
    while answers.count(b"\n") < 50: answers += s.recv(4096)
    last = int(answers.split()[-1][1:])
    assert last == n + 50, (last, n)
    n = last
    if n % 1000 == 0:
        with open("/data/new", "w") as f: f.write(str(n))
        os.rename("/data/new", "/data/count")
    while os.path.exists("/data/stop"): time.sleep(0.01)
"#;

/// How many increments Redis has in memory, and how many its log on disk has.
fn in_memory_and_on_disk(node: &Node) -> (u64, u64) {
    std::fs::write(node.rootfs.join("data/stop"), "").unwrap();
    let mut last = String::new();
    until("the writer to pause", || {
        let now = node.exec(&["redis-cli", "get", "k"]);
        std::mem::replace(&mut last, now.clone()) == now
    });
    let logs = node.rootfs.join("data/appendonlydir");
    let on_disk: usize = std::fs::read_dir(logs)
        .unwrap()
        .flatten()
        .filter(|f| f.file_name().to_string_lossy().ends_with(".aof"))
        .map(|f| {
            String::from_utf8_lossy(&std::fs::read(f.path()).unwrap())
                .matches("INCR")
                .count()
        })
        .sum();
    std::fs::remove_file(node.rootfs.join("data/stop")).unwrap();
    (last.parse().unwrap(), on_disk as u64)
}

#[test]
fn memory_and_disk_are_of_one_instant() {
    let Some(criu) = host() else { return };
    let place = Place::new();
    let net = Net::new();
    let make =
        Make::new(&place, "write-1", 400_000, &["python3", "-c", WRITER]).net(&net, "10.9.0.5");
    let node = Node::start(&place, &make);
    until("it writes", || node.number("data/count") >= 2000);
    cut(&place, &criu, &[&node], None);
    let clone = clone_of(
        &place,
        &make,
        "write-2",
        500_000,
        Some((&Net::new(), "10.9.0.5")),
        &criu,
    );
    for node in [&node, &clone] {
        let now = node.number("data/count");
        until("it goes on writing", || {
            node.number("data/count") > now + 1000
        });
        let (memory, disk) = in_memory_and_on_disk(node);
        assert_eq!(memory, disk, "{}", node.id);
    }
}

#[test]
fn a_big_tmpfs_is_not_compressed_in_the_freeze() {
    let Some(criu) = host() else { return };
    let place = Place::new();
    let program = "import time, os\ndata = os.urandom(1 << 10) * (96 << 10)\nopen('/dev/shm/big', 'wb').write(data)\n\
                   print('ready', flush=True)\nwhile not os.path.exists('/data/check'): time.sleep(0.01)\n\
                   print('same' if open('/dev/shm/big', 'rb').read() == data else 'other', flush=True)\ntime.sleep(1000)";
    let make = Make::new(&place, "shm-1", 400_000, &["python3", "-c", program]);
    let node = Node::start(&place, &make);
    until("it is there", || node.output().contains("ready"));
    let report = cut(&place, &criu, &[&node], None);
    // gzip takes 3 s for this.
    assert!(
        report.freeze < std::time::Duration::from_millis(1500),
        "{:?}",
        report.freeze
    );
    let images = std::fs::read_dir(place.images("shm-1")).unwrap().flatten();
    let archive = images
        .map(|f| f.path())
        .find(|p| p.to_string_lossy().contains("tmpfs-") && p.metadata().unwrap().len() > 96 << 20);
    assert!(archive.is_some(), "our own tar was not used");
    let clone = clone_of(&place, &make, "shm-2", 500_000, None, &criu);
    std::fs::write(clone.rootfs.join("data/check"), "").unwrap();
    until("the check", || {
        clone.output().contains("same") || clone.output().contains("other")
    });
    assert!(clone.output().contains("same"));
}
