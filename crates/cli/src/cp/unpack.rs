//! A tar archive from a node onto this host. The archive is hostile: nothing in it may reach outside the target.
//!
//! Every entry is opened relative to the target's directory with openat2(2), `RESOLVE_BENEATH` and
//! `RESOLVE_NO_SYMLINKS`: neither `..` nor a link that the archive brought or that was there before leads out.
//! Files are made anew (`O_EXCL`), never written through. Set-user-id bits are dropped, devices and pipes left out.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    chownat, fchmod, fchown, futimens, linkat, mkdirat, openat, openat2, statat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use tar::{Archive, EntryType};

use super::{Copied, Owners};

/// Most entries of one archive: directories are remembered until the end.
const ENTRIES_MAX: u64 = 50_000_000;
/// Piece in which files are written; a piece of zeros becomes a hole.
const PIECE: usize = 64 << 10;

/// What the archive's first entry, the thing that was copied, is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    Directory,
    Other,
}

/// Where the archive goes.
#[derive(Debug)]
pub(super) struct Target {
    /// An existing directory; nothing outside it is touched.
    pub(super) dir: OwnedFd,
    /// What the copied thing is called there; for a directory `None` puts its content into `dir` itself.
    pub(super) name: Option<OsString>,
}

/// Unpacks `archive`; `target` decides where once it is known what comes.
///
/// # Errors
/// An archive that is malformed or reaches outside, or what the system refused.
pub(super) fn unpack(
    archive: impl Read,
    owners: Owners,
    target: impl FnOnce(Root) -> io::Result<Target>,
) -> io::Result<Copied> {
    let mut archive = Archive::new(archive);
    let mut entries = archive.entries()?;
    let Some(first) = entries.next() else {
        return Err(bad("the archive is empty"));
    };
    let mut first = first?;
    let root_path = parts(&first.path()?)?;
    let root = if first.header().entry_type().is_dir() {
        Root::Directory
    } else {
        Root::Other
    };
    let target = target(root)?;
    if root == Root::Other && target.name.is_none() {
        return Err(bad(
            "the archive holds a file where a directory was expected",
        ));
    }
    let mut unpacker = Unpacker {
        target,
        root_path,
        owners,
        copied: Copied::default(),
        directories: Vec::new(),
    };
    unpacker.entry(&mut first)?;
    drop(first);
    for entry in entries {
        unpacker.entry(&mut entry?)?;
    }
    unpacker.finish()
}

struct Unpacker {
    target: Target,
    /// The first entry's path: what every other must begin with.
    root_path: PathBuf,
    owners: Owners,
    copied: Copied,
    /// Directories whose mode and time are set last: what goes into them would change both.
    directories: Vec<(PathBuf, Mode, Option<Timespec>)>,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let shown = entry.path()?.into_owned();
        self.copied.entries += 1;
        if self.copied.entries > ENTRIES_MAX {
            return Err(bad("the archive has too many entries"));
        }
        let path = self.place(&shown)?;
        let header = entry.header().clone();
        let time = header
            .mtime()
            .ok()
            .and_then(|seconds| i64::try_from(seconds).ok());
        let time = time.map(|tv_sec| Timespec { tv_sec, tv_nsec: 0 });
        // Never set-user-id or set-group-id: the bytes are the container's.
        let mode = Mode::from_raw_mode(header.mode().unwrap_or(0o600) & 0o777);
        let kind = header.entry_type();
        let outcome = match kind {
            EntryType::Directory => self.directory(&path, &header, mode, time),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&path, &header, mode, time, entry)
            }
            EntryType::Symlink => match entry.link_name()? {
                Some(to) => self.symlink(&path, &header, &to),
                None => Err(bad("a link in the archive leads nowhere")),
            },
            EntryType::Link => match entry.link_name()? {
                Some(to) => self.hard_link(&path, &to),
                None => Err(bad("a link in the archive leads nowhere")),
            },
            EntryType::XGlobalHeader => {
                self.copied.entries -= 1;
                Ok(())
            }
            _ => {
                self.copied.entries -= 1;
                self.copied.skipped.push(format!(
                    "{} was left out: it is a device or pipe",
                    shown.display()
                ));
                Ok(())
            }
        };
        outcome
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", shown.display())))
    }

    /// Where an entry goes, relative to the target's directory; empty for the directory itself.
    fn place(&self, shown: &Path) -> io::Result<PathBuf> {
        let path = parts(shown)?;
        let below = path.strip_prefix(&self.root_path).map_err(|_| {
            bad(&format!(
                "the archive holds {}, which is not part of what was asked for",
                shown.display()
            ))
        })?;
        Ok(match &self.target.name {
            // `join` with an empty path would add a slash.
            Some(name) if below.as_os_str().is_empty() => PathBuf::from(name),
            Some(name) => Path::new(name).join(below),
            None => below.to_owned(),
        })
    }

    fn directory(
        &mut self,
        path: &Path,
        header: &tar::Header,
        mode: Mode,
        time: Option<Timespec>,
    ) -> io::Result<()> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        match mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
                    return Err(bad("something that is no directory is there already"));
                }
            }
            Err(error) => return Err(error.into()),
        }
        self.give(&parent, name, header)?;
        self.directories.push((path.to_owned(), mode, time));
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        path: &Path,
        header: &tar::Header,
        mode: Mode,
        time: Option<Timespec>,
        content: &mut R,
    ) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        make_way(&parent, name)?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&parent, name, flags, Mode::RUSR | Mode::WUSR)?);
        self.copied.bytes += copy_with_holes(content, &mut file)?;
        if let Some((uid, gid)) = self.owner(header) {
            fchown(&file, Some(uid), Some(gid))?;
        }
        fchmod(&file, mode)?;
        set_time(&file, time)
    }

    fn symlink(&mut self, path: &Path, header: &tar::Header, to: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        make_way(&parent, name)?;
        // It may point anywhere, as it does in the node; it is never followed here.
        symlinkat(to, &parent, name)?;
        self.give(&parent, name, header)
    }

    fn hard_link(&mut self, path: &Path, to: &Path) -> io::Result<()> {
        let from = self.place(to)?;
        if from == path {
            return Err(bad("a link in the archive leads to itself"));
        }
        let (from_parent, from_name) = self.parent(&from)?;
        let (parent, name) = self.parent(path)?;
        make_way(&parent, name)?;
        Ok(linkat(
            &from_parent,
            from_name,
            &parent,
            name,
            AtFlags::empty(),
        )?)
    }

    /// Opens the directory that holds `path`, making it and those above when the archive left them out, and
    /// answers it with the last name.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path
            .file_name()
            .ok_or_else(|| bad("an entry of the archive has no name"))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        match open_dir(&self.target.dir, parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => return Ok((outcome?, name)),
        }
        let mut done = PathBuf::new();
        for part in parent.components() {
            let above = open_dir(&self.target.dir, &done)?;
            match mkdirat(&above, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => done.push(part),
                Err(error) => return Err(error.into()),
            }
        }
        Ok((open_dir(&self.target.dir, parent)?, name))
    }

    /// Gives what has this name to the owner that the archive says, where owners are kept.
    fn give(&self, parent: &OwnedFd, name: &OsStr, header: &tar::Header) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner(header) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            chownat(parent, name, Some(uid), Some(gid), flags)?;
        }
        Ok(())
    }

    fn owner(&self, header: &tar::Header) -> Option<(Uid, Gid)> {
        // -1 means "leave it" to chown(2), so it cannot be an owner.
        let id = |id: io::Result<u64>| {
            id.ok()
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| *id != u32::MAX)
        };
        match self.owners {
            Owners::Default => None,
            Owners::Keep => Some((
                Uid::from_raw(id(header.uid())?),
                Gid::from_raw(id(header.gid())?),
            )),
        }
    }

    fn finish(mut self) -> io::Result<Copied> {
        // Innermost first: a mode without `x` closes what is below.
        while let Some((path, mode, time)) = self.directories.pop() {
            let dir = open_dir(&self.target.dir, &path)?;
            fchmod(&dir, mode)?;
            set_time(&dir, time)?;
        }
        Ok(self.copied)
    }
}

/// Opens a directory below `base`, through no link and never outside (openat2(2), Linux 5.6).
fn open_dir(base: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(base, path, flags, Mode::empty(), resolve).map_err(|error| match error {
        Errno::LOOP | Errno::XDEV => bad("the way to it leads through a symbolic link"),
        error => error.into(),
    })
}

/// Removes a file or link that stands where a new one goes; anything else stays and is an error.
fn make_way(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(found) => match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile | FileType::Symlink => {
                Ok(unlinkat(parent, name, AtFlags::empty())?)
            }
            FileType::Directory => Err(bad("a directory is there already")),
            _ => Err(bad("a device, pipe or socket is there already")),
        },
    }
}

/// Copies, leaving holes for pieces of zeros: a sparse file in a node must not fill this host's disk.
fn copy_with_holes(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    let mut piece = vec![0u8; PIECE];
    let mut total = 0u64;
    loop {
        let mut count = 0;
        while let Some(rest) = piece.get_mut(count..).filter(|rest| !rest.is_empty()) {
            match from.read(rest) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let data = piece.get(..count).unwrap_or_default();
        if data.is_empty() {
            to.set_len(total)?;
            return Ok(total);
        }
        if data.iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(i64::try_from(count).unwrap_or(0)))?;
        } else {
            to.write_all(data)?;
        }
        total += count as u64;
    }
}

fn set_time(of: impl AsFd, time: Option<Timespec>) -> io::Result<()> {
    let Some(time) = time else { return Ok(()) };
    let keep = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    match futimens(
        of,
        &Timestamps {
            last_access: keep,
            last_modification: time,
        },
    ) {
        // A time that the file system cannot keep is not worth failing for.
        Err(Errno::INVAL | Errno::OVERFLOW) => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// A path of names only: `.` taken out, `..` and a leading `/` refused.
fn parts(path: &Path) -> io::Result<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            _ => {
                return Err(bad(&format!(
                    "the archive reaches outside: {}",
                    path.display()
                )));
            }
        }
    }
    Ok(out)
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
