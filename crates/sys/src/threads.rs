//! What threads are just doing, and whose memory is whose (proc_pid_syscall(5), kcmp(2)).

use std::fs;
use std::io;

use nix::libc;

/// What a thread is just doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It ended, or waits in a system call that never adds, moves or gives up memory areas.
    Nothing,
    /// It stands in a system call that may.
    Changing,
    /// It runs, waits for a page, or does something else.
    Unknown,
}

/// Calls that wait for something and leave memory areas alone.
const WAITING: [libc::c_long; 33] = [
    libc::SYS_read,
    libc::SYS_poll,
    libc::SYS_readv,
    libc::SYS_select,
    libc::SYS_pause,
    libc::SYS_nanosleep,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_wait4,
    libc::SYS_semop,
    libc::SYS_msgrcv,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_futex,
    libc::SYS_semtimedop,
    libc::SYS_restart_syscall,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_wait,
    libc::SYS_waitid,
    libc::SYS_mq_timedreceive,
    libc::SYS_pselect6,
    libc::SYS_ppoll,
    libc::SYS_epoll_pwait,
    libc::SYS_accept4,
    libc::SYS_recvmmsg,
    libc::SYS_epoll_pwait2,
    libc::SYS_futex_waitv,
];

/// Calls that wait for the reader of a userfaultfd after they changed memory areas.
const CHANGING: [libc::c_long; 11] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_shmdt,
    libc::SYS_clone,
    libc::SYS_fork,
    libc::SYS_clone3,
    libc::SYS_shmat,
    libc::SYS_process_madvise,
];

/// What thread `tid` of process `pid` is just doing. A thread that runs, or is about to, is [`Doing::Unknown`].
///
/// # Errors
/// `EPERM` without the right to trace the process; `ENOSYS` or others when the kernel does not tell (`CONFIG_HAVE_ARCH_TRACEHOOK`).
pub fn doing(pid: i32, tid: i32) -> io::Result<Doing> {
    match fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")) {
        Ok(text) => Ok(understand(&text)),
        Err(e) if is_gone(&e) => Ok(Doing::Nothing),
        Err(e) => Err(e),
    }
}

/// Numbers of a process's threads; none when it is gone.
///
/// # Errors
/// When /proc cannot be read.
pub fn threads(pid: i32) -> io::Result<Vec<i32>> {
    let entries = match fs::read_dir(format!("/proc/{pid}/task")) {
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        other => other?,
    };
    let numbers = entries.map(|entry| Ok(entry?.file_name().to_str().and_then(|n| n.parse().ok())));
    match numbers.filter_map(io::Result::transpose).collect() {
        Err(e) if is_gone(&e) => Ok(Vec::new()),
        numbers => numbers,
    }
}

/// Whether two processes have one memory, as after vfork(2) (kcmp(2), `KCMP_VM`). All that ended and were not waited for have the same.
///
/// # Errors
/// `ESRCH` when one of them is gone, `ENOSYS` when the kernel lacks kcmp(2), `EPERM` without the right to trace both.
pub fn share_memory(one: i32, other: i32) -> io::Result<bool> {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: kcmp(2) takes five numbers and touches no memory of the caller.
    match unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) } {
        0 => Ok(true),
        more if more > 0 => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn understand(text: &str) -> Doing {
    let mut words = text.split_ascii_whitespace();
    match words.next().and_then(|word| word.parse().ok()) {
        // no stack: it ended
        Some(-1) if words.all(|word| word == "0x0") => Doing::Nothing,
        Some(number) if WAITING.contains(&number) => Doing::Nothing,
        Some(number) if CHANGING.contains(&number) => Doing::Changing,
        _ => Doing::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn what_the_kernel_prints_is_understood() {
        for (text, doing) in [
            ("running\n", Doing::Unknown),
            ("-1 0x0 0x0\n", Doing::Nothing),
            ("-1 0x7ffe 0x55d0\n", Doing::Unknown),
            ("230 0x1 0x1 0x7f 0x0 0x0 0x0 0x7f 0x7f\n", Doing::Nothing),
            (
                "11 0x7f 0x1000 0x0 0x0 0x0 0x0 0x7f 0x7f\n",
                Doing::Changing,
            ),
            ("1 0x7f 0x1000 0x0 0x0 0x0 0x0 0x7f 0x7f\n", Doing::Unknown),
            ("", Doing::Unknown),
        ] {
            assert_eq!(understand(text), doing, "{text}");
        }
    }

    #[test]
    fn own_threads_are_seen_as_they_are() {
        let me = std::process::id().cast_signed();
        let (say, hear) = mpsc::channel::<()>();
        let waiter = std::thread::spawn(move || hear.recv());
        let spins = Arc::new(AtomicBool::new(true));
        let spinner = std::thread::spawn({
            let spins = Arc::clone(&spins);
            move || while spins.load(Ordering::Relaxed) {}
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let all = threads(me).unwrap();
            assert!(all.contains(&me) && all.len() >= 3, "{all:?}");
            let doing: Vec<Doing> = all.iter().map(|tid| doing(me, *tid).unwrap()).collect();
            if doing.contains(&Doing::Nothing) && doing.contains(&Doing::Unknown) {
                break;
            }
            assert!(Instant::now() < deadline, "{doing:?}");
        }
        spins.store(false, Ordering::Relaxed);
        spinner.join().unwrap();
        say.send(()).unwrap();
        waiter.join().unwrap().unwrap();
        assert_eq!(threads(i32::MAX).unwrap(), []);
        let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
        let shares = share_memory(me, other.id().cast_signed());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(share_memory(me, me).unwrap());
        assert!(!shares.unwrap());
        assert!(share_memory(me, i32::MAX).is_err());
    }
}
