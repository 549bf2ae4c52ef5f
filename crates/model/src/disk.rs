//! What the disks of nodes hold, and how those of two environments differ.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A directory of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Directory {
    /// What is in it, by name; at most [`ENTRIES_MAX`].
    pub entries: Vec<FileEntry>,
    /// How many more there are.
    pub left_out: u64,
}

/// Most entries of a [`Directory`].
pub const ENTRIES_MAX: usize = 2_000;

/// An entry of a [`Directory`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileEntry {
    /// Its name; bytes that are not UTF-8 are replaced by U+FFFD, and such a name leads nowhere.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// Bytes, of a file.
    pub size: u64,
    /// Permission bits (inode(7)).
    pub mode: u32,
    /// Owner, as the node sees it.
    pub uid: u32,
    /// Group, as the node sees it.
    pub gid: u32,
    /// When its content was changed last.
    #[schema(value_type = String)]
    pub modified: Timestamp,
    /// Where a link leads.
    pub target: Option<String>,
}

/// What a [`FileEntry`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A socket, pipe or device.
    Other,
}

/// `GET /api/v1/environments/{environment}/changes`: how the disks of an environment differ from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Changes {
    /// The environment that it is compared with; absent when its nodes' images are.
    pub with: Option<String>,
    /// The instant until which both were one, when one is the clone of the other.
    #[schema(value_type = Option<String>)]
    pub cut: Option<Timestamp>,
    /// Root file systems and volumes that both have.
    pub disks: Vec<DiskChanges>,
}

/// How one disk differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskChanges {
    /// Whose disk it is.
    pub disk: Disk,
    /// How many entries only this one has. A directory counts as one, with all that is in it.
    pub added: u64,
    /// How many entries both have that differ.
    pub changed: u64,
    /// How many entries only the other one has; as `added`.
    pub removed: u64,
    /// The first of them, by path; at most [`FILES_MAX`].
    pub files: Vec<FileChange>,
    /// Whether all of the disk was looked at: a time bounds that.
    pub complete: bool,
}

/// Most entries that [`DiskChanges`] names.
pub const FILES_MAX: usize = 500;

/// A disk of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Disk {
    /// The root file system of this node.
    Node(String),
    /// This volume.
    Volume(String),
}

/// An entry that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileChange {
    /// From the top of the disk, without a slash at the beginning; a directory has one at its end.
    pub path: String,
    /// How it differs.
    pub kind: ChangeKind,
    /// Who changed it since the cut, by the times of the entries; absent where there was no cut, and where neither
    /// tells.
    pub by: Option<ChangedBy>,
}

impl FileChange {
    /// What was done to it by whoever did it: what only one has is there because it was added, or because the other one
    /// removed it.
    #[must_use]
    pub fn happened(&self) -> ChangeKind {
        match (self.kind, self.by) {
            (ChangeKind::Added, Some(ChangedBy::Other)) => ChangeKind::Removed,
            (ChangeKind::Removed, Some(ChangedBy::Other)) => ChangeKind::Added,
            (kind, _) => kind,
        }
    }
}

/// How an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// Only this environment has it.
    Added,
    /// Both have it: type, size, time, owner or mode differ.
    Changed,
    /// Only the other environment has it.
    Removed,
}

/// Whose change it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ChangedBy {
    /// This environment's.
    This,
    /// The other one's.
    Other,
    /// Both changed it.
    Both,
}
