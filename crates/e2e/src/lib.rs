//! Whole daemons for tests: each in a network namespace and directories of its own, driven by the command line as
//! a person would, and looked over afterwards for anything left on the host.

pub mod daemon;
pub mod http;
pub mod image;
pub mod residue;

use std::time::{Duration, Instant};

pub use daemon::TestDaemon;

/// Waits for `condition`, at most `max`; panics with `what` when it does not come.
///
/// # Panics
/// When the time is over.
#[track_caller]
pub fn wait_for<T>(what: &str, max: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + max;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "did not come in {} s: {what}",
            max.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
