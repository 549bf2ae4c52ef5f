//! Which areas of a process hold private pages: while it runs, as the kernel shows them; once it was dumped, as CRIU wrote them.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use offshoot_sys::memory;

use crate::error::CriuError;
use crate::images::{COMMON_MAGIC, MM_MAGIC, decode, read_records};
use crate::rpc::Mm;

/// `VMA_*` of CRIU's `criu/include/image.h`.
const REGULAR: u32 = 1 << 0;
const VDSO: u32 = 1 << 3;
const FILE_PRIVATE: u32 = 1 << 6;
const ANON_SHARED: u32 = 1 << 8;
const ANON_PRIVATE: u32 = 1 << 9;
const SYSTEM_V: u32 = 1 << 10;
const VVAR: u32 = 1 << 12;
const AIO_RING: u32 = 1 << 13;
/// `MAP_*` of mmap(2).
const MAP_DROPPABLE: u32 = 0x08;
const MAP_GROWSDOWN: u32 = 0x0100;
const MAP_LOCKED: u32 = 0x2000;
const MAP_HUGETLB: u32 = 0x0004_0000;

/// Smaller areas are in use at once: they come with the process.
const LATE_AREA: u64 = 1 << 20;

/// A private area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) range: Range<u64>,
    /// No page of it can be a file's.
    pub(super) anonymous: bool,
    /// Its pages may come later than the process: it is large and plain anonymous memory. Of a running process not all is known that
    /// speaks against it.
    pub(super) can_be_late: bool,
}

impl Area {
    fn new(range: Range<u64>, anonymous: bool, is_plain: bool) -> Self {
        Self {
            can_be_late: is_plain && range.end - range.start >= LATE_AREA,
            anonymous,
            range,
        }
    }
}

/// The private areas of a running process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Private {
    pub(super) areas: Vec<Area>,
    /// Asynchronous I/O of the kernel's own (io_setup(2)) writes where no page table shows it.
    pub(super) has_aio: bool,
}

/// What process `pid` has mapped right now.
pub(super) fn of_running(pid: i32) -> io::Result<Private> {
    Ok(private(memory::areas(pid)?))
}

fn private(areas: impl IntoIterator<Item = memory::Area>) -> Private {
    let mut private = Private::default();
    for area in areas {
        private.has_aio |= area.name.starts_with("/[aio]");
        let special = ["[vdso]", "[vvar", "[vsyscall]"];
        if area.private && !special.iter().any(|s| area.name.starts_with(s)) {
            let anonymous = area.anonymous;
            private
                .areas
                .push(Area::new(area.range, anonymous, anonymous));
        }
    }
    private
}

/// What CRIU wrote about one process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dumped {
    /// Its number inside the node.
    pub(super) number: u32,
    pub(super) private: Vec<Area>,
    /// Memory that it shares without a file: the number of the kernel's file, and up to where it has it mapped, bytes.
    pub(super) shared: Vec<(u64, u64)>,
}

/// What is in a set of images, process by process.
pub(super) fn dumped(images: &Path) -> Result<Vec<Dumped>, CriuError> {
    let unreadable = |source| CriuError::Image {
        path: images.to_owned(),
        what: "cannot be listed".to_owned(),
        source: Some(source),
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(images).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("mm-")?.strip_suffix(".img")?.parse().ok());
        let Some(number) = number else { continue };
        for record in read_records(&path, &[COMMON_MAGIC, MM_MAGIC])? {
            found.push(of_dumped(number, &decode(&path, &record)?));
        }
    }
    Ok(found)
}

fn of_dumped(number: u32, mm: &Mm) -> Dumped {
    let mut dumped = Dumped {
        number,
        ..Dumped::default()
    };
    for vma in mm.vmas.iter().filter(|vma| vma.status & REGULAR != 0) {
        if vma.status & ANON_SHARED != 0 && vma.status & SYSTEM_V == 0 {
            let end = vma.offset.saturating_add(vma.end.saturating_sub(vma.start));
            dumped.shared.push((vma.shared, end));
        }
        // CRIU dumps vDSO and AIO rings whole, without asking for pages; the rest of these has no content
        if vma.status & (FILE_PRIVATE | ANON_PRIVATE) != 0
            && vma.status & (VDSO | VVAR | AIO_RING) == 0
            && vma.flags & MAP_DROPPABLE == 0
        {
            let anonymous = vma.status & ANON_PRIVATE != 0 && vma.flags & MAP_HUGETLB == 0;
            let is_plain = anonymous && vma.flags & (MAP_GROWSDOWN | MAP_LOCKED) == 0;
            let area = Area::new(vma.start..vma.end, anonymous, is_plain);
            dumped.private.push(area);
        }
    }
    dumped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::Vma;

    #[test]
    fn private_areas_are_found() {
        let maps = "\
555500000000-555500002000 r-xp 00000000 00:1f 300 /usr/bin/with space
555500003000-555500004000 rw-p 00003000 00:1f 300 /usr/bin/with space
7f0000000000-7f0000001000 rw-s 00000000 00:01 7 /dev/zero (deleted)
7f0000002000-7f0000003000 rw-s 00000000 00:0b 8 /[aio] (deleted)
7f0000004000-7f0000005000 rw-p 00000000 00:00 0 
7ffff7fbf000-7ffff7fc3000 r--p 00000000 00:00 0 [vvar]
7ffff7fc3000-7ffff7fc5000 r-xp 00000000 00:00 0 [vdso]
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
rubbish
";
        let found = private(maps.lines().filter_map(memory::area));
        assert!(found.has_aio);
        assert_eq!(
            found
                .areas
                .iter()
                .map(|area| area.range.start)
                .collect::<Vec<_>>(),
            [
                0x5555_0000_0000,
                0x5555_0000_3000,
                0x7f00_0000_4000,
                0x7fff_fffd_e000
            ]
        );
        assert!(
            !of_running(std::process::id().cast_signed())
                .unwrap()
                .has_aio
        );
    }

    #[test]
    fn areas_of_a_dump_are_told_apart() {
        let vma = |start: u64, status: u32, flags: u32| Vma {
            start,
            end: start + 0x2000,
            offset: 0x1000,
            shared: 77,
            flags,
            status,
        };
        let mm = Mm {
            vmas: vec![
                vma(0x1_0000, REGULAR | ANON_PRIVATE, 0),
                vma(0x2_0000, REGULAR | FILE_PRIVATE, 0),
                vma(0x3_0000, REGULAR | ANON_SHARED, 0),
                vma(0x4_0000, REGULAR | ANON_SHARED | SYSTEM_V, 0),
                vma(0x5_0000, REGULAR | ANON_PRIVATE | VDSO, 0),
                vma(0x6_0000, REGULAR | ANON_PRIVATE, MAP_DROPPABLE),
                vma(0x7_0000, ANON_PRIVATE, 0),
            ],
        };
        let dumped = of_dumped(5, &mm);
        assert_eq!((dumped.number, dumped.shared), (5, vec![(77, 0x3000)]));
        let private = dumped.private.iter();
        let private: Vec<_> = private.map(|a| (a.range.start, a.anonymous)).collect();
        assert_eq!(private, [(0x1_0000, true), (0x2_0000, false)]);
    }
}
