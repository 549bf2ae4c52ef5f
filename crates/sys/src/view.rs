//! Pages of a file, looked at where they are (mmap(2)), while others may write to them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use nix::libc;

/// The first bytes of a file in memory, for reading.
#[derive(Debug)]
pub struct View {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: nothing but addresses of memory that stays mapped, and that this only reads.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// Maps the first `length` bytes of `file`. A file that others can make shorter must not be mapped: looking beyond its end ends this
    /// process (`SIGBUS`).
    ///
    /// # Errors
    /// As mmap(2); `EINVAL` when `length` is 0.
    pub fn of(file: &File, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        // SAFETY: new memory of the kernel's choice, which nobody writes to by this address.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// How many bytes there are.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length as u64
    }

    /// Whether both have the same bytes in `range`; `false` where one of them ends before. Bytes that are written meanwhile may be seen
    /// either way.
    #[must_use]
    pub fn is_equal(&self, other: &Self, range: Range<u64>) -> bool {
        if range.start > range.end || range.end > self.length().min(other.length()) {
            return false;
        }
        // Less than the length, which is one.
        let (start, length) = (range.start as usize, (range.end - range.start) as usize);
        // SAFETY: `range` is mapped in both. No reference is made, for others may write.
        unsafe {
            let one = self.start.as_ptr().add(start);
            let two = other.start.as_ptr().add(start);
            libc::memcmp(one.cast(), two.cast(), length) == 0
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: mapped above, and nobody has an address of it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_differs_is_seen_when_it_is_written() {
        let files = [(), ()].map(|()| tempfile::tempfile().unwrap());
        for file in &files {
            file.set_len(20_000).unwrap();
        }
        let [one, two] = files.each_ref().map(|file| View::of(file, 20_000).unwrap());
        assert!(one.is_equal(&two, 0..20_000) && one.is_equal(&two, 7..7));
        files[1].write_all_at(b"x", 19_999).unwrap();
        assert!(!one.is_equal(&two, 0..20_000) && one.is_equal(&two, 0..19_999));
        files[0].write_all_at(b"x", 19_999).unwrap();
        assert!(one.is_equal(&two, 0..20_000));
    }

    #[test]
    fn beyond_the_end_nothing_is_equal() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5_000).unwrap();
        assert!(View::of(&file, 0).is_err());
        let (long, short) = (
            View::of(&file, 5_000).unwrap(),
            View::of(&file, 10).unwrap(),
        );
        assert!(long.is_equal(&short, 0..10));
        assert!(!long.is_equal(&short, 0..11) && !short.is_equal(&long, 0..11));
        #[allow(clippy::reversed_empty_ranges, reason = "on purpose")]
        let reversed = 10..3;
        assert!(!long.is_equal(&short, reversed));
    }
}
