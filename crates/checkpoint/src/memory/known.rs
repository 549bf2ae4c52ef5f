//! What CRIU would ask the kernel in the freeze, and is told from files that are written before (see `offshoot_sys::preload`).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::container::Container;
use crate::error::CriuError;
use crate::family::{children, is_twin};
use crate::parallel::by_processors;

/// The list of twins, also of earlier clones.
const TWINS: &str = "twins";
/// Flags that say what is in the child of a process, or whether memory may be swapped out (`VmFlags` of proc_pid_smaps(5)): `dc`
/// MADV_DONTFORK, `wf` MADV_WIPEONFORK, `lo` mlock(2). The others are advice about speed.
const MEANINGFUL: [&str; 3] = ["dc", "wf", "lo"];

/// The files of one node.
#[derive(Debug)]
pub(super) struct Known {
    folder: PathBuf,
    /// What was written about the areas of each process.
    areas: HashMap<i32, String>,
}

impl Known {
    /// In the folder of images.
    pub(super) fn new(images: &Path) -> Self {
        Self {
            folder: images.to_owned(),
            areas: HashMap::new(),
        }
    }

    /// Writes all anew, as late as possible before the freeze.
    pub(super) fn write(&mut self, container: &Container) -> io::Result<()> {
        let all = container.processes();
        let twins = all.iter().flat_map(|pid| children(*pid));
        let twins = twins.filter(|pid| is_twin(*pid));
        let list: String = twins.map(|pid| format!("{pid}\n")).collect();
        fs::write(self.folder.join(TWINS), list)?;
        let mut all: Vec<_> = all.into_iter().map(|pid| (pid, None)).collect();
        by_processors(&mut all, |(pid, areas)| *areas = areas_of(*pid).ok());
        for pid in self.areas.keys() {
            let _ = fs::remove_file(self.path(*pid));
        }
        self.areas.clear();
        for (pid, areas) in all {
            // Of one that ends right now nothing is known, and nothing need be.
            if let Some(areas) = areas {
                fs::write(self.path(pid), &areas)?;
                self.areas.insert(pid, areas);
            }
        }
        Ok(())
    }

    /// Whether what was told was still right in the freeze, some time after it, when the processes run again.
    ///
    /// In the freeze, areas were compared without their flags. If one has other flags now, then either it had them in the freeze
    /// already, or it got them afterwards.
    ///
    /// # Errors
    /// When that cannot be told.
    pub(super) fn check(self) -> Result<(), CriuError> {
        let mut all: Vec<_> = self.areas.iter().collect();
        let changed = by_processors(&mut all, |(pid, before)| {
            areas_of(**pid).is_ok_and(|now| differ(before, &now))
        });
        match all.iter().zip(changed).find(|(_, changed)| *changed) {
            None => Ok(()),
            Some(((pid, _), _)) => Err(CriuError::Unexpected(format!(
                "process {pid} changed what fork(2) does with its memory in the very moment of the cut"
            ))),
        }
    }

    /// Removes the files.
    pub(super) fn forget(&self) {
        for pid in self.areas.keys() {
            let _ = fs::remove_file(self.path(*pid));
        }
        let _ = fs::remove_file(self.folder.join(TWINS));
    }

    fn path(&self, pid: i32) -> PathBuf {
        self.folder.join(format!("areas-{pid}"))
    }
}

/// Of `/proc/<pid>/smaps` the lines that are in `maps` too, each followed by its flags.
fn areas_of(pid: i32) -> io::Result<String> {
    Ok(short(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
}

fn short(smaps: &str) -> String {
    smaps
        .split_inclusive('\n')
        .filter(|line| {
            let first = line.split(' ').next().unwrap_or_default();
            first == "VmFlags:" || !first.ends_with(':')
        })
        .collect()
}

/// Whether an area that is in both has other flags that mean something.
fn differ(before: &str, now: &str) -> bool {
    fn pairs(text: &str) -> impl Iterator<Item = (&str, [bool; MEANINGFUL.len()])> {
        let mut lines = text.lines();
        std::iter::from_fn(move || {
            let (area, flags) = (lines.next()?, lines.next()?);
            let has = |flag| flags.split_ascii_whitespace().any(|f| f == flag);
            Some((area, MEANINGFUL.map(has)))
        })
    }
    let before: HashMap<_, _> = pairs(before).collect();
    pairs(now).any(|(area, flags)| before.get(area).is_some_and(|before| *before != flags))
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
    fn areas_and_their_flags_are_kept() {
        let short = short(SMAPS);
        assert_eq!(short.lines().count(), 4, "{short}");
        assert!(short.contains("/usr/lib/a b: c\nVmFlags: rd mr mw me \n"));
        assert!(
            areas_of(std::process::id().cast_signed())
                .unwrap()
                .contains("[stack]")
        );
    }

    #[test]
    fn flags_that_mean_something_are_compared() {
        let before = short(SMAPS);
        assert!(!differ(&before, &before));
        assert!(!differ(&before, &before.replace("me ac", "me hg")));
        assert!(differ(&before, &before.replace("me ac", "me wf")));
        assert!(differ(&before.replace("me ac", "lo"), &before));
        // another area: CRIU asked the kernel about it
        let other = before.replace("7f0000000000", "7e0000000000");
        assert!(!differ(&before, &other.replace("me ac", "me wf")));
    }
}
