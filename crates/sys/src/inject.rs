//! Having another process make system calls (ptrace(2)), for the few that act on the caller only, such as userfaultfd(2).
//!
//! All threads are stopped, one of them makes the calls, and everything is put back as it was: registers, signal mask, and the
//! call that was interrupted, which the kernel restarts as after any stop. x86-64 only.
//!
//! If the calling process dies in the middle, the kernel lets the threads of a [`Stopped`] go where they are, and the one that was
//! about to make a call goes astray: this belongs into a short-lived process of its own that nobody has a reason to kill. Those of
//! a [`Caught`] are killed.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::libc;
use nix::unistd::Pid;

use crate::memory;
use crate::threads::threads;
use crate::uffd::{Userfaultfd, Watch, feature};

mod caught;
mod speaker;
#[cfg(test)]
mod tests;
mod thread;
mod twin;

pub use caught::Caught;
pub use speaker::Speaker;
pub use twin::Twin;

use thread::{Orphan, Stop, resume, resume_with, seize, wait_stop};

/// A process whose threads, or one of them, stand still. Dropping it lets them go on.
#[derive(Debug)]
pub struct Stopped {
    // in this order: it is put back before it is let go
    speaker: Speaker,
    _threads: Threads,
}

impl Stopped {
    /// Stops all threads of process `pid`.
    ///
    /// # Errors
    /// `TimedOut` when a thread does not stop within `max` (it may wait in the kernel for something that cannot be interrupted),
    /// `WouldBlock` when it is stopped by a signal or cannot be interrupted just now, `EPERM` when somebody else traces it,
    /// `Unsupported` for programs that are not 64-bit x86, `ESRCH` when it ended.
    /// When this fails with `TimedOut`, threads may be held until the calling process ends.
    pub fn stop(pid: i32, max: Duration) -> io::Result<Self> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let deadline = Instant::now() + max;
        let threads = Threads::of(pid, deadline)?;
        Ok(Self {
            speaker: Speaker::choose(pid, &threads.0, deadline)?,
            _threads: threads,
        })
    }

    /// Stops one thread of process `pid`; the others run on. One that waits in the kernel is preferred, and the first is the last
    /// choice: it is most often the one that works.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub fn stop_one(pid: i32, max: Duration) -> io::Result<Self> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let deadline = Instant::now() + max;
        let mut threads = threads(pid)?;
        threads.sort_by_cached_key(|id| (!thread::is_asleep(pid, *id), *id == pid, *id));
        let mut outcome = Err(io::Error::from_raw_os_error(libc::ESRCH));
        for thread in threads.into_iter().map(Pid::from_raw) {
            if !stop_thread(thread, deadline)? {
                continue;
            }
            let threads = Threads(vec![thread]);
            match Speaker::choose(pid, &threads.0, deadline) {
                Ok(speaker) => {
                    return Ok(Self {
                        speaker,
                        _threads: threads,
                    });
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// As [`Speaker::twin`].
    ///
    /// # Errors
    /// As there.
    pub fn twin(&self) -> io::Result<Twin> {
        self.speaker.twin()
    }

    /// As [`Speaker::call`].
    ///
    /// # Errors
    /// As there.
    pub fn call(&self, number: u64, args: [u64; 6]) -> io::Result<u64> {
        self.speaker.call(number, args)
    }

    /// As [`Speaker::take_userfaultfd`].
    ///
    /// # Errors
    /// As there.
    pub fn take_userfaultfd(&self) -> io::Result<OwnedFd> {
        self.speaker.take_userfaultfd()
    }

    /// A userfaultfd with which the kernel tells what is written (`WP_ASYNC`, Linux 6.7) in all of the process's private areas. It is only as
    /// long as the process stands that whole areas can be named: a border within one would be in the way of mremap(2).
    ///
    /// # Errors
    /// As [`Speaker::take_userfaultfd`], and `EINVAL` on older kernels.
    pub fn watch_writes(&self) -> io::Result<Userfaultfd> {
        let features = feature::WP_ASYNC | feature::WP_UNPOPULATED;
        let uffd = Userfaultfd::new(self.take_userfaultfd()?, features)?;
        for area in memory::areas(self.speaker.pid())? {
            if area.private && !area.name.starts_with("[v") {
                // What cannot be watched counts as written.
                let _ = uffd.register(area.range, Watch::Written);
            }
        }
        Ok(uffd)
    }
}

/// A process whose threads all stand still, outside of any system call or about to begin it again: nothing that one of them asked the
/// kernel for is under way. Nothing else is done to them. Dropping this lets them go on, and so does the end of the calling thread.
#[derive(Debug)]
pub struct Paused {
    _threads: Threads,
}

impl Paused {
    /// Stops all threads of process `pid`.
    ///
    /// # Errors
    /// As [`Stopped::stop`].
    pub fn pause(pid: i32, max: Duration) -> io::Result<Self> {
        Ok(Self {
            _threads: Threads::of(pid, Instant::now() + max)?,
        })
    }
}

/// Threads that are let go when this is dropped.
#[derive(Debug)]
struct Threads(Vec<Pid>);

impl Threads {
    /// Stops all threads of process `pid`.
    fn of(pid: i32, deadline: Instant) -> io::Result<Self> {
        let mut stopped = Self(Vec::new());
        loop {
            let before = stopped.0.len();
            let all = threads(pid)?;
            if all.is_empty() {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            for thread in all.into_iter().map(Pid::from_raw) {
                if !stopped.0.contains(&thread) && stop_thread(thread, deadline)? {
                    stopped.0.push(thread);
                }
            }
            if stopped.0.len() == before {
                return Ok(stopped); // nobody is left who could start another one
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in &self.0 {
            let _ = resume(*thread, libc::PTRACE_DETACH);
        }
    }
}

/// True when it stands still, false when it ended.
fn stop_thread(thread: Pid, deadline: Instant) -> io::Result<bool> {
    if !seize(thread, Orphan::GoesOn)? {
        return Ok(false);
    }
    loop {
        match wait_stop(thread, deadline)? {
            Stop::Event => return Ok(true),
            Stop::Gone => return Ok(false),
            Stop::Group => {
                let _ = resume(thread, libc::PTRACE_DETACH);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Stop::Signal(number) => resume_with(thread, libc::PTRACE_CONT, number)?,
            Stop::Call | Stop::Born => resume(thread, libc::PTRACE_CONT)?,
        }
    }
}
