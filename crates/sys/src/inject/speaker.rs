//! The thread of a stopped process that makes the calls.

use std::cell::Cell;
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;

use super::thread::{
    Births, Orphan, Stop, born, get_registers, get_signals, interrupt, is_outside_sequences,
    resume, resume_with, set_options, set_registers, set_signals, wait_stop,
};
use super::twin::Twin;
use crate::memory::{self, Area};
use crate::uffd::{IOC_NEW, SYS_USERFAULTFD, USER_MODE_ONLY};

/// Code segment of 64-bit programs.
const USER_CS: u64 = 0x33;
/// Largest vDSO that is searched, bytes.
const VDSO_MAX: usize = 64 << 10;
/// Bytes below the stack pointer that belong to the running function (System V ABI, x86-64, 3.2.2).
const RED_ZONE: u64 = 128;
/// How a userfaultfd is made here.
const FD_FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;

/// A thread that makes system calls for us. Dropping it puts everything back.
#[derive(Debug)]
pub struct Speaker {
    pid: i32,
    thread: Pid,
    registers: libc::user_regs_struct,
    signals: u64,
    /// Address of a `syscall` instruction.
    gate: u64,
    deadline: Instant,
    /// A SIGSTOP arrived, which no mask holds back; it is sent again at the end.
    stopped: Cell<bool>,
}

impl Speaker {
    /// Chooses one of the stopped `threads` of process `pid`. `WouldBlock` when none is at a place where it may be interrupted.
    pub(super) fn choose(pid: i32, threads: &[Pid], deadline: Instant) -> io::Result<Self> {
        let gate = find_gate(pid)?;
        let mut chosen = None;
        for thread in threads {
            let registers = get_registers(*thread)?;
            if registers.cs != USER_CS {
                return Err(io::ErrorKind::Unsupported.into());
            }
            // Inside of a call it is in no restartable sequence (rseq(2)), which must not see another place in between.
            if registers.orig_rax.cast_signed() >= 0 {
                chosen = Some((*thread, registers));
                break;
            }
            if chosen.is_none() && is_outside_sequences(pid, *thread, registers.rip) {
                chosen = Some((*thread, registers));
            }
        }
        let (thread, registers) = chosen.ok_or(io::ErrorKind::WouldBlock)?;
        let signals = get_signals(thread)?;
        set_signals(thread, u64::MAX)?;
        Ok(Self {
            pid,
            thread,
            registers,
            signals,
            gate,
            deadline,
            stopped: Cell::new(false),
        })
    }

    /// Has the process make a child, which never runs: it stands with the memory that the process had at this instant, until the returned
    /// [`Twin`] is dropped. The process hears nothing of it: no signal at its end, and wait(2) without `__WALL` does not see it.
    ///
    /// # Errors
    /// As [`Self::call`]; `EAGAIN` or `ENOMEM` where the process may have no more children or the host no more memory.
    pub fn twin(&self) -> io::Result<Twin> {
        set_options(self.thread, Orphan::GoesOn, Births::AreHeld)?;
        let born = Cell::new(None);
        let made = self.speak(libc::SYS_clone as u64, [0; 6], &born);
        let twin = born.get().map(|child| {
            self.standing(child)
                .map(|speaker| Twin::new(child, self.pid, speaker))
                .inspect_err(|_| {
                    let _ = kill(child, Signal::SIGKILL);
                })
        });
        set_options(self.thread, Orphan::GoesOn, Births::Unseen)?;
        made?;
        twin.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
    }

    /// The speaker of a child that this one just made: it stands before its first instruction.
    fn standing(&self, child: Pid) -> io::Result<Self> {
        while wait_stop(child, self.deadline)? != Stop::Event {
            resume(child, libc::PTRACE_CONT)?;
        }
        set_options(child, Orphan::IsKilled, Births::Unseen)?;
        Ok(Self {
            pid: child.as_raw(),
            thread: child,
            registers: get_registers(child)?,
            signals: u64::MAX,
            gate: self.gate,
            deadline: self.deadline,
            stopped: Cell::new(false),
        })
    }

    /// The process.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Makes a system call and gives its result. One that lasts is interrupted at the bound, and waited for all the same: nobody could
    /// close a descriptor that it makes, and with what it was lent the thread would go astray.
    ///
    /// # Errors
    /// `EINTR` when it was interrupted, those of the call, and of ptrace(2) when the process is killed meanwhile.
    pub fn call(&self, number: u64, args: [u64; 6]) -> io::Result<u64> {
        self.speak(number, args, &Cell::new(None))
    }

    /// As [`Self::call`]; notes a child that is born meanwhile.
    fn speak(&self, number: u64, args: [u64; 6], child: &Cell<Option<Pid>>) -> io::Result<u64> {
        let mut registers = self.registers;
        registers.rip = self.gate;
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
        set_registers(self.thread, &registers)?;
        for _ in ["entry", "exit"] {
            self.run_to_call(child)?;
        }
        let result = match get_registers(self.thread)?.rax.cast_signed() {
            // how the kernel tells itself that a call was interrupted (`ERESTARTSYS` and the others of linux/errno.h)
            -516..=-512 => -i64::from(libc::EINTR),
            result => result,
        };
        if (-4095..0).contains(&result) {
            return Err(io::Error::from_raw_os_error(-result as i32));
        }
        Ok(result.cast_unsigned())
    }

    fn run_to_call(&self, child: &Cell<Option<Pid>>) -> io::Result<()> {
        let mut deadline = self.deadline;
        loop {
            resume(self.thread, libc::PTRACE_SYSCALL)?;
            let stop = match wait_stop(self.thread, deadline) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    deadline = far_away();
                    interrupt(self.thread)?;
                    wait_stop(self.thread, deadline)?
                }
                stop => stop?,
            };
            match stop {
                Stop::Call => return Ok(()),
                Stop::Born => child.set(Some(born(self.thread)?)),
                Stop::Signal(libc::SIGSTOP) => self.stopped.set(true),
                Stop::Gone => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
                Stop::Event | Stop::Group | Stop::Signal(_) => {}
            }
        }
    }

    /// Has the process make a userfaultfd and takes it over; the process keeps nothing. It serves faults of the process itself,
    /// not those of the kernel on its behalf: enough where nobody has to answer (`WP_ASYNC`).
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn take_userfaultfd(&self) -> io::Result<OwnedFd> {
        let flags = FD_FLAGS | USER_MODE_ONLY;
        let theirs = self.call(SYS_USERFAULTFD, [flags, 0, 0, 0, 0, 0])?;
        let ours = take_descriptor(self.pid, theirs);
        self.close(theirs)?;
        ours
    }

    /// As [`Self::take_userfaultfd`], for one that serves faults of the kernel too, such as those of read(2) into a missing page. The process may
    /// lack the right to it: it gets `device`, the host's /dev/userfaultfd (Linux 6.1), for a moment. A few bytes of its memory
    /// are used and put back.
    ///
    /// # Errors
    /// As [`Self::call`]; `EMFILE` when the process may not have four more descriptors.
    pub fn take_full_userfaultfd(&self, device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let scratch = self.scratch()?;
        let mut saved = [0; Letter::SIZE];
        if memory::read(self.pid, scratch, &mut saved)? != saved.len() {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let mut theirs = Vec::new();
        let ours = self.exchange(device, scratch, &mut theirs);
        for fd in theirs {
            self.close(fd)?;
        }
        memory::write(self.pid, scratch, &saved)?;
        ours
    }

    /// The part of the above in between: descriptors that the process has to close again are added to `theirs`.
    fn exchange(
        &self,
        device: BorrowedFd<'_>,
        scratch: u64,
        theirs: &mut Vec<u64>,
    ) -> io::Result<OwnedFd> {
        let kind = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64;
        let unix = libc::AF_UNIX as u64;
        self.call(libc::SYS_socketpair as u64, [unix, kind, 0, scratch, 0, 0])?;
        let [near, far] = self.numbers(scratch)?;
        theirs.extend([near, far]);
        let socket = take_descriptor(self.pid, near)?;
        sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&[0])],
            &[ControlMessage::ScmRights(&[device.as_raw_fd()])],
            MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        memory::write(self.pid, scratch, &Letter::at(scratch))?;
        let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
        self.call(libc::SYS_recvmsg as u64, [far, scratch, flags, 0, 0, 0])?;
        let [device, _] = self.numbers(scratch + Letter::DESCRIPTOR)?;
        theirs.push(device);
        let made = self.call(libc::SYS_ioctl as u64, [device, IOC_NEW, FD_FLAGS, 0, 0, 0])?;
        theirs.push(made);
        take_descriptor(self.pid, made)
    }

    /// Two descriptor numbers side by side in the process's memory.
    fn numbers(&self, address: u64) -> io::Result<[u64; 2]> {
        let mut bytes = [0; 8];
        if memory::read(self.pid, address, &mut bytes)? != bytes.len() {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let [a, b, c, d, e, f, g, h] = bytes;
        Ok([[a, b, c, d], [e, f, g, h]].map(|number| u32::from_le_bytes(number).into()))
    }

    fn close(&self, theirs: u64) -> io::Result<()> {
        self.call(libc::SYS_close as u64, [theirs, 0, 0, 0, 0, 0])?;
        Ok(())
    }

    /// Memory that the process may write to: below its stack, else anywhere, since all of its threads stand.
    fn scratch(&self) -> io::Result<u64> {
        let room = Letter::SIZE as u64;
        let below = (self.registers.rsp.wrapping_sub(RED_ZONE + room)) & !15;
        let usable = |area: &Area| {
            area.private
                && area.readable
                && area.writable
                && area.range.end - area.range.start > room
        };
        let areas = memory::areas(self.pid)?;
        let of_stack = areas.iter().find(|area| {
            usable(area) && area.range.start <= below && below + room <= area.range.end
        });
        match of_stack {
            Some(_) => Ok(below),
            None => areas
                .iter()
                .find(|area| usable(area))
                .map(|area| area.range.start)
                .ok_or_else(|| io::ErrorKind::Unsupported.into()),
        }
    }

    /// Puts the thread back to where it was. It ends in a stop from which the kernel restarts the interrupted call.
    fn put_back(&self) -> io::Result<()> {
        let thread = self.thread;
        set_registers(thread, &self.registers)?;
        set_signals(thread, self.signals)?;
        interrupt(thread)?;
        resume(thread, libc::PTRACE_CONT)?;
        // A signal that became possible with the mask is delivered when the thread goes on: it is no stop of ours.
        loop {
            match wait_stop(thread, far_away())? {
                Stop::Event | Stop::Group | Stop::Gone => break,
                Stop::Signal(number) => resume_with(thread, libc::PTRACE_CONT, number)?,
                Stop::Call | Stop::Born => resume(thread, libc::PTRACE_CONT)?,
            }
        }
        if self.stopped.get() {
            kill(Pid::from_raw(self.pid), Signal::SIGSTOP)?;
        }
        Ok(())
    }
}

/// No bound, or one that nobody lives to see.
fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 60 * 60)
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.put_back();
    }
}

/// A `struct msghdr` with room for one descriptor, as it lies in the process's memory.
struct Letter;

impl Letter {
    const SIZE: usize = 128;
    /// Where the descriptor is after recvmsg(2): behind the `struct cmsghdr`.
    const DESCRIPTOR: u64 = Self::CONTROL + 16;
    const VECTOR: u64 = 56;
    const BYTE: u64 = 72;
    const CONTROL: u64 = 80;

    fn at(at: u64) -> [u8; Self::SIZE] {
        let words = [
            0, // no name
            0,
            at + Self::VECTOR,
            1,
            at + Self::CONTROL,
            24, // CMSG_SPACE(one descriptor)
            0,
            at + Self::BYTE, // struct iovec
            1,
        ];
        let mut bytes = [0; Self::SIZE];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&u64::to_le_bytes(word));
        }
        bytes
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

/// A `syscall` instruction that every process has: in the vDSO (vdso(7)).
fn find_gate(pid: i32) -> io::Result<u64> {
    let missing = || io::Error::from(io::ErrorKind::Unsupported);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps
        .lines()
        .find(|line| line.ends_with("[vdso]"))
        .ok_or_else(missing)?;
    let range = memory::area(line).ok_or_else(missing)?.range;
    let size = usize::try_from(range.end - range.start).map_err(|_| missing())?;
    let mut code = vec![0; size.min(VDSO_MAX)];
    let read = memory::read(pid, range.start, &mut code)?;
    code.truncate(read);
    code.windows(2)
        .position(|pair| pair == [0x0f, 0x05])
        .map(|at| range.start + at as u64)
        .ok_or_else(missing)
}
