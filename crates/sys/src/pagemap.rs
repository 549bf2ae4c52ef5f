//! Which pages of a process hold something, and which were written since they were last protected: the `PAGEMAP_SCAN`
//! ioctl of `/proc/<pid>/pagemap` (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst).

mod abi;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::libc;

pub use self::abi::page;
use self::abi::{PAGEMAP_SCAN, PM_SCAN_WP_MATCHING, ScanArg};

/// What a scan looks for; `mask`, `inverted` and `any_of` as in the kernel's `struct pm_scan_arg`.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// All of these, after inversion.
    pub mask: u64,
    /// Bits that are flipped before they are compared.
    pub inverted: u64,
    /// At least one of these; 0: whatever.
    pub any_of: u64,
    /// Which bits come back with the pages; neighbours that agree in them come as one.
    pub told: u64,
}

/// Whether a scan protects what it finds, so that the next finds only what was written in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protect {
    /// It only looks.
    No,
    /// Found pages are write-protected in the same step; where writes are not tracked, nothing is found.
    Found,
}

/// Pages of one kind, side by side.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// The kinds that were asked for.
    pub kinds: u64,
}

/// Regions that one call may give back. The room is cleared for each, and most areas have few.
const BATCH: usize = 128;

/// The pagemap of a process. It stays that of the program that ran when it was opened.
#[derive(Debug)]
pub struct Pagemap(File);

/// Whether this kernel marks the pages that were written (bit 55 of pagemap, `CONFIG_MEM_SOFT_DIRTY`,
/// Documentation/admin-guide/mm/soft-dirty.rst): a page that was just written has the mark then, and never otherwise.
#[must_use]
pub fn marks_soft_dirty() -> bool {
    const SOFT_DIRTY: u64 = 1 << 55;
    const PAGE_BYTES: u64 = 4096;
    let written = std::hint::black_box(Box::new(1_u8));
    let page = std::ptr::from_ref(&*written).addr() as u64 / PAGE_BYTES;
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")
        .and_then(|pagemap| pagemap.read_exact_at(&mut entry, page * 8))
        .is_ok_and(|()| u64::from_ne_bytes(entry) & SOFT_DIRTY != 0)
}

impl Pagemap {
    /// Of process `pid`.
    ///
    /// # Errors
    /// `ENOENT` when there is no such process.
    pub fn open(pid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self)
    }

    /// Whether this kernel knows the ioctl.
    #[must_use]
    pub fn is_supported() -> bool {
        let Ok(own) = File::open("/proc/self/pagemap") else {
            return false;
        };
        let wanted = Wanted {
            mask: 0,
            inverted: 0,
            any_of: page::PRESENT,
            told: page::PRESENT,
        };
        Self(own).scan(0..0, wanted, Protect::No, |_| ()).is_ok()
    }

    /// Calls `found` for the pages in `range` that are `wanted`, in rising order.
    ///
    /// # Errors
    /// `ENOTTY` from kernels before 6.7, `EINVAL` for a range that is not of whole pages.
    pub fn scan(
        &self,
        range: Range<u64>,
        wanted: Wanted,
        protect: Protect,
        mut found: impl FnMut(Region),
    ) -> io::Result<()> {
        let mut regions = [Region::default(); BATCH];
        let (mut at, mut done) = (range.start, range.start);
        loop {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: match protect {
                    Protect::No => 0,
                    Protect::Found => PM_SCAN_WP_MATCHING,
                },
                start: at,
                end: range.end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: BATCH as u64,
                category_inverted: wanted.inverted,
                category_mask: wanted.mask,
                category_anyof_mask: wanted.any_of,
                return_mask: wanted.told,
                ..ScanArg::default()
            };
            // SAFETY: `arg` is the structure that this ioctl takes, says its own size, and names a buffer of `vec_len` regions
            // that lives until the call returns.
            let count = unsafe {
                libc::ioctl(
                    self.0.as_raw_fd(),
                    libc::Ioctl::from(PAGEMAP_SCAN),
                    &raw mut arg,
                )
            };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            // The kernel may stop, and say a place to go on from, that lies before what it found (seen with 6.18 and a full
            // buffer): nothing is told twice.
            for region in regions.iter().take(count) {
                let start = region.start.max(done);
                if start < region.end {
                    found(Region { start, ..*region });
                    done = region.end;
                }
            }
            let next = arg.walk_end.max(done);
            if next >= range.end {
                return Ok(());
            }
            if next <= at {
                // not the end, and no way on: what was not looked at must not be taken for empty
                return Err(io::ErrorKind::Interrupted.into());
            }
            at = next;
        }
    }

    /// Takes out what is only a mark in the page table: of a page that is not there, but was protected (`PTE_MARKER` of
    /// `linux/swapops.h`). A scan reports it as swapped. Regions that were found without [`page::PRESENT`] in `told` are all looked at.
    ///
    /// # Errors
    /// Of reading the pagemap.
    pub fn without_markers(&self, found: Vec<Region>) -> io::Result<Vec<Region>> {
        /// Bits 0 to 4 of an entry whose bit 62 is set: the swap type. Swap files have the low numbers, the marker the highest.
        const SWAP_TYPE: u64 = 0x1f;
        const MARKER: u64 = SWAP_TYPE;
        const SWAPPED: u64 = 1 << 62;
        const PAGE: u64 = 4096;
        let mut kept: Vec<Region> = Vec::with_capacity(found.len());
        let mut entries = [0; 8 * BATCH];
        for region in found {
            if region.kinds & page::PRESENT != 0 {
                kept.push(region);
                continue;
            }
            let mut at = region.start;
            while at < region.end {
                let pages = ((region.end - at) / PAGE).clamp(1, BATCH as u64);
                let bytes = entries.get_mut(..pages as usize * 8).unwrap_or_default();
                self.0.read_exact_at(bytes, at / PAGE * 8)?;
                for entry in bytes.as_chunks::<8>().0 {
                    let entry = u64::from_le_bytes(*entry);
                    let end = at + PAGE;
                    if entry & SWAPPED == 0 || entry & SWAP_TYPE != MARKER {
                        match kept.last_mut() {
                            Some(last) if last.end == at && last.kinds == region.kinds => {
                                last.end = end;
                            }
                            _ => kept.push(Region {
                                start: at,
                                end,
                                kinds: region.kinds,
                            }),
                        }
                    }
                    at = end;
                }
            }
        }
        Ok(kept)
    }
}
