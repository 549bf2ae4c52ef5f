//! The small init: `offshoot-init -- PROGRAM [ARGUMENT...]`.
//!
//! As process 1 of a node it runs PROGRAM as its child, passes every signal it gets on to it, reaps whatever orphans end, and exits as
//! PROGRAM did. Compiled on its own and linked statically (crates/runtime/build.rs), so it uses the standard library alone.
//! Here and not there because it calls C functions, and only this crate may hold `unsafe`.

use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

/// sigset_t of Linux's C libraries: 1024 bits.
#[repr(C)]
struct SignalSet([u64; 16]);

unsafe extern "C" {
    fn sigfillset(set: *mut SignalSet) -> i32;
    fn sigdelset(set: *mut SignalSet, signal: i32) -> i32;
    fn sigemptyset(set: *mut SignalSet) -> i32;
    fn sigprocmask(how: i32, set: *const SignalSet, old: *mut SignalSet) -> i32;
    fn sigwait(set: *const SignalSet, signal: *mut i32) -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
}

const SIG_SETMASK: i32 = 2;
const WNOHANG: i32 = 1;
const SIGCHLD: i32 = 17;
/// Signals that say this program itself is at fault: blocking them would hide it.
const FAULTS: [i32; 6] = [4, 5, 6, 7, 8, 11];

fn main() {
    let mut arguments = std::env::args_os()
        .skip(1)
        .skip_while(|argument| argument == "--");
    let Some(program) = arguments.next() else {
        eprintln!("usage: offshoot-init -- PROGRAM [ARGUMENT...]");
        exit(2);
    };
    let mut all = SignalSet([0; 16]);
    let mut none = SignalSet([0; 16]);
    // SAFETY: both sets are valid, writable and at least as large as any Linux sigset_t; the calls only fill them and set this
    // thread's mask, and there is one thread.
    unsafe {
        sigfillset(&raw mut all);
        for fault in FAULTS {
            sigdelset(&raw mut all, fault);
        }
        sigemptyset(&raw mut none);
        sigprocmask(SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
    let mut command = Command::new(&program);
    command.args(arguments);
    // SAFETY: between fork and exec only sigprocmask is called, which is async-signal-safe; the set was made before.
    unsafe {
        command.pre_exec(move || {
            if sigprocmask(SIG_SETMASK, &raw const none, std::ptr::null_mut()) == 0 {
                Ok(())
            } else {
                Err(Error::last_os_error())
            }
        });
    }
    let child = match command.spawn() {
        Ok(child) => child.id() as i32,
        Err(error) => {
            eprintln!(
                "offshoot-init: cannot run {}: {error}",
                program.to_string_lossy()
            );
            exit(if error.kind() == std::io::ErrorKind::NotFound {
                127
            } else {
                126
            });
        }
    };
    loop {
        let mut signal = 0;
        // SAFETY: `all` is a filled set and `signal` a valid place for the answer.
        if unsafe { sigwait(&raw const all, &raw mut signal) } != 0 {
            continue;
        }
        if signal == SIGCHLD {
            reap(child);
        } else {
            // SAFETY: kill(2) takes plain numbers; the child was not reaped, or this process had exited.
            unsafe { kill(child, signal) };
        }
    }
}

/// Reaps everything that ended; exits when that is the program itself.
fn reap(child: i32) {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the answer.
        let pid = unsafe { waitpid(-1, &raw mut status, WNOHANG) };
        if pid <= 0 {
            return;
        }
        if pid == child {
            let signal = status & 0x7f;
            exit(if signal == 0 {
                (status >> 8) & 0xff
            } else {
                128 + signal
            });
        }
    }
}
