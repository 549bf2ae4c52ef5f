//! userfaultfd(2): knowing which pages a process writes, and filling in its pages when it first touches them.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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
/// The device whose holder may have faults of the kernel handled too (Linux 6.1).
pub const DEVICE: &str = "/dev/userfaultfd";
/// `USERFAULTFD_IOC_NEW`: what makes a userfaultfd of it.
pub const IOC_NEW: u64 = 0xaa00;

/// What a userfaultfd tells.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// The process forked; its child's memory is served through this one.
    Forked(Userfaultfd),
    /// Memory went to another place.
    Moved {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// Pages were given up; they are zeros from now on.
    Removed(Range<u64>),
    /// Memory is not there any more.
    Unmapped(Range<u64>),
}

/// How filling pages went.
#[derive(Debug)]
pub struct Filled {
    /// Bytes that are there now, from the first address on.
    pub bytes: u64,
    /// Why not all. `EAGAIN`: the process is just changing its memory, events tell how; `EEXIST`: the next page is there already;
    /// `ENOENT`: it is not mapped, or not watched; `ESRCH`: the process ended or executes another program.
    pub error: Option<io::Error>,
}

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

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct Protection {
    range: Span,
    mode: u64,
}

/// What `UFFDIO_ZEROPAGE` and `UFFDIO_CONTINUE` take.
#[repr(C)]
struct Fill {
    range: Span,
    mode: u64,
    done: i64,
}

const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03_u32 as libc::Ioctl;
const UFFDIO_ZEROPAGE: libc::Ioctl = 0xc020_aa04_u32 as libc::Ioctl;
const UFFDIO_CONTINUE: libc::Ioctl = 0xc020_aa07_u32 as libc::Ioctl;
/// `UFFDIO_CONTINUE_MODE_WP`
const PROTECTED: u64 = 1 << 1;
const UFFDIO_WRITEPROTECT: libc::Ioctl = 0xc018_aa06_u32 as libc::Ioctl;
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01_u32 as libc::Ioctl;
const API: u64 = 0xaa;
/// Bytes of a `struct uffd_msg`.
const MESSAGE: usize = 32;

/// A userfaultfd of some process: it acts on the memory of the one that made it, whoever holds it.
///
/// When its last descriptor is closed, the ranges are let go: missing pages are zeros from then on, protections are gone.
#[derive(Debug)]
pub struct Userfaultfd(OwnedFd);

/// One that is in use already, for instance because it was passed on.
impl From<OwnedFd> for Userfaultfd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Userfaultfd> for OwnedFd {
    fn from(uffd: Userfaultfd) -> Self {
        uffd.0
    }
}

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

    /// Takes the protection of a range away, as far as it is watched for writes. Areas stay as they are, so this can be done to a part.
    ///
    /// # Errors
    /// `ENOENT` where nothing is watched, `EAGAIN` when the process is just changing its memory.
    pub fn unprotect(&self, range: Range<u64>) -> io::Result<()> {
        let mut protect = Protection {
            range: span(&range),
            mode: 0,
        };
        // SAFETY: `protect` is the structure that this ioctl reads.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut protect) })
    }

    /// Reads the next thing that happened, without waiting. `None`: nothing.
    ///
    /// # Errors
    /// Of read(2).
    pub fn event(&self) -> io::Result<Option<Event>> {
        let mut buffer = [0; MESSAGE];
        match rustix::io::read(&self.0, &mut buffer) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            other => other?,
        };
        understand(&buffer).map(Some)
    }

    /// Fills missing pages at `address` with `bytes`, whole pages, and wakes those that wait for them.
    pub fn copy(&self, address: u64, bytes: &[u8]) -> Filled {
        let mut copy = Copy {
            to: address,
            from: bytes.as_ptr() as u64,
            len: bytes.len() as u64,
            mode: 0,
            done: 0,
        };
        // SAFETY: `copy` is the structure that this ioctl reads and writes; the memory it reads from is `bytes`.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
        filled(result, copy.done)
    }

    /// Fills missing pages with zeros and wakes those that wait for them.
    pub fn zero(&self, range: Range<u64>) -> Filled {
        let mut zero = Fill {
            range: span(&range),
            mode: 0,
            done: 0,
        };
        // SAFETY: `zero` is the structure that this ioctl reads and writes.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_ZEROPAGE, &raw mut zero) };
        filled(result, zero.done)
    }

    /// Whether the process is just changing its memory: such a change, or its event, was not read yet, or its thread has not gone on since.
    ///
    /// The kernel counts changes from within the lock that orders them until their thread goes on after its event was read
    /// (`mmap_changing` in `fs/userfaultfd.c`), and tells of them after that lock: so events come in any order, but what is read
    /// after this was false happened after what had been read before.
    ///
    /// # Errors
    /// Those of the ioctl, which are not expected.
    pub fn is_changing(&self) -> io::Result<bool> {
        let answer = self.ask(&(0..0));
        match answer.raw_os_error() {
            Some(libc::EAGAIN) => Ok(true),
            // the empty range, which is looked at next
            Some(libc::EINVAL) => Ok(false),
            _ => Err(answer),
        }
    }

    /// Whether all of a range lies in one area of anonymous memory that is watched, by this userfaultfd or another. Looks only.
    ///
    /// # Errors
    /// `EAGAIN` when the process is just changing its memory, `ESRCH` when it ended or executes another program.
    pub fn is_watched(&self, range: &Range<u64>) -> io::Result<bool> {
        let answer = self.ask(range);
        match answer.raw_os_error() {
            Some(libc::EINVAL) => Ok(true),
            // This is found out before the kernel looks whether there are changes.
            Some(libc::ENOENT) if !self.is_changing()? => Ok(false),
            Some(libc::ENOENT) => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            _ => Err(answer),
        }
    }

    /// Asks for what anonymous memory cannot have, `UFFDIO_CONTINUE` with protection, and gives the refusal. In this order the kernel looks
    /// at (Linux 6.7 to 6.18): changes, the range, whether it is watched, changes again, and whether that can be had.
    fn ask(&self, range: &Range<u64>) -> io::Error {
        let mut fill = Fill {
            range: span(range),
            mode: PROTECTED,
            done: 0,
        };
        // SAFETY: `fill` is the structure that this ioctl reads and writes.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_CONTINUE, &raw mut fill) };
        if result < 0 {
            return io::Error::last_os_error();
        }
        io::Error::other("the kernel continued what is not there")
    }

    /// Wakes those that wait for a page of a range; they look again.
    ///
    /// # Errors
    /// `EINVAL` for a range that cannot be.
    pub fn wake(&self, range: Range<u64>) -> io::Result<()> {
        let mut span = span(&range);
        // SAFETY: `span` is the structure that this ioctl reads.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WAKE, &raw mut span) })
    }
}

fn filled(result: libc::c_int, done: i64) -> Filled {
    let error = (result < 0).then(io::Error::last_os_error);
    Filled {
        bytes: u64::try_from(done).unwrap_or(0),
        error,
    }
}

/// A `struct uffd_msg`.
fn understand(message: &[u8]) -> io::Result<Event> {
    let word = |index: usize| {
        let bytes = message.get(index * 8..index * 8 + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let strange = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = *message.first().ok_or_else(strange)?;
    let [one, two, three] = [1, 2, 3].map(|index| word(index).unwrap_or_default());
    Ok(match kind {
        0x12 => Event::Fault(two),
        0x13 => {
            let number = (one & u64::from(u32::MAX)) as libc::c_int;
            // SAFETY: the kernel has just made this descriptor for the reader of the message, and nobody else knows of it.
            Event::Forked(Userfaultfd(unsafe { OwnedFd::from_raw_fd(number) }))
        }
        0x14 => Event::Moved {
            from: one,
            to: two,
            len: three,
        },
        0x15 => Event::Removed(one..two),
        0x16 => Event::Unmapped(one..two),
        _ => return Err(strange()),
    })
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
