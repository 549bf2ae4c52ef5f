//! What the kernel calls the flags of areas (`VmFlags` of proc_pid_smaps(5)), without reading smaps each time: it tells the bits
//! (`offshoot_sys::area_flags`), and what it calls them is learned once for every combination that this host has.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use offshoot_sys::area_flags::{self, Flagged};
use offshoot_sys::memory;

/// An area and its line.
pub(super) type Line = (Range<u64>, Arc<str>);

/// What is known. It holds for as long as this kernel runs, which is longer than we do.
#[derive(Debug, Default)]
struct Lines {
    by_bits: HashMap<u64, Arc<str>>,
    /// What is shown for every process and none of its areas: `[vsyscall]`, above all addresses that a process has.
    beyond: Option<Line>,
}

static LINES: LazyLock<Mutex<Lines>> = LazyLock::new(Mutex::default);
/// From here on addresses are the kernel's.
const BEYOND: u64 = 1 << 63;

/// The areas of process `pid` and their flags, in rising order. One that gets flags just now which no area had before may be missing.
///
/// # Errors
/// When the kernel tells no flags, or when there is no such process.
pub(super) fn of(pid: i32) -> io::Result<Vec<Line>> {
    let mut areas = area_flags::of(pid)?;
    if !are_known(&areas) {
        areas = learn(pid, &areas)?;
    }
    let lines = lines();
    let line = |area: Flagged| Some((area.range, lines.by_bits.get(&area.flags)?.clone()));
    let own = areas.into_iter().filter_map(line);
    Ok(own.chain(lines.beyond.clone()).collect())
}

fn lines() -> MutexGuard<'static, Lines> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn are_known(areas: &[Flagged]) -> bool {
    let lines = lines();
    let known = |area: &Flagged| lines.by_bits.contains_key(&area.flags);
    areas.iter().all(known)
}

/// Compares what the two ways tell of a process that had the areas `before` just now; those that it has afterwards.
fn learn(pid: i32, before: &[Flagged]) -> io::Result<Vec<Flagged>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let after = area_flags::of(pid)?;
    let mut lines = lines();
    for (range, flags) in flags_in(&smaps) {
        if range.start >= BEYOND {
            lines.beyond = Some((range, flags.into()));
            continue;
        }
        let bits = |areas: &[Flagged]| {
            let at = areas.binary_search_by_key(&range.start, |area| area.range.start);
            let found = areas.get(at.ok()?)?;
            (found.range == range).then_some(found.flags)
        };
        // an area whose flags were the same before and after had them meanwhile
        if let Some(bits) = bits(before).filter(|before| bits(&after) == Some(*before)) {
            lines.by_bits.insert(bits, flags.into());
        }
    }
    Ok(after)
}

/// The areas in smaps, and their lines of flags.
fn flags_in(smaps: &str) -> impl Iterator<Item = (Range<u64>, &str)> {
    let mut last = None;
    smaps.lines().filter_map(move |line| {
        if line.starts_with("VmFlags:") {
            return Some((last.take()?, line));
        }
        last = memory::area(line).map(|area| area.range).or(last.take());
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000001000 rw-p 00000000 00:00 0 
Size:                  4 kB
Rss:                   0 kB
THPeligible:           0
VmFlags: rd wr mr mw me ac 
7f0000002000-7f0000003000 r--p 00000000 fe:00 12                         /usr/lib/a b: c
Size:                  4 kB
VmFlags: rd mr mw me 
";

    #[test]
    fn flags_are_found_in_smaps() {
        let found: Vec<_> = flags_in(SMAPS).collect();
        let first = (
            0x7f00_0000_0000..0x7f00_0000_1000,
            "VmFlags: rd wr mr mw me ac ",
        );
        let second = (0x7f00_0000_2000..0x7f00_0000_3000, "VmFlags: rd mr mw me ");
        assert_eq!(found, [first, second]);
    }

    #[test]
    fn both_ways_tell_the_same() {
        // a process that stands still, for ours has threads
        let mut other = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = other.id().cast_signed();
        let link = || fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        while !link().ends_with("sleep") && !link().ends_with("coreutils") {
            std::thread::yield_now();
        }
        let told = of(pid);
        let told = told.map(|told| (told, fs::read_to_string(format!("/proc/{pid}/smaps"))));
        other.kill().unwrap();
        other.wait().unwrap();
        match told {
            Err(error) => println!("SKIPPED: this kernel tells no flags: {error}"),
            Ok((told, smaps)) => {
                let smaps = smaps.unwrap();
                let read: Vec<_> = flags_in(&smaps).collect();
                let told: Vec<_> = told
                    .iter()
                    .map(|(range, line)| (range.clone(), &**line))
                    .collect();
                assert_eq!(told, read);
                assert!(told.len() > 5, "{smaps}");
            }
        }
    }
}
