//! The real disk as a source of files.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::source::{FileData, FileError, FileSource};

/// `O_NONBLOCK` of Linux on every architecture Offshoot runs on: opening a FIFO must not wait for its other end
/// (open(2)).
const O_NONBLOCK: i32 = 0o4000;

/// Reads files with the rights of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskFiles;

impl FileSource for DiskFiles {
    fn read(&self, path: &Path, max: u64) -> Result<FileData, FileError> {
        let other = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => FileError::Missing,
            ErrorKind::IsADirectory => FileError::Directory,
            _ => FileError::Other(error.to_string()),
        };
        // A socket cannot be opened at all; say what it is rather than "No such device or address".
        let found = std::fs::metadata(path).map_err(other)?;
        if found.is_dir() {
            return Err(FileError::Directory);
        }
        if !found.is_file() {
            return Err(FileError::Special);
        }
        let file = File::options()
            .read(true)
            .custom_flags(O_NONBLOCK)
            .open(path)
            .map_err(other)?;
        let opened = file.metadata().map_err(other)?;
        if !opened.is_file() {
            return Err(FileError::Special);
        }
        let mut bytes = Vec::new();
        file.take(max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(other)?;
        if bytes.len() as u64 > max {
            return Err(FileError::TooLarge { max });
        }
        Ok(FileData {
            bytes,
            mode: opened.mode() & 0o7777,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_regular_files_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(DiskFiles.read(&path, 5).unwrap().bytes, b"12345");
        assert_eq!(
            DiskFiles.read(&path, 4),
            Err(FileError::TooLarge { max: 4 })
        );
        assert_eq!(DiskFiles.read(dir.path(), 4), Err(FileError::Directory));
        assert_eq!(
            DiskFiles.read(&dir.path().join("b"), 4),
            Err(FileError::Missing)
        );
        assert_eq!(DiskFiles.read(&path.join("c"), 4), Err(FileError::Missing));
        assert_eq!(
            DiskFiles.read(Path::new("/dev/null"), 4),
            Err(FileError::Special)
        );
    }
}
