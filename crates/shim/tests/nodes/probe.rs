//! This test program itself, run inside a node, asks the kernel for what a shell cannot ask for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use offshoot_runtime::{NodeSpec, ProcessSpec};

/// Where the program is inside.
const INSIDE: &str = "/probe";

/// Not a test of its own: prints what this process may do.
#[test]
#[ignore = "run inside a node by the tests of security"]
fn inside() {
    if std::env::var_os("OFFSHOOT_TEST_INSIDE").is_none() {
        return;
    }
    let errno =
        |result: Result<(), rustix::io::Errno>| result.map_or_else(|e| e.raw_os_error(), |()| 0);
    let say = |what: &str, value: String| println!("{what}={value}");
    say(
        "io_uring",
        offshoot_sys::process::io_uring_answer()
            .raw_os_error()
            .unwrap_or(-1)
            .to_string(),
    );
    say(
        "io_setup",
        offshoot_sys::process::io_setup_answer()
            .raw_os_error()
            .unwrap_or(-1)
            .to_string(),
    );
    let unshare = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
    say(
        "unshare",
        unshare.map_or_else(|e| e as i32, |()| 0).to_string(),
    );
    let mount = nix::mount::mount(
        Some("none"),
        "/tmp",
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    );
    say("mount", mount.map_or_else(|e| e as i32, |()| 0).to_string());
    use rustix::net::{AddressFamily, SocketType, socket};
    let family = |number: u16| {
        errno(socket(AddressFamily::from_raw(number), SocketType::SEQPACKET, None).map(drop))
    };
    say("af_vsock", family(40).to_string());
    say("af_alg", family(38).to_string());
    let protocol = |number: u32| {
        let protocol = std::num::NonZeroU32::new(number).map(rustix::net::Protocol::from_raw);
        errno(socket(AddressFamily::INET, SocketType::STREAM, protocol).map(drop))
    };
    say("tcp", protocol(6).to_string());
    say("mptcp", protocol(262).to_string());
    let raw = socket(
        AddressFamily::INET,
        SocketType::RAW,
        Some(rustix::net::ipproto::ICMP),
    )
    .map(drop);
    say("raw", errno(raw).to_string());
    let threads = std::thread::spawn(|| 7).join().unwrap();
    say("thread", threads.to_string());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for line in status.lines() {
        if let Some((name, value)) = line.split_once(':')
            && [
                "CapEff",
                "CapBnd",
                "CapInh",
                "CapAmb",
                "NoNewPrivs",
                "Seccomp",
            ]
            .contains(&name)
        {
            say(name, value.trim().to_owned());
        }
    }
}

/// Makes the probe the node's main process: copies this program and its libraries in.
pub(crate) fn install(spec: &mut NodeSpec) {
    let own = std::env::current_exe().unwrap();
    std::fs::copy(&own, spec.rootfs.join(INSIDE.trim_start_matches('/'))).unwrap();
    let ldd = Command::new("ldd").arg(&own).output().unwrap();
    for library in String::from_utf8_lossy(&ldd.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let target = spec
            .rootfs
            .join(PathBuf::from(library).strip_prefix("/").unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(Path::new(library), target).unwrap();
    }
    let args = [
        INSIDE,
        "--ignored",
        "--exact",
        "probe::inside",
        "--nocapture",
    ]
    .map(String::from)
    .to_vec();
    spec.process = ProcessSpec {
        args,
        ..spec.process.clone()
    };
    spec.process.env.push("OFFSHOOT_TEST_INSIDE=1".into());
}

/// What the probe printed.
pub(crate) fn parse(log: &str) -> BTreeMap<String, String> {
    log.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}
