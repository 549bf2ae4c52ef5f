//! Whole daemons for tests: each in a network namespace and directories of its own, driven by the command line as
//! a person would, and looked over afterwards for anything left on the host.

pub mod checker;
pub mod daemon;
pub mod http;
pub mod image;
mod packages;
pub mod registry;
pub mod residue;
pub mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use daemon::{EDGE, TestDaemon};

/// How many times longer waits may take here, from `OFFSHOOT_TEST_STRETCH`: for emulated machines. 1 when it does not say.
#[must_use]
pub fn stretch() -> u32 {
    let told = std::env::var("OFFSHOOT_TEST_STRETCH");
    let told = told.ok().and_then(|text| text.parse().ok());
    told.unwrap_or(1).clamp(1, 100)
}

/// A program of the workspace, built with the tests.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().expect("a test is a program");
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace` first",
        path.display()
    );
    path
}

/// Waits for `condition`, at most `max` (times [`stretch`]); panics with `what` when it does not come.
///
/// # Panics
/// When the time is over.
#[track_caller]
pub fn wait_for<T>(what: &str, max: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let max = max * stretch();
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
