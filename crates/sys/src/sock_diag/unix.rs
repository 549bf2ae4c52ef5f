//! Who is connected to whom among unix sockets: `unix_diag` (sock_diag(7), Linux 3.3).

use std::collections::HashMap;
use std::io;

use super::{NLM_F_DUMP, SOCK_DIAG_BY_FAMILY, SockDiag, message};

// include/uapi/linux/unix_diag.h
const UNIX_DIAG_MSG: usize = 16;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
const AF_UNIX: u8 = 1;

impl SockDiag {
    /// Inode of every unix socket with the inode of its peer (0: none).
    ///
    /// # Errors
    /// What the kernel answered; `ENOENT` when it was built without `CONFIG_UNIX_DIAG`.
    pub fn unix_peers(&self) -> io::Result<HashMap<u32, u32>> {
        let mut peers = HashMap::new();
        self.exchange(&request(), |payload| peers.extend(peer(payload)))?;
        Ok(peers)
    }
}

/// `struct unix_diag_req` behind a netlink header.
fn request() -> Vec<u8> {
    let mut body = vec![AF_UNIX, 0, 0, 0];
    body.extend(u32::MAX.to_ne_bytes()); // in any state
    body.extend(0u32.to_ne_bytes());
    body.extend(UDIAG_SHOW_PEER.to_ne_bytes());
    body.extend([0; 8]);
    message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &body)
}

/// `struct unix_diag_msg` and its attributes.
fn peer(payload: &[u8]) -> Option<(u32, u32)> {
    let inode = u32::from_ne_bytes(*payload.get(4..)?.first_chunk()?);
    let mut rest = payload.get(UNIX_DIAG_MSG..)?;
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
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

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
        let peers = SockDiag::open().unwrap().unix_peers().unwrap();
        assert_eq!(peers.get(&inode(&a)), Some(&inode(&b)));
        assert_eq!(peers.get(&inode(&b)), Some(&inode(&a)));
    }

    #[test]
    fn rubbish_is_survived() {
        assert!(peer(&[0; 3]).is_none());
        assert_eq!(peer(&[0; 20]), Some((0, 0)));
    }
}
