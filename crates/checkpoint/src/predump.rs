//! Memory copied ahead by CRIU itself, where the kernel marks the pages that were written (soft-dirty) and can no more: its pre-dump.
//!
//! ```text
//! runs     CRIU seizes the processes, notes which pages were written and takes the marks away, lets the processes go, and copies those
//!          pages to `pre-1`; then to `pre-2` what was written meanwhile, and so on, until the rest is small or does not get smaller
//! frozen   the dump writes what has a mark; for the rest it says that it is in its parent, which the link `parent` leads to
//! ```
//!
//! A restore follows these links, so all folders stay until then.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::dump::{LOG, LOG_LEVEL, SEIZE_TIME};
use crate::error::CriuError;
use crate::images;
use crate::memory;
use crate::rpc::{DumpStats, Options, PreDumpMode};
use crate::swrk::{Swrk, Until};

/// A round that copied no more bytes than this is the last.
const FEW: u64 = 4 << 20;
/// At most so many rounds at once: in each the node stands still for a moment.
const ROUNDS: usize = 5;
/// No further round is begun after this time.
const ROUNDS_TIME: Duration = Duration::from_secs(20);
/// A round that copied more than this share of the one before (percent) shows that there is nothing to win.
const SHRINKS: u64 = 80;
/// How long one round may take.
const ROUND_MAX: Duration = Duration::from_secs(120);
/// From a look at what will be copied until the node stands still.
const UNTIL_FROZEN: Duration = Duration::from_millis(20);

/// The rounds of one node so far.
#[derive(Debug, Default)]
pub(crate) struct PreDump {
    rounds: Vec<Round>,
}

#[derive(Debug, Clone, Copy)]
struct Round {
    begun: Instant,
    /// Bytes that were written to its folder.
    bytes: u64,
    /// How long the node's processes stood still.
    paused: Duration,
}

impl PreDump {
    /// Rounds until the rest is small or does not get smaller.
    pub(crate) fn copy_ahead(
        &mut self,
        swrk: &mut Swrk,
        images: &Path,
        pid: i32,
        until: Until<'_>,
    ) -> Result<(), CriuError> {
        let begun = Instant::now();
        let mut copied = Vec::new();
        while goes_on(&copied, begun.elapsed()) {
            copied.push(self.round(swrk, images, pid, until)?);
        }
        Ok(())
    }

    /// One round; the bytes that were copied.
    pub(crate) fn round(
        &mut self,
        swrk: &mut Swrk,
        images: &Path,
        pid: i32,
        until: Until<'_>,
    ) -> Result<u64, CriuError> {
        let broken = |source| CriuError::Image {
            path: images.to_owned(),
            what: "cannot hold what is copied ahead".to_owned(),
            source: Some(source),
        };
        let begun = Instant::now();
        let (into, work) = self.next(images).map_err(broken)?;
        let options = self.options(&into, &work, pid);
        let deadline = begun + ROUND_MAX;
        swrk.pre_dump(options, Until { deadline, ..until })?;
        let round = Round::of(begun, &images::stats(images)?);
        tracing::debug!(pid, ?round, "copied ahead by CRIU");
        self.rounds.push(round);
        Ok(round.bytes)
    }

    /// The folder of the next round, and the one of the node.
    fn next(&self, images: &Path) -> io::Result<(File, File)> {
        let into = images.join(folder(self.rounds.len() + 1));
        // The restore opens it as the container's root, who gets no further than the folder above by its path.
        fs::DirBuilder::new().mode(0o755).create(&into)?;
        Ok((File::open(into)?, File::open(images)?))
    }

    fn options(&self, into: &File, work: &File, pid: i32) -> Options {
        Options {
            images_dir_fd: into.as_raw_fd(),
            work_dir_fd: Some(work.as_raw_fd()),
            pid: Some(pid),
            leave_running: Some(true),
            log_level: Some(LOG_LEVEL),
            log_file: Some(LOG.to_owned()),
            timeout: Some(SEIZE_TIME),
            track_mem: Some(true),
            parent_img: self.last().map(|last| format!("../{last}")),
            // The other mode keeps all pages in memory twice, until they are written.
            pre_dump_mode: Some(PreDumpMode::VmRead as i32),
            // No `freeze_cgroup`: CRIU looks only every 100 ms whether the cgroup stands still.
            ..Options::default()
        }
    }

    /// Lets a dump build on what was copied.
    pub(crate) fn build_on(&self, options: &mut Options) {
        options.track_mem = Some(true);
        options.parent_img = self.last();
    }

    /// The folder of the last round, by its name in the node's.
    fn last(&self) -> Option<String> {
        (!self.rounds.is_empty()).then(|| folder(self.rounds.len()))
    }

    /// Bytes that will have to be copied if the node is frozen now.
    pub(crate) fn expected(&self) -> u64 {
        expected(&self.rounds, Instant::now() + UNTIL_FROZEN)
    }

    /// Bytes that were copied, those that were written since included.
    pub(crate) fn written(&self) -> u64 {
        self.rounds.iter().map(|round| round.bytes).sum()
    }

    /// How long the node's processes stood still, all rounds together.
    pub(crate) fn paused(&self) -> Duration {
        self.rounds.iter().map(|round| round.paused).sum()
    }

    /// Removes what was copied.
    pub(crate) fn forget(self, images: &Path) {
        for number in 1..=self.rounds.len() + 1 {
            let _ = fs::remove_dir_all(images.join(folder(number)));
        }
    }
}

impl Round {
    fn of(begun: Instant, stats: &DumpStats) -> Self {
        Self {
            begun,
            bytes: memory::written(stats),
            paused: Duration::from_micros(
                u64::from(stats.freezing_us) + u64::from(stats.frozen_us),
            ),
        }
    }
}

fn folder(number: usize) -> String {
    format!("pre-{number}")
}

/// Whether another round is worth it after those that `copied` so many bytes each, in `since`.
fn goes_on(copied: &[u64], since: Duration) -> bool {
    match copied {
        [] => true,
        [.., last] if *last <= FEW => false,
        [.., before, last] if *last > before / 100 * SHRINKS => false,
        _ => copied.len() < ROUNDS && since <= ROUNDS_TIME,
    }
}

/// Bytes that have a mark at `then`: as many as the last round copied, more where it is longer ago than that looked back. Never fewer,
/// because much may have its mark again at once: the kernel marks a whole area when another is mapped beside it.
fn expected(rounds: &[Round], then: Instant) -> u64 {
    match rounds {
        [] => 0,
        [only] => only.bytes,
        [.., before, last] => {
            let between = last.begun.saturating_duration_since(before.begun);
            let since = then.saturating_duration_since(last.begun);
            let share = since.as_secs_f64() / between.as_secs_f64().max(0.001);
            (last.bytes as f64 * share.max(1.0)) as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn rounds_go_on_while_they_help() {
        let soon = Duration::from_secs(1);
        assert!(goes_on(&[], soon));
        assert!(goes_on(&[900 * MIB], soon));
        assert!(!goes_on(&[3 * MIB], soon), "the rest is small");
        assert!(goes_on(&[900 * MIB, 100 * MIB], soon));
        assert!(!goes_on(&[900 * MIB, 800 * MIB], soon), "nothing to win");
        assert!(!goes_on(&[900 * MIB, 100 * MIB], ROUNDS_TIME * 2));
        let falling: Vec<_> = (0..ROUNDS).map(|n| (900 * MIB) >> n).collect();
        assert!(!goes_on(&falling, soon), "each stops the node");
        assert!(goes_on(&falling[..ROUNDS - 1], soon));
    }

    #[test]
    fn what_is_left_is_what_the_last_round_copied_or_more() {
        let begun = Instant::now();
        let round = |ms, bytes| Round {
            begun: begun + Duration::from_millis(ms),
            bytes,
            paused: Duration::ZERO,
        };
        let then = begun + Duration::from_millis(1_100);
        assert_eq!(expected(&[], then), 0);
        assert_eq!(expected(&[round(0, MIB)], then), MIB);
        let both = [round(0, 900 * MIB), round(1_000, 20 * MIB)];
        assert_eq!(expected(&both, then) / MIB, 20);
        let late = begun + Duration::from_secs(3);
        assert_eq!(expected(&both, late) / MIB, 40);
    }

    #[test]
    fn a_round_builds_on_the_one_before_and_the_dump_on_the_last() {
        let here = File::open("/").unwrap();
        let mut node = PreDump::default();
        assert_eq!(node.options(&here, &here, 7).parent_img, None);
        for _ in 0..2 {
            node.rounds.push(Round {
                begun: Instant::now(),
                bytes: 1,
                paused: Duration::from_millis(3),
            });
        }
        let options = node.options(&here, &here, 7);
        assert_eq!(options.parent_img.as_deref(), Some("../pre-2"));
        assert_eq!(options.pre_dump_mode, Some(2));
        assert_eq!(
            (options.track_mem, options.leave_running),
            (Some(true), Some(true))
        );
        let mut dump = Options::default();
        node.build_on(&mut dump);
        assert_eq!(dump.parent_img.as_deref(), Some("pre-2"));
        assert_eq!(dump.track_mem, Some(true));
        assert_eq!(node.paused(), Duration::from_millis(6));
    }
}
