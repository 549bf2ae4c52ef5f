//! Work that ends early: when its time is over, or when it is taken back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cut::CutRequest;
use crate::error::CutError;
use crate::swrk::Until;

/// How often somebody looks whether the cut is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// Does `work` while somebody looks whether the cut is still wanted, and raises `stop` when not.
pub(crate) fn watched(request: &CutRequest<'_>, stop: &AtomicBool, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if (request.cancelled)() {
                    stop.store(true, Ordering::Relaxed);
                }
                std::thread::park_timeout(LOOK);
            }
        });
        // Also when `work` panics, or the scope would wait for the watcher for ever.
        struct Done<'a>(&'a AtomicBool, std::thread::Thread);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
                self.1.unpark();
            }
        }
        let _done = Done(&done, watcher.thread().clone());
        work();
    });
}

/// Fails when the freeze has lasted too long, or nobody wants the cut any more.
pub(crate) fn in_time(
    request: &CutRequest<'_>,
    until: Until<'_>,
    doing: &'static str,
) -> Result<(), CutError> {
    if (request.cancelled)() {
        return Err(CutError::Cancelled);
    }
    if Instant::now() >= until.deadline {
        return Err(CutError::TimedOut {
            bound: request.max_freeze,
            doing,
        });
    }
    Ok(())
}
