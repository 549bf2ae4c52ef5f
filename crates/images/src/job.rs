//! Blocking work on a thread of its own, whose progress and cancellation follow an asynchronous caller.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use offshoot_model::ProgressSink;

use crate::ImageError;

/// How often the caller's progress is updated and its wish to stop looked at.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// What a blocking piece of work and its caller share.
#[derive(Debug, Default)]
pub(crate) struct Job {
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    what: Mutex<(&'static str, String)>,
}

impl Job {
    /// Fails once the caller wants no more; called wherever stopping is safe.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.cancelled.load(Ordering::Relaxed) {
            Err(ImageError::Cancelled)
        } else {
            Ok(())
        }
    }

    pub(crate) fn begin(&self, total: u64, unit: &'static str) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.what.lock().unwrap_or_else(PoisonError::into_inner).0 = unit;
    }

    pub(crate) fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, done: u64) {
        self.done.fetch_add(done, Ordering::Relaxed);
    }

    pub(crate) fn note(&self, note: impl Into<String>) {
        self.what.lock().unwrap_or_else(PoisonError::into_inner).1 = note.into();
    }

    fn report(&self, sink: &dyn ProgressSink) {
        let (unit, note) = self
            .what
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if !unit.is_empty() {
            sink.report(
                self.done.load(Ordering::Relaxed),
                self.total.load(Ordering::Relaxed),
                unit,
                &note,
            );
        }
    }
}

/// Stops the work when the caller goes away in the middle.
struct StopOnDrop(Arc<Job>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` and waits for it, also after a cancel: it cleans up behind itself.
pub(crate) async fn run<T: Send + 'static>(
    sink: &dyn ProgressSink,
    work: impl FnOnce(&Job) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let job = Arc::new(Job::default());
    let _stop = StopOnDrop(job.clone());
    let theirs = job.clone();
    let mut running = tokio::task::spawn_blocking(move || work(&theirs));
    loop {
        match tokio::time::timeout(TICK, &mut running).await {
            Ok(Ok(result)) => {
                job.report(sink);
                return result;
            }
            Ok(Err(e)) => return Err(ImageError::Internal(e.to_string())),
            Err(_) => {
                job.report(sink);
                if sink.cancelled() {
                    job.cancelled.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Waits for something asynchronous, unless the caller wants to stop.
pub(crate) async fn until_cancelled<T>(
    sink: &dyn ProgressSink,
    work: impl Future<Output = T>,
) -> Result<T, ImageError> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(TICK, &mut work).await {
            Ok(result) => return Ok(result),
            Err(_) if sink.cancelled() => return Err(ImageError::Cancelled),
            Err(_) => {}
        }
    }
}
