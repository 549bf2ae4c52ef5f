//! One process: its pages are copied into a sparse file, the page of address A at offset A. Large memory is left to a twin, and only what is
//! written after that is copied.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use offshoot_sys::inject::Paused;
use offshoot_sys::memory;
use offshoot_sys::pagemap::{Pagemap, Protect, Region, Wanted, page};
use offshoot_sys::process::Process;
use offshoot_sys::uffd::{Userfaultfd, Watch};
use rangemap::RangeSet;
use rustix::fs::OFlags;

use super::areas::{self, Area};
use super::image::{self, Run};
use super::twin::{self, Source, Twin};
use super::{Late, PAGE, Plant, Taken, Twins, warm};
use crate::error::CriuError;

/// Page tables are locked for so much memory at a time: the process wants them too.
const STRIDE: u64 = 64 << 20;
/// Most parts of one area, about.
const STRIDES: u64 = 512;
/// How long a process may take to stand still for a moment.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// It goes on for a moment when so many bytes were found.
const PAUSE_BYTES: u64 = 256 << 20;
/// Where so much was tracked, it is worth a pause to end that at once.
const MUCH: u64 = 64 << 20;
/// What takes longer is followed by as long a rest.
const NOTICEABLE: Duration = Duration::from_millis(1);
/// Bytes copied at a time: stays in the processor's cache between reading and writing.
const CHUNK: usize = 256 << 10;
/// Pages that CRIU dumps: there, not the kernel's zeros, not the file's own.
const CONTENT: Wanted = Wanted {
    mask: page::PFN_ZERO | page::FILE,
    inverted: page::PFN_ZERO | page::FILE,
    any_of: page::PRESENT | page::SWAPPED,
    told: page::WRITTEN | page::WP_ALLOWED | page::PRESENT,
};
/// Of these, the ones that may have changed since the last round. Only they are protected: a protected page that is not there
/// is marked in the page table, and would have to be told from one that is swapped out.
const CHANGED: Wanted = Wanted {
    mask: CONTENT.mask | page::WRITTEN,
    ..CONTENT
};

/// The same pages of an area without a file. To tell whether a page is a file's, the kernel looks at what it keeps about that page,
/// which takes most of a scan's time: it is not asked where there is no file.
fn in_area(area: &Area, wanted: Wanted) -> Wanted {
    if !area.anonymous {
        return wanted;
    }
    Wanted {
        mask: wanted.mask & !page::FILE,
        inverted: wanted.inverted & !page::FILE,
        ..wanted
    }
}

/// A process whose memory is being copied.
#[derive(Debug)]
pub(super) struct Tracked {
    process: Process,
    path: PathBuf,
    file: File,
    /// Tells what is written; `None`: nothing does, and every page counts as changed.
    writes: Option<Userfaultfd>,
    /// Has the pages that are in `left`.
    twin: Option<Twin>,
    /// Pages that were not copied. They have not been written since the twin was made, as far as is known.
    left: RangeSet<u64>,
    /// Disks write into its pages while one of its threads waits for that (`O_DIRECT` of open(2)), and no page table tells: pages are
    /// protected only while no thread waits.
    reads_directly: bool,
    /// Addresses that could not be copied when it was their turn.
    unsure: Vec<Range<u64>>,
    /// Rounds so far.
    rounds: u32,
    /// Every page that there was when the node stood still.
    runs: Vec<Run>,
    /// Its number inside the node.
    number: u32,
    buffer: Vec<u8>,
}

impl Drop for Tracked {
    /// What was not brought into the images is of no use to anybody.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(socket_of(&self.path));
    }
}

/// Where the twin of the process that is copied to `path` is handed out.
fn socket_of(path: &Path) -> PathBuf {
    path.with_extension("twin")
}

impl Tracked {
    /// Begins to track process `pid`. If that cannot be done, it is copied all the same: what is copied twice
    /// is quicker the second time, because the copy has its room by then.
    pub(super) fn new(pid: i32, images: &Path, plant: &dyn Plant) -> io::Result<Self> {
        let mut tracked = Self::untracked(pid, images)?;
        if areas::of_running(pid)?.has_aio {
            tracing::debug!(pid, "is not tracked: the disk writes into its memory");
            return Ok(tracked);
        }
        tracked.reads_directly = has_direct_files(pid);
        match plant.plant(pid) {
            Ok(writes) => tracked.writes = Some(writes.into()),
            Err(error) => tracing::debug!(pid, error = &*error, "is not tracked"),
        }
        Ok(tracked)
    }

    /// A process of which nothing is known: all its pages count as changed.
    pub(super) fn untracked(pid: i32, images: &Path) -> io::Result<Self> {
        let process = Process::open(pid)?;
        let path = images.join(format!("copy-{pid}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        Ok(Self {
            process,
            path,
            file,
            writes: None,
            twin: None,
            left: RangeSet::new(),
            reads_directly: false,
            unsure: Vec::new(),
            rounds: 0,
            runs: Vec::new(),
            number: 0,
            buffer: vec![0; CHUNK],
        })
    }

    pub(super) fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub(super) fn is_alive(&self) -> bool {
        !self
            .process
            .wait_end(Some(std::time::Duration::ZERO))
            .unwrap_or(true)
    }

    /// Copies what was written since the last round; the number of pages. The first time that is everything, but for what is left to a
    /// twin, if `twins` makes one.
    pub(super) fn round(
        &mut self,
        twins: Option<&Twins<'_>>,
        wanted: &dyn Fn() -> bool,
    ) -> io::Result<u64> {
        let pid = self.pid();
        let twins = twins.filter(|_| self.rounds == 0);
        let mut pages = 0;
        for area in self.protect(wanted)? {
            if !wanted() {
                return Ok(pages);
            }
            if area.can_be_late && twins.is_some() && self.writes.is_some() {
                self.left.insert(area.range);
                continue;
            }
            pages += (area.range.end - area.range.start) / PAGE;
            self.copy_or_note(area.range)?;
        }
        if let Some(twins) = twins {
            pages += self.leave(twins)?;
        }
        self.rounds += 1;
        // After the scan: what the disk was writing meanwhile, it writes into a file that is open by now.
        if self.writes.is_some()
            && (areas::of_running(pid)?.has_aio || !self.reads_directly && has_direct_files(pid))
        {
            self.lose_track();
        }
        Ok(pages)
    }

    /// The pages that were written since they were protected the last time. They are protected now: what is copied after this is as good as
    /// what it was, or counts as changed.
    fn protect(&mut self, wanted: &dyn Fn() -> bool) -> io::Result<Vec<Area>> {
        let pid = self.pid();
        // Opened each time: after execve(2) an older one shows what is gone.
        let pagemap = Pagemap::open(pid)?;
        let tracked = self.writes.is_some();
        if !tracked && self.rounds > 0 {
            return Ok(Vec::new()); // it got its room in the first round
        }
        // What was mapped since tracking began is not watched: it is not found, and counts as changed.
        let (looking_for, protect) = if tracked {
            (CHANGED, Protect::Found)
        } else {
            (CONTENT, Protect::No)
        };
        let mut found = Vec::new();
        let mut paused = None;
        let mut bytes = 0;
        for area in areas::of_running(pid)?.areas {
            let looking_for = in_area(&area, looking_for);
            for stride in strides(area.range.clone()) {
                if !wanted() {
                    return Ok(found);
                }
                if tracked && self.reads_directly && paused.is_none() {
                    match Paused::pause(pid, PAUSE_MAX) {
                        Ok(process) => paused = Some(process),
                        Err(error) => {
                            tracing::debug!(pid, %error, "is not tracked any more");
                            self.lose_track();
                            return Ok(Vec::new());
                        }
                    }
                }
                pagemap.scan(stride, looking_for, protect, |region| {
                    bytes += region.end - region.start;
                    found.push(Area {
                        range: region.start..region.end,
                        ..area
                    });
                })?;
                if bytes >= PAUSE_BYTES {
                    (paused, bytes) = (None, 0);
                }
            }
        }
        Ok(found)
    }

    /// From now on every page counts as changed.
    fn lose_track(&mut self) {
        self.writes = None;
        self.twin = None;
        self.left = RangeSet::new();
    }

    /// Has a twin made for what was left, or copies it where there can be none; the pages that were copied.
    ///
    /// All of it is protected by now: what is written from here on, before the twin is made or after, counts as changed.
    fn leave(&mut self, twins: &Twins<'_>) -> io::Result<u64> {
        let all = std::mem::take(&mut self.left);
        let mut copied = all.clone();
        let twin = twins.of(self.pid(), twin::bytes(&all), &socket_of(&self.path));
        // if it is gone already, it has nothing
        if let Some(twin) = twin
            && let Ok(held) = twin.holds(&all)
        {
            for range in held.iter() {
                copied.remove(range.clone());
            }
            self.left = held;
            self.twin = Some(twin);
        }
        for range in copied.iter() {
            self.copy_or_note(range.clone())?;
        }
        Ok(twin::bytes(&copied) / PAGE)
    }

    /// Bytes that are copied in the freeze whatever the process does meanwhile.
    pub(super) fn always(&self) -> u64 {
        let pages = match self.writes {
            Some(_) => 0,
            None => warm::anonymous_pages(self.pid()).unwrap_or(0),
        };
        pages * PAGE
    }

    /// Finds every page that there is, and copies those that are not known to be unchanged.
    pub(super) fn take(&mut self, number: u32, areas: &[Area]) -> io::Result<Taken> {
        self.number = number;
        self.runs.clear();
        let pagemap = Pagemap::open(self.pid())?;
        let mut taken = Taken::default();
        for area in areas {
            let mut found = Vec::new();
            let content = in_area(area, CONTENT);
            pagemap.scan(area.range.clone(), content, Protect::No, |r| found.push(r))?;
            let found = pagemap.without_markers(found)?;
            // Says whether the area is ours: after execve(2), or where the process tracks itself, it is not.
            let known = found.iter().any(is_unchanged)
                && self.writes.as_ref().is_some_and(|writes| {
                    writes.register(area.range.clone(), Watch::Written).is_ok()
                });
            for region in found {
                let range = region.start..region.end;
                let bytes = region.end - region.start;
                taken.all += bytes;
                self.runs.push(Run {
                    start: region.start,
                    pages: bytes / PAGE,
                    can_be_late: area.can_be_late,
                });
                if known && is_unchanged(&region) && !self.is_unsure(&range) {
                    continue;
                }
                taken.frozen += bytes;
                self.copy(range)?;
            }
        }
        Ok(taken)
    }

    /// Ends the tracking; what is left of it in the process is to be undone.
    pub(super) fn let_go(&mut self) -> Option<Watched> {
        self.writes.take().map(|writes| Watched {
            pid: self.pid(),
            writes,
        })
    }

    /// Brings the pages into CRIU's images.
    pub(super) fn complete(mut self, images: &Path, late: Late) -> Result<(), CriuError> {
        let source = Source {
            copy: &self.file,
            twin: self.twin.as_ref().map(|twin| (twin, &self.left)),
        };
        let kept = image::complete(images, self.number, source, &self.runs, late)?;
        let mut keep = || -> io::Result<()> {
            if kept == image::Kept::Nothing {
                return Ok(());
            }
            // pages that are in the twin are none of the copy's, but they have their place in it
            let end = self.runs.last().map_or(0, Run::end);
            self.file.set_len(end)?;
            fs::rename(&self.path, images.join(image::late_name(self.number)))?;
            match self.twin.take() {
                Some(twin) if kept == image::Kept::LateAndTwin => {
                    let socket = images.join(image::twin_name(self.number));
                    fs::rename(socket_of(&self.path), socket)?;
                    twin.promise()
                }
                _ => Ok(()),
            }
        };
        keep().map_err(|source| CriuError::Image {
            path: images.to_owned(),
            what: format!("cannot hold the memory of process {}", self.number),
            source: Some(source),
        })
    }

    fn is_unsure(&self, range: &Range<u64>) -> bool {
        self.unsure
            .iter()
            .any(|unsure| unsure.start < range.end && range.start < unsure.end)
    }

    /// Copies, or remembers that it could not: the process changes its areas while it runs.
    fn copy_or_note(&mut self, range: Range<u64>) -> io::Result<()> {
        match self.copy(range.clone()) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::FAULT.raw_os_error()) => {
                self.unsure.push(range);
                Ok(())
            }
            result => result,
        }
    }

    fn copy(&mut self, range: Range<u64>) -> io::Result<()> {
        self.left.remove(range.clone());
        let mut at = range.start;
        while at < range.end {
            let length = usize::try_from(range.end - at).map_or(CHUNK, |left| left.min(CHUNK));
            let chunk = self.buffer.get_mut(..length).unwrap_or_default();
            let read = match memory::read(self.process.pid(), at, chunk) {
                Ok(read) if read > 0 => read,
                // not readable for the process itself either
                _ => read_by_force(self.process.pid(), at, chunk)?,
            };
            self.file
                .write_all_at(chunk.get(..read).unwrap_or_default(), at)?;
            at += read as u64;
        }
        Ok(())
    }
}

/// What the tracking left in a process.
#[derive(Debug)]
pub(crate) struct Watched {
    pid: i32,
    writes: Userfaultfd,
}

impl Watched {
    /// Undoes it: gently, for page tables are locked meanwhile, and there is time.
    pub(crate) fn undo(self) {
        let mut undone = RangeSet::new();
        for area in areas::of_running(self.pid).unwrap_or_default().areas {
            for stride in strides(area.range) {
                let begun = Instant::now();
                // what is not tracked any more needs nothing; what is left goes with the descriptor
                if self.writes.unprotect(stride.clone()).is_ok() {
                    undone.insert(stride);
                }
                if begun.elapsed() > NOTICEABLE {
                    std::thread::sleep(begun.elapsed());
                }
            }
        }
        if twin::bytes(&undone) >= MUCH {
            self.end_at_once(&undone);
        }
    }

    /// Ends the watching of areas in which no page is protected any more. With the descriptor alone the kernel would go over all page tables
    /// once more, in one piece; so each whole area is watched for something else first, for as long as it takes to close the descriptor:
    /// nobody runs who could notice. (A border within an area would be in the way of mremap(2).)
    fn end_at_once(self, undone: &RangeSet<u64>) {
        let Ok(_paused) = Paused::pause(self.pid, PAUSE_MAX) else {
            return;
        };
        for area in areas::of_running(self.pid).unwrap_or_default().areas {
            if area.anonymous && undone.gaps(&area.range).next().is_none() {
                let _ = self.writes.register(area.range, Watch::Missing);
            }
        }
        drop(self.writes);
    }
}

/// One page through `/proc/<pid>/mem`, which does not mind protections.
fn read_by_force(pid: i32, at: u64, into: &mut [u8]) -> io::Result<usize> {
    let length = into.len().min(PAGE as usize);
    let page = into.get_mut(..length).unwrap_or_default();
    File::open(format!("/proc/{pid}/mem"))?
        .read_exact_at(page, at)
        .map_err(|error| match error.raw_os_error() {
            // what process_vm_readv(2) says to the same
            Some(code) if code == rustix::io::Errno::IO.raw_os_error() => {
                rustix::io::Errno::FAULT.into()
            }
            _ => error,
        })?;
    Ok(length)
}

fn is_unchanged(region: &Region) -> bool {
    region.kinds & (page::WRITTEN | page::WP_ALLOWED) == page::WP_ALLOWED
}

/// Parts of an area; of one that is reserved and mostly empty, such as MariaDB's of 8 TiB, not too many.
fn strides(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    let stride = STRIDE.max(((end - range.start) / STRIDES) & !(STRIDE - 1));
    range
        .step_by(usize::try_from(stride).unwrap_or(usize::MAX))
        .map(move |start| start..start.saturating_add(stride).min(end))
}

/// Whether the disk may write into the process's pages without a copy in between: it has a file open with `O_DIRECT`.
fn has_direct_files(pid: i32) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return true;
    };
    entries.flatten().any(|entry| {
        fs::read_to_string(entry.path()).is_ok_and(|info| {
            info.lines()
                .find_map(|line| line.strip_prefix("flags:"))
                .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
                .is_some_and(|flags| OFlags::from_bits_retain(flags).contains(OFlags::DIRECT))
        })
    })
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
