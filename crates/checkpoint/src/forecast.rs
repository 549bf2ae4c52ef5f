//! How long a freeze will last, told before anything stands still: a bound on it is a promise.
//!
//! What counts is a node's processes, and the bytes that are copied while it stands still. The figures are those of an idle machine of its
//! own; how much slower this host is, the freezes that it has seen tell ([`learn`]).

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Freezing, isolating, snapshotting and thawing, whatever the nodes are.
const ANY: Duration = Duration::from_millis(15);
/// CRIU on a node: its start inside, its mounts and sockets.
const NODE: Duration = Duration::from_millis(20);
/// CRIU on a process.
const PROCESS: Duration = Duration::from_millis(2);
/// Copying, per MiB: most of it is the kernel's first touch of the page that is copied to.
const MIB: Duration = Duration::from_micros(1_500);

/// What fork(2) takes for its page tables, per MiB that the process has; it stands meanwhile.
const FORK_MIB: Duration = Duration::from_micros(40);
/// Of fewer bytes too little is learned.
const FORK_LEARNS: u64 = 256 << 20;

/// How long forks of this host last, as [`PACE`].
static FORK_PACE: AtomicU32 = AtomicU32::new(1_000);

/// How long freezes of this host last, in thousandths of those figures. It begins on the slow side.
static PACE: AtomicU32 = AtomicU32::new(1_500);
/// No freeze says more than that about the next.
const PACES: std::ops::RangeInclusive<u32> = 600..=8_000;

/// What has to be done in a node while it stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Work {
    /// Processes that CRIU dumps.
    pub(crate) processes: u32,
    /// Bytes that are copied.
    pub(crate) bytes: u64,
}

impl Work {
    /// How long one processor has to do with it.
    pub(crate) fn time(self) -> Duration {
        let mib = u32::try_from(self.bytes >> 20).unwrap_or(u32::MAX);
        NODE + PROCESS * self.processes + MIB.saturating_mul(mib)
    }
}

/// How long the nodes will stand still together, if `processors` work on them.
pub(crate) fn freeze(nodes: impl Iterator<Item = Work> + Clone, processors: u32) -> Duration {
    let longest = nodes.clone().map(Work::time).max().unwrap_or_default();
    let all: Duration = nodes.map(Work::time).sum();
    let here = ANY + longest.max(all / processors.max(1));
    here.saturating_mul(PACE.load(Ordering::Relaxed)) / 1_000
}

/// A freeze that was expected to last `predicted` lasted `seen`.
pub(crate) fn learn(predicted: Duration, seen: Duration) {
    let pace = PACE.load(Ordering::Relaxed);
    PACE.store(next_pace(pace, predicted, seen), Ordering::Relaxed);
}

/// How long a process with so many bytes stands when a twin of it is made.
pub(crate) fn fork(bytes: u64) -> Duration {
    let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    let here = FORK_MIB.saturating_mul(mib);
    here.saturating_mul(FORK_PACE.load(Ordering::Relaxed)) / 1_000
}

/// Making a twin of a process with so many bytes took `seen`.
pub(crate) fn learn_fork(bytes: u64, seen: Duration) {
    if bytes >= FORK_LEARNS {
        let pace = FORK_PACE.load(Ordering::Relaxed);
        FORK_PACE.store(next_pace(pace, fork(bytes), seen), Ordering::Relaxed);
    }
}

/// A freeze that was expected to last `predicted` was given up after `seen`: the next such is expected to last that long at least.
pub(crate) fn learn_too_long(predicted: Duration, seen: Duration) {
    let pace = PACE.load(Ordering::Relaxed);
    PACE.store(
        pace_after_too_long(pace, predicted, seen),
        Ordering::Relaxed,
    );
}

/// All of the way, and never back: nobody knows how long it would have lasted.
fn pace_after_too_long(pace: u32, predicted: Duration, seen: Duration) -> u32 {
    let least = f64::from(pace) * seen.as_secs_f64() / predicted.as_secs_f64().max(0.001);
    (least.ceil() as u32).clamp(pace, *PACES.end())
}

/// A third of the way to what would have been right: one freeze may have been disturbed.
fn next_pace(pace: u32, predicted: Duration, seen: Duration) -> u32 {
    let right = f64::from(pace) * seen.as_secs_f64() / predicted.as_secs_f64().max(0.001);
    let next = f64::from(pace) + (right - f64::from(pace)) / 3.0;
    (next as u32).clamp(*PACES.start(), *PACES.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_work_takes_longer_and_more_processors_help() {
        let small = Work {
            processes: 3,
            bytes: 1 << 20,
        };
        let large = Work {
            processes: 1,
            bytes: 1 << 30,
        };
        let told = |nodes: &[Work], processors| freeze(nodes.iter().copied(), processors);
        assert!(told(&[], 2) >= ANY);
        assert!(told(&[small], 2) < told(&[small, small, small], 2));
        assert!(told(&[small; 4], 4) < told(&[small; 4], 1));
        assert!(told(&[small, large], 2) > Duration::from_secs(1));
        assert_eq!(told(&[small, large], 2), told(&[small, large], 8));
    }

    #[test]
    fn larger_processes_stand_longer_when_they_fork() {
        assert!(fork(1 << 30) > 100 * fork(1 << 20));
        assert!(fork(u64::MAX) > Duration::from_secs(60));
        // this test's own process: nothing else forks
        let before = fork(1 << 30);
        learn_fork(1 << 20, Duration::from_secs(9));
        assert_eq!(fork(1 << 30), before);
        learn_fork(1 << 30, Duration::from_secs(9));
        assert!(fork(1 << 30) > 2 * before);
    }

    #[test]
    fn a_freeze_that_was_given_up_is_not_tried_again_in_vain() {
        let (predicted, bound) = (Duration::from_millis(150), Duration::from_millis(200));
        let pace = pace_after_too_long(1_000, predicted, bound);
        assert!(predicted * pace / 1_000 >= bound, "{pace}");
        assert_eq!(pace_after_too_long(1_000, bound, predicted), 1_000);
        assert_eq!(
            pace_after_too_long(1_000, predicted, Duration::from_secs(999)),
            *PACES.end()
        );
    }

    #[test]
    fn a_host_is_as_fast_as_it_was() {
        let (short, long) = (Duration::from_millis(100), Duration::from_millis(300));
        let mut pace = 1_000;
        for _ in 0..30 {
            // what it says for a freeze that lasts 300 ms here, and 100 ms at pace 1000
            pace = next_pace(pace, short * pace / 1_000, long);
        }
        assert!((2_950..=3_050).contains(&pace), "{pace}");
        assert_eq!(
            next_pace(pace, long, Duration::from_secs(999)),
            *PACES.end()
        );
        assert_eq!(next_pace(600, long, Duration::ZERO), *PACES.start());
    }
}
