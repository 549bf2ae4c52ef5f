//! Large memory that is not copied: a twin of the process keeps it, as it was when tracking began.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use offshoot_sys::pagemap::{Pagemap, Protect, Wanted, page};
use rangemap::RangeSet;

/// A child of a process that stands still with the memory the process had when it was made. Dropping this ends it, unless it was
/// promised to somebody.
#[derive(Debug)]
pub struct Twin {
    /// Its number.
    pub pid: i32,
    /// Its memory: the byte of address A at offset A.
    pub memory: File,
    /// Whoever keeps it ends it when this is closed.
    pub line: UnixStream,
    /// How long making it held the process up.
    pub held: Duration,
}

impl Twin {
    /// It shall live on until the clone, which connects to its socket, has all memory.
    pub(super) fn promise(mut self) -> io::Result<()> {
        self.line.write_all(b"k")
    }

    /// The pages of `all` that it has. Of areas that a child does not get, or gets empty (madvise(2), `MADV_DONTFORK` and
    /// `MADV_WIPEONFORK`), it has none.
    pub(super) fn holds(&self, all: &RangeSet<u64>) -> io::Result<RangeSet<u64>> {
        const THERE: Wanted = Wanted {
            mask: 0,
            inverted: 0,
            any_of: page::PRESENT | page::SWAPPED,
            told: page::PRESENT,
        };
        let pagemap = Pagemap::open(self.pid)?;
        let mut held = RangeSet::new();
        for range in all.iter() {
            pagemap.scan(range.clone(), THERE, Protect::No, |region| {
                held.insert(region.start..region.end);
            })?;
        }
        Ok(held)
    }
}

/// The part of `range` that is in `set`.
pub(super) fn within<'a>(
    set: &'a RangeSet<u64>,
    range: &'a Range<u64>,
) -> impl Iterator<Item = Range<u64>> + 'a {
    set.overlapping(range)
        .map(|found| found.start.max(range.start)..found.end.min(range.end))
}

/// Bytes in a set.
pub(super) fn bytes(set: &RangeSet<u64>) -> u64 {
    set.iter().map(|range| range.end - range.start).sum()
}

/// Where the pages of a process are, each at the offset of its address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    /// Those that were copied.
    pub(super) copy: &'a File,
    /// Those that are only in the twin.
    pub(super) twin: Option<(&'a Twin, &'a RangeSet<u64>)>,
}

impl Source<'_> {
    /// Reads at `address`; at most the whole of `into`, at least one page of it.
    pub(super) fn read(&self, into: &mut [u8], address: u64) -> io::Result<usize> {
        let all = address..address + into.len() as u64;
        let mut file = self.copy;
        let mut end = all.end;
        if let Some((twin, left)) = self.twin {
            let first = within(left, &all).next();
            match first {
                Some(part) if part.start == address => {
                    file = &twin.memory;
                    end = part.end;
                }
                Some(part) => end = part.start,
                None => {}
            }
        }
        let len = usize::try_from(end - address).map_err(io::Error::other)?;
        let part = into.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        file.read_exact_at(part, address)?;
        Ok(len)
    }
}

/// Whether the processes of a node may have so many more bytes: of what a twin has, the process gets a page of its own when it writes. The
/// node's own limit is looked at (cgroups(7), version 1 and 2); where there is none, or none is found, there is room.
pub(super) fn has_room(group: &Path, more: u64) -> bool {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(group.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let first = |names: [&str; 2]| names.into_iter().find_map(number);
    let (Some(limit), Some(used)) = (
        first(["memory.max", "memory.limit_in_bytes"]),
        first(["memory.current", "memory.usage_in_bytes"]),
    ) else {
        return true;
    };
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let idle = |name| {
        stat.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    // what the kernel would drop first
    let idle = idle("total_inactive_file ").or_else(|| idle("inactive_file "));
    limit.saturating_sub(used.saturating_sub(idle.unwrap_or(0))) >= more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_from_where_they_are() {
        let file = |byte: u8| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[byte; 100], 0).unwrap();
            file
        };
        let (line, _other) = UnixStream::pair().unwrap();
        let twin = Twin {
            pid: 0,
            memory: file(b't'),
            line,
            held: Duration::ZERO,
        };
        let copy = file(b'c');
        let left = RangeSet::from_iter([10..20, 40..50]);
        let source = Source {
            copy: &copy,
            twin: Some((&twin, &left)),
        };
        let mut got = Vec::new();
        while got.len() < 60 {
            let mut buffer = [0; 15];
            let read = source.read(&mut buffer, got.len() as u64).unwrap();
            got.extend_from_slice(&buffer[..read]);
        }
        let wanted: Vec<u8> = (0..got.len() as u64)
            .map(|at| if left.contains(&at) { b't' } else { b'c' })
            .collect();
        assert_eq!(got, wanted);
    }

    #[test]
    fn a_limit_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(has_room(dir.path(), u64::MAX));
        write("memory.current", "700\n");
        write("memory.max", "max\n");
        assert!(has_room(dir.path(), u64::MAX));
        write("memory.max", "1000\n");
        assert!(has_room(dir.path(), 300));
        assert!(!has_room(dir.path(), 301));
        write("memory.stat", "anon 5\ninactive_file 100\n");
        assert!(has_room(dir.path(), 400));
    }
}
