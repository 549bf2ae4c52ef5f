//! Files into and out of nodes, by their disks: works on stopped nodes, needs no program inside, and every path is
//! resolved below the node's own root (openat2(2), RESOLVE_IN_ROOT).

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use offshoot_engine::ByteStream;
use offshoot_model::manifest::Mount;
use offshoot_model::{Code, Environment, Fault, Node, Problem};
use offshoot_pool::{Pool, Subvolume};
use offshoot_sys::fsx::{Last, Root, replace_file, through_proc};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::disks::volume_subvolume;

/// Bytes in one chunk of a stream, and chunks in flight.
const CHUNK: usize = 64 << 10;
const IN_FLIGHT: usize = 8;
/// Most entries in one archive.
const MOST_ENTRIES: usize = 2_000_000;
/// Deepest directory walked.
const DEEPEST: usize = 512;

/// The disk that holds `path` of a node, and the path on it: the deepest volume mounted above it, else the root.
pub(crate) fn disk_of(
    pool: &Pool,
    environment: &Environment,
    node: &Node,
    path: &str,
) -> Result<(PathBuf, PathBuf), Problem> {
    let path = normal(path)?;
    let mounts = environment
        .manifest
        .layer(&node.layer)
        .map(|layer| layer.mounts.as_slice())
        .unwrap_or_default();
    let mut best: Option<(&str, PathBuf)> = None;
    for mount in mounts {
        if !path.starts_with(mount.target())
            || best
                .as_ref()
                .is_some_and(|(target, _)| target.len() >= mount.target().len())
        {
            continue;
        }
        match mount {
            Mount::Volume { volume, target, .. } => {
                if let Some(volume) = environment
                    .volumes
                    .iter()
                    .find(|known| known.name == *volume)
                {
                    best = Some((target, pool.path(&volume_subvolume(volume))));
                }
            }
            Mount::Tmpfs { target, .. } | Mount::File { target, .. } => {
                return Err(Problem::new(
                    Code::BadRequest,
                    Fault::Request,
                    format!(
                        "{target} of node {} is no disk: it is memory or a captured file",
                        node.name()
                    ),
                    "use `offshoot exec` to read or write it",
                ));
            }
        }
    }
    Ok(match best {
        Some((target, disk)) => {
            let inner = path
                .strip_prefix(target)
                .map(Path::to_owned)
                .unwrap_or_default();
            (disk, Path::new("/").join(inner))
        }
        None => (pool.path(&Subvolume::Rootfs(node.id.clone())), path),
    })
}

fn normal(path: &str) -> Result<PathBuf, Problem> {
    let path = Path::new(path);
    let fine = path.is_absolute()
        && path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if fine && !path.as_os_str().as_bytes().contains(&0) {
        Ok(path.components().collect())
    } else {
        Err(Problem::new(
            Code::BadRequest,
            Fault::Request,
            format!("{} is not an absolute path without '..'", path.display()),
            "write the path from the node's root, for instance web:/etc/nginx",
        ))
    }
}

pub(crate) fn failed(doing: &str, path: &str, error: &io::Error) -> Problem {
    use io::ErrorKind::{NotFound, QuotaExceeded, StorageFull};
    let (code, fault, next) = match error.kind() {
        NotFound => (
            Code::NotFound,
            Fault::Request,
            "see what is there with `offshoot exec ENV NODE -- ls`",
        ),
        StorageFull | QuotaExceeded => (
            Code::PoolFull,
            Fault::Host,
            "make room, or `offshoot pool grow`",
        ),
        _ if is_of_the_disk(error) => (
            Code::PoolBroken,
            Fault::Host,
            "look at the kernel's log for errors of btrfs or of the disk",
        ),
        _ => (
            Code::BadRequest,
            Fault::Request,
            "check the path with `offshoot exec ENV NODE -- ls`",
        ),
    };
    Problem::new(code, fault, format!("{doing} {path}: {error}"), next)
}

/// Whether the disk fails, or became read-only because it did.
fn is_of_the_disk(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::IO | Errno::ROFS | Errno::UCLEAN)
    )
}

/// A file or directory as a tar archive whose entries begin with its last component.
pub(crate) fn copy_out(
    pool: &Pool,
    environment: &Environment,
    node: &Node,
    path: &str,
) -> Result<ByteStream, Problem> {
    let (disk, inner) = disk_of(pool, environment, node, path)?;
    let root = Root::open(&disk).map_err(|e| failed("reading", path, &e))?;
    if root
        .stat(&inner, Last::Keep)
        .map_err(|e| failed("reading", path, &e))?
        .is_none()
    {
        return Err(failed(
            "reading",
            path,
            &io::Error::from(io::ErrorKind::NotFound),
        ));
    }
    let top = Path::new(path)
        .file_name()
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let shown = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut archive =
            tar::Builder::new(io::BufWriter::with_capacity(CHUNK, Sender(sender.clone())));
        archive.follow_symlinks(false);
        archive.mode(tar::HeaderMode::Complete);
        let mut left = MOST_ENTRIES;
        let done = pack(&root, &inner, &top, &mut archive, &mut left, 0)
            .and_then(|()| archive.into_inner())
            .and_then(|mut writer| writer.flush());
        if let Err(error) = done {
            let _ = sender.blocking_send(Err(failed("reading", &shown, &error)));
        }
    });
    Ok(receiver)
}

fn pack(
    root: &Root,
    inner: &Path,
    name: &Path,
    archive: &mut tar::Builder<impl Write>,
    left: &mut usize,
    depth: usize,
) -> io::Result<()> {
    *left = left
        .checked_sub(1)
        .ok_or_else(|| io::Error::other("too many files in one archive"))?;
    if depth > DEEPEST {
        return Err(io::Error::other("directories too deep"));
    }
    let fd = root.resolve(inner, Last::Keep)?;
    // Through the descriptor: between the look and the read nothing can be put in its place.
    let at = through_proc(fd.as_fd());
    let metadata = std::fs::metadata(&at)?;
    let kind = metadata.file_type();
    let mut header = tar::Header::new_gnu();
    header.set_metadata_in_mode(&metadata, tar::HeaderMode::Complete);
    if kind.is_dir() {
        header.set_size(0);
        archive.append_data(&mut header, name.join(""), io::empty())?;
        let mut names: Vec<_> = std::fs::read_dir(&at)?.collect::<Result<Vec<_>, _>>()?;
        names.sort_by_key(std::fs::DirEntry::file_name);
        for entry in names {
            let child = entry.file_name();
            pack(
                root,
                &inner.join(&child),
                &name.join(&child),
                archive,
                left,
                depth + 1,
            )?;
        }
    } else if kind.is_symlink() {
        let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
        header.set_size(0);
        archive.append_link(
            &mut header,
            name,
            std::ffi::OsStr::from_bytes(target.as_bytes()),
        )?;
    } else if kind.is_file() {
        // Exactly as much as the header says, although a running process may make it longer or shorter meanwhile.
        let file = root.open_file(inner)?;
        let content = file
            .take(metadata.len())
            .chain(io::repeat(0))
            .take(metadata.len());
        header.set_size(metadata.len());
        archive.append_data(&mut header, name, content)?;
    } else if depth == 0 {
        // Sockets, pipes and devices mean nothing elsewhere; inside a directory they are left out.
        return Err(io::Error::other(format!(
            "{} is a socket, pipe or device",
            inner.display()
        )));
    }
    Ok(())
}

/// Unpacks an archive into a directory of a node; owners in the archive are the node's own ids.
pub(crate) fn copy_in(
    pool: &Pool,
    environment: &Environment,
    node: &Node,
    path: &str,
    archive: ByteStream,
) -> Result<(), Problem> {
    let (disk, inner) = disk_of(pool, environment, node, path)?;
    let root = Root::open(&disk).map_err(|e| failed("writing", path, &e))?;
    match root
        .stat(&inner, Last::Follow)
        .map_err(|e| failed("writing", path, &e))?
    {
        Some(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => {}
        Some(_) => {
            return Err(failed(
                "writing",
                path,
                &io::Error::from(io::ErrorKind::NotADirectory),
            ));
        }
        None => {
            return Err(failed(
                "writing",
                path,
                &io::Error::from(io::ErrorKind::NotFound),
            ));
        }
    }
    let mut archive = tar::Archive::new(Receiver {
        stream: archive,
        chunk: Bytes::new(),
    });
    let unpacked = archive.entries().and_then(|entries| {
        for (count, entry) in entries.enumerate() {
            if count >= MOST_ENTRIES {
                return Err(io::Error::other("too many files in one archive"));
            }
            unpack(&root, &inner, entry?)?;
        }
        Ok(())
    });
    unpacked.map_err(|e| failed("writing", path, &e))
}

fn unpack(root: &Root, base: &Path, mut entry: tar::Entry<'_, impl Read>) -> io::Result<()> {
    let below = |path: &Path| -> io::Result<PathBuf> {
        let parts = path
            .components()
            .filter(|part| !matches!(part, Component::CurDir));
        let mut full = base.to_owned();
        for part in parts {
            match part {
                Component::Normal(part) => full.push(part),
                _ => {
                    return Err(io::Error::other(format!(
                        "{} leads out of the archive",
                        path.display()
                    )));
                }
            }
        }
        Ok(full)
    };
    let to = below(&entry.path()?)?;
    let header = entry.header().clone();
    let (mode, size) = (header.mode()? & 0o7777, header.size()?);
    let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("an owner beyond 32 bits"));
    let (uid, gid) = (id(header.uid()?)?, id(header.gid()?)?);
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match header.entry_type() {
        tar::EntryType::Directory => {
            if to != base {
                // What `create_dirs` gives is a place only (O_PATH): owner and mode need an open directory.
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let dir =
                    rustix::fs::openat(root.create_dirs(&to, 0o755)?, ".", flags, Mode::empty())?;
                rustix::fs::fchown(&dir, owner.0, owner.1)?;
                rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
            }
            return Ok(());
        }
        tar::EntryType::Regular | tar::EntryType::Continuous => {
            let (parent, name) = root.parent(&to)?;
            let mut file = replace_file(parent.as_fd(), &name)?;
            let written = io::copy(&mut entry, &mut file)?;
            if written != size {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            rustix::fs::fchown(&file, owner.0, owner.1)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            return Ok(());
        }
        _ => {}
    }
    let link = entry
        .link_name()?
        .ok_or_else(|| io::Error::other("a link to nothing"))?
        .into_owned();
    let (parent, name) = root.parent(&to)?;
    match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match header.entry_type() {
        tar::EntryType::Symlink => {
            rustix::fs::symlinkat(&link, &parent, &name)?;
            rustix::fs::chownat(&parent, &name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        tar::EntryType::Link => {
            let (from, old) = root.parent(&below(&link)?)?;
            rustix::fs::linkat(&from, &old, &parent, &name, AtFlags::empty())?;
        }
        kind => {
            return Err(io::Error::other(format!(
                "{} is of kind {kind:?}",
                to.display()
            )));
        }
    }
    Ok(())
}

/// Hands what is written to a stream, in chunks.
struct Sender(mpsc::Sender<Result<Bytes, Problem>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = bytes.get(..bytes.len().min(CHUNK)).unwrap_or_default();
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(chunk)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what comes out of a stream.
struct Receiver {
    stream: ByteStream,
    chunk: Bytes,
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.stream.blocking_recv() {
                None => return Ok(0),
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(problem)) => return Err(io::Error::other(problem.to_string())),
            }
        }
        let n = self.chunk.len().min(buffer.len());
        let part = self.chunk.split_to(n);
        if let Some(room) = buffer.get_mut(..n) {
            room.copy_from_slice(&part);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_whose_fault_it_is() {
        for (errno, code, fault) in [
            (Errno::NOENT, Code::NotFound, Fault::Request),
            (Errno::NOTDIR, Code::BadRequest, Fault::Request),
            (Errno::NOSPC, Code::PoolFull, Fault::Host),
            (Errno::IO, Code::PoolBroken, Fault::Host),
            (Errno::ROFS, Code::PoolBroken, Fault::Host),
        ] {
            let problem = failed("reading", "/etc", &errno.into());
            assert_eq!((problem.code, problem.fault), (code, fault), "{errno}");
        }
    }
}
