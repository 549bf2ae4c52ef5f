//! What the file descriptors of a process say.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::net::AddressFamily;
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use super::{Finding, Node, finding};

/// More descriptors than this of one process are not looked at.
const DESCRIPTORS_MAX: usize = 100_000;

const AF_ALG: AddressFamily = AddressFamily::from_raw(38);
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_UDPLITE: u32 = 136;
const IPPROTO_RAW: u32 = 255;
const IPPROTO_SCTP: u32 = 132;
const IPPROTO_MPTCP: u32 = 262;

/// Kernel objects behind a descriptor that CRIU cannot dump, by what readlink shows after `anon_inode:`.
const KERNEL_OBJECTS: &[(&str, &str)] = &[
    ("[perf_event]", "a performance counter (perf)"),
    ("bpf-map", "a BPF map"),
    ("bpf-prog", "a BPF program"),
    ("bpf_link", "a BPF link"),
    ("btf", "BPF type information"),
    ("[userfaultfd]", "a userfaultfd"),
    ("kvm-", "a virtual machine (KVM)"),
    ("[landlock-ruleset]", "an unfinished Landlock rule set"),
    ("seccomp notify", "a seccomp listener"),
    ("[fscontext]", "an unfinished mount"),
    ("[vfio", "a passed-through device (VFIO)"),
    ("iommufd", "a passed-through device (iommufd)"),
    ("dmabuf", "a graphics buffer"),
    ("sync_file", "a graphics fence"),
    ("gntdev", "Xen memory"),
];

pub(super) fn io_uring() -> Finding {
    finding(
        "an io_uring",
        "its state is in the kernel, which does not give it out",
    )
}

pub(super) fn secret_memory() -> Finding {
    finding(
        "secret memory (memfd_secret)",
        "not even the kernel's other parts can read it",
    )
}

/// Looks at every descriptor of `pid`; notes its sockets in `node`, and its unix stream sockets in `unix`.
pub(super) fn look(pid: i32, node: &mut Node, unix: &mut Vec<(i32, u32)>) -> Vec<Finding> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return found;
    };
    let pidfd =
        Pid::from_raw(pid).and_then(|p| rustix::process::pidfd_open(p, PidfdFlags::empty()).ok());
    for entry in entries.flatten().take(DESCRIPTORS_MAX) {
        let path = entry.path();
        let Ok(link) = fs::read_link(&path) else {
            continue;
        };
        let link = link.to_string_lossy();
        let number = entry
            .file_name()
            .to_string_lossy()
            .parse::<i32>()
            .unwrap_or(-1);
        if let Some(object) = link.strip_prefix("anon_inode:") {
            found.extend(kernel_object(object));
        } else if let Some(inode) = link
            .strip_prefix("socket:[")
            .and_then(|l| l.strip_suffix(']'))
        {
            let Ok(inode) = inode.parse() else { continue };
            node.sockets.insert(inode);
            let socket = pidfd.as_ref().and_then(|p| {
                rustix::process::pidfd_getfd(p.as_fd(), number, PidfdGetfdFlags::empty()).ok()
            });
            match socket.as_ref().and_then(kind_of) {
                Some(Socket::UnixStream) => unix.push((pid, inode)),
                Some(Socket::Cannot(finding)) => found.push(finding),
                Some(Socket::Can) | None => {}
            }
        } else if link == "/secretmem (deleted)" {
            found.push(secret_memory());
        } else if link.starts_with('/') {
            found.extend(file(pid, number, &path, &link, node));
        }
    }
    found
}

fn kernel_object(object: &str) -> Option<Finding> {
    if object == "[io_uring]" {
        return Some(io_uring());
    }
    let (_, what) = KERNEL_OBJECTS
        .iter()
        .find(|(start, _)| object.starts_with(start))?;
    Some(finding(
        *what,
        "its state is in the kernel, which does not give it out",
    ))
}

enum Socket {
    Can,
    UnixStream,
    Cannot(Finding),
}

/// Which kind a socket of another process is, asked of a copy of its descriptor.
fn kind_of(socket: &OwnedFd) -> Option<Socket> {
    let cannot = |what: String| {
        Some(Socket::Cannot(finding(
            what,
            "CRIU knows no sockets of this kind",
        )))
    };
    let domain = sockopt::socket_domain(socket).ok()?;
    let protocol = sockopt::socket_protocol(socket)
        .ok()?
        .map_or(0, |p| p.as_raw().get());
    match domain {
        AddressFamily::UNIX => match sockopt::socket_type(socket).ok()? {
            rustix::net::SocketType::DGRAM => Some(Socket::Can),
            _ => Some(Socket::UnixStream),
        },
        AddressFamily::INET | AddressFamily::INET6 => match protocol {
            IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE | IPPROTO_RAW => Some(Socket::Can),
            IPPROTO_MPTCP => {
                cannot("a multipath TCP socket (Go: set GODEBUG=multipathtcp=0)".to_owned())
            }
            IPPROTO_SCTP => cannot("an SCTP socket".to_owned()),
            // Raw sockets and pings: some kinds can be dumped, CRIU will say.
            _ => Some(Socket::Can),
        },
        AddressFamily::NETLINK | AddressFamily::PACKET => Some(Socket::Can),
        AddressFamily::VSOCK => cannot("a socket to a virtual machine (vsock)".to_owned()),
        AF_ALG => cannot("a kernel crypto socket (AF_ALG)".to_owned()),
        other => cannot(format!("a socket of address family {}", other.as_raw())),
    }
}

fn file(pid: i32, number: i32, path: &std::path::Path, link: &str, node: &Node) -> Option<Finding> {
    let metadata = fs::metadata(path).ok()?;
    if metadata.file_type().is_block_device() {
        return Some(finding(
            format!("a block device ({link})"),
            "what a device holds cannot be taken along",
        ));
    }
    if metadata.file_type().is_char_device() && !is_known_device(metadata.rdev()) {
        return Some(finding(
            format!("a device ({link})"),
            "what a device holds cannot be taken along",
        ));
    }
    // Memory files have a mount of the kernel's own.
    if ["/memfd:", "/dev/zero (deleted)", "/SYSV"]
        .iter()
        .any(|start| link.starts_with(start))
    {
        return None;
    }
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let mount: u64 = info
        .lines()
        .find_map(|l| l.strip_prefix("mnt_id:"))?
        .trim()
        .parse()
        .ok()?;
    let same_mounts = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok() == node.mount_namespace;
    (same_mounts && !node.mounts.contains(&mount)).then(|| {
        finding(
            format!("a file that was opened outside the node's mounts ({link})"),
            "the clone could not open it again",
        )
    })
}

/// Devices that CRIU opens again or restores: memory devices, terminals, TUN.
fn is_known_device(device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    matches!(
        (major, minor),
        (1, 3 | 5 | 7 | 8 | 9 | 11) | (4 | 136..=143, _) | (5, 0..=2) | (10, 200)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    #[test]
    fn kernel_objects() {
        for bad in [
            "[io_uring]",
            "[perf_event]",
            "bpf-map",
            "kvm-vm",
            "kvm-vcpu:0",
            "[userfaultfd]",
        ] {
            assert!(kernel_object(bad).is_some(), "{bad}");
        }
        for fine in [
            "[eventfd]",
            "[eventpoll]",
            "[signalfd]",
            "[timerfd]",
            "inotify",
            "[pidfd]",
        ] {
            assert!(kernel_object(fine).is_none(), "{fine}");
        }
    }

    #[test]
    fn devices() {
        assert!(is_known_device(fs::metadata("/dev/null").unwrap().rdev()));
        assert!(is_known_device(fs::metadata("/dev/ptmx").unwrap().rdev()));
        assert!(!is_known_device(rustix::fs::makedev(10, 232)), "/dev/kvm");
        assert!(!is_known_device(rustix::fs::makedev(1, 1)), "/dev/mem");
    }

    #[test]
    fn sockets() {
        let tcp: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
        assert!(matches!(kind_of(&tcp), Some(Socket::Can)));
        let (unix, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(kind_of(&unix.into()), Some(Socket::UnixStream)));
        if let Ok(alg) = rustix::net::socket(AF_ALG, rustix::net::SocketType::SEQPACKET, None) {
            assert!(matches!(kind_of(&alg), Some(Socket::Cannot(_))));
        }
    }
}
