//! How long a freeze will last, told before anything stands still: a bound on it is a promise.
//!
//! The figures are those of ordinary virtual machines, on the slow side. What grows is what counts: a node's processes, and the bytes that
//! are copied while it stands still.

use std::time::Duration;

/// Freezing, isolating, snapshotting and thawing, whatever the nodes are.
const ANY: Duration = Duration::from_millis(15);
/// CRIU on a node: its start inside, its mounts and sockets.
const NODE: Duration = Duration::from_millis(20);
/// CRIU on a process.
const PROCESS: Duration = Duration::from_millis(2);
/// Copying, per MiB: most of it is the kernel's first touch of the page that is copied to.
const MIB: Duration = Duration::from_micros(1_500);

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
    fn time(self) -> Duration {
        let mib = u32::try_from(self.bytes >> 20).unwrap_or(u32::MAX);
        NODE + PROCESS * self.processes + MIB.saturating_mul(mib)
    }
}

/// How long the nodes will stand still together, if `processors` work on them.
pub(crate) fn freeze(nodes: impl Iterator<Item = Work> + Clone, processors: u32) -> Duration {
    let longest = nodes.clone().map(Work::time).max().unwrap_or_default();
    let all: Duration = nodes.map(Work::time).sum();
    ANY + longest.max(all / processors.max(1))
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
        assert_eq!(told(&[], 2), ANY);
        assert!(told(&[small], 2) < told(&[small, small, small], 2));
        assert!(told(&[small; 4], 4) < told(&[small; 4], 1));
        assert!(told(&[small, large], 2) > Duration::from_secs(1));
        assert_eq!(told(&[small, large], 2), told(&[small, large], 8));
    }
}
