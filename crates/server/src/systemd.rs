//! Tells systemd how far the daemon is (sd_notify(3)).

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// How far the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It answers.
    Ready,
    /// It is ending.
    Stopping,
}

/// Says so where somebody wants to know; nowhere else.
pub(crate) fn notify(state: State) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(socket.as_bytes(), state) {
        tracing::warn!(%error, "systemd cannot be told that the daemon is {state:?}");
    }
}

fn send(socket: &[u8], state: State) -> io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?,
    };
    let text: &[u8] = match state {
        State::Ready => b"READY=1\n",
        State::Stopping => b"STOPPING=1\n",
    };
    UnixDatagram::unbound()?
        .send_to_addr(text, &address)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("notify");
        let name = format!("offshoot-test-{}", std::process::id());
        let receivers = [
            (
                UnixDatagram::bind(&path).unwrap(),
                path.as_os_str().as_bytes().to_owned(),
            ),
            (
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
                format!("@{name}").into_bytes(),
            ),
        ];
        for (receiver, socket) in receivers {
            send(&socket, State::Ready).unwrap();
            send(&socket, State::Stopping).unwrap();
            let mut text = [0; 64];
            let length = receiver.recv(&mut text).unwrap();
            assert_eq!(&text[..length], b"READY=1\n");
        }
        assert!(send(b"/nonexistent/socket", State::Ready).is_err());
    }
}
