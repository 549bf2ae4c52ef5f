//! Applying an image's layers to a directory (OCI image-spec, layer.md).
//!
//! A layer is an archive from a stranger, unpacked by root. Every parent is resolved inside the target
//! (openat2(2), RESOLVE_IN_ROOT), so an earlier entry's symbolic link can lead nowhere else; the last component
//! is created or replaced and never followed.

mod compression;
pub(crate) mod tarball;

use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use offshoot_sys::fsx::{self, Attributes, Root, SpecialFile};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

pub(crate) use compression::decompress;
use tarball::{Entry, Kind, Stream, TarError, Tarball};

/// Most entries of one image; Debian with everything has some hundred thousand.
const ENTRIES_MAX: u64 = 4_000_000;
/// Most bytes of all paths of a layer's directories together; they are remembered until its end.
const DIRS_BYTES_MAX: usize = 64 << 20;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// The archive is malformed or hostile.
    #[error("{0}")]
    Bad(String),
    /// The archive could not be read.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    /// The target could not be written.
    #[error("{path}: {source}")]
    Write { path: String, source: io::Error },
    /// The caller's own check said stop.
    #[error("stopped")]
    Stopped,
}

impl From<TarError> for UnpackError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Malformed(why) => Self::Bad(why),
            TarError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Bad("it ends too early".into())
            }
            TarError::Io(e) => Self::Read(e),
        }
    }
}

/// Bounds on what an image may unpack to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of file content, holes not counted.
    pub(crate) bytes: u64,
}

/// Layers being applied to a directory, lowest first.
pub(crate) struct Unpacker<'a> {
    root: Root,
    limits: Limits,
    bytes: u64,
    entries: u64,
    /// Called now and then; an error stops the work.
    check: &'a dyn Fn(u64) -> bool,
}

impl<'a> Unpacker<'a> {
    /// `check` gets the bytes written so far and answers whether to go on.
    pub(crate) fn new(
        dir: &Path,
        limits: Limits,
        check: &'a dyn Fn(u64) -> bool,
    ) -> io::Result<Self> {
        Ok(Self {
            root: Root::open(dir)?,
            limits,
            bytes: 0,
            entries: 0,
            check,
        })
    }

    /// Bytes of content written.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Applies one layer; `archive` is read to its end.
    pub(crate) fn layer(&mut self, archive: impl Read) -> Result<(), UnpackError> {
        let mut tarball = Tarball::new(Stream(archive));
        let mut layer = Layer {
            unpacker: self,
            made: HashSet::new(),
            parent: None,
            dirs: Vec::new(),
            dirs_bytes: 0,
        };
        while let Some(entry) = tarball.next_entry()? {
            layer.unpacker.entries += 1;
            if layer.unpacker.entries > ENTRIES_MAX {
                return Err(UnpackError::Bad(format!(
                    "it has more than {ENTRIES_MAX} entries"
                )));
            }
            if layer.unpacker.entries.is_multiple_of(256)
                && !(layer.unpacker.check)(layer.unpacker.bytes)
            {
                return Err(UnpackError::Stopped);
            }
            layer.apply(entry, &mut tarball)?;
        }
        layer.finish()?;
        tarball.finish().map_err(UnpackError::Read)
    }
}

struct Layer<'a, 'b> {
    unpacker: &'a mut Unpacker<'b>,
    /// Inodes that this layer made or touched: its whiteouts speak of the layers below only.
    made: HashSet<u64>,
    /// The last parent directory, which the next entry mostly shares.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories get their times when everything is in them.
    dirs: Vec<(PathBuf, (i64, u32))>,
    /// Bytes of their paths.
    dirs_bytes: usize,
}

impl Layer<'_, '_> {
    fn apply(&mut self, entry: Entry, data: &mut impl Read) -> Result<(), UnpackError> {
        let path = clean(&entry.path)?;
        let failed = {
            let path = path.display().to_string();
            move |source: io::Error| match Errno::from_io_error(&source) {
                Some(Errno::LOOP) => {
                    UnpackError::Bad(format!("{path:?} leads through a loop of links"))
                }
                Some(Errno::NOTDIR) => {
                    UnpackError::Bad(format!("{path:?} lies in something that is no directory"))
                }
                Some(Errno::NAMETOOLONG) => {
                    UnpackError::Bad(format!("{path:?} has a name that is too long"))
                }
                _ => UnpackError::Write {
                    path: path.clone(),
                    source,
                },
            }
        };
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root directory itself.
            if entry.kind != Kind::Dir {
                return Err(UnpackError::Bad("its root is no directory".into()));
            }
            fsx::set_attributes(
                self.unpacker.root.as_fd(),
                OsStr::new("."),
                &attributes(&entry),
            )
            .map_err(failed)?;
            return self.time_later(PathBuf::from("."), entry.mtime);
        };
        self.open_parent(path.parent().unwrap_or(Path::new("")))
            .map_err(&failed)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self
                .whiteout(&name, OsStr::from_bytes(hidden))
                .map_err(failed);
        }
        // Links are resolved before anything is replaced, or a file linked to itself would vanish.
        let target = match entry.kind {
            Kind::HardLink => {
                let target = clean(&entry.link)?;
                let missing = |_| {
                    UnpackError::Bad(format!(
                        "{} is a link to {}, which is not there",
                        path.display(),
                        target.display()
                    ))
                };
                Some(self.unpacker.root.parent(&target).map_err(missing)?)
            }
            _ => None,
        };
        self.make(&entry, &name, target, data)
            .map_err(|e| match e {
                Failure::Target(source) => failed(source),
                Failure::Unpack(e) => e,
            })?;
        if entry.kind == Kind::Dir {
            self.time_later(path, entry.mtime)?;
        }
        Ok(())
    }

    /// Remembers a directory's time for the end of the layer.
    fn time_later(&mut self, path: PathBuf, mtime: (i64, u32)) -> Result<(), UnpackError> {
        self.dirs_bytes += path.as_os_str().len();
        if self.dirs_bytes > DIRS_BYTES_MAX {
            return Err(UnpackError::Bad("it has too many directories".into()));
        }
        self.dirs.push((path, mtime));
        Ok(())
    }

    /// Opens the directory that the next entry goes to, made where it is missing.
    fn open_parent(&mut self, path: &Path) -> io::Result<()> {
        if self.parent.as_ref().is_some_and(|(known, _)| known == path) {
            return Ok(());
        }
        let fd = self.unpacker.root.create_dirs(path, 0o755)?;
        self.parent = Some((path.to_path_buf(), fd));
        Ok(())
    }

    fn make(
        &mut self,
        entry: &Entry,
        name: &OsStr,
        target: Option<(OwnedFd, OsString)>,
        data: &mut impl Read,
    ) -> Result<(), Failure> {
        let Some((_, parent)) = &self.parent else {
            return Err(Failure::Target(Errno::NOENT.into()));
        };
        let parent = rustix::io::dup(parent)?;
        let parent = parent.as_fd();
        let there = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e.into()),
        };
        let keep_dir = entry.kind == Kind::Dir && there == Some(FileType::Directory);
        let same_file = match &target {
            Some((dir, link)) if there.is_some() => {
                let inode = |dir: &OwnedFd, name: &OsStr| {
                    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|s| s.st_ino)
                };
                inode(dir, link).ok()
                    == rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                        .map(|s| s.st_ino)
                        .ok()
            }
            _ => false,
        };
        if same_file {
            return Ok(());
        }
        if there.is_some() && !keep_dir {
            fsx::remove_tree(parent, name)?;
            // The cached directory may have been in what is gone.
            self.parent = None;
        }
        match entry.kind {
            Kind::File => self.write_file(entry, parent, name, data)?,
            Kind::Dir if keep_dir => {}
            Kind::Dir => fsx::make_dir(parent, name)?,
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(UnpackError::Bad("a symbolic link to nothing".into()).into());
                }
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), parent, name)?;
            }
            Kind::HardLink => {
                let Some((dir, link)) = target else {
                    return Err(Errno::NOENT.into());
                };
                match rustix::fs::linkat(&dir, &link, parent, name, AtFlags::empty()) {
                    Ok(()) => {}
                    Err(Errno::NOENT) => {
                        return Err(UnpackError::Bad(format!(
                            "{} is a link to something that is not there",
                            Path::new(name).display()
                        ))
                        .into());
                    }
                    Err(Errno::PERM) => {
                        return Err(UnpackError::Bad("a hard link to a directory".into()).into());
                    }
                    Err(e) => return Err(e.into()),
                }
                self.mark(parent, name)?;
                // Its attributes are those of what it links to.
                return Ok(());
            }
            Kind::Char => {
                fsx::create_special(
                    parent,
                    name,
                    SpecialFile::Char(entry.device.0, entry.device.1),
                )?;
            }
            Kind::Block => {
                fsx::create_special(
                    parent,
                    name,
                    SpecialFile::Block(entry.device.0, entry.device.1),
                )?;
            }
            Kind::Fifo => fsx::create_special(parent, name, SpecialFile::Fifo)?,
        }
        self.mark(parent, name)?;
        fsx::set_attributes(parent, name, &attributes(entry))?;
        Ok(())
    }

    fn write_file(
        &mut self,
        entry: &Entry,
        parent: rustix::fd::BorrowedFd<'_>,
        name: &OsStr,
        data: &mut impl Read,
    ) -> Result<(), Failure> {
        let mut file = fsx::replace_file(parent, name)?;
        let mut buffer = vec![0u8; 128 << 10];
        for (offset, length) in &entry.segments {
            if *offset > 0 {
                file.seek(SeekFrom::Start(*offset))?;
            }
            let mut left = *length;
            while left > 0 {
                let most = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let chunk = buffer.get_mut(..most).unwrap_or_default();
                data.read_exact(chunk)
                    .map_err(|e| UnpackError::from(TarError::Io(e)))?;
                file.write_all(chunk)?;
                left -= most as u64;
                self.unpacker.bytes += most as u64;
                if self.unpacker.bytes > self.unpacker.limits.bytes {
                    let limit = self.unpacker.limits.bytes;
                    return Err(
                        UnpackError::Bad(format!("it unpacks to more than {limit} bytes")).into(),
                    );
                }
                if !(self.unpacker.check)(self.unpacker.bytes) {
                    return Err(UnpackError::Stopped.into());
                }
            }
        }
        if entry.segments.as_slice() != [(0, entry.size)] {
            file.set_len(entry.size)?;
        }
        Ok(())
    }

    fn mark(&mut self, parent: rustix::fd::BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.made.insert(stat.st_ino);
        Ok(())
    }

    /// Hides what the layers below have: one entry, or with the opaque mark everything in the directory.
    fn whiteout(&mut self, name: &OsStr, hidden: &OsStr) -> io::Result<()> {
        let Some((_, parent)) = self.parent.take() else {
            return Ok(());
        };
        if name.as_bytes() == OPAQUE {
            return self.hide_all(parent.as_fd(), 0);
        }
        // Other names of that form are aufs's own bookkeeping.
        if hidden.as_bytes().starts_with(WHITEOUT)
            || matches!(hidden.as_bytes(), b"" | b"." | b"..")
        {
            return Ok(());
        }
        match rustix::fs::statat(&parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if self.made.contains(&stat.st_ino) => Ok(()),
            Ok(_) => fsx::remove_tree(parent.as_fd(), hidden),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn hide_all(&self, dir: rustix::fd::BorrowedFd<'_>, depth: u32) -> io::Result<()> {
        let dir = fsx::open_in(
            dir,
            Path::new("."),
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )?;
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            if !self.made.contains(&entry.ino()) {
                fsx::remove_tree(dir.as_fd(), name)?;
            } else if entry.file_type() == FileType::Directory && depth < 256 {
                let below = fsx::open_in(
                    dir.as_fd(),
                    Path::new(name),
                    rustix::fs::OFlags::PATH
                        | rustix::fs::OFlags::DIRECTORY
                        | rustix::fs::OFlags::NOFOLLOW,
                    rustix::fs::Mode::empty(),
                )?;
                self.hide_all(below.as_fd(), depth + 1)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), UnpackError> {
        for (path, mtime) in &self.dirs {
            let failed = |source| UnpackError::Write {
                path: path.display().to_string(),
                source,
            };
            if path.as_os_str() == "." {
                fsx::set_time(self.unpacker.root.as_fd(), OsStr::new("."), *mtime)
                    .map_err(failed)?;
                continue;
            }
            // A later entry of the layer may have replaced it.
            let Ok((parent, name)) = self.unpacker.root.parent(path) else {
                continue;
            };
            match fsx::set_time(parent.as_fd(), &name, *mtime) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// An error of the target or of the archive.
enum Failure {
    Target(io::Error),
    Unpack(UnpackError),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Target(e)
    }
}

impl From<Errno> for Failure {
    fn from(e: Errno) -> Self {
        Self::Target(e.into())
    }
}

impl From<UnpackError> for Failure {
    fn from(e: UnpackError) -> Self {
        Self::Unpack(e)
    }
}

/// An archive's path as one below the root. Absolute paths and `..` have no business in a layer.
fn clean(path: &[u8]) -> Result<PathBuf, UnpackError> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    if path.contains(&0) {
        return Err(UnpackError::Bad(format!("{:?} is not a path", shown())));
    }
    let mut clean = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(UnpackError::Bad(format!(
                    "{:?} leads out of the image",
                    shown()
                )));
            }
        }
    }
    Ok(clean)
}

/// Attributes an entry may set. Other extended attributes belong to the host's security modules and file systems.
fn attributes(entry: &Entry) -> Attributes {
    let allowed = |key: &[u8]| {
        key.starts_with(b"user.")
            || matches!(
                key,
                b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
            )
    };
    Attributes {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: entry
            .xattrs
            .iter()
            .filter(|(key, _)| {
                allowed(key) && !(entry.kind == Kind::Symlink && key.starts_with(b"user."))
            })
            .filter_map(|(key, value)| Some((CString::new(key.clone()).ok()?, value.clone())))
            .collect(),
    }
}

/// A file's bytes from `offset`, `length` of them.
pub(crate) fn section(path: &Path, offset: u64, length: u64) -> io::Result<impl Read + Send> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    Ok(file.take(length))
}

#[cfg(test)]
mod tests;
