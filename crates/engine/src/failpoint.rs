//! Places where a test may kill the daemon: each step of each operation, and the middle of a cut.
//!
//! Debug builds only. `OFFSHOOT_FAILPOINT=clone.cut.after` kills the process with SIGKILL when it comes by;
//! `...=clone.cut.after:fail` makes the step fail instead (where the place can fail).

/// Comes by the place `name`. Returns `true` when the test wants a failure here.
#[must_use]
pub fn reach(name: &str) -> bool {
    if !cfg!(debug_assertions) {
        return false;
    }
    let Ok(wanted) = std::env::var("OFFSHOOT_FAILPOINT") else {
        return false;
    };
    if wanted == name {
        // SIGKILL, not exit: nothing may be tidied up on the way out.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
    wanted.strip_suffix(":fail") == Some(name)
}
