//! For kernels that cannot tell which pages were written, where CRIU copies all memory in the freeze: room for it beforehand.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::PAGE;

/// At most this much memory is warmed up for one node, bytes.
const MOST: u64 = 512 * 1024 * 1024;
/// Written at a time.
const CHUNK: usize = 1024 * 1024;

/// Makes the kernel hold as many ready pages as a dump of so many bytes will fill, before the freeze: in a virtual
/// machine the first touch of a page costs several times the copying. The file is gone when this returns; its pages
/// are the next to be given out.
pub(crate) fn warm(images: &Path, bytes: u64) -> io::Result<()> {
    let path = images.join("warm");
    let mut file = File::create(&path)?;
    fs::remove_file(&path)?;
    let chunk = vec![1; CHUNK];
    for _ in 0..bytes.min(MOST) / CHUNK as u64 {
        file.write_all(&chunk)?;
    }
    Ok(())
}

/// Bytes of memory that these processes have and no file backs.
pub(crate) fn resident(processes: &[i32]) -> u64 {
    let pages = processes.iter().filter_map(|pid| anonymous_pages(*pid));
    pages.sum::<u64>().saturating_mul(PAGE)
}

/// Resident pages of a process that no file backs (proc_pid_statm(5)).
pub(super) fn anonymous_pages(pid: i32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = statm
        .split(' ')
        .skip(1)
        .map_while(|field| field.parse::<u64>().ok());
    let (resident, shared) = (fields.next()?, fields.next()?);
    Some(resident.saturating_sub(shared))
}
