//! Which areas a process has, told without looking at every page.
//!
//! CRIU reads `/proc/<pid>/smaps` for two things: the lines of `/proc/<pid>/maps`, and the flags of each area (`VmFlags`). For the figures
//! in between the kernel walks over all page tables: a GiB takes 10 ms and more, in the freeze. So the file `areas-<pid>` holds these two
//! kinds of lines; maps is read, which costs nothing, and each of its lines gets the flags that stand below the very same line. If one line is
//! another, CRIU gets smaps. (That the flags are right is the part of whoever wrote the file.)
//!
//! For each area CRIU also asks two times for its link in `/proc/<pid>/map_files`. An area without a file has none, and of private memory
//! the answer is not needed: in the image it says whether the file was open for writing too, and a private area does not write to it.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};

use crate::{
    ENOENT, KnownPath, SYS_LSEEK, SYS_OPENAT, __errno_location, close, link_of, memory_file, read,
    syscall, write,
};

const SYS_MMAP: i64 = 9;
const SYS_NEWFSTATAT: i64 = 262;
const AT_SYMLINK_NOFOLLOW: c_int = 0x100;
const S_IFLNK: u32 = 0o120_000;
/// Longer than any line: a path has 4096 bytes, and each may be shown as four.
const ROOM: usize = 20 << 10;
/// Of more areas it is not remembered what is behind them.
const AREAS_MAX: usize = 1 << 16;

/// What is behind an area.
#[derive(Clone, Copy, PartialEq)]
enum Behind {
    Nothing,
    FileRead,
    Other,
}

#[derive(Clone, Copy)]
struct Area {
    start: u64,
    end: u64,
    behind: Behind,
}

/// The areas of the process that CRIU looks at.
struct Areas {
    pid: u32,
    /// Room for [`AREAS_MAX`]; null before the first use.
    list: *mut Area,
    count: usize,
    /// CRIU asks in their order.
    next: usize,
    /// The open `map_files` of this process.
    files: c_int,
}

struct Global(UnsafeCell<Areas>);
// SAFETY: CRIU has one thread.
unsafe impl Sync for Global {}

static NOW: Global = Global(UnsafeCell::new(Areas {
    pid: 0,
    list: core::ptr::null_mut(),
    count: 0,
    next: 0,
    files: -1,
}));

fn with<T>(work: impl FnOnce(&mut Areas) -> T) -> T {
    // SAFETY: CRIU has one thread, and `work` never comes back here.
    work(unsafe { &mut *NOW.0.get() })
}

/// The process whose `/proc/<pid>` is open as `dir`.
fn pid_of(dir: c_int) -> Option<u32> {
    let mut name = [0; 64];
    let digits = link_of(dir, &mut name)?.strip_prefix(b"/proc/")?;
    digits.iter().try_fold(0_u32, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// What takes the place of `smaps` in `dir`; `None`: nothing can.
pub(crate) fn known(dir: c_int) -> Option<c_int> {
    with(|areas| {
        areas.count = 0;
        areas.next = 0;
        areas.files = -1;
        areas.pid = pid_of(dir)?;
        let before = Lines::of(KnownPath::of(b"areas-", Some(areas.pid))?.open()?);
        // SAFETY: a string; no file is made.
        let maps = unsafe { syscall(SYS_OPENAT, dir, c"maps".as_ptr(), 0, 0) as c_int };
        if maps < 0 {
            return None;
        }
        let file = memory_file()?;
        let merged = areas.merge(Lines::of(maps), before, Out::to(file));
        if !merged {
            areas.count = 0;
            // SAFETY: made above.
            unsafe { close(file) };
            return None;
        }
        // SAFETY: numbers only.
        unsafe { syscall(SYS_LSEEK, file, 0, 0) };
        Some(file)
    })
}

impl Areas {
    /// Writes every line of `maps`, and the flags that stand below the same line in `before`. Whether each is there.
    fn merge(&mut self, mut maps: Lines, mut before: Lines, mut out: Out) -> bool {
        while let Some(line) = maps.next() {
            let Some(start) = hexadecimal(line) else { return false };
            loop {
                let Some(known) = before.next() else { return false };
                if known == line {
                    break;
                }
                // flags have no start
                if hexadecimal(known).is_some_and(|known| known >= start) {
                    return false;
                }
            }
            self.remember(line);
            let Some(flags) = before.next().filter(|line| line.starts_with(b"VmFlags:")) else {
                return false;
            };
            if !out.line(line) || !out.line(flags) {
                return false;
            }
        }
        maps.is_whole() && out.flush()
    }

    /// Takes note of what is behind an area: a line of `/proc/<pid>/maps` (proc_pid_maps(5)).
    fn remember(&mut self, line: &[u8]) {
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let mut next = || fields.next().unwrap_or_default();
        let (range, access, _offset, device, inode, name) = (next(), next(), next(), next(), next(), next());
        let Some((start, end)) = addresses(range) else { return };
        let behind = if device == b"00:00" && inode == b"0" && (name.is_empty() || name.starts_with(b"[")) {
            Behind::Nothing
        } else if access.get(3) == Some(&b'p') && inode != b"0" {
            Behind::FileRead
        } else {
            Behind::Other
        };
        if self.list.is_null() {
            const READ_WRITE: c_int = 3;
            const PRIVATE_ANONYMOUS: c_int = 0x22;
            let bytes = AREAS_MAX * size_of::<Area>();
            // SAFETY: new memory of the kernel's choice.
            let at = unsafe { syscall(SYS_MMAP, 0_usize, bytes, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0_usize) };
            if at <= 0 {
                return;
            }
            self.list = at as *mut c_void as *mut Area;
        }
        if self.count < AREAS_MAX {
            // SAFETY: inside the memory that was made for it.
            unsafe { self.list.add(self.count).write(Area { start, end, behind }) };
            self.count += 1;
        }
    }

    /// What is behind the area with this name in `map_files`.
    fn behind(&mut self, name: &[u8]) -> Behind {
        let Some((start, end)) = addresses(name) else { return Behind::Other };
        // It is asked about each more than once, then about the next.
        for at in self.next..self.count {
            // SAFETY: below `count`, so it was written.
            let area = unsafe { *self.list.add(at) };
            if area.start == start && area.end == end {
                self.next = at;
                return area.behind;
            }
            if area.start > start {
                break;
            }
        }
        Behind::Other
    }
}

/// `map_files` of the process in `dir` was opened as `files`.
pub(crate) fn files_are_at(dir: c_int, files: c_int) {
    let pid = pid_of(dir);
    with(|areas| {
        if areas.count > 0 && pid == Some(areas.pid) {
            areas.files = files;
        }
    });
}

/// Whether `name` in `dir` is of an area without a file.
pub(crate) fn has_no_file(dir: c_int, name: &[u8]) -> bool {
    with(|areas| dir >= 0 && dir == areas.files && areas.behind(name) == Behind::Nothing)
}

/// fstatat(2), in the place of the C library's.
///
/// # Safety
/// As fstatat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatat64(dir: c_int, path: *const c_char, stat: *mut c_void, flags: c_int) -> c_int {
    /// `struct stat`, in words; the mode begins the fourth.
    const WORDS: usize = 18;
    if dir >= 0 && flags == AT_SYMLINK_NOFOLLOW {
        // SAFETY: the caller's string.
        let name = unsafe { CStr::from_ptr(path) }.to_bytes();
        match with(|areas| if dir == areas.files { areas.behind(name) } else { Behind::Other }) {
            Behind::Nothing => {
                // SAFETY: the calling thread's own.
                unsafe { *__errno_location() = ENOENT };
                return -1;
            }
            Behind::FileRead => {
                let mut link = [0_u64; WORDS];
                link[3] = u64::from(S_IFLNK | 0o500);
                // SAFETY: the caller's structure, which has this size.
                unsafe { stat.cast::<[u64; WORDS]>().write_unaligned(link) };
                return 0;
            }
            Behind::Other => {}
        }
    }
    // SAFETY: the caller's arguments, handed on.
    unsafe { syscall(SYS_NEWFSTATAT, dir, path, stat, flags) as c_int }
}

/// `<start>-<end>` in hexadecimal digits.
pub(crate) fn addresses(range: &[u8]) -> Option<(u64, u64)> {
    let dash = range.iter().position(|byte| *byte == b'-')?;
    Some((hexadecimal(range.get(..dash)?)?, hexadecimal(range.get(dash + 1..)?)?))
}

/// The number that the text begins with, if it ends there or at a dash.
fn hexadecimal(text: &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for (at, byte) in text.iter().enumerate() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'-' if at > 0 => return Some(number),
            _ => return None,
        };
        number = number.checked_mul(16)? | u64::from(digit);
    }
    (!text.is_empty()).then_some(number)
}

/// The lines of a file, which is closed in the end.
pub(crate) struct Lines {
    fd: c_int,
    buffer: [u8; ROOM],
    start: usize,
    end: usize,
    /// Everything was read, without an error and without a line that is too long.
    whole: bool,
}

impl Lines {
    pub(crate) fn of(fd: c_int) -> Self {
        Self {
            fd,
            buffer: [0; ROOM],
            start: 0,
            end: 0,
            whole: false,
        }
    }

    fn is_whole(&self) -> bool {
        self.whole
    }

    /// The next line, without its end.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        let length = loop {
            let there = self.buffer.get(self.start..self.end)?;
            if let Some(length) = there.iter().position(|byte| *byte == b'\n') {
                break length;
            }
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let room = self.buffer.get_mut(self.end..).filter(|room| !room.is_empty())?;
            // SAFETY: at most as many bytes as there is room for.
            let got = unsafe { read(self.fd, room.as_mut_ptr().cast(), room.len()) };
            if got <= 0 {
                self.whole = got == 0 && self.end == 0;
                return None;
            }
            self.end += got as usize;
        };
        let line = self.start..self.start + length;
        self.start = line.end + 1;
        self.buffer.get(line)
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // SAFETY: its own.
        unsafe { close(self.fd) };
    }
}

/// Lines on their way to a file.
struct Out {
    fd: c_int,
    buffer: [u8; 2 * ROOM],
    filled: usize,
}

impl Out {
    fn to(fd: c_int) -> Self {
        Self {
            fd,
            buffer: [0; 2 * ROOM],
            filled: 0,
        }
    }

    /// Writes a line; whether that worked.
    fn line(&mut self, line: &[u8]) -> bool {
        if self.filled + line.len() >= self.buffer.len() && !self.flush() {
            return false;
        }
        let Some(room) = self.buffer.get_mut(self.filled..=self.filled + line.len()) else {
            return false;
        };
        let Some((end, text)) = room.split_last_mut() else { return false };
        text.copy_from_slice(line);
        *end = b'\n';
        self.filled += line.len() + 1;
        true
    }

    fn flush(&mut self) -> bool {
        let bytes = self.buffer.get(..self.filled).unwrap_or_default();
        // SAFETY: as many bytes as there are.
        let written = unsafe { write(self.fd, bytes.as_ptr().cast(), bytes.len()) };
        let whole = usize::try_from(written) == Ok(bytes.len());
        self.filled = 0;
        whole
    }
}
