//! Subvolumes and snapshots of btrfs by ioctl (btrfs-ioctl(2), `linux/btrfs.h`).
//!
//! Everything takes open directories and names of one component, never paths: what the kernel touches is what
//! the caller opened. Numbers and layouts are those of `linux/btrfs.h` and are the same on every 64-bit
//! architecture; the sizes are checked at compile time because they are part of the ioctl numbers.

mod changed;

use std::ffi::OsStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::libc;
use rustix::fs::{AtFlags, StatxFlags};

pub use changed::{Changed, Origin, changed, directory, names, origin};

/// Magic number of the file system, as statfs(2) gives it.
pub const SUPER_MAGIC: i64 = 0x9123_683E;
/// Inode number of the root directory of every subvolume (`BTRFS_FIRST_FREE_OBJECTID`).
const SUBVOLUME_INODE: u64 = 256;
/// Tree that lists all subvolumes (`BTRFS_ROOT_TREE_OBJECTID`).
const ROOT_TREE: u64 = 1;
/// Key type of an item "this tree holds that tree" (`BTRFS_ROOT_REF_KEY`, `linux/btrfs_tree.h`).
const ROOT_REF: u32 = 156;
/// Snapshot that cannot be written to (`BTRFS_SUBVOL_RDONLY`).
const FLAG_READ_ONLY: u64 = 1 << 1;
/// Name a subvolume by its id (`BTRFS_SUBVOL_SPEC_BY_ID`, since Linux 5.7).
const FLAG_BY_ID: u64 = 1 << 4;
/// Longest name of a subvolume (`BTRFS_SUBVOL_NAME_MAX`).
const NAME_MAX: usize = 4039;

/// Whether a new snapshot can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writable {
    /// It can.
    Yes,
    /// It cannot, not even by root.
    No,
}

#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    /// A union: a name, or in its first eight bytes a subvolume's id.
    name: [u8; NAME_MAX + 1],
}

#[repr(C)]
struct InoLookup {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SearchKey {
    tree_id: u64,
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    nr_items: u32,
    unused: u32,
    unused_too: [u64; 4],
}

const SEARCH_BUFFER: usize = 4096 - size_of::<SearchKey>();

#[repr(C)]
struct SearchArgs {
    key: SearchKey,
    buffer: [u8; SEARCH_BUFFER],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawSpace {
    flags: u64,
    total: u64,
    used: u64,
}

/// Kinds of space: data, system, metadata, each possibly mixed, and the reserve. More than ever exist.
const SPACES: usize = 32;

#[repr(C)]
struct SpaceArgs {
    slots: u64,
    total: u64,
    spaces: [RawSpace; SPACES],
}

const fn ioc(direction: u64, number: u64, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | (0x94 << 8) | number
}
const WRITE: u64 = 1;
const READ: u64 = 2;
const READ_WRITE: u64 = READ | WRITE;

const RESIZE: u64 = ioc(WRITE, 3, size_of::<VolArgs>());
const TREE_SEARCH: u64 = ioc(READ_WRITE, 17, size_of::<SearchArgs>());
const INO_LOOKUP: u64 = ioc(READ_WRITE, 18, size_of::<InoLookup>());
// The kernel's number counts the struct without its flexible array.
const SPACE_INFO: u64 = ioc(READ_WRITE, 20, 16);
const SNAP_CREATE_V2: u64 = ioc(WRITE, 23, size_of::<VolArgsV2>());
const SUBVOL_CREATE_V2: u64 = ioc(WRITE, 24, size_of::<VolArgsV2>());
const SUBVOL_GETFLAGS: u64 = ioc(READ, 25, 8);
const SUBVOL_SETFLAGS: u64 = ioc(WRITE, 26, 8);
const SNAP_DESTROY_V2: u64 = ioc(WRITE, 63, size_of::<VolArgsV2>());

const _: () = assert!(size_of::<VolArgs>() == 4096);
const _: () = assert!(size_of::<VolArgsV2>() == 4096);
const _: () = assert!(size_of::<InoLookup>() == 4096);
const _: () = assert!(size_of::<SearchArgs>() == 4096);

/// Runs an ioctl whose argument is `argument`.
///
/// # Safety
/// `T` must be the layout that `request` reads and writes.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: `argument` is a valid, exclusive pointer for the whole call and, by this function's contract, has
    // the layout the kernel expects for `request`.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn volume_args(name: &OsStr) -> io::Result<Box<VolArgsV2>> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > 255 || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut args = Box::new(VolArgsV2 {
        fd: 0,
        transid: 0,
        flags: 0,
        unused: [0; 4],
        name: [0; NAME_MAX + 1],
    });
    for (to, from) in args.name.iter_mut().zip(bytes) {
        *to = *from;
    }
    Ok(args)
}

/// Creates the empty subvolume `name` in the directory `parent`.
///
/// # Errors
/// As mkdir(2); `ENOTTY` when the directory is on another kind of file system.
pub fn create_subvolume(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let mut args = volume_args(name)?;
    // SAFETY: BTRFS_IOC_SUBVOL_CREATE_V2 takes a btrfs_ioctl_vol_args_v2.
    unsafe { ioctl(parent, SUBVOL_CREATE_V2, &mut *args) }
}

/// Creates `name` in the directory `parent` as a snapshot of the subvolume whose root directory `source` is.
/// Durable when it returns: the ioctl commits the transaction. Calls from several threads share one commit.
///
/// # Errors
/// `EEXIST` when the name is taken, `EINVAL` when `source` is not a subvolume's root, `EXDEV` for another file
/// system, `ENOSPC`.
pub fn create_snapshot(
    source: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    writable: Writable,
) -> io::Result<()> {
    let mut args = volume_args(name)?;
    args.fd = i64::from(source.as_raw_fd());
    if writable == Writable::No {
        args.flags = FLAG_READ_ONLY;
    }
    // SAFETY: BTRFS_IOC_SNAP_CREATE_V2 takes a btrfs_ioctl_vol_args_v2 whose `fd` is open as long as `source`.
    unsafe { ioctl(parent, SNAP_CREATE_V2, &mut *args) }
}

/// Removes the subvolume with that id from the file system `fd` is on. Subvolumes inside it must be gone.
/// The space is freed in the background.
///
/// # Errors
/// `ENOENT` when there is none, `ENOTEMPTY` when it holds others, `EROFS` when it lies in a read-only one.
pub fn destroy_subvolume(fd: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut args = Box::new(VolArgsV2 {
        fd: 0,
        transid: 0,
        flags: FLAG_BY_ID,
        unused: [0; 4],
        name: [0; NAME_MAX + 1],
    });
    for (to, from) in args.name.iter_mut().zip(id.to_ne_bytes()) {
        *to = from;
    }
    // SAFETY: BTRFS_IOC_SNAP_DESTROY_V2 takes a btrfs_ioctl_vol_args_v2 that holds an id when flagged so.
    unsafe { ioctl(fd, SNAP_DESTROY_V2, &mut *args) }
}

/// Id of the subvolume that `fd` lies in.
///
/// # Errors
/// `ENOTTY` on another kind of file system.
pub fn subvolume_id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut args = Box::new(InoLookup {
        treeid: 0,
        objectid: SUBVOLUME_INODE,
        name: [0; 4080],
    });
    // SAFETY: BTRFS_IOC_INO_LOOKUP takes a btrfs_ioctl_ino_lookup_args.
    unsafe { ioctl(fd, INO_LOOKUP, &mut *args) }?;
    Ok(args.treeid)
}

/// Whether `fd` is the root directory of a subvolume.
///
/// # Errors
/// As statx(2) and fstatfs(2).
pub fn is_subvolume(fd: BorrowedFd<'_>) -> io::Result<bool> {
    if rustix::fs::fstatfs(fd)?.f_type as i64 != SUPER_MAGIC {
        return Ok(false);
    }
    let stat = rustix::fs::statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH,
        StatxFlags::INO | StatxFlags::TYPE,
    )?;
    Ok(stat.stx_ino == SUBVOLUME_INODE && u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR)
}

/// Opens the root directory of the subvolume with that id, wherever it lies (open_by_handle_at(2)).
///
/// # Errors
/// `ESTALE` when there is none.
pub fn open_subvolume(fd: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    /// `struct file_handle` followed by the kernel's `struct btrfs_fid` without its parent part.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        inode: [u32; 2],
        tree: [u32; 2],
        /// 0 matches every generation.
        generation: u32,
    }
    /// `FILEID_BTRFS_WITHOUT_PARENT` of `linux/exportfs.h`.
    const KIND: i32 = 0x4d;
    let halves = |value: u64| {
        let [a, b, c, d, e, f, g, h] = value.to_ne_bytes();
        [
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
        ]
    };
    let mut handle = Handle {
        bytes: 20,
        kind: KIND,
        inode: halves(SUBVOLUME_INODE),
        tree: halves(id),
        generation: 0,
    };
    // SAFETY: `handle` has the layout of struct file_handle with `bytes` bytes after its two fixed fields and lives
    // through the call, which only reads it.
    let result = unsafe {
        libc::open_by_handle_at(
            fd.as_raw_fd(),
            std::ptr::from_mut(&mut handle).cast(),
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call gave a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// Makes the subvolume whose root directory `fd` is writable.
///
/// # Errors
/// `EPERM` without the rights.
pub fn make_writable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut flags: u64 = 0;
    // SAFETY: BTRFS_IOC_SUBVOL_GETFLAGS writes a u64.
    unsafe { ioctl(fd, SUBVOL_GETFLAGS, &mut flags) }?;
    if flags & FLAG_READ_ONLY == 0 {
        return Ok(());
    }
    flags &= !FLAG_READ_ONLY;
    // SAFETY: BTRFS_IOC_SUBVOL_SETFLAGS reads a u64.
    unsafe { ioctl(fd, SUBVOL_SETFLAGS, &mut flags) }
}

/// Whether the subvolume whose root directory `fd` is can be written to.
///
/// # Errors
/// `ENOTTY` on another kind of file system.
pub fn writable(fd: BorrowedFd<'_>) -> io::Result<Writable> {
    let mut flags: u64 = 0;
    // SAFETY: BTRFS_IOC_SUBVOL_GETFLAGS writes a u64.
    unsafe { ioctl(fd, SUBVOL_GETFLAGS, &mut flags) }?;
    Ok(if flags & FLAG_READ_ONLY == 0 {
        Writable::Yes
    } else {
        Writable::No
    })
}

/// Ids of the subvolumes that lie directly in the subvolume `id`, at most `limit` of them.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn children(fd: BorrowedFd<'_>, id: u64, limit: usize) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    let mut from = 0u64;
    while found.len() < limit {
        let mut args = Box::new(SearchArgs {
            key: SearchKey {
                tree_id: ROOT_TREE,
                min_objectid: id,
                max_objectid: id,
                min_offset: from,
                max_offset: u64::MAX,
                max_transid: u64::MAX,
                min_type: ROOT_REF,
                max_type: ROOT_REF,
                nr_items: 4096,
                ..SearchKey::default()
            },
            buffer: [0; SEARCH_BUFFER],
        });
        // SAFETY: BTRFS_IOC_TREE_SEARCH takes a btrfs_ioctl_search_args.
        unsafe { ioctl(fd, TREE_SEARCH, &mut *args) }?;
        // Each item: transid, objectid, offset (u64), type, len (u32), then len bytes.
        let mut at = 0usize;
        for _ in 0..args.key.nr_items {
            let (Some(offset), Some(len)) = (
                number(&args.buffer, at + 16, 8),
                number(&args.buffer, at + 28, 4),
            ) else {
                break;
            };
            found.push(offset);
            at += 32 + len as usize;
        }
        match found.last() {
            Some(&last) if args.key.nr_items > 0 && last < u64::MAX => from = last + 1,
            _ => break,
        }
    }
    found.truncate(limit);
    Ok(found)
}

/// A number of at most eight bytes, where the buffer holds one.
fn number(buffer: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let mut wide = [0u8; 8];
    for (to, from) in wide.iter_mut().zip(buffer.get(at..at.checked_add(bytes)?)?) {
        *to = *from;
    }
    // Trees are little-endian on the disk; what the kernel adds is in the machine's order, the same here.
    Some(u64::from_le_bytes(wide))
}

/// How much of a kind of space was given out to block groups, and how much of that is in use, in bytes. Copies
/// (DUP, RAID1) are counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// `BTRFS_BLOCK_GROUP_*`: 1 data, 2 system, 4 metadata, plus the profile.
    pub flags: u64,
    /// Given out.
    pub total: u64,
    /// In use.
    pub used: u64,
}

impl Space {
    /// File contents.
    pub const DATA: u64 = 1;
    /// Trees.
    pub const METADATA: u64 = 4;
}

/// Space by kind (`btrfs filesystem df`).
///
/// # Errors
/// `ENOTTY` on another kind of file system.
pub fn space(fd: BorrowedFd<'_>) -> io::Result<Vec<Space>> {
    let mut args = Box::new(SpaceArgs {
        slots: SPACES as u64,
        total: 0,
        spaces: [RawSpace::default(); SPACES],
    });
    // SAFETY: BTRFS_IOC_SPACE_INFO takes a btrfs_ioctl_space_args followed by `slots` entries.
    unsafe { ioctl(fd, SPACE_INFO, &mut *args) }?;
    let count = usize::try_from(args.total).unwrap_or(SPACES).min(SPACES);
    Ok(args
        .spaces
        .iter()
        .take(count)
        .map(|raw| Space {
            flags: raw.flags,
            total: raw.total,
            used: raw.used,
        })
        .collect())
}

/// Lets the file system's first device use all of its size (`btrfs filesystem resize max`).
///
/// # Errors
/// `EINVAL` when the device became smaller than what is in use.
pub fn grow_to_device(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = Box::new(VolArgs {
        fd: 0,
        name: [0; 4088],
    });
    for (to, from) in args.name.iter_mut().zip(b"1:max") {
        *to = *from;
    }
    // SAFETY: BTRFS_IOC_RESIZE takes a btrfs_ioctl_vol_args that holds an ASCII request.
    unsafe { ioctl(fd, RESIZE, &mut *args) }
}

/// Disk space behind a file's content, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileUsage {
    /// All of it; holes take none.
    pub referenced: u64,
    /// What no other file or snapshot shares.
    pub exclusive: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

/// Extents asked for at once.
const EXTENTS: usize = 64;

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// `FS_IOC_FIEMAP`: the kernel's number counts the struct without its flexible array.
const FIEMAP: u64 = 0xC020_660B;
/// `FIEMAP_EXTENT_LAST`, `FIEMAP_EXTENT_SHARED` of `linux/fiemap.h`.
const EXTENT_LAST: u32 = 1;
const EXTENT_SHARED: u32 = 0x2000;

const _: () = assert!(size_of::<Extent>() == 56);

/// Which part of a file's space is its own (`linux/fiemap.h`; btrfs tells since Linux 2.6.33).
///
/// # Errors
/// `EOPNOTSUPP` on a file system that cannot tell.
pub fn file_usage(file: BorrowedFd<'_>) -> io::Result<FileUsage> {
    let mut usage = FileUsage::default();
    let mut start = 0u64;
    loop {
        let mut map = Box::new(Fiemap {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped: 0,
            count: EXTENTS as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        });
        // SAFETY: FS_IOC_FIEMAP takes a struct fiemap followed by `count` extents.
        unsafe { ioctl(file, FIEMAP, &mut *map) }?;
        let found = map
            .extents
            .get(..map.mapped as usize)
            .unwrap_or(&map.extents);
        for extent in found {
            usage.referenced = usage.referenced.saturating_add(extent.length);
            if extent.flags & EXTENT_SHARED == 0 {
                usage.exclusive = usage.exclusive.saturating_add(extent.length);
            }
        }
        match found.last() {
            Some(last) if last.flags & EXTENT_LAST == 0 && last.logical + last.length > start => {
                start = last.logical + last.length;
            }
            _ => return Ok(usage),
        }
    }
}

/// Whether these first 68 KiB (or more) of a device or file begin a btrfs file system.
#[must_use]
pub fn is_formatted(start: &[u8]) -> bool {
    // The super block is at 64 KiB, its magic at byte 64 of it.
    start.get(0x1_0040..0x1_0048) == Some(b"_BHRfS_M".as_slice())
}
