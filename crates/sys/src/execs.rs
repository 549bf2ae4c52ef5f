//! Hearing of programs before they run (fanotify(7), `FAN_OPEN_EXEC_PERM`, Linux 5.0): a process that is about to become another program
//! waits until this side has looked.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};

use crate::fsx::through_proc;

/// Watched mounts. When this is dropped, or its process ends, all that wait go on.
#[derive(Debug)]
pub struct Execs(Fanotify);

impl Execs {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` or `ENOSYS` where the kernel has no `CONFIG_FANOTIFY_ACCESS_PERMISSIONS`.
    pub fn new() -> io::Result<Self> {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let files = EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC | EventFFlags::O_LARGEFILE;
        Ok(Self(Fanotify::init(flags, files)?))
    }

    /// Whether the kernel can, tried with this program's own file.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn try_out() -> io::Result<()> {
        let own = fs::File::open("/proc/self/exe")?;
        Self::new()?.mark(MarkFlags::FAN_MARK_ADD, own.as_fd())
    }

    fn mark(&self, flags: MarkFlags, place: BorrowedFd<'_>) -> io::Result<()> {
        let mask = MaskFlags::FAN_OPEN_EXEC_PERM;
        Ok(self
            .0
            .mark(flags, mask, place, Some(&through_proc(place)))?)
    }

    /// Watches the mount that `place` is on, for programs that are started by way of it.
    ///
    /// # Errors
    /// Of fanotify_mark(2).
    pub fn watch(&self, place: BorrowedFd<'_>) -> io::Result<()> {
        self.mark(MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_MOUNT, place)
    }

    /// Shows `look` who waits, by its process id and the file it is about to run, then lets it go on. An interpreter of a script (and
    /// of a program, ld.so(8)) is told of by itself. A signal that `look` sends is handled before the new program's first instruction.
    ///
    /// # Errors
    /// When the kernel has no more descriptors for this process; those that wait then go on.
    pub fn attend(&self, mut look: impl FnMut(i32, &Path)) -> io::Result<()> {
        let events = match self.0.read_events() {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(()),
            events => events?,
        };
        for event in &events {
            let Some(fd) = event.fd() else { continue };
            look(event.pid(), &path_of(fd));
            // Nobody waits any more for an answer: the process was killed.
            let _ = self
                .0
                .write_response(FanotifyResponse::new(fd, Response::FAN_ALLOW));
        }
        Ok(())
    }
}

impl AsFd for Execs {
    /// Readable when somebody waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    fs::read_link(through_proc(fd)).unwrap_or_default()
}
