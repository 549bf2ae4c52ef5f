//! Who is connected to whom among unix sockets: `unix_diag` (sock_diag(7), Linux 3.3).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use offshoot_sys::netns::Netns;

// include/uapi/linux/netlink.h, sock_diag.h, unix_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const UNIX_DIAG_MSG: usize = 16;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
const AF_UNIX: u8 = 1;
/// More than the kernel puts into one message of a dump.
const BUFFER: usize = 64 * 1024;
const ANSWER_SECONDS: i64 = 5;

/// Inode of every unix socket in the network namespace of `pid` with the inode of its peer (0: none).
pub(super) fn peers(pid: i32) -> io::Result<HashMap<u32, u32>> {
    Netns::of_process(pid)?.run(list)?
}

fn list() -> io::Result<HashMap<u32, u32>> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    setsockopt(
        &fd,
        sockopt::ReceiveTimeout,
        &TimeVal::seconds(ANSWER_SECONDS),
    )?;
    send(fd.as_raw_fd(), &request(), MsgFlags::empty())?;
    read_all(&fd)
}

fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 24);
    bytes.extend(((HEADER + 24) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]); // sequence, port
    bytes.extend([AF_UNIX, 0, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes()); // in any state
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(UDIAG_SHOW_PEER.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

fn read_all(fd: &OwnedFd) -> io::Result<HashMap<u32, u32>> {
    let mut peers = HashMap::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some((kind, body, after)) = next_message(rest) {
            match kind {
                NLMSG_DONE => return Ok(peers),
                NLMSG_ERROR => {
                    let code = body.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ => peers.extend(peer(body)),
            }
            rest = after;
        }
    }
}

/// Kind, body and what follows of the first netlink message in `bytes`.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some((
        kind,
        body,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

fn peer(message: &[u8]) -> Option<(u32, u32)> {
    let inode = u32::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let mut rest = message.get(UNIX_DIAG_MSG..)?;
    while let Some(length) = rest
        .first_chunk()
        .map(|l| usize::from(u16::from_ne_bytes(*l)))
    {
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        if kind == UNIX_DIAG_PEER {
            return Some((inode, u32::from_ne_bytes(*rest.get(4..)?.first_chunk()?)));
        }
        if length < 4 {
            break;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((inode, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pair_is_found() {
        let (a, b) = UnixStream::pair().unwrap();
        let inode = |s: &UnixStream| {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", s.as_raw_fd())).unwrap();
            let link = link.to_string_lossy().into_owned();
            link.trim_start_matches("socket:[")
                .trim_end_matches(']')
                .parse::<u32>()
                .unwrap()
        };
        let peers = list().unwrap();
        assert_eq!(peers.get(&inode(&a)), Some(&inode(&b)));
        assert_eq!(peers.get(&inode(&b)), Some(&inode(&a)));
    }

    #[test]
    fn rubbish_is_survived() {
        assert!(next_message(&[1, 2, 3]).is_none());
        assert!(next_message(&[255; 40]).is_none());
        assert!(peer(&[0; 3]).is_none());
        assert_eq!(peer(&[0; 20]), Some((0, 0)));
    }
}
