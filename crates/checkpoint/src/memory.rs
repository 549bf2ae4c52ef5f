//! Where a node's memory is written when it is cut: the one place to change when memory shall come along without being
//! copied in the freeze (tracking writes while the node runs, leaving clean pages out, restoring lazily).
//!
//! Today: CRIU copies every present page into the images during the freeze.

use crate::rpc::{DumpStats, Options};

/// How big the pages are that CRIU counts.
const PAGE: u64 = 4096;

/// Largest unlinked but open file that is copied into the images, in bytes. Bigger ones would make the freeze long; a node with
/// one is not checkpointed and CRIU's message says so.
const GHOST_LIMIT: u32 = 64 * 1024 * 1024;

/// Sets the options that decide which memory is dumped.
pub(crate) fn set_options(options: &mut Options) {
    options.ghost_limit = Some(GHOST_LIMIT);
}

/// Bytes of memory in the images of one dump.
pub(crate) fn written(stats: &DumpStats) -> u64 {
    let pages = stats
        .pages_written
        .saturating_add(stats.shared_pages_written.unwrap_or(0));
    pages.saturating_mul(PAGE)
}
