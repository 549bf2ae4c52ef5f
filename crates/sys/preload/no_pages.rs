//! A shared object for `LD_PRELOAD`: a program with it finds no page of any process present, and no child that is a twin.
//!
//! Made for CRIU, which asks the kernel by the `PAGEMAP_SCAN` ioctl (Linux 6.7) which pages to dump. Whoever starts it with this
//! takes care of the pages. Scans for anything else, and areas that CRIU dumps without asking (vDSO, AIO rings), are as ever.
//!
//! Memory that processes share without a file (mmap(2), `MAP_SHARED | MAP_ANONYMOUS`) is a file of the kernel's own, which CRIU asks for its
//! data by lseek(2): it finds none.
//!
//! CRIU reads which children a process has from `/proc/<pid>/task/<tid>/children`. Twins (`inject::Twin`) are children that are no
//! part of the program: the ones whose numbers are in the file that the environment variable `OFFSHOOT_TWINS` names, in decimal,
//! separated by anything else, are left out.
#![no_std]

use core::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 0xc060_6610;
/// `PAGE_IS_PRESENT | PAGE_IS_SWAPPED`.
const THERE: u64 = 1 << 3 | 1 << 4;

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

unsafe extern "C" {
    /// What ioctl(2) is made of, in the C library.
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn read(fd: c_int, into: *mut c_void, len: usize) -> isize;
    fn write(fd: c_int, from: *const c_void, len: usize) -> isize;
    fn close(fd: c_int) -> c_int;
    fn __errno_location() -> *mut c_int;
}

/// ioctl(2), in the place of the C library's.
///
/// # Safety
/// As ioctl(2): `arg` is what `request` takes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: *mut ScanArg) -> c_int {
    if request as u32 == PAGEMAP_SCAN {
        // SAFETY: this request takes such a structure; an empty range is a trial of the ioctl itself, which may be less.
        if let Some(scan) = unsafe { arg.as_mut() }
            && scan.end > scan.start
            && scan.category_anyof_mask & THERE != 0
        {
            scan.walk_end = scan.end;
            return 0;
        }
    }
    const SYS_IOCTL: c_long = 16;
    // SAFETY: the caller's arguments, handed on.
    unsafe { syscall(SYS_IOCTL, fd, request, arg) as c_int }
}

const SYS_FSTAT: c_long = 5;
const SYS_READLINK: c_long = 89;
const SEEK_DATA: c_int = 3;
const ENXIO: c_int = 6;
/// The device of the kernel's own shared memory, as `/proc/<pid>/maps` shows it: 00:01.
const SHARED_DEVICE: u64 = 1;
const SHARED_NAME: &[u8] = b"/dev/zero (deleted)";

/// lseek(2), in the place of the C library's.
#[unsafe(no_mangle)]
pub extern "C" fn lseek64(fd: c_int, offset: i64, whence: c_int) -> i64 {
    if whence == SEEK_DATA && is_shared(fd) {
        // SAFETY: the calling thread's own.
        unsafe { *__errno_location() = ENXIO };
        return -1;
    }
    // SAFETY: numbers only.
    unsafe { syscall(SYS_LSEEK, fd, offset, whence) }
}

/// Whether a descriptor is of memory that processes share without a file.
fn is_shared(fd: c_int) -> bool {
    // `struct stat`, which begins with the device
    let mut stat = [0_u64; 18];
    // SAFETY: as many bytes as the kernel writes.
    let done = unsafe { syscall(SYS_FSTAT, fd, stat.as_mut_ptr()) };
    if done != 0 || stat.first() != Some(&SHARED_DEVICE) {
        return false;
    }
    let mut path = *b"/proc/self/fd/0000000000\0";
    let mut rest = fd.unsigned_abs();
    for digit in path.iter_mut().rev().skip(1).take(10) {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // The kernel takes no leading zeros.
    const PREFIX: usize = 14;
    let zeros = path.iter().skip(PREFIX).take(9).take_while(|digit| **digit == b'0').count();
    path.copy_within(PREFIX + zeros.., PREFIX);
    let mut name = [0_u8; 64];
    // SAFETY: a string, and as many bytes as there is room for.
    let len = unsafe { syscall(SYS_READLINK, path.as_ptr(), name.as_mut_ptr(), name.len()) };
    usize::try_from(len).is_ok_and(|len| name.get(..len) == Some(SHARED_NAME))
}

const AT_FDCWD: c_int = -100;
const SYS_OPENAT: c_long = 257;
const SYS_MEMFD_CREATE: c_long = 319;
const SYS_LSEEK: c_long = 8;
const O_CLOEXEC: c_int = 0o2_000_000;
/// More twins than one dump has.
const TWINS_MAX: usize = 256;

/// openat(2), in the place of the C library's.
///
/// # Safety
/// As openat(2): `path` is a string. `mode` is not there, and not used, unless `flags` say that a file is made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: u32) -> c_int {
    // SAFETY: the caller's arguments, handed on.
    let opened = unsafe { syscall(SYS_OPENAT, dir, path, flags, mode) as c_int };
    // SAFETY: the caller's string.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    if opened < 0 || !path.ends_with(b"/children") {
        return opened;
    }
    let mut twins = [0; TWINS_MAX];
    let twins = match twins_into(&mut twins) {
        0 => return opened,
        count => twins.get(..count).unwrap_or_default(),
    };
    let without = without(opened, twins);
    // SAFETY: opened above, and given to nobody.
    unsafe { close(opened) };
    without
}

/// Reads the numbers of the twins; how many there are.
fn twins_into(twins: &mut [u32; TWINS_MAX]) -> usize {
    // SAFETY: a string; what comes back is a string of the environment, or null.
    let list = unsafe { getenv(c"OFFSHOOT_TWINS".as_ptr()) };
    if list.is_null() {
        return 0;
    }
    // SAFETY: `list` is a string.
    let fd = unsafe { syscall(SYS_OPENAT, AT_FDCWD, list, O_CLOEXEC, 0) as c_int };
    if fd < 0 {
        return 0;
    }
    let mut count = 0;
    numbers(fd, |number| {
        if let Some(place) = twins.get_mut(count) {
            *place = number;
            count += 1;
        }
    });
    // SAFETY: opened above.
    unsafe { close(fd) };
    count
}

/// A file with the numbers that are in `fd` but not in `twins`, each followed by a space, as the kernel writes them.
fn without(fd: c_int, twins: &[u32]) -> c_int {
    // SAFETY: a name, no flags.
    let file = unsafe { syscall(SYS_MEMFD_CREATE, c"children".as_ptr(), 0) as c_int };
    if file < 0 {
        return file;
    }
    numbers(fd, |number| {
        if twins.contains(&number) {
            return;
        }
        let mut text = [b' '; 11];
        let mut at = text.len() - 1;
        let mut rest = number;
        while at > 0 {
            at -= 1;
            if let Some(digit) = text.get_mut(at) {
                *digit = b'0' + (rest % 10) as u8;
            }
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let text = text.get(at..).unwrap_or_default();
        // SAFETY: as many bytes as there are.
        unsafe { write(file, text.as_ptr().cast(), text.len()) };
    });
    // SAFETY: numbers only.
    unsafe { syscall(SYS_LSEEK, file, 0, 0) };
    file
}

/// Calls `each` with every decimal number in what is read from `fd`.
fn numbers(fd: c_int, mut each: impl FnMut(u32)) {
    let mut number = None;
    let mut buffer = [0_u8; 1024];
    loop {
        // SAFETY: at most as many bytes as there is room for.
        let got = unsafe { read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        for byte in buffer.iter().take(usize::try_from(got).unwrap_or(0)) {
            if byte.is_ascii_digit() {
                let digit = u32::from(byte - b'0');
                number = Some(number.unwrap_or(0_u32).wrapping_mul(10).wrapping_add(digit));
            } else if let Some(number) = number.take() {
                each(number);
            }
        }
        if got <= 0 {
            break;
        }
    }
    if let Some(number) = number {
        each(number);
    }
}

#[panic_handler]
fn never(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
