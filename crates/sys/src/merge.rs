//! Kernel same-page merging: equal private memory of processes that allow it is kept once (Documentation/admin-guide/mm/ksm.rst).

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::libc;
use rustix::fs::{FlockOperation, flock};

/// Where the kernel has its switches, when it can merge.
pub const DIR: &str = "/sys/kernel/mm/ksm";

/// prctl(2), Linux 6.4.
const PR_SET_MEMORY_MERGE: libc::c_int = 67;
const PR_GET_MEMORY_MERGE: libc::c_int = 68;

/// Lets the memory of what `command` starts be merged, and of all that it starts or becomes (`PR_SET_MEMORY_MERGE`; kept over execve(2)
/// since Linux 6.7). Where the kernel knows no such thing the command runs as it would otherwise.
pub fn allow(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe functions may be called; prctl is one system call, and passes no memory.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0);
            Ok(())
        });
    }
}

/// Whether the kernel lets a process allow it for all of its memory.
#[must_use]
pub fn can_be_allowed() -> bool {
    // SAFETY: only asks, and passes no memory.
    unsafe { libc::prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) >= 0 }
}

/// What the kernel's merging thread does (`run`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Nothing; what is merged stays so (0).
    Stands,
    /// It looks for equal pages (1).
    Merges,
    /// It stands, and everything was taken apart (2).
    Undone,
}

/// The switches of the kernel's merging thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What it does.
    pub run: Run,
    /// Pages it looks at before it rests.
    pub pages_to_scan: u64,
    /// How long it rests, in milliseconds.
    pub sleep_millisecs: u64,
    /// Who else sets `pages_to_scan`: `none`, `scan-time`. Absent before Linux 6.8.
    pub advisor_mode: Option<String>,
}

/// The kernel's merging thread, by its directory.
#[derive(Debug, Clone)]
pub struct Merger {
    dir: PathBuf,
}

impl Merger {
    /// The one whose switches are in `dir`: [`DIR`], or something of the same form.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Keeps others of this host out who ask here too (flock(2)), until what is returned is dropped; `None` while somebody else does.
    #[must_use]
    pub fn hold(&self) -> Option<File> {
        let dir = File::open(&self.dir).ok()?;
        flock(&dir, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(dir)
    }

    /// How the switches are.
    ///
    /// # Errors
    /// `NotFound` when the kernel cannot merge; `InvalidData` when a switch is not understood.
    pub fn settings(&self) -> io::Result<Settings> {
        let run = match self.number("run")? {
            0 => Run::Stands,
            1 => Run::Merges,
            2 => Run::Undone,
            other => return Err(self.strange("run", &other.to_string())),
        };
        let advisor_mode = match self.text("advisor_mode") {
            Ok(text) => Some(chosen(&text).to_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(Settings {
            run,
            pages_to_scan: self.number("pages_to_scan")?,
            sleep_millisecs: self.number("sleep_millisecs")?,
            advisor_mode,
        })
    }

    /// Sets all switches, `run` last.
    ///
    /// # Errors
    /// Of the file that cannot be written; those before it in the list of fields may be set then.
    pub fn set(&self, settings: &Settings) -> io::Result<()> {
        // While somebody else sets the number of pages, the kernel takes none from here.
        if settings.advisor_mode.is_some() {
            self.write("advisor_mode", "none")?;
        }
        self.write("pages_to_scan", &settings.pages_to_scan.to_string())?;
        self.write("sleep_millisecs", &settings.sleep_millisecs.to_string())?;
        if let Some(mode) = &settings.advisor_mode {
            self.write("advisor_mode", mode)?;
        }
        let run = match settings.run {
            Run::Stands => "0",
            Run::Merges => "1",
            Run::Undone => "2",
        };
        // Writing it waits until the thread rests.
        if self.text("run").is_ok_and(|now| now == run) {
            return Ok(());
        }
        self.write("run", run)
    }

    /// How often all memory that may be merged was looked at since the host started.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn full_scans(&self) -> io::Result<u64> {
        self.number("full_scans")
    }

    fn text(&self, name: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.dir.join(name))?.trim().to_owned())
    }

    fn number(&self, name: &str) -> io::Result<u64> {
        let text = self.text(name)?;
        text.parse().map_err(|_| self.strange(name, &text))
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        fs::write(self.dir.join(name), text)
    }

    fn strange(&self, name: &str, text: &str) -> io::Error {
        let what = format!("{}: {text:?}", self.dir.join(name).display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    }
}

/// The chosen word of a list such as `[none] scan-time`.
fn chosen(list: &str) -> &str {
    list.split_ascii_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
        .unwrap_or(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word() {
        assert_eq!(chosen("[none] scan-time"), "none");
        assert_eq!(chosen("none [scan-time]"), "scan-time");
        assert_eq!(chosen("none"), "none");
    }

    #[test]
    fn what_a_command_starts_and_becomes_may_be_merged() {
        if !can_be_allowed() {
            println!("SKIPPED: needs Linux 6.4 with CONFIG_KSM");
            return;
        }
        let merged = |command: &mut Command| {
            let out = command.output().unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            if text.contains("ksm_merge_any") {
                return Some(text.contains("ksm_merge_any: yes"));
            }
            println!("SKIPPED: needs a kernel that says who may be merged");
            None
        };
        let script = ["-c", "cat /proc/self/ksm_stat; :"];
        let plain = merged(Command::new("/bin/sh").args(script));
        let mut command = Command::new("/bin/sh");
        command.args(script);
        allow(&mut command);
        assert_eq!(plain.map(|plain| !plain), merged(&mut command));
    }
}
