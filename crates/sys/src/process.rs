//! Processes: going into the background, waiting by descriptor (pidfd_open(2)), visiting another process's
//! namespaces, and what a process may be asked without ambiguity about its identity.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use rustix::thread::LinkNameSpaceType;

use crate::threads::threads;

/// Which process goes on after [`fork_to_background`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that was started; it should exit.
    Foreground,
    /// Its child, leader of a new session, whose parent is gone as soon as the foreground exits.
    Background,
}

/// Forks, and makes the child the leader of a new session (setsid(2)): it outlives whoever started it.
///
/// # Errors
/// Of fork(2) and setsid(2); `EINVAL` when the process has more than one thread.
pub fn fork_to_background() -> io::Result<Side> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the process has one thread (checked above), so the child may do whatever the parent could.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { .. } => Ok(Side::Foreground),
        nix::unistd::ForkResult::Child => {
            nix::unistd::setsid()?;
            Ok(Side::Background)
        }
    }
}

/// Forks a child that has the caller's table of descriptors, not a copy of it (clone(2), `CLONE_FILES`): what either opens both have, and what
/// is open stays so until both ended or one closed it. `None` in the child, which must not close what it was given, and must end with
/// exit(3): nothing may be dropped there.
///
/// # Errors
/// Of clone(2); `EINVAL` when the process has more than one thread.
pub fn fork_with_descriptors() -> io::Result<Option<Process>> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: as fork(2), since no memory is shared and no stack is given; the process has one thread (checked above), so the child
    // may do whatever the parent could.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        0 => Ok(None),
        pid if pid > 0 => Process::open(i32::try_from(pid).map_err(io::Error::other)?).map(Some),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the calling process the leader of a new session (setsid(2)), out of reach of its starter's terminal. One that leads a
/// group already is left as it is.
pub fn leave_session() {
    // EPERM: it is a group leader, and whoever started it so has cared for that.
    let _ = nix::unistd::setsid();
}

/// Takes over standard output for a message to whoever started this process: later writes to descriptor 1 go nowhere.
///
/// # Errors
/// Of dup(2) and opening /dev/null.
pub fn take_stdout() -> io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(fs::OpenOptions::new().write(true).open("/dev/null")?)?;
    Ok(taken)
}

/// Makes orphaned descendants children of the calling process (`PR_SET_CHILD_SUBREAPER`).
///
/// # Errors
/// Of prctl(2).
pub fn adopt_orphans() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It called exit(3) with this status.
    Exited(i32),
    /// A signal of this number ended it.
    Signaled(i32),
}

impl Ended {
    /// As a shell says it: the status, or 128 + signal.
    #[must_use]
    pub fn status(self) -> i32 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}

/// A process, held so that its number cannot come to mean another one (pidfd_open(2), Linux 5.3).
#[derive(Debug)]
pub struct Process {
    pid: i32,
    fd: OwnedFd,
}

impl Process {
    /// Takes hold of process `pid`.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let raw = Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        Ok(Self {
            pid,
            fd: rustix::process::pidfd_open(raw, PidfdFlags::empty())?,
        })
    }

    /// Its number in the caller's PID namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal by number.
    ///
    /// # Errors
    /// `ESRCH` when it ended, `EINVAL` for a number that is no signal.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(number)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(rustix::process::pidfd_send_signal(&self.fd, signal)?)
    }

    /// Waits until it ended, at most `max` (`None`: without bound). False when it still runs.
    ///
    /// # Errors
    /// Of poll(2).
    pub fn wait_end(&self, max: Option<Duration>) -> io::Result<bool> {
        poll_readable(self.fd.as_fd(), max)
    }

    /// Waits for the end of a child of the calling process and reaps it.
    ///
    /// # Errors
    /// `ECHILD` when it is not a child.
    pub fn reap(&self) -> io::Result<Ended> {
        loop {
            match rustix::process::waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED) {
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
                Ok(status) => {
                    let Some(status) = status else { continue };
                    if let Some(code) = status.exit_status() {
                        return Ok(Ended::Exited(code));
                    }
                    return Ok(Ended::Signaled(status.terminating_signal().unwrap_or(9)));
                }
            }
        }
    }
}

impl AsFd for Process {
    /// Readable when it ended.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of two processes ended; true when it was `one` (also when both did).
///
/// # Errors
/// Of poll(2).
pub fn wait_first(one: &Process, other: &Process) -> io::Result<bool> {
    loop {
        let mut fds = [one, other].map(|process| PollFd::new(&process.fd, PollFlags::IN));
        match rustix::event::poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(fds.first().is_some_and(|fd| !fd.revents().is_empty())),
        }
    }
}

/// Number of the calling process's parent.
#[must_use]
pub fn parent() -> i32 {
    Pid::as_raw(rustix::process::getppid())
}

/// Points the calling process's standard streams to /dev/null.
///
/// # Errors
/// Of opening /dev/null and dup2(2).
pub fn close_streams() -> io::Result<()> {
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}

/// Waits until `fd` can be read or its other end is closed, at most `max`. False when the time passed.
///
/// # Errors
/// Of poll(2).
pub fn poll_readable(fd: std::os::fd::BorrowedFd<'_>, max: Option<Duration>) -> io::Result<bool> {
    let deadline = max.map(|max| std::time::Instant::now() + max);
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(std::time::Instant::now()));
        let spec = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, spec.as_ref()) {
            Ok(0) => {
                if left.is_some_and(|left| left.is_zero()) {
                    return Ok(false);
                }
            }
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// A namespace of another process to visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// Its network (network_namespaces(7)).
    Network,
    /// Its host name (uts_namespaces(7)).
    HostName,
}

/// Runs `work` on a thread of its own inside a namespace of process `pid`; the thread ends afterwards, so nothing else is
/// affected.
///
/// # Errors
/// When the namespace cannot be entered, or of `work`.
pub fn visit<T: Send>(
    pid: i32,
    namespace: Visit,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let (file, kind) = match namespace {
        Visit::Network => ("net", LinkNameSpaceType::Network),
        Visit::HostName => ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
    };
    let fd = fs::File::open(format!("/proc/{pid}/ns/{file}"))?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(format!("visit-{file}"))
            .spawn_scoped(scope, move || {
                rustix::thread::move_into_link_name_space(fd.as_fd(), Some(kind))?;
                work()
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the visiting thread panicked")))
    })
}

/// Sets the host name of the calling thread's UTS namespace, at most 64 bytes (sethostname(2)).
///
/// # Errors
/// Of sethostname(2).
pub fn set_hostname(name: &str) -> io::Result<()> {
    rustix::system::sethostname(name.as_bytes())?;
    Ok(())
}

/// Brings up `lo` of the calling thread's network namespace (netdevice(7), `SIOCSIFFLAGS`).
///
/// # Errors
/// Of socket(2) and ioctl(2).
pub fn loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero struct ifreq is valid: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `socket` is open and `request` is a valid struct ifreq with a NUL-terminated name; SIOCSIFFLAGS only reads it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Parent and start time (clock ticks after boot) of a process, from /proc/PID/stat (proc_pid_stat(5)). Number and start time together
/// identify a process for good.
///
/// # Errors
/// `ENOENT` or `ESRCH` when there is none.
pub fn identity(pid: i32) -> io::Result<Identity> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat: {text:?}"),
        )
    })
}

/// What [`identity`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Parent's number; 0 when it is outside the PID namespace.
    pub parent: i32,
    /// Clock ticks between the boot and the process's start.
    pub started: u64,
    /// State letter: `R`, `S`, `D`, `Z`, ...
    pub state: char,
}

fn parse_stat(text: &str) -> Option<Identity> {
    // The name in parentheses may hold anything, also ')'.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Identity {
        parent,
        started,
        state,
    })
}

/// Numbers of a process's children, also those that ended and were not waited for; none when there is no such process (`proc(5)`,
/// `/proc/<pid>/task/<tid>/children`: complete only for children that do not start or end meanwhile).
#[must_use]
pub fn children(pid: i32) -> Vec<i32> {
    let list = |thread| fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
    let threads = threads(pid).unwrap_or_default().into_iter();
    threads
        .filter_map(|thread: i32| list(thread).ok())
        .flat_map(|list| list.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .flatten()
        .collect()
}

/// argv of a process; empty for kernel threads and zombies.
///
/// # Errors
/// When there is no such process.
pub fn arguments(pid: i32) -> io::Result<Vec<Vec<u8>>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    Ok(if bytes.is_empty() {
        Vec::new()
    } else {
        bytes.split(|&b| b == 0).map(<[u8]>::to_vec).collect()
    })
}

/// Stops every thread of a process (`SIGSTOP`, signal(7)). One that is held by others, by a debugger or a frozen cgroup, handles it before
/// its next instruction when it is let go; `SIGCONT` to the process lets it go on.
///
/// To each thread, since a process's signal is handled by one of them: the others would run until then.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn stop_threads(pid: i32) -> io::Result<()> {
    let mut result = Err(io::Error::from_raw_os_error(libc::ESRCH));
    for thread in threads(pid)? {
        // SAFETY: tgkill(2) takes three numbers and touches no memory of the caller.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, libc::SIGSTOP) };
        if sent == 0 {
            result = Ok(());
        }
    }
    result
}

/// Numbers of all processes visible in /proc.
///
/// # Errors
/// When /proc cannot be read.
pub fn all() -> io::Result<Vec<i32>> {
    Ok(fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// Whether the calling process is refused io_uring, and with which error: asks for a ring of no entries, which an allowed caller
/// is answered with `EINVAL` (io_uring_setup(2)).
#[must_use]
pub fn io_uring_answer() -> io::Error {
    // SAFETY: io_uring_setup(2) with zero entries fails before it looks at the (null) parameters.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<u8>()) };
    if result == -1 {
        io::Error::last_os_error()
    } else {
        io::Error::from_raw_os_error(0)
    }
}

/// As [`io_uring_answer`], of the kernel's own asynchronous I/O: an allowed caller is answered with `EINVAL` for a context of no
/// requests (io_setup(2)).
#[must_use]
pub fn io_setup_answer() -> io::Error {
    let mut context: libc::c_ulong = 0;
    // SAFETY: io_setup(2) reads and writes one word, which `context` is; with no requests it fails before it makes anything.
    let result = unsafe { libc::syscall(libc::SYS_io_setup, 0, &raw mut context) };
    if result == -1 {
        io::Error::last_os_error()
    } else {
        io::Error::from_raw_os_error(0)
    }
}

/// Whether a path's every directory can be passed by any user (`o+x`), as a process that is root only in its own user namespace
/// needs. Gives the first that cannot.
///
/// # Errors
/// When a part does not exist.
pub fn first_closed_directory(path: &Path) -> io::Result<Option<std::path::PathBuf>> {
    use std::os::unix::fs::PermissionsExt;
    let mut ancestors: Vec<&Path> = path
        .ancestors()
        .filter(|p| !p.as_os_str().is_empty())
        .collect();
    ancestors.reverse();
    for dir in ancestors {
        if fs::metadata(dir)?.permissions().mode() & 0o001 == 0 {
            return Ok(Some(dir.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_whatever_the_name_holds() {
        let text = "12 (a) b (c)) S 7 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 100 200\n";
        assert_eq!(
            parse_stat(text),
            Some(Identity {
                parent: 7,
                started: 4242,
                state: 'S'
            })
        );
        assert_eq!(parse_stat("nonsense"), None);
        let me = identity(std::process::id().cast_signed()).unwrap();
        assert!(me.started > 0);
    }

    #[test]
    #[expect(
        clippy::zombie_processes,
        reason = "reaped through its descriptor, which is what is tested"
    )]
    fn a_child_is_waited_for_and_reaped() {
        let child = std::process::Command::new("/bin/sh")
            .args(["-c", "exit 7"])
            .spawn()
            .unwrap();
        let process = Process::open(child.id().cast_signed()).unwrap();
        assert!(process.wait_end(Some(Duration::from_secs(10))).unwrap());
        assert_eq!(process.reap().unwrap(), Ended::Exited(7));
        let child = std::process::Command::new("/bin/sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let process = Process::open(child.id().cast_signed()).unwrap();
        assert!(!process.wait_end(Some(Duration::ZERO)).unwrap());
        process.signal(15).unwrap();
        assert_eq!(process.reap().unwrap(), Ended::Signaled(15));
    }

    #[test]
    fn arguments_are_split() {
        let own = arguments(std::process::id().cast_signed()).unwrap();
        assert_eq!(own.len(), std::env::args_os().count());
    }

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let all = children(std::process::id().cast_signed());
        assert!(all.contains(&child.id().cast_signed()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
