//! Reading and writing files: bounded, atomic, and inside a root file system that may be hostile.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};

use crate::error::{Result, RuntimeError};
use crate::spec::NodeFile;

/// Reads a file of at most `max` bytes.
pub(crate) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| RuntimeError::io("open", path, e))?;
    read_all(file, max).map_err(|e| RuntimeError::io("read", path, e))
}

fn read_all(file: File, max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("more than {max} bytes"),
        ));
    }
    Ok(bytes)
}

/// Writes a file so that a reader sees all of it or nothing, readable by root alone.
///
/// # Errors
/// Of the file system.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| RuntimeError::io("write", path, e))
}

/// Makes a directory that any user may pass and its missing parents likewise.
///
/// # Errors
/// Of the file system.
pub fn ensure_passable(dir: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for ancestor in dir.ancestors() {
        if ancestor.as_os_str().is_empty() || ancestor.exists() {
            break;
        }
        missing.push(ancestor);
    }
    for dir in missing.into_iter().rev() {
        match fs::create_dir(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(RuntimeError::io("make", dir, e));
            }
            _ => {}
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))
            .map_err(|e| RuntimeError::io("open up", dir, e))?;
    }
    Ok(())
}

/// Writes files into a node's root file system, whose paths may lead anywhere: nothing outside of it is touched. A file that is right
/// already is left alone. Owners are inner ids: on disk they are unshifted.
///
/// # Errors
/// Of the file system.
pub fn write_into_rootfs<'f>(
    rootfs: &Path,
    files: impl IntoIterator<Item = &'f NodeFile>,
) -> Result<()> {
    let tree = Tree::open(rootfs)?;
    for file in files {
        tree.write(
            &file.target,
            file.content.as_bytes(),
            file.mode,
            (file.uid, file.gid),
        )?;
    }
    Ok(())
}

/// Makes the directory that a temporary file system will cover, with the mode asked for: runc gives a tmpfs the mode of what it covers,
/// whatever its options say.
///
/// # Errors
/// Of the file system.
pub fn prepare_covered_dir(rootfs: &Path, target: &str, mode: u32) -> Result<()> {
    let failed = |e: std::io::Error| {
        RuntimeError::doing(format!("make {target} in {}", rootfs.display()), e)
    };
    let tree = Tree::open(rootfs)?;
    tree.ensure_dir(target.trim_start_matches('/'))
        .map_err(failed)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat2(&tree.fd, target, flags, Mode::empty(), INSIDE)
        .map_err(|e| failed(e.into()))?;
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode & 0o7777)).map_err(|e| failed(e.into()))
}

/// A directory tree whose content is not trusted: every path is resolved as if it were the root, symbolic links included, and
/// nothing outside can be reached (openat2(2), `RESOLVE_IN_ROOT`).
pub(crate) struct Tree<'a> {
    root: &'a Path,
    fd: OwnedFd,
}

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl<'a> Tree<'a> {
    pub(crate) fn open(root: &'a Path) -> Result<Self> {
        let fd = rustix::fs::openat(
            CWD,
            root,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| RuntimeError::io("open", root, e))?;
        Ok(Self { root, fd })
    }

    /// Content of a regular file of at most `max` bytes; `None` when there is no such file.
    pub(crate) fn read(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>> {
        let failed = |e: std::io::Error| {
            RuntimeError::doing(format!("read {path} in {}", self.root.display()), e)
        };
        // NONBLOCK and NOCTTY: a FIFO or terminal in its place must not stop or capture us.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), INSIDE) {
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd).map_err(|e| failed(e.into()))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(None);
                }
                read_all(File::from(fd), max).map(Some).map_err(failed)
            }
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                Ok(None)
            }
            Err(e) => Err(failed(e.into())),
        }
    }

    /// Writes a file, replacing what is there (also a symbolic link) unless content, mode and owner are the same: a restored process
    /// that has it open expects it as it was. Missing directories are made.
    pub(crate) fn write(
        &self,
        path: &str,
        content: &[u8],
        mode: u32,
        owner: (u32, u32),
    ) -> Result<()> {
        let failed = |e: std::io::Error| {
            RuntimeError::doing(format!("write {path} in {}", self.root.display()), e)
        };
        let (dir, name) = path
            .trim_start_matches('/')
            .rsplit_once('/')
            .unwrap_or(("", path.trim_start_matches('/')));
        if name.is_empty() {
            return Err(RuntimeError::spec(format!("{path:?} names no file")));
        }
        let dir = self.ensure_dir(dir).map_err(failed)?;
        if self.same(&dir, name, content, mode, owner) {
            return Ok(());
        }
        let temporary = format!(".{name}.offshoot");
        let write = || -> std::io::Result<()> {
            match rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&dir, &temporary, flags, Mode::from_raw_mode(0o600))?;
            rustix::fs::fchown(
                &fd,
                Some(Uid::from_raw(owner.0)),
                Some(Gid::from_raw(owner.1)),
            )?;
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode & 0o7777))?;
            File::from(fd).write_all(content)?;
            rustix::fs::renameat(&dir, &temporary, &dir, name)?;
            Ok(())
        };
        write().map_err(failed)
    }

    fn same(
        &self,
        dir: &OwnedFd,
        name: &str,
        content: &[u8],
        mode: u32,
        owner: (u32, u32),
    ) -> bool {
        let flags =
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let Ok(fd) = rustix::fs::openat(dir, name, flags, Mode::empty()) else {
            return false;
        };
        let Ok(stat) = rustix::fs::fstat(&fd) else {
            return false;
        };
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_mode & 0o7777 == mode & 0o7777
            && (stat.st_uid, stat.st_gid) == owner
            && u64::try_from(stat.st_size).is_ok_and(|size| size == content.len() as u64)
            && read_all(File::from(fd), content.len() as u64).is_ok_and(|old| old == content)
    }

    /// Opens a directory below the root, making what is missing of it.
    fn ensure_dir(&self, path: &str) -> std::io::Result<OwnedFd> {
        let open = |path: &str| {
            let path = if path.is_empty() { "." } else { path };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), INSIDE)
        };
        let mut done = String::new();
        let mut fd = open("")?;
        for part in Path::new(path).components() {
            let Component::Normal(part) = part else {
                continue;
            };
            let part = part.to_str().ok_or(rustix::io::Errno::ILSEQ)?;
            done = if done.is_empty() {
                part.to_owned()
            } else {
                format!("{done}/{part}")
            };
            fd = match open(&done) {
                Ok(fd) => fd,
                Err(rustix::io::Errno::NOENT) => {
                    rustix::fs::mkdirat(&fd, part, Mode::from_raw_mode(0o755))?;
                    open(&done)?
                }
                Err(e) => return Err(e.into()),
            };
        }
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_root_is_read_or_written() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/../..", root.join("up")).unwrap();
        let tree = Tree::open(&root).unwrap();
        assert_eq!(tree.read("etc/passwd", 100).unwrap(), None);
        assert_eq!(tree.read("up/secret", 100).unwrap(), None);
        tree.write("/up/x/made", b"1", 0o640, (0, 0)).unwrap();
        assert_eq!(fs::read(root.join("x/made")).unwrap(), b"1");
        tree.write("/etc/passwd", b"inside", 0o644, (0, 0)).unwrap();
        assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"outside");
        assert_eq!(tree.read("etc/passwd", 100).unwrap().unwrap(), b"inside");
        assert!(tree.read("etc/passwd", 3).is_err());
    }

    #[test]
    fn a_file_is_left_alone_when_it_is_already_right() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        tree.write("/a", b"x", 0o644, (0, 0)).unwrap();
        let inode = fs::metadata(dir.path().join("a")).unwrap().ino();
        tree.write("/a", b"x", 0o644, (0, 0)).unwrap();
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().ino(), inode);
        tree.write("/a", b"y", 0o600, (0, 0)).unwrap();
        assert_eq!(
            fs::metadata(dir.path().join("a"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
    }

    #[test]
    fn a_fifo_is_no_file_and_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            CWD,
            dir.path().join("passwd"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(
            Tree::open(dir.path()).unwrap().read("passwd", 10).unwrap(),
            None
        );
    }
}
