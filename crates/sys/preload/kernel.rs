//! CRIU finds out what the kernel can do each time it starts, which takes 60 ms of a processor, unless it finds the answer in
//! `/run/criu.kdat`. It leaves it there where `/run` is a tmpfs, so that the file does not outlive the kernel. Elsewhere, as in many a
//! container, whoever starts CRIU names a folder for it in the environment variable `OFFSHOOT_KERNEL`, and sees to it that the folder is new
//! after a boot.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicI32, Ordering};

use crate::{AT_FDCWD, KnownPath, SYS_OPENAT, __errno_location, gate, syscall};

const SYS_RENAME: i64 = 82;
const SYS_UNLINK: i64 = 87;
const SYS_FSTATFS: i64 = 138;
const O_CREAT: c_int = 0o100;
const ECANCELED: c_int = 125;
/// `TMPFS_MAGIC` of statfs(2).
const TMPFS: u64 = 0x0102_1994;
/// Names of the file, and of what becomes the file.
const FOLDER: &[u8] = b"/run/";
const NAMES: [&[u8]; 2] = [b"criu.kdat", b"criu.kdat.tmp"];

/// The file that CRIU is about to write. It asks where that lies first.
static WRITING: AtomicI32 = AtomicI32::new(-1);

/// Where a path leads; `None`: where it says.
///
/// # Safety
/// `path` is a string.
unsafe fn elsewhere(path: *const c_char) -> Option<KnownPath> {
    // SAFETY: the caller's.
    let name = unsafe { CStr::from_ptr(path) }.to_bytes().strip_prefix(FOLDER)?;
    let name = NAMES.into_iter().find(|known| *known == name)?;
    KnownPath::in_folder(c"OFFSHOOT_KERNEL", name, None)
}

/// open(2), in the place of the C library's.
///
/// # Safety
/// As open(2): `path` is a string. `mode` is not there, and not used, unless `flags` say that a file is made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: u32) -> c_int {
    // SAFETY: the caller's string.
    if !gate::pass(unsafe { CStr::from_ptr(path) }.to_bytes()) {
        // SAFETY: the calling thread's own.
        unsafe { *__errno_location() = ECANCELED };
        return -1;
    }
    // SAFETY: the caller's string.
    let moved = unsafe { elsewhere(path) };
    let place = moved.as_ref().map_or(path, |moved| moved.as_ptr());
    // SAFETY: a string.
    let opened = unsafe { syscall(SYS_OPENAT, AT_FDCWD, place, flags, mode) as c_int };
    if moved.is_some() && flags & O_CREAT != 0 {
        WRITING.store(opened, Ordering::Relaxed);
    }
    opened
}

/// fstatfs(2), in the place of the C library's.
///
/// # Safety
/// As fstatfs(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatfs64(fd: c_int, stat: *mut c_void) -> c_int {
    // SAFETY: the caller's arguments, handed on.
    let done = unsafe { syscall(SYS_FSTATFS, fd, stat) as c_int };
    if done == 0 && fd == WRITING.swap(-1, Ordering::Relaxed) {
        // SAFETY: `struct statfs`, which begins with the kind.
        unsafe { stat.cast::<u64>().write_unaligned(TMPFS) };
    }
    done
}

/// rename(2), in the place of the C library's.
///
/// # Safety
/// As rename(2): strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's strings.
    let (moved_from, moved_to) = unsafe { (elsewhere(from), elsewhere(to)) };
    let from = moved_from.as_ref().map_or(from, |moved| moved.as_ptr());
    let to = moved_to.as_ref().map_or(to, |moved| moved.as_ptr());
    // SAFETY: strings.
    unsafe { syscall(SYS_RENAME, from, to) as c_int }
}

/// unlink(2), in the place of the C library's.
///
/// # Safety
/// As unlink(2): a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's string.
    let moved = unsafe { elsewhere(path) };
    let place = moved.as_ref().map_or(path, |moved| moved.as_ptr());
    // SAFETY: a string.
    unsafe { syscall(SYS_UNLINK, place) as c_int }
}
