//! Entering network namespaces on a thread of its own (setns(2)), and the processes that keep them alive.
//!
//! A network namespace belongs to a thread, so code that must act inside another one gets a thread that
//! enters it, does the work and ends: the caller's threads never change theirs. Everything a thread opens there
//! (sockets, /proc/sys/net, child processes) belongs to the namespace.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};

/// A network namespace, kept alive by this handle.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn current() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self)
    }

    /// The namespace of the main thread of process `pid`.
    ///
    /// # Errors
    /// `NotFound` when there is no such process; `PermissionDenied` without ptrace access to it.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/ns/net")).map(Self)
    }

    /// A new, empty namespace (only a loopback interface, down), owned by the caller's user namespace.
    ///
    /// # Errors
    /// Those of unshare(2).
    pub fn create() -> io::Result<Self> {
        on_thread(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })?
    }

    /// Runs `work` on a thread inside the namespace and returns what it returned.
    ///
    /// # Errors
    /// Those of setns(2) (`CAP_SYS_ADMIN` over the namespace's owner is needed), or that the thread panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        visit(|visitor| {
            visitor.enter(self)?;
            Ok(work())
        })?
    }

    /// Device and inode number: equal for two handles of one namespace (ioctl_nsfs(2)).
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn id(&self) -> io::Result<(u64, u64)> {
        let meta = self.0.metadata()?;
        Ok((meta.dev(), meta.ino()))
    }
}

/// A thread that may go from one network namespace to another; only the one that [`visit`] made.
#[derive(Debug)]
pub struct Visitor(PhantomData<*const ()>);

impl Visitor {
    /// Enters `netns`; what was opened before keeps its own.
    ///
    /// # Errors
    /// Those of setns(2).
    pub fn enter(&self, netns: &Netns) -> io::Result<()> {
        let kind = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(netns.as_fd(), kind)?;
        Ok(())
    }
}

/// Runs `work` on a thread of its own that can enter network namespaces, and returns what it returned.
///
/// # Errors
/// When there is no thread to be had, or it panicked.
pub fn visit<T: Send>(work: impl FnOnce(&Visitor) -> T + Send) -> io::Result<T> {
    on_thread(|| work(&Visitor(PhantomData)))
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)?
            .join()
            .map_err(|_| io::Error::other("the thread inside the network namespace panicked"))
    })
}

/// Makes the calling process the holder of a new network namespace and of a session of its own, so that neither a
/// terminal nor the process that started it takes the namespace away. Threads started before keep the old one.
///
/// # Errors
/// Those of unshare(2), and when called from any thread but the process's first: others reach the namespace through
/// /proc/PID/ns/net, which is the first thread's.
pub fn become_holder() -> io::Result<()> {
    if rustix::thread::gettid() != rustix::process::getpid() {
        return Err(io::Error::other(
            "only the main thread can hold a network namespace",
        ));
    }
    // Fails for a process group leader, which then has left its parent's group already.
    let _ = rustix::process::setsid();
    nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Leaves the calling thread no capability but `CAP_NET_ADMIN`, for good, and no way to gain others by starting programs
/// (capset(2), `PR_SET_NO_NEW_PRIVS`).
///
/// # Errors
/// Those of capset(2) and prctl(2).
pub fn keep_only_net_admin() -> io::Result<()> {
    let keep = CapabilitySet::NET_ADMIN;
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_no_new_privs(true)?;
    rustix::thread::set_capabilities(None, sets)?;
    Ok(())
}

/// A process that holds a namespace, by pidfd: never another one that got the same pid later (pidfd_open(2)).
#[derive(Debug)]
pub struct Holder {
    pid: i32,
    fd: OwnedFd,
}

impl Holder {
    /// The process that has `pid` now.
    ///
    /// # Errors
    /// Those of pidfd_open(2); `ESRCH` when there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        // Pid::from_raw panics below 0.
        let id = Some(pid)
            .filter(|&pid| pid > 0)
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let fd = rustix::process::pidfd_open(id, PidfdFlags::empty())?;
        Ok(Self { pid, fd })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it has not ended (a zombie has).
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.wait(Duration::ZERO), Ok(false))
    }

    /// Its network namespace.
    ///
    /// # Errors
    /// `ESRCH` when it has ended.
    pub fn netns(&self) -> io::Result<Netns> {
        let netns = Netns::of_process(self.pid)?;
        // Alive after the file was opened: so the pid was still this process's when it was.
        if self.is_alive() {
            Ok(netns)
        } else {
            Err(rustix::io::Errno::SRCH.into())
        }
    }

    /// Kills it; that it has ended already is no error.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.fd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits at most `max` until it has ended; says whether it has.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait(&self, max: Duration) -> io::Result<bool> {
        readable_within(self.fd.as_fd(), max)
    }
}

/// Waits at most `max` until `fd` can be read or has hung up; says whether.
///
/// # Errors
/// Those of poll(2).
pub fn readable_within(fd: BorrowedFd<'_>, max: Duration) -> io::Result<bool> {
    let until = Instant::now() + max;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = rustix::event::Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match rustix::event::poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            Some(&left),
        ) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_happens_inside_and_the_caller_stays_outside() {
        let before = Netns::current().unwrap().id().unwrap();
        let Ok(inner) = Netns::create() else {
            println!("SKIPPED: network namespaces need root");
            return;
        };
        let seen = inner
            .run(|| Netns::current().unwrap().id().unwrap())
            .unwrap();
        assert_eq!(seen, inner.id().unwrap());
        assert_ne!(seen, before);
        assert_eq!(Netns::current().unwrap().id().unwrap(), before);
    }

    #[test]
    fn a_holder_is_told_from_the_next_process() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let holder = Holder::open(child.id() as i32).unwrap();
        assert!(holder.is_alive());
        holder.kill().unwrap();
        assert!(holder.wait(Duration::from_secs(5)).unwrap());
        assert!(!holder.is_alive());
        child.wait().unwrap();
        holder.kill().unwrap();
        assert!(holder.netns().is_err());
        for nobody in [-1, 0, i32::MAX] {
            assert!(Holder::open(nobody).is_err());
        }
    }
}
