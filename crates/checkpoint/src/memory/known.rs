//! What CRIU would ask the kernel in the freeze, and is told from files (see `offshoot_sys::preload`). They are written before, and in the
//! freeze once more where they are not right any more.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_sys::memory;
use offshoot_sys::process::children;

use super::flags::{self, Line};
use crate::container::Container;
use crate::family::is_twin;

/// The list of twins, also of earlier clones.
const TWINS: &str = "twins";

/// The files of one node.
#[derive(Debug)]
pub(super) struct Known {
    folder: PathBuf,
    /// What was written about the areas of each process.
    areas: HashMap<i32, Vec<Line>>,
}

impl Known {
    /// In the folder of images.
    pub(super) fn new(images: &Path) -> Self {
        Self {
            folder: images.to_owned(),
            areas: HashMap::new(),
        }
    }

    /// Writes all, while the node runs.
    pub(super) fn write(&mut self, container: &Container) -> io::Result<()> {
        let all = container.processes();
        let twins = all.iter().flat_map(|pid| children(*pid));
        let twins = twins.filter(|pid| is_twin(*pid));
        let list: String = twins.map(|pid| format!("{pid}\n")).collect();
        fs::write(self.folder.join(TWINS), list)?;
        self.correct(container)
    }

    /// Writes anew what changed of the areas since. The node stands still, and CRIU has not asked yet.
    pub(super) fn correct(&mut self, container: &Container) -> io::Result<()> {
        for pid in container.processes() {
            // Of one that ends right now nothing is known, and nothing need be. Where the kernel tells no flags, CRIU reads smaps.
            let Ok(now) = flags::of(pid) else { continue };
            if self.areas.get(&pid) != Some(&now) {
                let text = fs::read_to_string(format!("/proc/{pid}/maps"));
                fs::write(self.path(pid), with_flags(&text.unwrap_or_default(), &now))?;
                self.areas.insert(pid, now);
            }
        }
        Ok(())
    }

    /// Removes the files.
    pub(super) fn forget(self) {
        for pid in self.areas.keys() {
            let _ = fs::remove_file(self.path(*pid));
        }
        let _ = fs::remove_file(self.folder.join(TWINS));
    }

    fn path(&self, pid: i32) -> PathBuf {
        self.folder.join(format!("areas-{pid}"))
    }
}

/// Every line of `/proc/<pid>/maps`, and below it the flags of its area, as far as they are known.
fn with_flags(maps: &str, flags: &[Line]) -> String {
    let flags: HashMap<_, &Arc<str>> = flags.iter().map(|(range, line)| (range, line)).collect();
    let mut text = String::new();
    for line in maps.lines() {
        let range = memory::area(line).map(|area| area.range);
        if let Some(flags) = range.and_then(|range| flags.get(&range)) {
            let _ = writeln!(text, "{line}\n{flags}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_flags_are_put_together() {
        let maps = "\
7f0000000000-7f0000001000 rw-p 00000000 00:00 0 
7f0000001000-7f0000002000 rw-p 00000000 00:00 0 
7f0000002000-7f0000003000 r--p 00000000 fe:00 12                         /usr/lib/a b: c
";
        let line = |start: u64, flags: &str| (start..start + 0x1000, Arc::from(flags));
        let flags = [
            line(0x7f00_0000_0000, "VmFlags: rd wr "),
            line(0x7f00_0000_2000, "VmFlags: rd "),
            line(0x7f00_0000_4000, "VmFlags: ex "),
        ];
        assert_eq!(
            with_flags(maps, &flags),
            "\
7f0000000000-7f0000001000 rw-p 00000000 00:00 0 
VmFlags: rd wr 
7f0000002000-7f0000003000 r--p 00000000 fe:00 12                         /usr/lib/a b: c
VmFlags: rd 
"
        );
    }
}
