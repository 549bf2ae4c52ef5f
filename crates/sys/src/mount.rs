//! The new mount interface: open_tree(2), move_mount(2), mount_setattr(2) with id mapping, and a process's own
//! view of its mounts.
//!
//! An id-mapped mount (Linux 5.12, mount_setattr(2)) shows a tree with its owners shifted: on disk a file belongs to
//! 0, through the mount to the first host id of an environment's range. Nothing on disk is changed, so a snapshot
//! can be shown with another range without touching a single inode.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::mount::{MntFlags, MsFlags};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

/// Whether a mount may be written through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// It may.
    Allowed,
    /// `MOUNT_ATTR_RDONLY`.
    Refused,
}

/// A user namespace that maps `count` ids: inner 0 to host `base`, and so on, for users and groups. It has no process; it lives
/// as long as the descriptor or a mount that uses it (user_namespaces(7)).
///
/// # Errors
/// `EPERM` without `CAP_SETUID`/`CAP_SETGID`, `ENOSPC` at `user.max_user_namespaces`, `EINVAL` for a range that
/// wraps around.
pub fn user_namespace(base: u32, count: u32) -> io::Result<OwnedFd> {
    let (wait, hold) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    let (wait_fd, hold_fd) = (wait.as_raw_fd(), hold.as_raw_fd());
    // SAFETY: clone(2) without CLONE_VM and with a null stack is fork(2): the child has a copy of the address space. The
    // child calls only close, read and _exit, which are async-signal-safe, so other threads' locks do not matter.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            let mut byte = 0u8;
            // SAFETY: async-signal-safe calls on descriptors this process owns a copy of and on a local byte; the read ends when
            // the parent closes its end or dies, and _exit never returns.
            unsafe {
                libc::close(hold_fd);
                libc::read(wait_fd, (&raw mut byte).cast(), 1);
                libc::_exit(0)
            }
        }
        _ => {}
    }
    let process = format!("/proc/{pid}");
    let map = format!("0 {base} {count}\n");
    let result = fs::write(format!("{process}/uid_map"), &map)
        .and_then(|()| fs::write(format!("{process}/gid_map"), &map))
        .and_then(|()| fs::File::open(format!("{process}/ns/user")).map(OwnedFd::from));
    drop(hold);
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap_or(0));
    // The child ends by itself once its pipe is closed; this only reaps it.
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitpid(pid, rustix::process::WaitOptions::empty())
    {}
    result
}

/// A detached copy of the mount (not of what is mounted below it) that shows `source`.
///
/// # Errors
/// Of open_tree(2).
pub fn open_tree(source: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(CWD, source, flags)?)
}

/// Shifts a detached tree's owners by the mapping of `userns`, hides device nodes, and refuses writes if asked. The tree belongs to no
/// peer group afterwards (mount_namespaces(7)): what is mounted in the original later does not appear.
///
/// # Errors
/// Of mount_setattr(2): `EINVAL` when the file system cannot be id-mapped, `EPERM` when the tree is not detached.
pub fn map_ids(tree: BorrowedFd<'_>, userns: BorrowedFd<'_>, writes: Writes) -> io::Result<()> {
    // Set-uid programs stay useful: the ids they switch to belong to the environment's range.
    let flags = libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_NODEV;
    set_attributes(tree, flags | read_only(writes), Some(userns))
}

/// As [`map_ids`] without shifting owners, and set-uid programs give nothing.
///
/// # Errors
/// Of mount_setattr(2).
pub fn restrict(tree: BorrowedFd<'_>, writes: Writes) -> io::Result<()> {
    set_attributes(
        tree,
        libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | read_only(writes),
        None,
    )
}

fn read_only(writes: Writes) -> u64 {
    if writes == Writes::Refused {
        libc::MOUNT_ATTR_RDONLY
    } else {
        0
    }
}

fn set_attributes(
    tree: BorrowedFd<'_>,
    attr_set: u64,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let userns_fd = userns.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(u64::MAX));
    let attr = libc::mount_attr {
        attr_set,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd,
    };
    let empty = CString::default();
    // SAFETY: `tree` and `userns` are open for the call, `empty` is NUL-terminated, `attr` is a valid struct mount_attr of the
    // size passed; the kernel only reads it (mount_setattr(2)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Mounts a detached tree on `target`, which must exist and be of the same kind (directory or not).
///
/// # Errors
/// Of move_mount(2).
pub fn place(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    rustix::mount::move_mount(
        tree,
        c"",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Gives the calling process (which must have one thread) its own copy of the mounts. Changes made outside still arrive, its
/// own go nowhere (mount_namespaces(7), `MS_SLAVE`).
///
/// # Errors
/// Of unshare(2) and mount(2).
pub fn own_mount_namespace() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    nix::mount::mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )?;
    Ok(())
}

/// Mounts a new tmpfs on `target` with its own, private propagation.
///
/// # Errors
/// Of mount(2).
pub fn tmpfs(target: &Path, size: u64) -> io::Result<()> {
    let options = format!("mode=0711,size={size}");
    nix::mount::mount(
        Some("offshoot"),
        target,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some(options.as_str()),
    )?;
    nix::mount::mount(
        None::<&str>,
        target,
        None::<&str>,
        MsFlags::MS_PRIVATE,
        None::<&str>,
    )?;
    Ok(())
}

/// Detaches what is mounted on `target` at once, even when it is in use (umount2(2), `MNT_DETACH`).
///
/// # Errors
/// Of umount2(2); `EINVAL` when nothing is mounted there.
pub fn detach(target: &Path) -> io::Result<()> {
    nix::mount::umount2(target, MntFlags::MNT_DETACH)?;
    Ok(())
}

/// Makes a character device node.
///
/// # Errors
/// Of mknod(2).
pub fn character_device(path: &Path, major: u64, minor: u64, mode: u32) -> io::Result<()> {
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let permissions = nix::sys::stat::Mode::from_bits_truncate(mode);
    nix::sys::stat::mknod(
        path,
        kind,
        permissions,
        nix::sys::stat::makedev(major, minor),
    )?;
    // mknod(2) applies the umask.
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// The mount points of the calling thread's mount namespace, in the order of /proc/self/mountinfo (parents before children).
///
/// # Errors
/// When /proc cannot be read.
pub fn mount_points() -> io::Result<Vec<PathBuf>> {
    let text = fs::read("/proc/thread-self/mountinfo")?;
    Ok(parse_mount_points(&text))
}

fn parse_mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    mountinfo
        .split(|&b| b == b'\n')
        .filter_map(|line| line.split(|&b| b == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(field))))
        .collect()
}

/// Undoes the octal escapes of space, tab, newline and backslash (proc_pid_mountinfo(5)).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .filter(|d| byte == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        if let Some(digits) = digits {
            let value = digits.iter().fold(0u32, |n, b| n * 8 + u32::from(b - b'0'));
            out.push(u8::try_from(value & 0xff).unwrap_or(byte));
            rest = tail.get(3..).unwrap_or_default();
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn mountinfo_is_parsed_with_its_escapes() {
        let text = b"22 27 0:21 / /proc rw - proc proc rw\n23 27 0:22 / /a\\040b\\134c rw - x y z\n\nshort line\n";
        assert_eq!(
            parse_mount_points(text),
            [PathBuf::from("/proc"), PathBuf::from("/a b\\c")]
        );
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\777"), [0xff]);
    }

    #[test]
    fn an_id_mapped_tree_shows_shifted_owners() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: needs root");
            return;
        }
        let dir = std::env::temp_dir().join(format!("offshoot-sys-idmap-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        let userns = user_namespace(300_000, 1000).unwrap();
        let tree = open_tree(&dir).unwrap();
        map_ids(tree.as_fd(), userns.as_fd(), Writes::Refused).unwrap();
        let stat = rustix::fs::statat(&tree, "file", rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (300_000, 300_000));
        let open = rustix::fs::openat(
            &tree,
            "file",
            rustix::fs::OFlags::WRONLY,
            rustix::fs::Mode::empty(),
        );
        assert_eq!(open.unwrap_err(), rustix::io::Errno::ROFS);
        drop(tree);
        fs::remove_dir_all(&dir).unwrap();
    }
}
