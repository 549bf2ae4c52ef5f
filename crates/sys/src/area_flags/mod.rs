//! The flags of a process's areas (`VmFlags` of proc_pid_smaps(5)) as the kernel keeps them, without what makes smaps slow: for that,
//! the kernel looks at every page. A BPF program reads them (Linux 6.1 with BTF).

mod bpf;
mod btf;

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use self::bpf::Instruction;
use self::btf::Btf;

/// Where the kernel describes its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Bytes that the program writes for each area.
const RECORD: usize = 24;
/// Bytes read at a time: more than the kernel gives at once.
const READ: usize = 256 << 10;

/// An area's flags: bits that mean what they mean on this kernel only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flagged {
    /// Its addresses, whole pages.
    pub range: Range<u64>,
    /// Its flags.
    pub flags: u64,
}

/// What the areas of process `pid` are flagged with, in rising order.
///
/// # Errors
/// When the kernel offers no such thing or does not allow it, or when there is no such process.
pub fn of(pid: i32) -> io::Result<Vec<Flagged>> {
    static PROGRAM: OnceLock<Result<OwnedFd, String>> = OnceLock::new();
    let program = PROGRAM
        .get_or_init(|| load().map_err(|error| error.to_string()))
        .as_ref()
        .map_err(|error| io::Error::other(error.as_str()))?;
    let task = u32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut file = File::from(bpf::over_areas(program.as_fd(), task)?);
    let mut areas: Vec<Flagged> = Vec::new();
    // Reads smaller than the kernel's own buffer would show some areas again, and behind the end the last ones come once more.
    let mut buffer = vec![0; READ];
    loop {
        let read = file.read(&mut buffer)?;
        let (records, _) = buffer.get(..read).unwrap_or_default().as_chunks::<RECORD>();
        let end = areas.last().map_or(0, |last| last.range.end);
        let before = areas.len();
        let new = records.iter().map(flagged);
        areas.extend(new.skip_while(|area| area.range.start < end));
        if areas.len() == before {
            return Ok(areas);
        }
    }
}

fn flagged(record: &[u8; RECORD]) -> Flagged {
    let (words, _) = record.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_ne_bytes(*word));
    let mut next = || words.next().unwrap_or_default();
    Flagged {
        range: next()..next(),
        flags: next(),
    }
}

/// The program: for each area, its first address, the one behind it, and its flags.
fn load() -> io::Result<OwnedFd> {
    let bytes = fs::read(BTF)?;
    let btf = Btf::parse(&bytes)?;
    let at = |member| {
        let offset = btf.offset("vm_area_struct", member)?;
        i16::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    };
    // registers by number: 1 to 5 arguments, 7 the area, 10 the end of the stack
    let load = |to: u8, from: u8, offset| Instruction(0x79, from << 4 | to, offset, 0);
    let store = |offset| Instruction(0x7b, 3 << 4 | 10, offset, 0);
    let end = 12;
    let program = [
        load(7, 1, 16),               // the area, third of `struct bpf_iter__task_vma`
        Instruction(0x15, 7, end, 0), // none: the last call
        load(1, 1, 0),                // `struct bpf_iter_meta`
        load(1, 1, 0),                // its `struct seq_file`
        load(3, 7, at("vm_start")?),
        store(-24),
        load(3, 7, at("vm_end")?),
        store(-16),
        load(3, 7, at("vm_flags")?),
        store(-8),
        Instruction(0xbf, 10 << 4 | 2, 0, 0),
        Instruction(0x07, 2, 0, -24),
        Instruction(0xb7, 3, 0, RECORD as i32),
        Instruction(0x85, 0, 0, 127), // bpf_seq_write
        Instruction(0xb7, 0, 0, 0),
        Instruction(0x95, 0, 0, 0),
    ];
    bpf::load(&program, btf.function("bpf_iter_task_vma")?)
}

#[cfg(test)]
mod tests {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    use super::*;
    use crate::memory;

    #[test]
    fn areas_are_those_of_maps_and_advice_shows_in_their_flags() {
        let own = std::process::id().cast_signed();
        if !fs::exists(BTF).unwrap() {
            println!("SKIPPED: this kernel does not describe its types");
            return;
        }
        let before = of(own).unwrap();
        // other threads of the test map and unmap
        let maps = memory::areas(own).unwrap();
        let same = maps
            .iter()
            .filter(|area| before.iter().any(|f| f.range == area.range));
        assert!(same.count() * 2 > maps.len());

        let (length, access) = (4 << 20, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new area, which nothing else uses.
        let area = unsafe {
            mmap_anonymous(std::ptr::null_mut(), length, access, MapFlags::PRIVATE).unwrap()
        };
        let flags = || {
            let inside = area as u64 + 4096;
            let all = of(own).unwrap();
            all.iter()
                .find(|f| f.range.contains(&inside))
                .unwrap()
                .flags
        };
        let plain = flags();
        // SAFETY: the area is ours, and nobody forks here.
        unsafe { madvise(area, length, Advice::LinuxDontFork).unwrap() };
        let kept = flags();
        assert_eq!((kept & !plain).count_ones(), 1, "{plain:x} {kept:x}");
        // SAFETY: as above.
        unsafe { madvise(area, length, Advice::LinuxDoFork).unwrap() };
        assert_eq!(flags(), plain);
        // SAFETY: the area is ours and not used any more.
        unsafe { munmap(area, length).unwrap() };
    }

    #[test]
    fn many_areas_are_told_once_each() {
        if !fs::exists(BTF).unwrap() {
            println!("SKIPPED: this kernel does not describe its types");
            return;
        }
        const MANY: usize = 5000;
        // SAFETY: a new area, which nothing else uses.
        let area = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                MANY * 4096,
                ProtFlags::READ,
                MapFlags::PRIVATE,
            )
        };
        let area = area.unwrap();
        for page in (0..MANY).step_by(2) {
            // SAFETY: a page of it, which nothing uses.
            unsafe {
                rustix::mm::mprotect(
                    area.byte_add(page * 4096),
                    4096,
                    rustix::mm::MprotectFlags::empty(),
                )
            }
            .unwrap();
        }
        let whole = area as u64..area as u64 + (MANY * 4096) as u64;
        let told = of(std::process::id().cast_signed()).unwrap();
        let inside = told.iter().filter(|f| whole.contains(&f.range.start));
        let starts: Vec<_> = inside.map(|f| f.range.start).collect();
        let expected: Vec<_> = whole.step_by(4096).collect();
        // SAFETY: the area is ours and not used any more.
        unsafe { munmap(area, MANY * 4096).unwrap() };
        // the last may be one with what is behind it, the first with what is before
        assert_eq!(
            starts.get(1..MANY - 1),
            expected.get(1..MANY - 1),
            "{}",
            starts.len()
        );
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error_or_has_no_areas() {
        assert!(of(i32::MAX).map_or(true, |areas| areas.is_empty()));
        assert!(of(-1).is_err());
    }
}
