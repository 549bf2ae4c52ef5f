//! Memory that processes share without a file (mmap(2), `MAP_SHARED | MAP_ANONYMOUS`): PHP's opcache, PostgreSQL's buffers.
//!
//! CRIU would copy all of it in the freeze; with `offshoot_sys::preload` it finds none. It is copied while the node runs, and compared in
//! the freeze: no page table says who wrote what all of them see, and comparing, where it lies, takes much less time than copying to fresh
//! pages takes. To the kernel it is a file of its own, which has the offsets of the images.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use offshoot_sys::memory;
use offshoot_sys::view::View;
use rangemap::RangeSet;
use rustix::fs::SeekFrom;

use super::image::{self, Run};
use super::twin::{Source, within};
use super::{PAGE, Taken};
use crate::error::CriuError;

/// How the kernel names it, and the device that it is on: what the preloaded object goes by too.
const NAME: &str = "/dev/zero";
const DEVICE: &str = "00:01";
const PAGE_SIZE: usize = PAGE as usize;

/// All such memory of one node.
#[derive(Debug, Default)]
pub(super) struct Shared {
    objects: Vec<Object>,
}

/// What was mapped once and inherited by children.
#[derive(Debug)]
struct Object {
    /// CRIU's number for it (`shmid`) is the one of the kernel's file.
    inode: u64,
    file: File,
    /// As far as anybody has it mapped, bytes.
    size: u64,
    copy: File,
    /// Both in memory: reading them would copy them twice, and take three times as long.
    views: Option<[View; 2]>,
    /// Where the copy has pages.
    copied: RangeSet<u64>,
    path: PathBuf,
    /// Every page that there was when the node stood still.
    runs: Vec<Run>,
}

impl Drop for Object {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Shared {
    /// Copies what was not seen before; the number of pages.
    pub(super) fn round(&mut self, images: &Path, processes: &[i32]) -> io::Result<u64> {
        let known = self.objects.len();
        self.find(images, processes)?;
        let mut copied = 0;
        for object in self.objects.iter_mut().skip(known) {
            copied += object.update()?.frozen;
            object.update()?; // has all pages at hand
        }
        Ok(copied / PAGE)
    }

    /// Bytes that have to be compared in a freeze.
    pub(super) fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.size).sum()
    }

    /// Copies what differs of all that is known; the node stands still.
    pub(super) fn take(&mut self) -> io::Result<Taken> {
        let mut taken = Taken::default();
        for object in &mut self.objects {
            taken.add(object.update()?);
        }
        Ok(taken)
    }

    /// Copies what is not known: `mapped` is what there is, and up to where. The node stands still.
    pub(super) fn take_rest(
        &mut self,
        images: &Path,
        processes: &[i32],
        mapped: impl IntoIterator<Item = (u64, u64)>,
    ) -> io::Result<Taken> {
        let covers = |(inode, end): (u64, u64)| {
            let mut known = self.objects.iter();
            known.any(|object| object.inode == inode && object.size >= end)
        };
        if mapped.into_iter().all(covers) {
            return Ok(Taken::default());
        }
        let size = |object: &Object| (object.inode, object.size);
        let before: Vec<_> = self.objects.iter().map(size).collect();
        self.find(images, processes)?;
        let mut taken = Taken::default();
        let is_new = |object: &&mut Object| !before.contains(&size(object));
        for object in self.objects.iter_mut().filter(is_new) {
            taken.add(object.update()?);
        }
        Ok(taken)
    }

    /// Brings the pages into CRIU's images.
    pub(super) fn complete(self, images: &Path) -> Result<(), CriuError> {
        for object in self.objects {
            let name = format!("shmem-{}", object.inode);
            // nobody may have had it mapped any more in the end
            if images.join(format!("pagemap-{name}.img")).exists() {
                let source = Source {
                    copy: &object.copy,
                    twin: None,
                };
                image::add(images, &name, source, &object.runs)?;
            }
        }
        Ok(())
    }

    /// Looks what the processes have mapped.
    fn find(&mut self, images: &Path, processes: &[i32]) -> io::Result<()> {
        for pid in processes {
            let areas = match memory::areas(*pid) {
                Err(error) if super::is_over(&error) => continue,
                areas => areas?,
            };
            for area in areas {
                if !is_shared(&area) {
                    continue;
                }
                let size = area.offset + (area.range.end - area.range.start);
                let known = self.objects.iter_mut().find(|o| o.inode == area.inode);
                if let Some(object) = known {
                    object.size = object.size.max(size);
                    continue;
                }
                let Range { start, end } = area.range;
                let file = match File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}")) {
                    // unmapped meanwhile
                    Err(error) if super::is_over(&error) => continue,
                    file => file?,
                };
                let path = images.join(format!("shared-{}", area.inode));
                let copy = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&path)?;
                self.objects.push(Object {
                    inode: area.inode,
                    file,
                    size,
                    copy,
                    views: None,
                    copied: RangeSet::new(),
                    path,
                    runs: Vec::new(),
                });
            }
        }
        Ok(())
    }
}

/// Whether it is memory of this kind.
fn is_shared(area: &memory::Area) -> bool {
    !area.private && area.name == NAME && area.device == DEVICE
}

/// Bytes of it that these processes have mapped, as far as it can be seen from outside.
pub(super) fn mapped(processes: &[i32]) -> u64 {
    let mut sizes: HashMap<u64, u64> = HashMap::new();
    let areas = processes.iter().filter_map(|pid| memory::areas(*pid).ok());
    for area in areas.flatten().filter(is_shared) {
        let size = area.offset + (area.range.end - area.range.start);
        let known = sizes.entry(area.inode).or_default();
        *known = size.max(*known);
    }
    sizes.values().sum()
}

impl Object {
    /// Makes the copy equal; what there is, and what was not equal.
    fn update(&mut self) -> io::Result<Taken> {
        let mut taken = Taken::default();
        self.runs.clear();
        let mut at = 0;
        while let Some(data) = self.data(at)? {
            at = data.end;
            let pages = (data.end - data.start) / PAGE;
            self.runs.push(Run {
                start: data.start,
                pages,
                can_be_late: false,
            });
            taken.all += pages * PAGE;
            let fresh: Vec<_> = self.copied.gaps(&data).collect();
            for part in fresh {
                taken.frozen += part.end - part.start;
                self.take(part)?;
            }
            let known: Vec<_> = within(&self.copied, &data).collect();
            for page in known.into_iter().flat_map(|part| part.step_by(PAGE_SIZE)) {
                if !self.is_equal(page..page + PAGE)? {
                    taken.frozen += PAGE;
                    self.take(page..page + PAGE)?;
                }
            }
            self.copied.insert(data);
        }
        Ok(taken)
    }

    /// Copies.
    fn take(&self, part: Range<u64>) -> io::Result<()> {
        let mut bytes = [0; PAGE_SIZE];
        for page in part.step_by(PAGE_SIZE) {
            self.file.read_exact_at(&mut bytes, page)?;
            self.copy.write_all_at(&bytes, page)?;
        }
        Ok(())
    }

    /// Whether the copy has the same there. Both have pages there: looking where there is none would make one.
    fn is_equal(&mut self, part: Range<u64>) -> io::Result<bool> {
        let size = self.size;
        let [now, then] = match &mut self.views {
            Some(views) if views.iter().all(|view| view.length() == size) => views,
            views => {
                self.copy.set_len(size)?;
                views.insert([View::of(&self.file, size)?, View::of(&self.copy, size)?])
            }
        };
        Ok(now.is_equal(then, part))
    }

    /// The next pages that there are, at or after `from`.
    fn data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        if from >= self.size {
            return Ok(None);
        }
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(from)) {
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            start => start?,
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?.min(self.size);
        Ok((start < end).then_some(start..end))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, ChildStdout, Command, Stdio};

    use super::*;

    /// A program that does what it is told, and has a MiB of such memory with three pages in it.
    struct Program {
        process: Child,
        answers: BufReader<ChildStdout>,
    }

    const CODE: &str = "import mmap, sys
a = mmap.mmap(-1, 1 << 20)
a[:3 * 4096] = b'a' * 3 * 4096
print(flush=True)
for line in sys.stdin:
    exec(line)
    print(flush=True)";

    impl Program {
        fn start() -> Self {
            let mut process = Command::new("python3")
                .args(["-c", CODE])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let answers = BufReader::new(process.stdout.take().unwrap());
            let mut program = Self { process, answers };
            program.wait();
            program
        }

        fn wait(&mut self) {
            self.answers.read_line(&mut String::new()).unwrap();
        }

        fn does(&mut self, line: &str) {
            let mut input = self.process.stdin.as_ref().unwrap();
            writeln!(input, "{line}").unwrap();
            self.wait();
        }

        fn processes(&self) -> [i32; 1] {
            [i32::try_from(self.process.id()).unwrap()]
        }

        /// What a dump says of it.
        fn mapped(&self) -> Vec<(u64, u64)> {
            let areas = memory::areas(self.processes()[0]).unwrap();
            let shared = areas.into_iter().filter(is_shared);
            shared
                .map(|a| (a.inode, a.offset + a.range.end - a.range.start))
                .collect()
        }
    }

    impl Drop for Program {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    fn page(object: &Object, at: u64) -> u8 {
        let mut byte = [0];
        object.copy.read_exact_at(&mut byte, at * PAGE).unwrap();
        byte[0]
    }

    #[test]
    fn the_copy_has_what_was_written_and_mapped_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = Program::start();
        let mut shared = Shared::default();
        let processes = program.processes();
        assert_eq!(shared.round(dir.path(), &processes).unwrap(), 3);
        assert_eq!(shared.bytes(), 1 << 20);
        assert_eq!(
            shared.take().unwrap(),
            Taken {
                all: 3 * PAGE,
                frozen: 0
            }
        );

        program.does("a[4096] = 98; a[9 * 4096] = 99");
        let taken = shared.take().unwrap();
        assert_eq!(
            taken,
            Taken {
                all: 4 * PAGE,
                frozen: 2 * PAGE
            }
        );
        assert_eq!(
            [0, 1, 2, 9].map(|at| page(&shared.objects[0], at)),
            *b"abac"
        );
        let nothing = shared.take_rest(dir.path(), &processes, program.mapped());
        assert_eq!(nothing.unwrap(), Taken::default());

        program.does("b = mmap.mmap(-1, 8192); b[0] = 100; a[5] = 0");
        let rest = shared.take_rest(dir.path(), &processes, program.mapped());
        assert_eq!(
            rest.unwrap(),
            Taken {
                all: PAGE,
                frozen: PAGE
            }
        );
        assert_eq!(page(&shared.objects[1], 0), b'd');
        assert_eq!(shared.objects[1].runs.len(), 1);
        // A page that was given back, and one that came again.
        program.does("a.madvise(mmap.MADV_REMOVE, 4096, 4096)");
        assert_eq!(shared.objects[0].update().unwrap().all, 3 * PAGE);
        program.does("a[4096] = 101");
        shared.take().unwrap();
        assert_eq!(page(&shared.objects[0], 1), b'e');
        drop(shared);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
