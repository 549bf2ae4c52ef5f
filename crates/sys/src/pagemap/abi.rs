//! The kernel's words for a scan (`linux/fs.h`); also compiled into what CRIU is started with (`preload/`).

/// Kinds of pages (`PAGE_IS_*` of `linux/fs.h`), a set of bits.
pub mod page {
    /// In a range whose writes are tracked by an asynchronous userfaultfd.
    pub const WP_ALLOWED: u64 = 1 << 0;
    /// Written since it was last write-protected; always set where writes are not tracked.
    pub const WRITTEN: u64 = 1 << 1;
    /// Backed by a file, or shared anonymous memory.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// Swapped out.
    pub const SWAPPED: u64 = 1 << 4;
    /// The kernel's page of zeros.
    pub const PFN_ZERO: u64 = 1 << 5;
    /// A guard page (`MADV_GUARD_INSTALL`, Linux 6.13; reported since 6.16).
    pub const GUARD: u64 = 1 << 8;
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct ScanArg {
    pub(crate) size: u64,
    pub(crate) flags: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) walk_end: u64,
    pub(crate) vec: u64,
    pub(crate) vec_len: u64,
    pub(crate) max_pages: u64,
    pub(crate) category_inverted: u64,
    pub(crate) category_mask: u64,
    pub(crate) category_anyof_mask: u64,
    pub(crate) return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
pub(crate) const PAGEMAP_SCAN: u32 = 0xc060_6610;
pub(crate) const PM_SCAN_WP_MATCHING: u64 = 1;
