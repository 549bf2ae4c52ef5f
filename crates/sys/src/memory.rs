//! Another process's memory (process_vm_readv(2), proc_pid_maps(5)).

use std::fs;
use std::io;
use std::ops::Range;

use nix::libc;

/// Reads at `address` of process `pid`. Fewer bytes than asked for: what follows is not mapped or not readable.
///
/// # Errors
/// `EFAULT` when nothing can be read there, `ESRCH` when there is no such process.
pub fn read(pid: i32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: into.len(),
    };
    // SAFETY: `local` is the exclusively borrowed `into`; `remote` is only ever looked at in the other process.
    let count =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes at `address` of process `pid`, all of `bytes`.
///
/// # Errors
/// `EFAULT` when it cannot be written there, `ESRCH` when there is no such process.
pub fn write(pid: i32, address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: bytes.len(),
    };
    // SAFETY: `local` is the borrowed `bytes`, which this call only reads; `remote` is in the other process.
    let count =
        unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(count) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// One line of `/proc/<pid>/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    /// Its addresses, whole pages.
    pub range: Range<u64>,
    /// Whether the process may read it.
    pub readable: bool,
    /// Whether the process may write to it.
    pub writable: bool,
    /// Whether what is written there is seen by this process only.
    pub private: bool,
    /// Whether no file is behind it.
    pub anonymous: bool,
    /// Where it begins in its file, bytes.
    pub offset: u64,
    /// The device of its file, `major:minor` in hexadecimal digits.
    pub device: String,
    /// The number of its file on that device.
    pub inode: u64,
    /// Its name up to the first space: a path, or `[heap]`, `[vdso]` and the like, or nothing.
    pub name: String,
}

/// What a process has mapped, in rising order.
///
/// # Errors
/// `ENOENT` or `ESRCH` when there is no such process.
pub fn areas(pid: i32) -> io::Result<Vec<Area>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(maps.lines().filter_map(area).collect())
}

/// Understands one line of that file.
pub fn area(line: &str) -> Option<Area> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let access = fields.next()?.as_bytes();
    let address = |text| u64::from_str_radix(text, 16).ok();
    let (from, to) = (address(start)?, address(end)?);
    let offset = address(fields.next()?)?;
    let device = fields.next()?.to_owned();
    let inode = fields.next()?.parse().ok()?;
    Some(Area {
        range: from..to,
        readable: access.first() == Some(&b'r'),
        writable: access.get(1) == Some(&b'w'),
        private: access.get(3) == Some(&b'p'),
        anonymous: inode == 0,
        offset,
        device,
        inode,
        name: fields.next().unwrap_or_default().to_owned(),
    })
}

/// The areas that a child of fork(2) gets empty (madvise(2), `MADV_WIPEONFORK`), from `/proc/<pid>/smaps`. The kernel looks at every page
/// for this.
///
/// # Errors
/// As [`areas`].
pub fn wiped_on_fork(pid: i32) -> io::Result<Vec<Range<u64>>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut last = None;
    let mut wiped = Vec::new();
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if flags.split_ascii_whitespace().any(|flag| flag == "wf") {
                wiped.extend(last.take());
            }
        } else if let Some(area) = area(line) {
            last = Some(area.range);
        }
    }
    Ok(wiped)
}
