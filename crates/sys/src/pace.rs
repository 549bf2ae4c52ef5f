//! How much of the processors this process asks for while others want them too.
//!
//! The kernel shares processors out among sessions, where it is not told otherwise (sched(7), "The autogroup feature"), and niceness counts
//! within one. Under systemd and in containers it is the control group that counts: there, nothing here has an effect.

use std::fs;
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What work this session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Nobody waits for it who would not rather wait for others.
    Background,
    /// Others stand still until it is done. No more than usual: these others may have to run for that.
    Usual,
}

/// How many are at it: in the background, as usual.
static AT_WORK: Mutex<[u32; 2]> = Mutex::new([0; 2]);

/// Keeps a pace until it is dropped. Of several at a time the quickest counts.
#[derive(Debug)]
#[must_use]
pub struct Keeping(Pace);

impl Pace {
    /// From now on.
    pub fn keep(self) -> Keeping {
        let mut at_work = at_work();
        if let Some(count) = at_work.get_mut(self as usize) {
            *count += 1;
        }
        tell(&at_work);
        Keeping(self)
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        let mut at_work = at_work();
        if let Some(count) = at_work.get_mut(self.0 as usize) {
            *count = count.saturating_sub(1);
        }
        tell(&at_work);
    }
}

fn at_work() -> MutexGuard<'static, [u32; 2]> {
    AT_WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Niceness of the session: a tenth of the usual share (`sched_prio_to_weight` of the kernel), or the usual one.
fn nice(at_work: &[u32; 2]) -> i32 {
    match at_work {
        [1..=u32::MAX, 0] => 10,
        _ => 0,
    }
}

fn tell(at_work: &[u32; 2]) {
    // Not every kernel has it.
    let _ = fs::write("/proc/self/autogroup", nice(at_work).to_string());
}

/// Lets the calling thread have processor time before others of its session, until it is dropped there (setpriority(2), which is about one
/// thread on Linux). Threads that it starts meanwhile inherit it.
#[derive(Debug)]
#[must_use]
pub struct First(PhantomData<*const ()>);

/// The niceness of such a thread.
const FIRST: i32 = -15;

impl First {
    /// From now on, as far as that is granted.
    pub fn begin() -> Self {
        let _ = rustix::process::setpriority_process(None, FIRST);
        Self(PhantomData)
    }
}

impl Drop for First {
    fn drop(&mut self) {
        in_turn();
    }
}

/// Takes back what the calling thread inherited of a [`First`].
pub fn in_turn() {
    let _ = rustix::process::setpriority_process(None, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_counts() {
        for (at_work, expected) in [([0, 0], 0), ([2, 0], 10), ([2, 1], 0), ([0, 1], 0)] {
            assert_eq!(nice(&at_work), expected, "{at_work:?}");
        }
    }
}
