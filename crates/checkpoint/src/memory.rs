//! Where a node's memory is written when it is cut: the one place to change when memory shall come along without being
//! copied in the freeze (tracking writes while the node runs, leaving clean pages out, restoring lazily).
//!
//! Today: CRIU copies every present page into the images during the freeze.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::rpc::{DumpStats, Options};

/// How big the pages are that CRIU counts.
const PAGE: u64 = 4096;

/// Largest unlinked but open file that is copied into the images, in bytes. Bigger ones would make the freeze long; a node with
/// one is not checkpointed and CRIU's message says so.
const GHOST_LIMIT: u32 = 64 * 1024 * 1024;

/// At most this much memory is warmed up for one node, bytes.
const WARM_MAX: u64 = 512 * 1024 * 1024;
/// Written at a time.
const CHUNK: usize = 1024 * 1024;

/// Makes the kernel hold as many ready pages as a dump of `cgroup`'s processes will fill, before the freeze: in a virtual
/// machine the first touch of a page costs several times the copying. The file is gone when this returns; its pages
/// are the next to be given out.
pub(crate) fn warm(images: &Path, cgroup_processes: &[i32]) -> io::Result<()> {
    let resident: u64 = cgroup_processes
        .iter()
        .filter_map(|pid| anonymous_pages(*pid))
        .sum();
    let path = images.join("warm");
    let mut file = File::create(&path)?;
    fs::remove_file(&path)?;
    let chunk = vec![1; CHUNK];
    for _ in 0..resident.saturating_mul(PAGE).min(WARM_MAX) / CHUNK as u64 {
        file.write_all(&chunk)?;
    }
    Ok(())
}

/// Resident pages of a process that no file backs (proc_pid_statm(5)).
fn anonymous_pages(pid: i32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = statm
        .split(' ')
        .skip(1)
        .map_while(|field| field.parse::<u64>().ok());
    let (resident, shared) = (fields.next()?, fields.next()?);
    Some(resident.saturating_sub(shared))
}

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
