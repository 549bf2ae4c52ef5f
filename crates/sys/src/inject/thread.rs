//! One thread of another process, by ptrace(2).

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::memory;

/// `PTRACE_SEIZE` options: 0x80 in the signal of a stop at a system call; no seccomp while held (Linux 4.3).
const OPTIONS: libc::c_int = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_SUSPEND_SECCOMP;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
/// Most stops follow in microseconds; a sleep would be longer.
const SPIN: Duration = Duration::from_micros(200);
/// After that a stop is looked for this often.
const LOOK: Duration = Duration::from_micros(100);

/// What becomes of a seized thread when the process that seized it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Orphan {
    /// It goes on.
    GoesOn,
    /// It is killed.
    IsKilled,
}

impl Orphan {
    fn options(self) -> libc::c_int {
        match self {
            Self::GoesOn => OPTIONS,
            Self::IsKilled => OPTIONS | libc::PTRACE_O_EXITKILL,
        }
    }
}

/// What becomes of a process or thread that a traced thread makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Births {
    /// It runs, and nobody is told.
    Unseen,
    /// It is traced as its maker is, and stands before its first instruction.
    AreHeld,
}

/// What a thread stopped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// It was asked to.
    Event,
    /// It, or all of its process, is stopped by a signal such as SIGSTOP.
    Group,
    /// Entry or exit of a system call.
    Call,
    /// It is about to get this signal.
    Signal(i32),
    /// It made a process or a thread, and [`Births::AreHeld`] holds: [`born`] tells which.
    Born,
    /// It ended.
    Gone,
}

/// Takes hold of a thread and asks it to stop. False when it ended.
pub(super) fn seize(thread: Pid, orphan: Orphan) -> io::Result<bool> {
    let options = orphan.options();
    // SAFETY: seizing passes two numbers; it does not touch memory of the calling process.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread.as_raw(), 0, options) };
    if seized < 0 {
        return match Errno::last() {
            Errno::ESRCH => Ok(false),
            Errno::EPERM if is_over(thread) => Ok(false),
            errno => Err(errno.into()),
        };
    }
    interrupt(thread)?;
    Ok(true)
}

/// Whether a thread waits in the kernel (state S of proc_pid_stat(5)).
pub(super) fn is_asleep(pid: i32, thread: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('S'))
    })
}

fn is_over(thread: Pid) -> bool {
    fs::read_to_string(format!("/proc/{thread}/stat")).map_or(true, |stat| {
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
    })
}

pub(super) fn wait_stop(thread: Pid, deadline: Instant) -> io::Result<Stop> {
    let began = Instant::now();
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {
                if Instant::now() >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                if began.elapsed() < SPIN {
                    std::thread::yield_now();
                } else {
                    std::thread::sleep(LOOK);
                }
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                return Ok(Stop::Gone);
            }
            Ok(WaitStatus::PtraceSyscall(_)) => return Ok(Stop::Call),
            Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_CLONE)) => return Ok(Stop::Born),
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

/// Sets what a stopped thread stops for besides, and what becomes of it with the calling process.
pub(super) fn set_options(thread: Pid, orphan: Orphan, births: Births) -> io::Result<()> {
    let births = match births {
        Births::Unseen => 0,
        Births::AreHeld => libc::PTRACE_O_TRACECLONE,
    };
    // SAFETY: passes two numbers, no memory.
    check(unsafe {
        libc::ptrace(
            libc::PTRACE_SETOPTIONS,
            thread.as_raw(),
            0,
            libc::c_long::from(orphan.options() | births),
        )
    })
}

/// Who was born, in the numbers of the calling process, right after [`Stop::Born`].
pub(super) fn born(thread: Pid) -> io::Result<Pid> {
    let number = nix::sys::ptrace::getevent(thread)?;
    i32::try_from(number)
        .map(Pid::from_raw)
        .map_err(io::Error::other)
}

pub(super) fn interrupt(thread: Pid) -> io::Result<()> {
    // SAFETY: passes no memory.
    check(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread.as_raw(), 0, 0) })
}

pub(super) fn resume(thread: Pid, request: libc::c_uint) -> io::Result<()> {
    resume_with(thread, request, 0)
}

pub(super) fn resume_with(thread: Pid, request: libc::c_uint, signal: i32) -> io::Result<()> {
    // SAFETY: passes two numbers, no memory.
    check(unsafe { libc::ptrace(request, thread.as_raw(), 0, libc::c_long::from(signal)) })
}

pub(super) fn get_registers(thread: Pid) -> io::Result<libc::user_regs_struct> {
    Ok(nix::sys::ptrace::getregs(thread)?)
}

pub(super) fn set_registers(thread: Pid, registers: &libc::user_regs_struct) -> io::Result<()> {
    Ok(nix::sys::ptrace::setregs(thread, *registers)?)
}

pub(super) fn get_signals(thread: Pid) -> io::Result<u64> {
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

pub(super) fn set_signals(thread: Pid, mask: u64) -> io::Result<()> {
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

/// Where a thread's area for restartable sequences is, if it has one (rseq(2); Linux 5.13).
///
/// # Errors
/// `EIO` on older kernels, which do not say.
pub(super) fn sequence_area(thread: Pid) -> io::Result<Option<u64>> {
    /// `struct ptrace_rseq_configuration`.
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        area: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut configuration = Configuration::default();
    // SAFETY: the kernel writes as many bytes as the third argument says, which is the size of `configuration`.
    check(unsafe {
        libc::ptrace(
            PTRACE_GET_RSEQ_CONFIGURATION,
            thread.as_raw(),
            size_of::<Configuration>(),
            &raw mut configuration,
        )
    })?;
    Ok((configuration.area != 0).then_some(configuration.area))
}

/// Whether a thread that stopped at `ip`, outside of a system call, is surely not inside a restartable sequence: seen at another place, the
/// kernel would forget the sequence and no longer restart it.
pub(super) fn is_outside_sequences(pid: i32, thread: Pid, ip: u64) -> bool {
    let word = |address: u64| {
        let mut bytes = [0; 8];
        match memory::read(pid, address, &mut bytes) {
            Ok(8) => Some(u64::from_le_bytes(bytes)),
            _ => None,
        }
    };
    let Ok(area) = sequence_area(thread) else {
        return false;
    };
    let Some(area) = area else { return true };
    // `struct rseq`: `rseq_cs` is its second word. `struct rseq_cs`: start at its second, length at its third.
    match word(area.wrapping_add(8)) {
        Some(0) => true,
        Some(sequence) => {
            let (start, length) = (
                word(sequence.wrapping_add(8)),
                word(sequence.wrapping_add(16)),
            );
            start
                .zip(length)
                .is_some_and(|(start, length)| ip.wrapping_sub(start) >= length)
        }
        None => false,
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
