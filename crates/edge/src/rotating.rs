//! A log file that never grows past its bound.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Appends to a file; from `max_bytes` on it is renamed to `.1` (and `.1` to `.2`, up to `keep`) and a new one begun.
pub(crate) struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    max_bytes: u64,
    keep: u32,
}

impl RotatingFile {
    /// Opens or creates the file, mode 0600.
    pub(crate) fn open(path: &Path, max_bytes: u64, keep: u32) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            max_bytes,
            keep,
        })
    }

    /// Opens the file anew, when another program has moved it.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = append(&self.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.keep).rev() {
            ignore_absent(fs::rename(self.numbered(number), self.numbered(number + 1)))?;
        }
        if self.keep > 0 {
            ignore_absent(fs::rename(&self.path, self.numbered(1)))?;
        } else {
            ignore_absent(fs::remove_file(&self.path))?;
        }
        self.file = append(&self.path)?;
        self.size = 0;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Write for RotatingFile {
    /// Writes all of `content` into one file: pass whole lines.
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        if self.size >= self.max_bytes {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(content) {
            // a part of a line would spoil the next one
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += u64::try_from(content.len()).unwrap_or(u64::MAX);
        Ok(content.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_files_are_numbered_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = RotatingFile::open(&path, 10, 2).unwrap();
        for line in 0..8 {
            log.write_all(format!("line {line}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("log"), "line 6\nline 7\n");
        assert_eq!(read("log.1"), "line 4\nline 5\n");
        assert_eq!(read("log.2"), "line 2\nline 3\n");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
