//! CRIU's log: which of its lines say what went wrong.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// At most this much of a log's end is looked at.
const LOOK_AT: u64 = 256 * 1024;
/// At most this many lines are kept: the first ones (causes come first, consequences follow) and the last.
const KEEP: usize = 6;

/// Complaints that CRIU makes and then goes on, and lines that only repeat that it failed.
const NOT_DECISIVE: &[&str] = &[
    "RLIMIT_NOFILE",
    // Every first run on a kernel looks whether there are such devices.
    "Unable to create tun",
    "Dumping FAILED",
    "Restoring FAILED",
];

/// The decisive `Error (` lines of the log at `path`, first things first; empty when there are none or no log.
#[must_use]
pub fn errors_in(path: &Path) -> Vec<String> {
    let Ok(mut file) = File::open(path) else {
        return Vec::new();
    };
    let length = file.metadata().map_or(0, |m| m.len());
    if file
        .seek(SeekFrom::Start(length.saturating_sub(LOOK_AT)))
        .is_err()
    {
        return Vec::new();
    }
    let mut text = Vec::new();
    if file.take(LOOK_AT).read_to_end(&mut text).is_err() {
        return Vec::new();
    }
    decisive(&String::from_utf8_lossy(&text))
}

/// The decisive lines of a log's text, without time stamps and source positions.
fn decisive(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let Some((_, rest)) = line.split_once("Error (") else {
            continue;
        };
        if NOT_DECISIVE.iter().any(|skip| rest.contains(skip)) {
            continue;
        }
        // `criu/files-reg.c:1790): Can't lookup mount` -> `Can't lookup mount`
        let message = rest
            .split_once("): ")
            .map_or(rest, |(_, message)| message)
            .trim();
        if !message.is_empty() && lines.last().is_none_or(|last| last != message) {
            lines.push(message.to_owned());
        }
    }
    if lines.len() > KEEP {
        lines.drain(KEEP - 1..lines.len() - 1);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_first_without_noise() {
        let log = "(00.048026) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (00.049348) Error (criu/tun.c:85): tun: Unable to create tun: No such file or directory\n\
                   (00.05) Warn  (compel/arch/x86/src/lib/infect.c:419): Will restore 1 with interrupted system call\n\
                   (00.055061) Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=10 path=/dev/null\n\
                   (00.055077) Error (criu/cr-dump.c:1545): Dump files (pid: 21843) failed with -1\n\
                   (00.055531) Error (criu/cr-dump.c:1975): Dumping FAILED.\n";
        assert_eq!(
            decisive(log),
            [
                "Can't lookup mount=24 for fd=10 path=/dev/null",
                "Dump files (pid: 21843) failed with -1"
            ]
        );
    }

    #[test]
    fn long_logs_keep_the_first_and_the_last() {
        let log: String = (0..100)
            .map(|i| format!("(1) Error (a.c:1): e{i}\n"))
            .collect();
        assert_eq!(decisive(&log), ["e0", "e1", "e2", "e3", "e4", "e99"]);
    }
}
