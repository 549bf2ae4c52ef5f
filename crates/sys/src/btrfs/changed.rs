//! What was changed in a subvolume since a transaction, by the numbers that btrfs keeps of every inode: the cost is
//! that of the changes, not of the files (`linux/btrfs.h`, `linux/btrfs_tree.h`; all of it needs CAP_SYS_ADMIN).

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::size_of;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use nix::libc;

use super::{
    INO_LOOKUP, InoLookup, READ, SEARCH_BUFFER, SUBVOLUME_INODE, SearchArgs, SearchKey,
    TREE_SEARCH, ioc, ioctl, number,
};

/// Key types (`BTRFS_INODE_ITEM_KEY`, `BTRFS_INODE_REF_KEY`, `BTRFS_INODE_EXTREF_KEY`).
const INODE_ITEM: u32 = 1;
const INODE_REF: u32 = 12;
const INODE_EXTREF: u32 = 13;
/// Where an inode item has the last transaction that changed it, and its mode (`btrfs_inode_item`).
const ITEM_TRANSID: usize = 8;
const ITEM_MODE: usize = 52;

/// `btrfs_ioctl_get_subvol_info_args`.
#[repr(C)]
struct SubvolumeInfo {
    tree: u64,
    name: [u8; 256],
    parent: u64,
    dir: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    /// Changed, made, sent, received: transactions.
    transactions: [u64; 4],
    /// Seconds, and nanoseconds with what fills up to eight bytes, of the same.
    times: [u64; 8],
    reserved: [u64; 8],
}

/// `BTRFS_IOC_GET_SUBVOL_INFO`, since Linux 4.18.
const SUBVOL_INFO: u64 = ioc(READ, 60, size_of::<SubvolumeInfo>());
const _: () = assert!(size_of::<SubvolumeInfo>() == 504);

/// Where a subvolume comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Its own mark.
    pub uuid: [u8; 16],
    /// The mark of what it is a snapshot of; zeros when it is none.
    pub parent: [u8; 16],
    /// The transaction that made it. What was changed after that was changed in a later one.
    pub made: u64,
}

/// Where the subvolume that `fd` lies in comes from.
///
/// # Errors
/// `ENOTTY` on another kind of file system.
pub fn origin(fd: BorrowedFd<'_>) -> io::Result<Origin> {
    let mut info = Box::new(SubvolumeInfo {
        tree: 0,
        name: [0; 256],
        parent: 0,
        dir: 0,
        generation: 0,
        flags: 0,
        uuid: [0; 16],
        parent_uuid: [0; 16],
        received_uuid: [0; 16],
        transactions: [0; 4],
        times: [0; 8],
        reserved: [0; 8],
    });
    // SAFETY: BTRFS_IOC_GET_SUBVOL_INFO writes a btrfs_ioctl_get_subvol_info_args.
    unsafe { ioctl(fd, SUBVOL_INFO, &mut *info) }?;
    let [_, made, ..] = info.transactions;
    Ok(Origin {
        uuid: info.uuid,
        parent: info.parent_uuid,
        made,
    })
}

/// An inode that was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// Its number.
    pub inode: u64,
    /// Whether it is a directory: then its entries may be others.
    pub is_dir: bool,
}

/// Inodes of the subvolume that `fd` lies in which were changed in the transaction `since` or a later one, in their
/// order; `None` when there are more than `most`. Only what is on the disk is told: syncfs(2) first.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; `ENOTTY` on another kind of file system.
pub fn changed(fd: BorrowedFd<'_>, since: u64, most: usize) -> io::Result<Option<Vec<Changed>>> {
    let mut found = Vec::new();
    let key = SearchKey {
        min_objectid: SUBVOLUME_INODE,
        min_type: INODE_ITEM,
        // (internal objects have the highest numbers)
        max_objectid: u64::MAX - 512,
        max_type: u32::MAX,
        max_offset: u64::MAX,
        // Whole leaves are passed over that are older.
        min_transid: since,
        ..SearchKey::default()
    };
    let whole = search(fd, key, &mut |item| {
        let at = |at, bytes| number(item.data, at, bytes);
        if item.kind == INODE_ITEM && at(ITEM_TRANSID, 8).is_some_and(|last| last >= since) {
            let mode = at(ITEM_MODE, 4).unwrap_or_default();
            found.push(Changed {
                inode: item.inode,
                is_dir: mode & u64::from(libc::S_IFMT) == u64::from(libc::S_IFDIR),
            });
        }
        if found.len() > most {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok(whole.is_continue().then_some(found))
}

/// All names of an inode, each with the number of the directory it is in. None for one that is gone, and for the top.
///
/// # Errors
/// As [`changed`]; `EMSGSIZE` when a directory holds so many of its names that the kernel does not tell them this way.
pub fn names(fd: BorrowedFd<'_>, inode: u64) -> io::Result<Vec<(u64, OsString)>> {
    let mut found = Vec::new();
    let mut whole = true;
    let key = SearchKey {
        min_objectid: inode,
        max_objectid: inode,
        min_type: INODE_REF,
        max_type: INODE_EXTREF,
        max_offset: u64::MAX,
        ..SearchKey::default()
    };
    // (it ends by itself)
    let _ = search(fd, key, &mut |item| {
        // An item that did not fit into the answer comes without its content.
        whole &= !item.data.is_empty();
        // Parent (in a long one), index, length, name; one behind the other.
        let long = item.kind == INODE_EXTREF;
        let head = if long { 18 } else { 10 };
        let mut rest = item.data;
        while let Some(length) = number(rest, head - 2, 2).map(|length| length as usize) {
            let parent = if long {
                number(rest, 0, 8)
            } else {
                Some(item.offset)
            };
            let (Some(parent), Some(name)) = (parent, rest.get(head..head + length)) else {
                break;
            };
            if parent != inode {
                found.push((parent, OsStr::from_bytes(name).to_owned()));
            }
            rest = rest.get(head + length..).unwrap_or_default();
        }
        ControlFlow::Continue(())
    })?;
    if whole {
        Ok(found)
    } else {
        Err(io::Error::from_raw_os_error(libc::EMSGSIZE))
    }
}

/// Path of a directory from the top of the subvolume that `fd` lies in; empty for the top itself.
///
/// # Errors
/// `ENOENT` when it is gone, `ENAMETOOLONG` above 4079 bytes, `EPERM` without CAP_SYS_ADMIN.
pub fn directory(fd: BorrowedFd<'_>, inode: u64) -> io::Result<PathBuf> {
    if inode == SUBVOLUME_INODE {
        return Ok(PathBuf::new());
    }
    let mut args = Box::new(InoLookup {
        treeid: 0,
        objectid: inode,
        name: [0; 4080],
    });
    // SAFETY: BTRFS_IOC_INO_LOOKUP takes a btrfs_ioctl_ino_lookup_args.
    unsafe { ioctl(fd, INO_LOOKUP, &mut *args) }?;
    let path = args.name.split(|byte| *byte == 0).next();
    let path = path.unwrap_or_default();
    // The kernel ends it with a slash.
    let path = path.strip_suffix(b"/").unwrap_or(path);
    Ok(OsString::from_vec(path.to_vec()).into())
}

/// An item of a tree.
struct Item<'a> {
    inode: u64,
    kind: u32,
    offset: u64,
    data: &'a [u8],
}

/// Calls `each` with the items of the subvolume's tree between the key's two ends, in their order; also with those in
/// between that are of other types. `each` may end it.
fn search(
    fd: BorrowedFd<'_>,
    mut key: SearchKey,
    each: &mut dyn FnMut(Item<'_>) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    /// Transaction, object, offset, type, length.
    const HEAD: usize = 32;
    key.max_transid = u64::MAX;
    loop {
        let mut args = Box::new(SearchArgs {
            key: SearchKey {
                nr_items: u32::MAX,
                ..key
            },
            buffer: [0; SEARCH_BUFFER],
        });
        // SAFETY: BTRFS_IOC_TREE_SEARCH takes a btrfs_ioctl_search_args.
        unsafe { ioctl(fd, TREE_SEARCH, &mut *args) }?;
        if args.key.nr_items == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let mut at = 0;
        let mut last = (u64::MAX, u32::MAX, u64::MAX);
        for _ in 0..args.key.nr_items {
            let field = |from, bytes| number(&args.buffer, at + from, bytes);
            let (Some(inode), Some(offset), Some(kind), Some(length)) =
                (field(8, 8), field(16, 8), field(24, 4), field(28, 4))
            else {
                break;
            };
            let (kind, data) = (kind as u32, at + HEAD..at + HEAD + length as usize);
            at = data.end;
            last = (inode, kind, offset);
            let data = args.buffer.get(data).unwrap_or_default();
            let item = Item {
                inode,
                kind,
                offset,
                data,
            };
            if each(item).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        // On behind the last: the three parts count as one number.
        let (inode, kind, offset) = last;
        (key.min_objectid, key.min_type, key.min_offset) = match (offset, kind) {
            (u64::MAX, u32::MAX) if inode == u64::MAX => return Ok(ControlFlow::Continue(())),
            (u64::MAX, u32::MAX) => (inode + 1, 0, 0),
            (u64::MAX, kind) => (inode, kind + 1, 0),
            (offset, kind) => (inode, kind, offset + 1),
        };
    }
}
