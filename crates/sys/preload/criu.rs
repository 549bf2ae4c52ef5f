//! A shared object that CRIU is started with (`LD_PRELOAD`): it stands between CRIU and the C library. CRIU stays what its distribution
//! made of it, and takes less time.
//!
//! In a dump, when the environment variable `OFFSHOOT_KNOWN` names a folder, it leaves to others what is theirs:
//!
//! - It finds no page of any process present. It asks the kernel by the `PAGEMAP_SCAN` ioctl (Linux 6.7) which pages to dump; whoever starts
//!   it takes care of the pages. Areas that CRIU dumps without asking (vDSO, AIO rings) are as ever. Memory that processes share without
//!   a file (mmap(2), `MAP_SHARED | MAP_ANONYMOUS`) is a file of the kernel's own, which CRIU asks for its data by lseek(2): it finds none.
//! - It finds no child that is a twin. It reads which children a process has from `/proc/<pid>/task/<tid>/children`. Twins (`inject::Twin`)
//!   are no part of the program: those whose numbers are in the file `twins` of that folder, in decimal, separated by anything else,
//!   are left out.
//! - It need not look at every page to know the areas: [`areas`].
//! - What takes less time than a child does is done without one: [`child`].
//! - It stops before the first look at the processes: [`gate`].
//!
//! In dumps and restores, [`kernel`] and [`request`]; in restores, scripts ([`child`]).
#![no_std]

#[path = "../src/pagemap/abi.rs"]
#[allow(dead_code, reason = "the crate needs more of it")]
mod abi;
mod areas;
mod archive;
mod child;
mod gate;
mod ids;
mod kernel;
mod request;

use core::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};

use abi::{PAGEMAP_SCAN, ScanArg, page};

/// What CRIU asks for when it looks for pages to dump.
const THERE: u64 = page::PRESENT | page::SWAPPED;

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
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    if request as u32 == PAGEMAP_SCAN {
        // SAFETY: this request takes such a structure; an empty range is a trial of the ioctl itself, which may be less.
        if is_dump()
            && let Some(scan) = unsafe { arg.cast::<ScanArg>().as_mut() }
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
const ENOENT: c_int = 2;
const ENXIO: c_int = 6;
/// The device of the kernel's own shared memory, as `/proc/<pid>/maps` shows it: 00:01.
const SHARED_DEVICE: u64 = 1;
const SHARED_NAME: &[u8] = b"/dev/zero (deleted)";

/// lseek(2), in the place of the C library's.
#[unsafe(no_mangle)]
pub extern "C" fn lseek64(fd: c_int, offset: i64, whence: c_int) -> i64 {
    if whence == SEEK_DATA && is_dump() && is_shared(fd) {
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
    let mut name = [0_u8; 64];
    link_of(fd, &mut name) == Some(SHARED_NAME)
}

/// What a descriptor is of, as `/proc/self/fd` names it; `None` when the name is longer than `into`.
fn link_of(fd: c_int, into: &mut [u8; 64]) -> Option<&[u8]> {
    let mut path = [0_u8; 32];
    let mut digits = [0; 10];
    let bytes = b"/proc/self/fd/".iter().chain(decimal(fd.unsigned_abs(), &mut digits));
    path.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    // SAFETY: a string, and as many bytes as there is room for.
    let len = unsafe { syscall(SYS_READLINK, path.as_ptr(), into.as_mut_ptr(), into.len()) };
    usize::try_from(len).ok().filter(|len| *len < into.len()).and_then(|len| into.get(..len))
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
    // SAFETY: the caller's string.
    let name = unsafe { CStr::from_ptr(path) }.to_bytes();
    if areas::has_no_file(dir, name) {
        // SAFETY: the calling thread's own.
        unsafe { *__errno_location() = ENOENT };
        return -1;
    }
    // SAFETY: the caller's arguments, handed on.
    let opened = unsafe { syscall(SYS_OPENAT, dir, path, flags, mode) as c_int };
    if opened < 0 {
        return opened;
    }
    ids::opened(dir, path, name);
    child::opened(name, flags, opened);
    let instead = match name {
        b"smaps" => areas::known(dir),
        b"map_files" => {
            areas::files_are_at(dir, opened);
            None
        }
        _ if name.ends_with(b"/children") => without_twins(opened),
        _ => None,
    };
    match instead {
        None => opened,
        Some(instead) => {
            // SAFETY: opened above, and given to nobody.
            unsafe { close(opened) };
            instead
        }
    }
}

/// Whether this CRIU leaves something to others.
fn is_dump() -> bool {
    // SAFETY: a string.
    !unsafe { getenv(KNOWN.as_ptr()) }.is_null()
}

const KNOWN: &CStr = c"OFFSHOOT_KNOWN";

/// The path of a file in a folder that the environment names, with its zero.
struct KnownPath([u8; 4200]);

impl KnownPath {
    /// Of file `name` followed by `number`, if given, where something is known beforehand.
    fn of(name: &[u8], number: Option<u32>) -> Option<Self> {
        Self::in_folder(KNOWN, name, number)
    }

    fn in_folder(variable: &CStr, name: &[u8], number: Option<u32>) -> Option<Self> {
        // SAFETY: a string; what comes back is a string of the environment, or null.
        let folder = unsafe { getenv(variable.as_ptr()) };
        if folder.is_null() {
            return None;
        }
        // SAFETY: `folder` is a string.
        let folder = unsafe { CStr::from_ptr(folder) }.to_bytes();
        let mut path = Self([0; 4200]);
        let mut digits = [0; 10];
        let digits = number.map_or(&[][..], |number| decimal(number, &mut digits));
        let parts = [folder, b"/", name, digits];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length >= path.0.len() {
            return None;
        }
        let bytes = parts.into_iter().flatten();
        path.0.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Some(path)
    }

    fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }

    fn open(&self) -> Option<c_int> {
        // SAFETY: a string: it was zeros and is longer than what was written to it.
        let fd = unsafe { syscall(SYS_OPENAT, AT_FDCWD, self.as_ptr(), O_CLOEXEC, 0) as c_int };
        (fd >= 0).then_some(fd)
    }
}

/// The digits of a number, at the end of `into`.
fn decimal(number: u32, into: &mut [u8; 10]) -> &[u8] {
    let mut at = into.len();
    let mut rest = number;
    loop {
        at -= 1;
        if let Some(digit) = into.get_mut(at) {
            *digit = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
        if rest == 0 || at == 0 {
            return into.get(at..).unwrap_or_default();
        }
    }
}

/// An empty file in memory.
fn memory_file() -> Option<c_int> {
    // SAFETY: a name, and a flag: it is closed on exec.
    let file = unsafe { syscall(SYS_MEMFD_CREATE, c"offshoot".as_ptr(), 1) as c_int };
    (file >= 0).then_some(file)
}

/// What is in `opened`, but for the twins; `None`: there are none.
fn without_twins(opened: c_int) -> Option<c_int> {
    let mut twins = [0; TWINS_MAX];
    let list = KnownPath::of(b"twins", None)?.open()?;
    let mut count = 0;
    numbers(list, |number| {
        if let Some(place) = twins.get_mut(count) {
            *place = number;
            count += 1;
        }
    });
    // SAFETY: opened above.
    unsafe { close(list) };
    if count == 0 {
        return None;
    }
    // What cannot be filtered must not be told as it is: CRIU fails with a descriptor that is none.
    Some(without(opened, twins.get(..count).unwrap_or_default()).unwrap_or(-1))
}

/// A file with the numbers that are in `fd` but not in `twins`, each followed by a space, as the kernel writes them.
fn without(fd: c_int, twins: &[u32]) -> Option<c_int> {
    let file = memory_file()?;
    numbers(fd, |number| {
        if twins.contains(&number) {
            return;
        }
        let mut digits = [0; 10];
        for text in [decimal(number, &mut digits), b" "] {
            // SAFETY: as many bytes as there are.
            unsafe { write(file, text.as_ptr().cast(), text.len()) };
        }
    });
    // SAFETY: numbers only.
    unsafe { syscall(SYS_LSEEK, file, 0, 0) };
    Some(file)
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

/// The core library, which was built to unwind, asks for it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[panic_handler]
fn never(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
