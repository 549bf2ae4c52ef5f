//! Processes that are held before they execute their next instruction.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::speaker::Speaker;
use super::thread::{Orphan, Stop, resume, resume_with, seize, sequence_area, wait_stop};
use crate::threads::threads;

/// Processes that stop as soon as they run: a frozen one (cgroups(7)) when it is thawed, and before any instruction of its program.
///
/// They are killed when this is dropped and when the calling process ends, however it ends: only [`Caught::release`] lets them go.
#[derive(Debug)]
pub struct Caught {
    processes: BTreeMap<i32, Vec<Pid>>,
}

impl Caught {
    /// Asks all threads of `pids` to stop. They must not be able to start others meanwhile: frozen processes. Those that ended are left out.
    ///
    /// # Errors
    /// `EPERM` when somebody else traces one; when /proc cannot be read.
    pub fn catch(pids: impl IntoIterator<Item = i32>) -> io::Result<Self> {
        let mut caught = Self {
            processes: BTreeMap::new(),
        };
        for pid in pids {
            for thread in threads(pid)?.into_iter().map(Pid::from_raw) {
                if seize(thread, Orphan::IsKilled)? {
                    caught.processes.entry(pid).or_default().push(thread);
                }
            }
        }
        Ok(caught)
    }

    /// Waits until all stand, after they were thawed. A process that ends meanwhile is no error.
    ///
    /// # Errors
    /// `TimedOut` after `max`.
    pub fn wait(&mut self, max: Duration) -> io::Result<()> {
        let deadline = Instant::now() + max;
        for threads in self.processes.values_mut() {
            let mut left = Vec::new();
            for thread in threads.drain(..) {
                if stand(thread, deadline)? {
                    left.push(thread);
                }
            }
            *threads = left;
        }
        self.processes.retain(|_, threads| !threads.is_empty());
        Ok(())
    }

    /// The processes that are held.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.processes.keys().copied()
    }

    /// A thread of process `pid` that makes system calls.
    ///
    /// A process that CRIU brought back is in no call. It may be anywhere in its program but in a restartable sequence: CRIU leaves those by
    /// their abort handler when it dumps (`fixup_thread_rseq`). Still it is looked at, and `WouldBlock` if every thread is in one.
    ///
    /// # Errors
    /// As said, `Unsupported` for programs that are not 64-bit x86, `ESRCH` when it ended.
    pub fn speaker(&self, pid: i32, max: Duration) -> io::Result<Speaker> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Speaker::choose(pid, self.threads(pid), Instant::now() + max)
    }

    /// Where the kernel keeps what threads of process `pid` shall know of processors (rseq(2)): 32 bytes each.
    ///
    /// # Errors
    /// `EIO` on kernels before 5.13, which do not say.
    pub fn sequence_areas(&self, pid: i32) -> io::Result<Vec<u64>> {
        let areas = self
            .threads(pid)
            .iter()
            .map(|thread| sequence_area(*thread));
        areas.filter_map(Result::transpose).collect()
    }

    fn threads(&self, pid: i32) -> &[Pid] {
        self.processes.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// Lets all go on.
    pub fn release(mut self) {
        for thread in std::mem::take(&mut self.processes).into_values().flatten() {
            let _ = resume(thread, libc::PTRACE_DETACH);
        }
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        for pid in self.processes.keys() {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
}

/// True when it stands still, false when it ended.
fn stand(thread: Pid, deadline: Instant) -> io::Result<bool> {
    loop {
        match wait_stop(thread, deadline)? {
            // A process that was stopped by a signal stops again when it is let go.
            Stop::Event | Stop::Group => return Ok(true),
            Stop::Gone => return Ok(false),
            Stop::Signal(number) => resume_with(thread, libc::PTRACE_CONT, number)?,
            Stop::Call | Stop::Born => resume(thread, libc::PTRACE_CONT)?,
        }
    }
}
