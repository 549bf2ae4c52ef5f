//! The memory of processes beside CRIU's images: `memory-<pid>` holds the page of address A at offset A, `memory-<pid>.pages` says which
//! pages there are. Those in `twin-<pid>.pages` are not in the file: a twin of the parent's process has them, whose memory is handed out at
//! the socket `twin-<pid>` (`crate::twin`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use offshoot_sys::passing;
use rustix::fs::FallocateFlags;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// First address that no process has (x86-64, five levels of page tables).
const ADDRESS_END: u64 = 1 << 56;
/// Largest list, bytes.
const LIST_MAX: u64 = 256 << 20;
/// Says that pages were taken out of the files: nothing can be restored from them again.
const USED: &str = "memory.used";
const LIST: &str = ".pages";
const TWIN: &str = "twin-";
/// The one that keeps a twin has nothing else to do.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The pages of one process.
#[derive(Debug)]
pub(crate) struct Copy {
    file: File,
    twin: Option<Twin>,
    /// Rising, apart from each other.
    pub(crate) ranges: Vec<Range<u64>>,
}

/// Memory of the parent's process.
#[derive(Debug)]
struct Twin {
    memory: File,
    /// Rising, apart from each other: what is read from there.
    ranges: Vec<Range<u64>>,
    /// The twin lives as long as this is open.
    _line: UnixStream,
}

impl Twin {
    fn open(images: &File, number: i32) -> Result<Option<Self>> {
        let name = format!("{TWIN}{number}");
        let beside = |name: &str| format!("/proc/self/fd/{}/{name}", images.as_raw_fd());
        let ranges = match read_list(Path::new(&beside(&format!("{name}{LIST}")))) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            list => understand(&list?).context("the list of the twin's pages is wrong")?,
        };
        let gone = "the process of the parent that has the rest of the memory is gone";
        let line = UnixStream::connect(beside(&name)).context(gone)?;
        line.set_read_timeout(Some(ANSWER_MAX))?;
        let memory = passing::take(&line)?.context(gone)?;
        Ok(Some(Self {
            memory: memory.into(),
            ranges,
            _line: line,
        }))
    }

    /// Whether it has what is at `offset`, and up to where that stays so.
    fn has(&self, offset: u64) -> (bool, u64) {
        let at = self.ranges.partition_point(|range| range.end <= offset);
        match self.ranges.get(at) {
            Some(range) if range.start <= offset => (true, range.end),
            Some(range) => (false, range.start),
            None => (false, u64::MAX),
        }
    }
}

impl Copy {
    /// Reads what belongs to the addresses from `offset` on.
    ///
    /// # Errors
    /// Those of reading; when the twin is gone.
    pub(crate) fn read(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(twin) = &self.twin else {
            return self.file.read_exact_at(into, offset);
        };
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let (of_twin, end) = twin.has(at);
            let len = usize::try_from(end - at).map_or(rest.len(), |len| len.min(rest.len()));
            let (part, others) = rest.split_at_mut(len);
            if of_twin {
                twin.memory.read_exact_at(part, at).map_err(|e| {
                    io::Error::new(e.kind(), format!("the process of the parent that has the rest of the memory is gone ({e})"))
                })?;
            } else {
                self.file.read_exact_at(part, at)?;
            }
            at += len as u64;
            rest = others;
        }
        Ok(())
    }

    /// Gives the room of pages back that nobody will ask for again.
    pub(crate) fn release(&self, offset: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Where it is refused, the room is given back when the file is closed.
        let _ = rustix::fs::fallocate(&self.file, flags, offset, len);
    }
}

/// Whether memory that comes late belongs to these images.
pub(crate) fn are_there(images: &Path) -> io::Result<bool> {
    Ok(!lists(images)?.is_empty())
}

/// The lists by the number their process has inside the node.
fn lists(images: &Path) -> io::Result<BTreeMap<i32, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(images)? {
        let name = entry?.file_name();
        let Some(number) = name
            .to_str()
            .and_then(|name| name.strip_prefix("memory-")?.strip_suffix(LIST))
        else {
            continue;
        };
        let number = number.parse().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{name:?} is no process's"),
            )
        })?;
        found.insert(number, images.join(name));
    }
    Ok(found)
}

/// Opens the memory of all processes, once: pages are taken out as they are delivered.
pub(crate) fn open(images: &Path) -> Result<BTreeMap<i32, Copy>> {
    let lists = lists(images).with_context(|| format!("read {}", images.display()))?;
    let folder = File::open(images).with_context(|| format!("read {}", images.display()))?;
    let mut copies = BTreeMap::new();
    for (number, list) in lists {
        let path = list.with_extension("");
        let open = || -> Result<Copy> {
            let ranges = understand(&read_list(&list)?).context("its list is wrong")?;
            let file = File::options().read(true).write(true).open(&path)?;
            let end = ranges.last().map_or(0, |range| range.end);
            ensure!(file.metadata()?.len() >= end, "it is too short");
            let twin = Twin::open(&folder, number)?;
            Ok(Copy { file, twin, ranges })
        };
        copies.insert(
            number,
            open().with_context(|| format!("open {}", path.display()))?,
        );
    }
    File::create_new(images.join(USED)).context("the images' memory was used already")?;
    Ok(copies)
}

fn read_list(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > LIST_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the list of pages is too long",
        ));
    }
    fs::read(path)
}

fn understand(list: &[u8]) -> Result<Vec<Range<u64>>> {
    ensure!(list.len().is_multiple_of(16), "it ends in the middle");
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for pair in list.chunks_exact(16) {
        let (start, pages) = pair.split_at(8);
        let start = u64::from_le_bytes(start.try_into()?);
        let pages = u64::from_le_bytes(pages.try_into()?);
        let end = pages
            .checked_mul(PAGE)
            .and_then(|len| start.checked_add(len));
        let end = end.filter(|end| *end > start && *end <= ADDRESS_END);
        let end = end.context("a run has no sensible length")?;
        ensure!(start.is_multiple_of(PAGE), "a run begins within a page");
        match ranges.last_mut() {
            Some(last) if last.end > start => anyhow::bail!("runs overlap"),
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(u64, u64)]) -> Vec<u8> {
        let words = pairs.iter().flat_map(|(start, pages)| [start, pages]);
        words.flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn lists_are_understood_or_refused() {
        let read = |pairs: &[(u64, u64)]| understand(&list(pairs)).ok();
        assert_eq!(read(&[]), Some(vec![]));
        assert_eq!(
            read(&[(0x1000, 1), (0x2000, 2), (0x8000, 1)]),
            Some(vec![0x1000..0x4000, 0x8000..0x9000])
        );
        for bad in [
            &[(0x1000, 0)][..],
            &[(0x1001, 1)],
            &[(0x2000, 1), (0x1000, 1)],
            &[(0x1000, 2), (0x2000, 1)],
            &[(0x1000, u64::MAX)],
            &[(u64::MAX - 4095, 1)],
            &[(1 << 56, 1)],
        ] {
            assert_eq!(read(bad), None, "{bad:x?}");
        }
        assert!(understand(&[0; 15]).is_err());
    }

    #[test]
    fn memory_is_used_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!are_there(dir.path()).unwrap());
        fs::write(dir.path().join("memory-7.pages"), list(&[(0x1000, 1)])).unwrap();
        assert!(are_there(dir.path()).unwrap());
        assert!(open(dir.path()).is_err(), "no file");
        let file = File::create(dir.path().join("memory-7")).unwrap();
        assert!(open(dir.path()).is_err(), "too short");
        file.set_len(0x2000).unwrap();
        assert_eq!(
            open(dir.path()).unwrap()[&7].ranges.first(),
            Some(&(0x1000..0x2000))
        );
        assert!(format!("{:#}", open(dir.path()).unwrap_err()).contains("used already"));
    }
}
