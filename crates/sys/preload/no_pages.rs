//! A shared object for `LD_PRELOAD`: a program with it finds no page of any process present.
//!
//! Made for CRIU, which asks the kernel by the `PAGEMAP_SCAN` ioctl (Linux 6.7) which pages to dump. Whoever starts it with this
//! takes care of the pages. Scans for anything else, and areas that CRIU dumps without asking (vDSO, AIO rings), are as ever.
#![no_std]

use core::ffi::{c_int, c_long, c_ulong};

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

#[panic_handler]
fn never(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
