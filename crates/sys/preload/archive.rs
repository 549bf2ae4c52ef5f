//! CRIU has every tmpfs archived by `tar`, which a shell script starts (see `dump::lay_tar`): two programs and a child for, most of the time, an
//! empty `/dev/shm`. Of an empty directory the archive is one header, which CRIU writes itself here.

use core::ffi::c_int;

use crate::ids::Owners;
use crate::{SYS_FSTAT, SYS_LSEEK, syscall, write};

const SYS_GETDENTS64: i64 = 217;
const BLOCK: usize = 512;

/// Writes the archive of `directory` to `image`, if it is empty. Whether it is done.
pub(crate) fn write_empty(directory: c_int, image: c_int, owners: &Owners) -> bool {
    if !is_empty(directory) {
        return false;
    }
    let Some(archive) = archive(directory, owners) else { return false };
    // SAFETY: as many bytes as there are.
    unsafe { write(image, archive.as_ptr().cast(), archive.len()) == archive.len() as isize }
}

/// Whether there is nothing in the directory.
fn is_empty(directory: c_int) -> bool {
    /// `d_name` of `struct linux_dirent64` begins there; its length is two bytes before `d_type`.
    const NAME: usize = 19;
    let mut entries = [0_u64; 128];
    // SAFETY: at most as many bytes as there is room for.
    let got = unsafe {
        let got = syscall(SYS_GETDENTS64, directory, entries.as_mut_ptr(), 1024);
        syscall(SYS_LSEEK, directory, 0, 0);
        got
    };
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
fn archive(directory: c_int, owners: &Owners) -> Option<[u8; 3 * BLOCK]> {
    // `struct stat`: device, inode, links; mode and owner; group; after them sizes, and the time of the last change
    let mut stat = [0_u64; 18];
    // SAFETY: as many bytes as the kernel writes.
    if unsafe { syscall(SYS_FSTAT, directory, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    let [_, _, _, mode_and_owner, group, .., _] = stat;
    let changed = *stat.get(11)?;
    let mut archive = [0; 3 * BLOCK];
    let (header, _) = archive.split_at_mut(BLOCK);
    put(header, 0, b"./");
    octal(header, 100, 7, mode_and_owner & 0o7777)?;
    octal(header, 108, 7, owners.user((mode_and_owner >> 32) as u32)?.into())?;
    octal(header, 116, 7, owners.group(group as u32)?.into())?;
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
