//! What preflight finds is what CRIU refuses, for processes that really hold such things.

use std::os::unix::net::UnixListener;

use offshoot_checkpoint::{CutRequest, Insist, preflight};
use offshoot_model::clone::Rung;
use serde_json::json;

use crate::support::*;

/// What a process does, and the word by which its obstacle is known.
const CASES: &[(&str, &str, &str)] = &[
    (
        "io_uring",
        "syscall(425, 4, (c.c_char * 120)())",
        "io_uring",
    ),
    ("userfaultfd", "syscall(323, 0o2000000 | 1)", "userfaultfd"),
    (
        "secret memory",
        "os.ftruncate(syscall(447, 0), 4096)",
        "secret memory",
    ),
    (
        "vsock",
        "keep(socket.socket(40, socket.SOCK_STREAM))",
        "vsock",
    ),
    (
        "crypto",
        "keep(socket.socket(38, socket.SOCK_SEQPACKET))",
        "AF_ALG",
    ),
    (
        "mptcp",
        "keep(socket.socket(2, 1, 262)).bind(('127.0.0.1', 0))",
        "multipath",
    ),
    (
        "perf",
        "syscall(298, (c.c_uint64 * 16)(1 | 112 << 32, 0, 0, 0, 0, 0x60), 0, -1, -1, 0)",
        "perf",
    ),
    (
        "landlock",
        "syscall(444, (c.c_uint64 * 1)(1), 8, 0)",
        "Landlock",
    ),
    (
        "namespace",
        "fork(lambda: os.unshare(0x10000000))",
        "user namespace",
    ),
    (
        "network",
        "fork(lambda: libc.unshare(0x10000000 | 0x40000000))",
        "net namespace",
    ),
    (
        "hosts",
        "fork(lambda: libc.unshare(0x10000000 | 0x04000000))",
        "uts namespace",
    ),
    ("debugger", "trace()", "debugger"),
    (
        "outside",
        "keep(socket.socket(1)).connect('/outside/sock')",
        "outside the node",
    ),
];

const PROGRAM: &str = r#"
import ctypes as c, os, socket, time, sys
libc = c.CDLL(None, use_errno=True)
kept = []
def keep(x): kept.append(x); return x
def syscall(*args):
    args = [x if not isinstance(x, int) else c.c_long(x) for x in args]
    r = libc.syscall(*args)
    if r < 0: raise OSError(c.get_errno(), os.strerror(c.get_errno()))
    return r
os.unshare = getattr(os, "unshare", lambda flags: libc.unshare(flags))
def fork(work):
    if os.fork() == 0:
        r = work()
        if r: print("cannot: unshare", c.get_errno(), flush=True)
        while True: time.sleep(100)
def trace():
    child = os.fork()
    if child == 0:
        while True: time.sleep(100)
    if libc.ptrace(0x4206, child, None, None): print("cannot: ptrace", flush=True)
try:
    CODE
except OSError as error: print("cannot:", error, flush=True)
time.sleep(0.1)
print("ready", flush=True)
while True: time.sleep(100)
"#;

#[test]
fn what_is_found_beforehand_is_what_fails() {
    let Some(criu) = host() else { return };
    let place = Place::new();
    let outside = place.path("outside/sock");
    let listener = UnixListener::bind(&outside).unwrap();
    std::fs::set_permissions(
        &outside,
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    std::thread::spawn(move || {
        let mut connections = Vec::new();
        for connection in listener.incoming() {
            connections.push(connection);
        }
    });
    let mut seen = 0;
    for (n, (name, code, word)) in CASES.iter().enumerate() {
        let id = format!("case-{n}");
        let program = PROGRAM.replace("CODE", code);
        let mut make = Make::new(&place, &id, 400_000, &["python3", "-c", &program]);
        make.mounts.push(json!({"destination": "/outside", "type": "bind", "source": outside.parent().unwrap(), "options": ["bind"]}));
        let node = Node::start(&place, &make);
        until("it holds it", || node.output().contains("ready"));
        if node.output().contains("cannot:") {
            println!(
                "SKIPPED: {name}: {}",
                node.output().lines().next().unwrap_or_default()
            );
            continue;
        }
        let found = preflight(&node.container()).unwrap();
        assert!(
            found.iter().any(|o| o.to_string().contains(word)),
            "{name}: {found:?}"
        );
        let freezer = ByHand::of(&[&node]);
        let request = CutRequest {
            insist: Insist::No,
            ..request(&criu, nodes_of(&place, &[&node]), &freezer)
        };
        let (report, _tracking) = offshoot_checkpoint::cut(request, &|| Ok(())).unwrap();
        println!(
            "{name}: preflight: {}\n    CRIU: {:?}",
            found[0], report.nodes[0].why
        );
        assert_eq!(
            report.nodes[0].rung,
            Rung::Disk,
            "{name}: CRIU can do it after all"
        );
        assert!(node.is_running(), "{name}");
        seen += 1;
    }
    assert!(seen >= 8, "too few of them can be made here: {seen}");
}

#[test]
fn ordinary_programs_have_no_obstacles() {
    let Some(_) = host() else { return };
    let place = Place::new();
    let make = Make::new(&place, "plain-1", 400_000, &["redis-server", "--save", ""]);
    let node = Node::start(&place, &make);
    until("redis", || node.output().contains("Ready to accept"));
    assert_eq!(preflight(&node.container()).unwrap(), []);
}
