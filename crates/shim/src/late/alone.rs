//! Whether it is certain that a process does one thing after another to its memory.
//!
//! A thread that changed memory waits until its event is read. If all others that share this memory wait for something else meanwhile, none
//! of them has a change under way: whatever is read later happened later.

use std::io;

use offshoot_runtime::cgroup::NodeCgroup;
use offshoot_sys::threads::{Doing, doing, share_memory, threads};

/// Bound on the threads that are looked at; with more it is not known.
const THREADS_MAX: usize = 64;

/// Whether one thread, which stands in a call that changes memory, is the only one that may be changing the memory of `pid`. Of a process
/// whose number is not known, all of the node's are looked at. False also when it cannot be found out.
///
/// Who shares memory with another process is missed only if that one was replaced by execve(2) meanwhile, without vfork(2).
pub(super) fn is_alone(pid: Option<i32>, node: &NodeCgroup) -> bool {
    only_one_changes(pid, node).unwrap_or(false)
}

fn only_one_changes(pid: Option<i32>, node: &NodeCgroup) -> io::Result<bool> {
    let mut changing = 0;
    let mut left = THREADS_MAX;
    for process in node.processes() {
        if let Some(pid) = pid
            && !share_memory(pid, process)?
        {
            continue;
        }
        for thread in threads(process)? {
            left = left.checked_sub(1).ok_or(io::ErrorKind::QuotaExceeded)?;
            match doing(process, thread)? {
                Doing::Nothing => {}
                Doing::Changing => changing += 1,
                Doing::Unknown => return Ok(false),
            }
        }
    }
    Ok(changing == 1)
}
