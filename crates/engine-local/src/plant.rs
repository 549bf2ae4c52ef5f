//! Getting at the memory of a running process, through a shim that lives for that moment only.

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use offshoot_checkpoint::{Foreign, Plant};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The shim's own bound is shorter.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Runs `offshoot-shim plant`.
pub(crate) struct Planter<'a>(pub(crate) &'a Path);

impl Plant for Planter<'_> {
    fn plant(&self, pid: i32) -> Result<OwnedFd, Foreign> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(ANSWER_MAX))?;
        let mut shim = Command::new(self.0)
            .args(["plant", &pid.to_string()])
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let answer = receive(&ours);
        // It has ended, or ends by itself: it is never killed, see there.
        let mut why = String::new();
        if let Some(stderr) = shim.stderr.take() {
            stderr.take(4096).read_to_string(&mut why)?;
        }
        shim.wait()?;
        match answer? {
            Some(fd) => Ok(fd),
            None => Err(format!("process {pid}: {}", why.trim()).into()),
        }
    }
}

fn receive(line: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        line,
        &mut [IoSliceMut::new(&mut byte)],
        &mut message,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let fds = message.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok(fds.flatten().next())
}
