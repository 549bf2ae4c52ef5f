//! From a configured backing to a mounted file system, from whatever state a crash left.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use offshoot_sys::{btrfs, loopdev};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::{Backing, PoolConfig, PoolError, command};

/// Smallest pool: btrfs itself wants 109 MiB, and an image must fit.
pub const SIZE_MIN: u64 = 256 << 20;
/// Making a file system writes a few MiB however large it is.
const MKFS_LIMIT: Duration = Duration::from_secs(120);
const LOCK_LIMIT: Duration = Duration::from_secs(60);
/// Unused blocks are given back to the backing file, so that it stays sparse; in the background, not in a commit.
const OPTIONS: &std::ffi::CStr = c"discard=async";

/// Makes sure that the pool is mounted at `config.mount`.
pub(crate) fn ensure(config: &PoolConfig) -> Result<(), PoolError> {
    let mount = &config.mount;
    make_dir(mount)?;
    match &config.backing {
        Backing::Mounted => {
            let dir = File::open(mount).map_err(PoolError::io("open", mount))?;
            let kind =
                rustix::fs::fstatfs(&dir).map_err(|e| PoolError::io("look at", mount)(e.into()))?;
            if kind.f_type as i64 == btrfs::SUPER_MAGIC {
                Ok(())
            } else {
                Err(PoolError::Foreign {
                    path: mount.clone(),
                    why: "it is not on btrfs".into(),
                })
            }
        }
        Backing::LoopFile { path, size } => {
            let _lock = lock(path)?;
            let existing = mounted_at(mount)?;
            if let Some(found) = existing {
                return check_mounted(mount, &found, path);
            }
            let file = ensure_file(path, *size)?;
            let device = match loopdev::attached(&file).map_err(PoolError::io("look for", path))? {
                Some(device) => device,
                None => loopdev::attach(&file).map_err(|source| match source.kind() {
                    io::ErrorKind::NotFound => PoolError::NoLoopDevices,
                    _ => PoolError::Io {
                        what: "attach a loop device to",
                        path: path.clone(),
                        source,
                    },
                })?,
            };
            tracing::debug!(device = %device.path.display(), direct_io = device.direct_io, "pool attached");
            // The mount holds the device from here on; it goes away with the last user.
            do_mount(&device.path, mount)
        }
        Backing::Device(device) => {
            if let Some(found) = mounted_at(mount)? {
                let same =
                    fs::canonicalize(device).is_ok_and(|path| path == Path::new(&found.source));
                return if same && found.kind == "btrfs" {
                    Ok(())
                } else {
                    Err(PoolError::Foreign {
                        path: mount.clone(),
                        why: format!("{} ({}) is mounted there", found.source, found.kind),
                    })
                };
            }
            let meta = fs::metadata(device).map_err(PoolError::io("look at", device))?;
            if !meta.file_type().is_block_device() {
                return Err(PoolError::Foreign {
                    path: device.clone(),
                    why: "it is no block device".into(),
                });
            }
            let mut file = File::open(device).map_err(PoolError::io("open", device))?;
            if !formatted(&mut file).map_err(PoolError::io("read", device))? {
                // Without --force it refuses a device that holds anything it knows.
                mkfs(device)?;
            }
            do_mount(device, mount)
        }
    }
}

fn make_dir(path: &Path) -> Result<(), PoolError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(PoolError::io("create", path))
}

/// Only one process at a time brings a pool up.
fn lock(path: &Path) -> Result<File, PoolError> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    let lock_path = with_suffix(path, ".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(PoolError::io("create", &lock_path))?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                return Err(PoolError::Locked { path: lock_path });
            }
            Err(e) => return Err(PoolError::io("lock", &lock_path)(e.into())),
        }
    }
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    PathBuf::from(text)
}

/// The pool's file, formatted. It gets its name only when its file system is complete.
fn ensure_file(path: &Path, size: u64) -> Result<File, PoolError> {
    let open = |path: &Path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(PoolError::io("open", path))
    };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_file() => Err(PoolError::Foreign {
            path: path.into(),
            why: "it is not a regular file".into(),
        }),
        Ok(_) => {
            let mut file = open(path)?;
            if formatted(&mut file).map_err(PoolError::io("read", path))? {
                return Ok(file);
            }
            // A file that a person made with truncate(1) is taken; one with anything in it is not.
            if rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)) != Err(Errno::NXIO) {
                return Err(PoolError::Foreign {
                    path: path.into(),
                    why: "it has content that is not a btrfs file system".into(),
                });
            }
            make_file(path, size)?;
            open(path)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            make_file(path, size)?;
            open(path)
        }
        Err(e) => Err(PoolError::io("look at", path)(e)),
    }
}

fn make_file(path: &Path, size: u64) -> Result<(), PoolError> {
    if size < SIZE_MIN {
        return Err(PoolError::Size {
            size,
            why: format!("at least {SIZE_MIN} are needed"),
        });
    }
    let new = with_suffix(path, ".new");
    // What an interrupted attempt left.
    if let Err(e) = fs::remove_file(&new)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(PoolError::io("remove", &new)(e));
    }
    let file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .map_err(PoolError::io("create", &new))?;
    let made = file
        .set_len(size)
        .map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::FBIG | Errno::INVAL) => PoolError::Size {
                size,
                why: "the file system it lies on does not take files of that size".into(),
            },
            _ => PoolError::io("set the size of", &new)(e),
        })
        .and_then(|()| mkfs(&new))
        .and_then(|()| file.sync_all().map_err(PoolError::io("sync", &new)))
        .and_then(|()| fs::rename(&new, path).map_err(PoolError::io("rename", &new)));
    if made.is_err() {
        let _ = fs::remove_file(&new);
    }
    made?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> Result<(), PoolError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(PoolError::io("sync", parent))
}

fn mkfs(path: &Path) -> Result<(), PoolError> {
    command::run(
        "mkfs.btrfs",
        &["--quiet", "--label", "offshoot"],
        path,
        MKFS_LIMIT,
    )
}

fn formatted(file: &mut File) -> io::Result<bool> {
    let mut start = vec![0u8; 68 << 10];
    file.seek(SeekFrom::Start(0))?;
    match file.read_exact(&mut start) {
        Ok(()) => Ok(btrfs::is_formatted(&start)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn do_mount(device: &Path, mount: &Path) -> Result<(), PoolError> {
    match rustix::mount::mount(device, mount, c"btrfs", MountFlags::NOATIME, OPTIONS) {
        Ok(()) => Ok(()),
        Err(Errno::NODEV) => Err(PoolError::NoBtrfs),
        Err(e) => Err(PoolError::io("mount the pool at", mount)(e.into())),
    }
}

/// A line of /proc/self/mountinfo (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// `major:minor` of the file system.
    pub(crate) device: String,
    pub(crate) kind: String,
    pub(crate) source: String,
}

/// What is mounted at exactly `path`; the uppermost if several are.
pub(crate) fn mounted_at(path: &Path) -> Result<Option<Mounted>, PoolError> {
    let list = "/proc/self/mountinfo";
    let wanted = fs::canonicalize(path).map_err(PoolError::io("look at", path))?;
    let text = fs::read_to_string(list).map_err(PoolError::io("read", list))?;
    Ok(text
        .lines()
        .filter_map(parse_mount)
        .filter(|(at, _)| *at == wanted)
        .map(|(_, found)| found)
        .next_back())
}

pub(crate) fn parse_mount(line: &str) -> Option<(PathBuf, Mounted)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let device = left.nth(2)?.to_owned();
    let at = unescape(left.nth(1)?);
    let mut right = right.split(' ');
    let kind = right.next()?.to_owned();
    let source = unescape(right.next()?).to_string_lossy().into_owned();
    Some((
        at,
        Mounted {
            device,
            kind,
            source,
        },
    ))
}

/// Undoes the kernel's `\040` for blanks and the like.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Whether what is mounted is the pool of `file`: left by an earlier daemon.
fn check_mounted(mount: &Path, found: &Mounted, file: &Path) -> Result<(), PoolError> {
    let foreign = |why: String| {
        Err(PoolError::Foreign {
            path: mount.into(),
            why,
        })
    };
    if found.kind != "btrfs" {
        return foreign(format!(
            "{} ({}) is mounted there",
            found.source, found.kind
        ));
    }
    let meta = fs::metadata(file).map_err(PoolError::io("look at", file))?;
    match loopdev::backing(Path::new(&found.source)) {
        Ok(Some(backing)) if backing == (meta.dev(), meta.ino()) => Ok(()),
        _ => foreign(format!(
            "{} is mounted there, not {}",
            found.source,
            file.display()
        )),
    }
}

/// Grows the file to `to` bytes and tells the loop device.
pub(crate) fn grow_file(path: &Path, to: u64) -> Result<(), PoolError> {
    let _lock = lock(path)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(PoolError::io("open", path))?;
    let size = file
        .metadata()
        .map_err(PoolError::io("look at", path))?
        .len();
    if to < size {
        return Err(PoolError::Size {
            size: to,
            why: format!("it has {size} already and never shrinks"),
        });
    }
    file.set_len(to).map_err(PoolError::io("grow", path))?;
    if let Some(device) = loopdev::attached(&file).map_err(PoolError::io("look for", path))? {
        device
            .update_size()
            .map_err(PoolError::io("grow the loop device of", path))?;
    }
    Ok(())
}

/// Processes that have something of the mount open, as `name (pid): what`; at most a handful.
pub(crate) fn holders(mount: &Path) -> Vec<String> {
    const MOST: usize = 10;
    let Ok(Some(mounted)) = mounted_at(mount) else {
        return Vec::new();
    };
    let inside = |path: &Path| fs::read_link(path).is_ok_and(|target| target.starts_with(mount));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let proc = entry.path();
        let what = ["cwd", "root", "exe"]
            .into_iter()
            .find(|name| inside(&proc.join(name)))
            .map(str::to_owned)
            .or_else(|| {
                let fds = fs::read_dir(proc.join("fd")).ok()?;
                let open = fds.flatten().find(|fd| inside(&fd.path()))?;
                fs::read_link(open.path())
                    .ok()
                    .map(|target| target.display().to_string())
            })
            .or_else(|| {
                let mounts = fs::read_to_string(proc.join("mountinfo")).ok()?;
                let (at, _) = mounts
                    .lines()
                    .filter_map(parse_mount)
                    .find(|(at, other)| other.device == mounted.device && at != mount)?;
                Some(format!("mounted at {}", at.display()))
            });
        if let Some(what) = what {
            let name = fs::read_to_string(proc.join("comm")).unwrap_or_default();
            found.push(format!("{} ({pid}): {what}", name.trim()));
        }
        if found.len() >= MOST {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_are_read() {
        let line =
            r"36 35 0:44 / /mnt/a\040b rw,noatime shared:1 - btrfs /dev/loop3 rw,space_cache=v2";
        let (at, found) = parse_mount(line).unwrap();
        assert_eq!(at, Path::new("/mnt/a b"));
        assert_eq!(found.source, "/dev/loop3");
        assert_eq!(
            (found.kind.as_str(), found.device.as_str()),
            ("btrfs", "0:44")
        );
        assert_eq!(parse_mount("nonsense"), None);
    }
}
