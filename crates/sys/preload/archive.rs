//! CRIU has every tmpfs archived by `tar`, which a shell script starts (see `dump::lay_tar`): two programs for, most of the time, an empty
//! `/dev/shm`. Of an empty directory the archive is one header, which the process that would become `tar` writes itself.

use core::ffi::{CStr, c_char, c_int};

use crate::{SYS_FSTAT, is_dump, syscall, write};

const SYS_GETDENTS64: i64 = 217;
const SYS_EXIT_GROUP: i64 = 231;
/// CRIU gives `tar` the directory as its input, and the image as its output.
const DIRECTORY: c_int = 0;
const IMAGE: c_int = 1;
const BLOCK: usize = 512;

unsafe extern "C" {
    /// execvp(3) with an environment: what the C library's execvp is made of.
    fn execvpe(file: *const c_char, args: *const *const c_char, env: *const *const c_char) -> c_int;
    static environ: *const *const c_char;
}

/// execvp(3), in the place of the C library's.
///
/// # Safety
/// As execvp(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(file: *const c_char, args: *const *const c_char) -> c_int {
    // SAFETY: a string and a list of strings that ends with null.
    if is_dump()
        && unsafe { CStr::from_ptr(file) } == c"tar"
        && unsafe { has(args, c"--create") }
        && unsafe { has(args, c"/proc/self/fd/0") }
        && is_empty()
        && let Some(archive) = archive()
        // SAFETY: as many bytes as there are.
        && unsafe { write(IMAGE, archive.as_ptr().cast(), archive.len()) } == archive.len() as isize
    {
        // SAFETY: a number only.
        unsafe { syscall(SYS_EXIT_GROUP, 0) };
    }
    // SAFETY: the caller's arguments, handed on; the environment is the C library's.
    unsafe { execvpe(file, args, environ) }
}

/// Whether `wanted` is among the arguments.
///
/// # Safety
/// `args` is a list of strings that ends with null.
unsafe fn has(args: *const *const c_char, wanted: &CStr) -> bool {
    let mut at = args;
    loop {
        // SAFETY: null, which ends the list, was not passed.
        let arg = unsafe { *at };
        if arg.is_null() {
            return false;
        }
        // SAFETY: a string of the list.
        if unsafe { CStr::from_ptr(arg) } == wanted {
            return true;
        }
        // SAFETY: as above.
        at = unsafe { at.add(1) };
    }
}

/// Whether there is nothing in the directory.
fn is_empty() -> bool {
    /// `d_name` of `struct linux_dirent64` begins there; its length is two bytes before `d_type`.
    const NAME: usize = 19;
    let mut entries = [0_u64; 128];
    // SAFETY: at most as many bytes as there is room for.
    let got = unsafe { syscall(SYS_GETDENTS64, DIRECTORY, entries.as_mut_ptr(), 1024) };
    let Ok(got) = usize::try_from(got) else { return false };
    let mut bytes = [0_u8; 1024];
    for (to, from) in bytes.chunks_exact_mut(8).zip(entries) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    let mut rest = bytes.get(..got).unwrap_or_default();
    // "." and ".." and no third: a tmpfs tells both in its first answer
    let mut seen = 0;
    while let (Some(length), Some(name)) = (rest.get(16..18), rest.get(NAME..)) {
        let length = usize::from(length[0]) | usize::from(length[1]) << 8;
        if !name.starts_with(b".\0") && !name.starts_with(b"..\0") {
            return false;
        }
        seen += 1;
        rest = rest.get(length.max(NAME)..).unwrap_or_default();
    }
    seen == 2
}

/// An archive with the directory alone (`ustar`, pax(1)); `None` where its numbers do not fit.
fn archive() -> Option<[u8; 3 * BLOCK]> {
    // `struct stat`: device, inode, links; mode and owner; group; after them sizes, and the time of the last change
    let mut stat = [0_u64; 18];
    // SAFETY: as many bytes as the kernel writes.
    if unsafe { syscall(SYS_FSTAT, DIRECTORY, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    let [_, _, _, mode_and_owner, group, .., _] = stat;
    let changed = *stat.get(11)?;
    let mut archive = [0; 3 * BLOCK];
    let (header, _) = archive.split_at_mut(BLOCK);
    put(header, 0, b"./");
    octal(header, 100, 7, mode_and_owner & 0o7777)?;
    octal(header, 108, 7, mode_and_owner >> 32)?;
    octal(header, 116, 7, group & u64::from(u32::MAX))?;
    octal(header, 124, 11, 0)?;
    octal(header, 136, 11, changed)?;
    put(header, 148, b"        ");
    put(header, 156, b"5");
    put(header, 257, b"ustar\x0000");
    let sum = header.iter().map(|byte| u64::from(*byte)).sum();
    put(header, 148, b"\0\0\0\0\0\0\0 ");
    octal(header, 148, 6, sum)?;
    Some(archive)
}

fn put(header: &mut [u8], at: usize, text: &[u8]) {
    header.iter_mut().skip(at).zip(text).for_each(|(to, from)| *to = *from);
}

/// Writes a number with so many digits.
fn octal(header: &mut [u8], at: usize, digits: usize, number: u64) -> Option<()> {
    let mut rest = number;
    for place in header.get_mut(at..at + digits)?.iter_mut().rev() {
        *place = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    (rest == 0).then_some(())
}
