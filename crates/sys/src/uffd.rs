//! userfaultfd(2): knowing which pages a process writes, and filling in its pages when it first touches them.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;

/// Features of a userfaultfd (`UFFD_FEATURE_*` of `linux/userfaultfd.h`), a set of bits.
pub mod feature {
    /// Tell of fork(2), with a descriptor for the child.
    pub const EVENT_FORK: u64 = 1 << 1;
    /// Tell of mremap(2).
    pub const EVENT_REMAP: u64 = 1 << 2;
    /// Tell of madvise(2) with `MADV_DONTNEED` or `MADV_REMOVE`.
    pub const EVENT_REMOVE: u64 = 1 << 3;
    /// Tell of munmap(2).
    pub const EVENT_UNMAP: u64 = 1 << 6;
    /// Write-protection also of shared memory.
    pub const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    /// Write-protection also of pages that are not there yet (Linux 6.4).
    pub const WP_UNPOPULATED: u64 = 1 << 13;
    /// The kernel lifts the protection of a page that is written by itself, and nobody waits (Linux 6.7).
    pub const WP_ASYNC: u64 = 1 << 15;
}

/// `userfaultfd(2)` on x86-64.
pub const SYS_USERFAULTFD: u64 = 323;
/// Faults of the kernel itself are not handled: what everybody may have.
pub const USER_MODE_ONLY: u64 = 1;

/// What is noticed in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// The first touch of a page that is not there.
    Missing,
    /// Writing to a page that is protected.
    Written,
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Span {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Span,
    mode: u64,
    ioctls: u64,
}

const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01_u32 as libc::Ioctl;
const API: u64 = 0xaa;

/// A userfaultfd of some process: it acts on the memory of the one that made it, whoever holds it.
///
/// When its last descriptor is closed, the ranges are let go: missing pages are zeros from then on, protections are gone.
#[derive(Debug)]
pub struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// Takes a fresh descriptor into use with `features`.
    ///
    /// # Errors
    /// `EINVAL` when the kernel lacks one of them or the descriptor is in use already.
    pub fn new(fd: OwnedFd, features: u64) -> io::Result<Self> {
        let mut api = Api {
            api: API,
            features,
            ioctls: 0,
        };
        // SAFETY: `api` is the structure that this ioctl reads and writes.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        Ok(Self(fd))
    }

    /// Watches a range of whole pages, all of it mapped.
    ///
    /// # Errors
    /// `EINVAL` for memory that cannot be watched, `ENOENT` or `ENOMEM` when it is not mapped, `EBUSY` when another
    /// userfaultfd watches it, `ESRCH` when the process has ended.
    pub fn register(&self, range: Range<u64>, watch: Watch) -> io::Result<()> {
        let mut register = Register {
            range: span(&range),
            mode: match watch {
                Watch::Missing => 1,
                Watch::Written => 2,
            },
            ioctls: 0,
        };
        // SAFETY: `register` is the structure that this ioctl reads and writes; it changes nothing in the calling process.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })
    }

    /// Stops watching a range; protections in it are gone.
    ///
    /// # Errors
    /// As [`Userfaultfd::register`].
    pub fn unregister(&self, range: Range<u64>) -> io::Result<()> {
        let mut span = span(&range);
        // SAFETY: `span` is the structure that this ioctl reads.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, &raw mut span) })
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn span(range: &Range<u64>) -> Span {
    Span {
        start: range.start,
        len: range.end.saturating_sub(range.start),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
