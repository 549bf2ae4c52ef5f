//! Having another process make system calls (ptrace(2)), for the few that act on the caller only, such as userfaultfd(2).
//!
//! All threads are stopped, one of them that is inside a system call makes the calls, and everything is put back as it was:
//! registers, signal mask, and the interrupted call, which the kernel restarts as after any stop. Nothing is written to the
//! process's memory. x86-64 only.
//!
//! If the calling process dies in the middle, the kernel lets the threads go where they are, and the one that was
//! about to make a call goes astray. So this belongs into a short-lived process of its own that nobody has a reason to kill.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::memory;
use crate::uffd::{SYS_USERFAULTFD, USER_MODE_ONLY};

/// `PTRACE_SEIZE` options: 0x80 in the signal of a stop at a system call; no seccomp while held (Linux 4.3).
const OPTIONS: libc::c_int = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_SUSPEND_SECCOMP;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
/// Code segment of 64-bit programs.
const USER_CS: u64 = 0x33;
/// A stop is looked for this often.
const LOOK: Duration = Duration::from_micros(100);
/// Largest vDSO that is searched, bytes.
const VDSO_MAX: usize = 64 << 10;

/// A process whose threads all stand still. Dropping it lets them go on.
#[derive(Debug)]
pub struct Stopped {
    pid: i32,
    threads: Vec<Pid>,
    speaker: Speaker,
    deadline: Instant,
}

/// The thread that makes the calls.
#[derive(Debug)]
struct Speaker {
    thread: Pid,
    registers: libc::user_regs_struct,
    signals: u64,
    /// Address of a `syscall` instruction.
    gate: u64,
}

impl Stopped {
    /// Stops all threads of process `pid`.
    ///
    /// # Errors
    /// `TimedOut` when a thread does not stop within `max` (it may wait in the kernel for something that cannot be interrupted),
    /// `EPERM` when somebody else traces it, `Unsupported` for programs that are not 64-bit x86, `ESRCH` when it ended.
    /// When this fails with `TimedOut`, threads may be held until the calling process ends.
    pub fn stop(pid: i32, max: Duration) -> io::Result<Self> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let deadline = Instant::now() + max;
        let mut threads = Threads(Vec::new());
        loop {
            let before = threads.0.len();
            for entry in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                let Some(id) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                    continue;
                };
                let thread = Pid::from_raw(id);
                if !threads.0.contains(&thread) && stop_thread(thread, deadline)? {
                    threads.0.push(thread);
                }
            }
            if threads.0.len() == before {
                break; // nobody is left who could start another one
            }
        }
        let gate = find_gate(pid)?;
        for thread in &threads.0 {
            let registers = get_registers(*thread)?;
            if registers.cs != USER_CS {
                return Err(io::ErrorKind::Unsupported.into());
            }
            // Outside of a call it may be in a restartable sequence (rseq(2)), which must not see another place in between.
            if registers.orig_rax.cast_signed() >= 0 {
                let speaker = Speaker {
                    thread: *thread,
                    registers,
                    signals: get_signals(*thread)?,
                    gate,
                };
                set_signals(*thread, u64::MAX)?;
                return Ok(Self {
                    pid,
                    threads: std::mem::take(&mut threads.0),
                    speaker,
                    deadline,
                });
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Makes a system call and gives its result.
    ///
    /// # Errors
    /// Those of the call, and of ptrace(2) when the process is killed meanwhile.
    pub fn call(&self, number: u64, args: [u64; 6]) -> io::Result<u64> {
        let thread = self.speaker.thread;
        let mut registers = self.speaker.registers;
        registers.rip = self.speaker.gate;
        registers.rax = number;
        // or the kernel would restart the call that was interrupted
        registers.orig_rax = u64::MAX;
        [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
            registers.r9,
        ] = args;
        set_registers(thread, &registers)?;
        for _ in ["entry", "exit"] {
            resume(thread, libc::PTRACE_SYSCALL)?;
            while self.wait()? != Stop::Call {
                resume(thread, libc::PTRACE_SYSCALL)?;
            }
        }
        let result = get_registers(thread)?.rax.cast_signed();
        if (-4095..0).contains(&result) {
            return Err(io::Error::from_raw_os_error(-result as i32));
        }
        Ok(result.cast_unsigned())
    }

    /// Has the process make a userfaultfd and takes it over; the process keeps nothing. It serves faults of the process itself,
    /// not those of the kernel on its behalf: enough where nobody has to answer (`WP_ASYNC`).
    ///
    /// # Errors
    /// As [`Stopped::call`].
    pub fn take_userfaultfd(&self) -> io::Result<OwnedFd> {
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | USER_MODE_ONLY;
        let theirs = self.call(SYS_USERFAULTFD, [flags, 0, 0, 0, 0, 0])?;
        let ours = take_descriptor(self.pid, theirs);
        self.call(libc::SYS_close as u64, [theirs, 0, 0, 0, 0, 0])?;
        ours
    }

    fn wait(&self) -> io::Result<Stop> {
        wait_stop(self.speaker.thread, self.deadline)
    }

    /// Puts the speaking thread back to where it was. It ends in a stop from which the kernel restarts the interrupted call.
    fn put_back(&self) -> io::Result<()> {
        let thread = self.speaker.thread;
        set_registers(thread, &self.speaker.registers)?;
        set_signals(thread, self.speaker.signals)?;
        interrupt(thread)?;
        resume(thread, libc::PTRACE_CONT)?;
        // A signal that became possible with the mask is delivered when the thread goes on: it is no stop of ours.
        loop {
            match self.wait()? {
                Stop::Event => return Ok(()),
                Stop::Signal(number) => resume_with(thread, libc::PTRACE_CONT, number)?,
                Stop::Call => resume(thread, libc::PTRACE_CONT)?,
                Stop::Group | Stop::Gone => return Ok(()),
            }
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.put_back();
        drop(Threads(std::mem::take(&mut self.threads)));
    }
}

/// Threads that are let go when this is dropped.
struct Threads(Vec<Pid>);

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in &self.0 {
            let _ = resume(*thread, libc::PTRACE_DETACH);
        }
    }
}

/// Copies descriptor `number` out of process `pid` (pidfd_getfd(2), Linux 5.6).
fn take_descriptor(pid: i32, number: u64) -> io::Result<OwnedFd> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let raw = rustix::process::Pid::from_raw(pid).ok_or_else(invalid)?;
    let process = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())?;
    Ok(rustix::process::pidfd_getfd(
        process.as_fd(),
        i32::try_from(number).map_err(|_| invalid())?,
        rustix::process::PidfdGetfdFlags::empty(),
    )?)
}

/// What a thread stopped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It was asked to.
    Event,
    /// It, or all of its process, is stopped by a signal such as SIGSTOP.
    Group,
    /// Entry or exit of a system call.
    Call,
    /// It is about to get this signal.
    Signal(i32),
    /// It ended.
    Gone,
}

/// True when it stands still, false when it ended.
fn stop_thread(thread: Pid, deadline: Instant) -> io::Result<bool> {
    // SAFETY: seizing passes two numbers; it does not touch memory of the calling process.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread.as_raw(), 0, OPTIONS) };
    if seized < 0 {
        return match Errno::last() {
            Errno::ESRCH => Ok(false),
            Errno::EPERM if is_over(thread) => Ok(false),
            errno => Err(errno.into()),
        };
    }
    interrupt(thread)?;
    loop {
        match wait_stop(thread, deadline)? {
            Stop::Event => return Ok(true),
            Stop::Gone => return Ok(false),
            Stop::Group => {
                let _ = resume(thread, libc::PTRACE_DETACH);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Stop::Signal(number) => resume_with(thread, libc::PTRACE_CONT, number)?,
            Stop::Call => resume(thread, libc::PTRACE_CONT)?,
        }
    }
}

fn is_over(thread: Pid) -> bool {
    fs::read_to_string(format!("/proc/{thread}/stat")).map_or(true, |stat| {
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
    })
}

fn wait_stop(thread: Pid, deadline: Instant) -> io::Result<Stop> {
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {
                if Instant::now() >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(LOOK);
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                return Ok(Stop::Gone);
            }
            Ok(WaitStatus::PtraceSyscall(_)) => return Ok(Stop::Call),
            Ok(WaitStatus::PtraceEvent(_, signal, _)) => {
                return Ok(match signal {
                    nix::sys::signal::Signal::SIGTRAP => Stop::Event,
                    _ => Stop::Group,
                });
            }
            Ok(WaitStatus::Stopped(_, signal)) => return Ok(Stop::Signal(signal as i32)),
            Ok(_) => {}
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn interrupt(thread: Pid) -> io::Result<()> {
    // SAFETY: passes no memory.
    check(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread.as_raw(), 0, 0) })
}

fn resume(thread: Pid, request: libc::c_uint) -> io::Result<()> {
    resume_with(thread, request, 0)
}

fn resume_with(thread: Pid, request: libc::c_uint, signal: i32) -> io::Result<()> {
    // SAFETY: passes two numbers, no memory.
    check(unsafe { libc::ptrace(request, thread.as_raw(), 0, libc::c_long::from(signal)) })
}

fn get_registers(thread: Pid) -> io::Result<libc::user_regs_struct> {
    Ok(nix::sys::ptrace::getregs(thread)?)
}

fn set_registers(thread: Pid, registers: &libc::user_regs_struct) -> io::Result<()> {
    Ok(nix::sys::ptrace::setregs(thread, *registers)?)
}

fn get_signals(thread: Pid) -> io::Result<u64> {
    let mut mask = 0_u64;
    // SAFETY: the kernel writes as many bytes as the third argument says, which is the size of `mask`.
    check(unsafe {
        libc::ptrace(
            PTRACE_GETSIGMASK,
            thread.as_raw(),
            size_of::<u64>(),
            &raw mut mask,
        )
    })?;
    Ok(mask)
}

fn set_signals(thread: Pid, mask: u64) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the third argument says, which is the size of `mask`.
    check(unsafe {
        libc::ptrace(
            PTRACE_SETSIGMASK,
            thread.as_raw(),
            size_of::<u64>(),
            &raw const mask,
        )
    })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A `syscall` instruction that every process has: in the vDSO (vdso(7)).
fn find_gate(pid: i32) -> io::Result<u64> {
    let missing = || io::Error::from(io::ErrorKind::Unsupported);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps
        .lines()
        .find(|line| line.ends_with("[vdso]"))
        .ok_or_else(missing)?;
    let (start, rest) = line.split_once('-').ok_or_else(missing)?;
    let end = rest.split(' ').next().unwrap_or_default();
    let address = |text: &str| u64::from_str_radix(text, 16).map_err(|_| missing());
    let (start, end) = (address(start)?, address(end)?);
    let size = usize::try_from(end.saturating_sub(start)).map_err(|_| missing())?;
    let mut code = vec![0; size.min(VDSO_MAX)];
    let read = memory::read(pid, start, &mut code)?;
    code.truncate(read);
    code.windows(2)
        .position(|pair| pair == [0x0f, 0x05])
        .map(|at| start + at as u64)
        .ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::pagemap::{Pagemap, Protect, Wanted, page};
    use crate::uffd::{Userfaultfd, Watch, feature};

    const BOUND: Duration = Duration::from_secs(10);

    /// A shell that answers every line with `answer`.
    struct Echo(Child);

    impl Echo {
        fn start(script: &str) -> Self {
            let mut echo = Self(
                Command::new("/bin/sh")
                    .args(["-c", script])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap(),
            );
            assert_eq!(echo.ask("first"), "first");
            echo
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }

        fn ask(&mut self, line: &str) -> String {
            writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
            let mut answer = String::new();
            // one line is waiting at most, so nothing is lost with the reader
            BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap())
                .read_line(&mut answer)
                .unwrap();
            answer.trim().to_owned()
        }
    }

    impl Drop for Echo {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_speaks_for_us_and_notices_nothing() {
        let mut echo = Echo::start("while read -r line; do echo $line; done");
        for _ in 0..20 {
            let stopped = Stopped::stop(echo.pid(), BOUND).unwrap();
            let getpid = libc::SYS_getpid as u64;
            assert_eq!(
                stopped.call(getpid, [0; 6]).unwrap(),
                u64::from(echo.0.id())
            );
            assert_eq!(
                stopped
                    .call(libc::SYS_close as u64, [9999, 0, 0, 0, 0, 0])
                    .unwrap_err()
                    .raw_os_error(),
                Some(libc::EBADF)
            );
            drop(stopped);
            assert_eq!(echo.ask("again"), "again");
        }
        let status = fs::read_to_string(format!("/proc/{}/status", echo.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0"));
    }

    #[test]
    fn a_sleep_is_gone_on_with() {
        let began = Instant::now();
        let mut sleep = Command::new("/bin/sleep").arg("0.3").spawn().unwrap();
        let pid = sleep.id().cast_signed();
        while !fs::read_to_string(format!("/proc/{pid}/wchan"))
            .unwrap()
            .contains("nanosleep")
            && began.elapsed() < BOUND
        {
            std::thread::yield_now();
        }
        drop(Stopped::stop(pid, BOUND).unwrap());
        assert!(sleep.wait().unwrap().success());
        assert!(began.elapsed() >= Duration::from_millis(300));
    }

    #[test]
    fn what_a_process_writes_is_seen() {
        if !Pagemap::is_supported() {
            println!("SKIPPED: this kernel has no PAGEMAP_SCAN (Linux 6.7)");
            return;
        }
        let mut echo = Echo::start("while read -r line; do x=$line$line; echo $line; done");
        let fds = || {
            fs::read_dir(format!("/proc/{}/fd", echo.pid()))
                .unwrap()
                .count()
        };
        let before = fds();
        let fd = Stopped::stop(echo.pid(), BOUND)
            .unwrap()
            .take_userfaultfd()
            .unwrap();
        assert_eq!(fds(), before);
        let uffd = Userfaultfd::new(fd, feature::WP_ASYNC | feature::WP_UNPOPULATED).unwrap();
        let maps = fs::read_to_string(format!("/proc/{}/maps", echo.pid())).unwrap();
        let heap = maps.lines().find(|line| line.ends_with("[heap]")).unwrap();
        let (start, rest) = heap.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        let heap = u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap();
        uffd.register(heap.clone(), Watch::Written).unwrap();
        let pagemap = Pagemap::open(echo.pid()).unwrap();
        let wanted = Wanted {
            mask: page::WRITTEN,
            inverted: 0,
            any_of: page::PRESENT | page::SWAPPED,
            told: page::WRITTEN,
        };
        let written = |protect| {
            let mut pages = 0;
            pagemap
                .scan(heap.clone(), wanted, protect, |region| {
                    pages += (region.end - region.start) / 4096;
                })
                .unwrap();
            pages
        };
        let all = written(Protect::Found);
        assert!(all > 0);
        assert_eq!(written(Protect::No), 0);
        assert_eq!(echo.ask("write"), "write");
        let some = written(Protect::Found);
        assert!(some > 0 && some <= all, "{some} of {all}");
        assert_eq!(written(Protect::No), 0);
        uffd.unregister(heap.clone()).unwrap();
        assert!(written(Protect::No) > 0);
    }
}
