//! The pages of one process in the form that CRIU restores: `pagemap-<pid>.img` lists runs of pages, `pages-<n>.img` holds
//! them one after the other (`images/pagemap.proto`, `criu/page-xfer.c` of CRIU 4.2).

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use prost::Message;

use super::twin::{Source, within};
use super::{Late, PAGE};
use crate::error::CriuError;
use crate::images::{COMMON_MAGIC, PAGEMAP_MAGIC, decode, read_records, write_records};
use crate::rpc::{PagemapEntry, PagemapHead};

/// `PE_PRESENT`: the pages are in `pages-<n>.img`.
const PRESENT: u32 = 1 << 2;
/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;

/// Pages side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First address.
    pub(super) start: u64,
    pub(super) pages: u64,
    /// They may come when the clone already runs.
    pub(super) can_be_late: bool,
}

impl Run {
    fn bytes(&self) -> u64 {
        self.pages * PAGE
    }

    /// First address behind it.
    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes()
    }

    fn late(range: Range<u64>) -> Self {
        Self {
            start: range.start,
            pages: (range.end - range.start) / PAGE,
            can_be_late: true,
        }
    }
}

/// What is still needed of the copy when the images are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Nothing.
    Nothing,
    /// All of it: pages that come late are read from it.
    Late,
    /// And so are some from the twin.
    LateAndTwin,
}

/// The name of the file with the pages that come late; the list of them is beside it.
pub(super) fn late_name(number: u32) -> String {
    format!("memory-{number}")
}

/// The name of the socket where the memory of the twin is handed out; the list of the pages that are read from there, and not from the
/// file, is beside it.
pub(super) fn twin_name(number: u32) -> String {
    format!("twin-{number}")
}

/// Pairs of first address and number of pages, little-endian, rising.
fn write_late(images: &Path, name: &str, late: &[Run]) -> Result<(), CriuError> {
    let path = images.join(format!("{name}.pages"));
    let list: Vec<u8> = late
        .iter()
        .flat_map(|run| [run.start.to_le_bytes(), run.pages.to_le_bytes()])
        .flatten()
        .collect();
    fs::write(&path, list).map_err(|source| CriuError::Image {
        path: path.clone(),
        what: "cannot be written".to_owned(),
        source: Some(source),
    })
}

/// Adds `runs`, whose pages are in `source`, to what CRIU wrote of process `number`.
pub(super) fn complete(
    images: &Path,
    number: u32,
    source: Source<'_>,
    runs: &[Run],
    late: Late,
) -> Result<Kept, CriuError> {
    let (late_runs, runs): (Vec<Run>, Vec<Run>) = runs.iter().partition(|run| run.can_be_late);
    let can_be_late: u64 = late_runs.iter().map(Run::bytes).sum();
    let (late_runs, runs) = match late {
        Late::From { bytes, .. } if can_be_late >= bytes => (late_runs, runs),
        _ => (Vec::new(), [late_runs, runs].concat()),
    };
    add(images, &number.to_string(), source, &runs)?;
    if late_runs.is_empty() {
        return Ok(Kept::Nothing);
    }
    write_late(images, &late_name(number), &late_runs)?;
    let Some((_, left)) = source.twin else {
        return Ok(Kept::Late);
    };
    let of_twin: Vec<Run> = late_runs
        .iter()
        .flat_map(|run| {
            let range = run.start..run.end();
            within(left, &range).map(Run::late).collect::<Vec<_>>()
        })
        .collect();
    if of_twin.is_empty() {
        return Ok(Kept::Late);
    }
    write_late(images, &twin_name(number), &of_twin)?;
    Ok(Kept::LateAndTwin)
}

/// Adds `runs` to `pagemap-<name>.img` and the file of pages that belongs to it.
pub(super) fn add(
    images: &Path,
    name: &str,
    source: Source<'_>,
    runs: &[Run],
) -> Result<(), CriuError> {
    let path = images.join(format!("pagemap-{name}.img"));
    let broken = |what: &str, source| CriuError::Image {
        path: path.clone(),
        what: what.to_owned(),
        source,
    };
    let records = read_records(&path, &[COMMON_MAGIC, PAGEMAP_MAGIC])?;
    let (head, entries) = records
        .split_first()
        .ok_or_else(|| broken("is empty", None))?;
    let id = decode::<PagemapHead>(&path, head)?.pages_id;
    let mut dumped = Vec::new();
    let mut offset = 0;
    for entry in entries {
        let entry: PagemapEntry = decode(&path, entry)?;
        if entry.flags() & PRESENT == 0 {
            return Err(broken("refers to other images", None));
        }
        let run = Run {
            start: entry.vaddr,
            can_be_late: false,
            pages: entry.nr_pages.unwrap_or(entry.compat_nr_pages.into()),
        };
        dumped.push((run, offset));
        offset += run.bytes();
    }
    let pages_path = images.join(format!("pages-{id}.img"));
    let all = merge(&dumped, runs);
    let write = || -> io::Result<()> {
        let old = File::open(&pages_path)?;
        let new_path = pages_path.with_extension("new");
        let new = File::create(&new_path)?;
        let mut at = 0;
        for (run, from) in &all {
            at = match from {
                From::Criu(offset) => {
                    let old = Source {
                        copy: &old,
                        twin: None,
                    };
                    append(old, *offset, run.bytes(), &new, at)?
                }
                From::Copy => append(source, run.start, run.bytes(), &new, at)?,
            };
        }
        fs::rename(new_path, &pages_path)
    };
    write().map_err(|source| CriuError::Image {
        path: pages_path.clone(),
        what: "cannot be completed".to_owned(),
        source: Some(source),
    })?;
    let mut records = vec![head.clone()];
    records.extend(all.iter().map(|(run, _)| {
        PagemapEntry {
            vaddr: run.start,
            compat_nr_pages: 0,
            flags: Some(PRESENT),
            nr_pages: Some(run.pages),
            in_parent: None,
        }
        .encode_to_vec()
    }));
    write_records(&path, &[COMMON_MAGIC, PAGEMAP_MAGIC], &records)
}

/// Where the pages of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// At this offset of CRIU's own file.
    Criu(u64),
    /// In the copy.
    Copy,
}

/// All runs in rising order; what CRIU dumped itself is left out of `copied`.
fn merge(dumped: &[(Run, u64)], copied: &[Run]) -> Vec<(Run, From)> {
    let mut all: Vec<(Run, From)> = dumped
        .iter()
        .map(|(run, offset)| (*run, From::Criu(*offset)))
        .collect();
    for run in copied {
        let mut start = run.start;
        let end = run.start + run.bytes();
        let mut gaps = Vec::new();
        for (other, _) in dumped {
            let other_end = other.start + other.bytes();
            if other_end <= start || other.start >= end {
                continue;
            }
            if other.start > start {
                gaps.push((start, other.start));
            }
            start = start.max(other_end);
        }
        if start < end {
            gaps.push((start, end));
        }
        all.extend(gaps.into_iter().map(|(from, to)| {
            let run = Run {
                start: from,
                pages: (to - from) / PAGE,
                ..*run
            };
            (run, From::Copy)
        }));
    }
    all.sort_by_key(|(run, _)| run.start);
    all
}

fn append(from: Source<'_>, offset: u64, length: u64, to: &File, at: u64) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < length {
        let part = usize::try_from(length - done).map_or(CHUNK, |left| left.min(CHUNK));
        let part = buffer.get_mut(..part).unwrap_or_default();
        let read = from.read(part, offset + done)?;
        let part = part.get(..read).unwrap_or_default();
        to.write_all_at(part, at + done)?;
        done += read as u64;
    }
    Ok(at + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, pages: u64) -> Run {
        Run {
            start: start * PAGE,
            pages,
            can_be_late: false,
        }
    }

    #[test]
    fn what_criu_dumped_comes_first() {
        let merged = merge(
            &[(run(10, 2), 0), (run(20, 1), 2 * PAGE)],
            &[run(1, 3), run(9, 5), run(20, 1), run(30, 1)],
        );
        assert_eq!(
            merged,
            [
                (run(1, 3), From::Copy),
                (run(9, 1), From::Copy),
                (run(10, 2), From::Criu(0)),
                (run(12, 2), From::Copy),
                (run(20, 1), From::Criu(2 * PAGE)),
                (run(30, 1), From::Copy),
            ]
        );
    }
}
