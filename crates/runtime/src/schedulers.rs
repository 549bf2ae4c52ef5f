//! Programs that start other programs at set times, known by their names: what an environment whose jobs are held must not have running.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use offshoot_sys::process;

/// File names of schedulers' programs.
pub const SCHEDULERS: [&str; 13] = [
    "anacron",
    "atd",
    "bcron-sched",
    "chadburn",
    "cron",
    "crond",
    "dcron",
    "fcron",
    "go-crond",
    "jobberrunner",
    "mcron",
    "ofelia",
    "supercronic",
];

/// Programs that are many programs, each called by its name or as first argument.
pub const MANY: [&str; 2] = ["busybox", "toybox"];

/// What a look at a program's file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A scheduler.
    Scheduler(&'static str),
    /// It depends on how it is called.
    Many,
    /// Something else.
    Other,
}

/// Which kind of program the file at `path` is.
#[must_use]
pub fn kind(path: &Path) -> Kind {
    // What the kernel appends to the name of a program that was replaced while it runs (proc_pid_exe(5)).
    let name = path.file_name().map_or(b"".as_slice(), OsStrExt::as_bytes);
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    match (known(name), MANY.iter().any(|many| many.as_bytes() == name)) {
        (Some(name), _) => Kind::Scheduler(name),
        (None, true) => Kind::Many,
        (None, false) => Kind::Other,
    }
}

/// The scheduler that process `pid` runs, if it does.
#[must_use]
pub fn of_process(pid: i32) -> Option<&'static str> {
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    match kind(&path) {
        Kind::Scheduler(name) => Some(name),
        Kind::Many => called(&process::arguments(pid).ok()?),
        Kind::Other => None,
    }
}

/// The scheduler that one of many programs was called as.
fn called(arguments: &[Vec<u8>]) -> Option<&'static str> {
    let mut names = arguments.iter().map(|argument| {
        let name = Path::new(OsStr::from_bytes(argument)).file_name();
        name.map_or(b"".as_slice(), OsStrExt::as_bytes)
    });
    let first = names.next()?;
    match kind(Path::new(OsStr::from_bytes(first))) {
        Kind::Many => known(names.next()?),
        _ => known(first),
    }
}

fn known(name: &[u8]) -> Option<&'static str> {
    SCHEDULERS
        .into_iter()
        .find(|known| known.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_are_known_by_the_name_of_their_file() {
        assert_eq!(kind(Path::new("/usr/sbin/cron")), Kind::Scheduler("cron"));
        assert_eq!(
            kind(Path::new("/usr/sbin/crond (deleted)")),
            Kind::Scheduler("crond")
        );
        assert_eq!(kind(Path::new("/bin/busybox")), Kind::Many);
        for other in [
            "/usr/bin/crontab",
            "/usr/sbin/cron/",
            "/srv/cron.sh",
            "",
            "/",
        ] {
            let want = match other {
                "/usr/sbin/cron/" => Kind::Scheduler("cron"),
                _ => Kind::Other,
            };
            assert_eq!(kind(Path::new(other)), want, "{other:?}");
        }
    }

    #[test]
    fn one_of_many_programs_is_known_by_how_it_was_called() {
        let called = |line: &str| {
            let words: Vec<Vec<u8>> = line
                .split(' ')
                .map(|word| word.as_bytes().to_vec())
                .collect();
            called(&words)
        };
        assert_eq!(called("crond -f"), Some("crond"));
        assert_eq!(called("/usr/sbin/crond"), Some("crond"));
        assert_eq!(called("/bin/busybox crond -f"), Some("crond"));
        assert_eq!(called("busybox sh crond"), None);
        assert_eq!(called("sh -c crond"), None);
        assert_eq!(called("busybox"), None);
        assert_eq!(super::called(&[]), None);
    }
}
