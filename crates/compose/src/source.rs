//! Where files come from. Parsing itself touches no disk.

use std::path::Path;

/// Something that has files: the disk, or a map in a test.
pub trait FileSource {
    /// Reads the file at `path` if it has at most `max` bytes.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn read(&self, path: &Path, max: u64) -> Result<FileData, FileError>;
}

/// A file's content and permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileData {
    /// The content.
    pub bytes: Vec<u8>,
    /// Permission bits, for instance 0o644.
    pub mode: u32,
}

/// Why a file cannot be read. The sentence follows the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Nothing is there.
    #[error("does not exist")]
    Missing,
    /// A directory is there.
    #[error("is a directory")]
    Directory,
    /// A device, socket or pipe is there.
    #[error("is not a regular file")]
    Special,
    /// It is larger than was asked for.
    #[error("is larger than {max} bytes")]
    TooLarge {
        /// The bound in bytes.
        max: u64,
    },
    /// Anything else, in the system's words.
    #[error("cannot be read: {0}")]
    Other(String),
}
