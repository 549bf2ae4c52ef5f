//! Puts a held process into the state that its missing pages are asked for.

use std::fs::File;
use std::io;
use std::iter;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Duration;

use offshoot_sys::inject::Caught;
use offshoot_sys::memory::{self, Area};
use offshoot_sys::pagemap::{Pagemap, Protect, Wanted, page};
use offshoot_sys::uffd::{Userfaultfd, Watch, feature};

use super::pages::{Copy, PAGE};
use super::pending::{Pending, Piece};
use super::ranges::Ranges;
use super::serve::Space;

/// Bytes written at a time.
const CHUNK: u64 = 256 << 10;
/// Bound on the system calls of one process.
const CALLS_MAX: Duration = Duration::from_secs(10);
/// What the kernel keeps up to date of a `struct rseq` (rseq(2)): it wrote there when the process was restored and does not again until
/// something changes, so what the parent had must not replace it.
const KERNELS: [Range<u64>; 2] = [0..8, 20..28];
/// Pages that are there.
const THERE: Wanted = Wanted {
    mask: 0,
    inverted: 0,
    any_of: page::PRESENT | page::SWAPPED,
    told: page::PRESENT | page::SWAPPED,
};

/// Everything that a process may do to its memory while pages are missing.
const EVENTS: u64 =
    feature::EVENT_FORK | feature::EVENT_REMAP | feature::EVENT_REMOVE | feature::EVENT_UNMAP;

/// Prepares process `pid`, whose pages are in `copy`. What is there already, and what cannot come late, is written at once; bytes of that are given
/// back too. `None`: nothing comes late.
pub(crate) fn plant(
    caught: &Caught,
    pid: i32,
    copy: Copy,
    device: Option<&File>,
) -> io::Result<(Option<Space>, u64)> {
    let device = device.filter(|_| Pagemap::is_supported());
    let uffd = device.and_then(|device| {
        take(caught, pid, device)
            .inspect_err(|e| {
                tracing::warn!(pid, error = %e, "memory cannot come late, all of it is written");
            })
            .ok()
    });
    let sequences = caught.sequence_areas(pid).unwrap_or_default();
    let target = Target {
        pid,
        memory: File::options()
            .write(true)
            .open(format!("/proc/{pid}/mem"))?,
        pagemap: Pagemap::open(pid)?,
        sequences,
        copy,
    };
    let areas = memory::areas(pid)?;
    // A child's userfaultfd does not tell that it gets these empty.
    let wiped = memory::wiped_on_fork(pid)?;
    let can_be_late = |area: &Area| {
        area.private && area.anonymous && wiped.iter().all(|range| range.start != area.range.start)
    };
    let mut pending = Pending::default();
    let mut written = 0;
    let mut areas = areas.iter().peekable();
    for range in &target.copy.ranges {
        let mut at = range.start;
        while at < range.end {
            while areas.next_if(|area| area.range.end <= at).is_some() {}
            let area = areas.peek().filter(|area| area.range.start <= at);
            let area = area.ok_or_else(|| {
                let what =
                    format!("the images have memory at {at:x} that process {pid} does not have");
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
            let part = at..range.end.min(area.range.end);
            at = part.end;
            let missing = match &uffd {
                Some(_) if can_be_late(area) => target.missing(&part)?,
                _ => Vec::new(),
            };
            let mut done = part.start;
            for gap in missing.into_iter().chain(iter::once(part.end..part.end)) {
                written += gap.start - done;
                target.write(done..gap.start)?;
                done = gap.end;
                if !gap.is_empty() {
                    pending.insert(Piece {
                        offset: gap.start,
                        range: gap,
                    });
                }
            }
        }
    }
    let Some(uffd) = uffd.filter(|_| !pending.is_empty()) else {
        return Ok((None, written));
    };
    let mut watched = Ranges::default();
    for area in memory::areas(pid)? {
        let range = area.range;
        if pending.inside(&range).is_empty() {
            continue;
        }
        // Whole areas: a border within one would be in the way of mremap(2).
        if let Err(e) = uffd.register(range.clone(), Watch::Missing) {
            tracing::warn!(pid, ?range, error = %e, "memory cannot come late, it is written");
            for piece in pending.remove(&range) {
                written += piece.len();
                target.write(piece.range)?;
            }
        } else {
            watched.insert(&range);
        }
    }
    let space = Space::new(uffd, Some(pid), pending, watched, Rc::new(target.copy));
    Ok((Some(space), written))
}

fn take(caught: &Caught, pid: i32, device: &File) -> io::Result<Userfaultfd> {
    let speaker = caught.speaker(pid, CALLS_MAX)?;
    Userfaultfd::new(speaker.take_full_userfaultfd(device.as_fd())?, EVENTS)
}

struct Target {
    pid: i32,
    /// Writes here pass over protections (proc_pid_mem(5)).
    memory: File,
    pagemap: Pagemap,
    sequences: Vec<u64>,
    copy: Copy,
}

impl Target {
    /// The parts of a range where no page is. Those that the kernel writes to of its own accord are not among them.
    fn missing(&self, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let mut there = Vec::new();
        self.pagemap
            .scan(range.clone(), THERE, Protect::No, |region| {
                there.push(region.start..region.end);
            })?;
        for area in &self.sequences {
            for address in [*area, area + KERNELS[1].end - 1] {
                let page = address & !(PAGE - 1);
                there.push(page..page + PAGE);
            }
        }
        there.sort_by_key(|range| range.start);
        let mut missing = Vec::new();
        let mut at = range.start;
        for known in there.into_iter().chain(iter::once(range.end..range.end)) {
            let end = known.start.min(range.end);
            if at < end {
                missing.push(at..end);
            }
            at = at.max(known.end);
        }
        Ok(missing)
    }

    /// Writes a range now.
    fn write(&self, range: Range<u64>) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(CHUNK.min(range.end - range.start)).unwrap_or(0)];
        let mut at = range.start;
        while at < range.end {
            let len = usize::try_from(CHUNK.min(range.end - at)).unwrap_or(0);
            let bytes = buffer.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
            self.copy.read(bytes, at)?;
            self.keep_kernels(at, bytes)?;
            self.memory.write_all_at(bytes, at)?;
            at += len as u64;
        }
        self.copy.release(range.start, range.end - range.start);
        Ok(())
    }

    /// Puts what the kernel keeps into `bytes`, which are about to be written at `at`.
    fn keep_kernels(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = at + bytes.len() as u64;
        for area in &self.sequences {
            for kept in &KERNELS {
                let (from, to) = ((area + kept.start).max(at), (area + kept.end).min(end));
                if from >= to {
                    continue;
                }
                let place = usize::try_from(from - at)
                    .ok()
                    .zip(usize::try_from(to - at).ok());
                let place = place.and_then(|(from, to)| bytes.get_mut(from..to));
                let place = place.ok_or(io::ErrorKind::InvalidInput)?;
                if memory::read(self.pid, from, place)? != place.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(())
    }
}
