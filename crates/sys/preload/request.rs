//! runc 1.1 wants CRIU to log everything it does in a restore: ten thousand lines and more, of all its processes to one file, where they
//! wait for each other. Errors and warnings are what is read of it.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicI32, Ordering};

use crate::syscall;

const SYS_RECVFROM: i64 = 45;
const MSG_PEEK: c_int = 2;
/// Errors and warnings.
const LEVEL: u8 = 2;
/// `opts` of `criu_req`, a message, and in it `log_level`, a number (`images/rpc.proto` of CRIU).
const OPTIONS: u64 = 2 << 3 | MESSAGE;
const LOG_LEVEL: u64 = 9 << 3;
/// How fields are written (protobuf, "Message Structure").
const MESSAGE: u64 = 2;

/// `notify_success` of `criu_req`, a number: an answer to a stage.
const GO_ON: u64 = 3 << 3;

/// By which descriptor the request was received. What comes after it are answers, and what CRIU says to processes that it works in.
static LINE: AtomicI32 = AtomicI32::new(-1);

/// The line that the request came by.
pub(crate) fn line() -> Option<c_int> {
    Some(LINE.load(Ordering::Relaxed)).filter(|line| *line >= 0)
}

/// Whether an answer lets CRIU go on.
pub(crate) fn says_go_on(answer: &[u8]) -> bool {
    find(answer, GO_ON).and_then(|value| answer.get(value)) == Some(&[1])
}

/// recv(2), in the place of the C library's. The first that comes by it is CRIU's request.
///
/// # Safety
/// As recv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(fd: c_int, into: *mut c_void, len: usize, flags: c_int) -> isize {
    // SAFETY: the caller's arguments, handed on.
    let got = unsafe { syscall(SYS_RECVFROM, fd, into, len, flags, 0_usize, 0_usize) } as isize;
    if let Ok(got @ 1..) = usize::try_from(got)
        && !into.is_null()
        && flags & MSG_PEEK == 0
        && LINE.compare_exchange(-1, fd, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        // SAFETY: that much of the caller's buffer was written, if it was that long.
        log_less(unsafe { core::slice::from_raw_parts_mut(into.cast(), got.min(len)) });
    }
    got
}

/// Changes the log level of a request, where it has one that is higher. Whatever cannot be understood stays as it is.
fn log_less(request: &mut [u8]) {
    let Some(options) = find(request, OPTIONS) else { return };
    let Some(options) = request.get_mut(options) else { return };
    let Some(level) = find(options, LOG_LEVEL) else { return };
    // a number of one byte
    if let Some([level]) = options.get_mut(level)
        && *level > LEVEL
    {
        *level = LEVEL;
    }
}

/// Where the first field of this kind has its value.
fn find(message: &[u8], wanted: u64) -> Option<core::ops::Range<usize>> {
    let mut at = 0;
    while at < message.len() {
        let key = number(message, &mut at)?;
        let start = at;
        let value = match key & 7 {
            0 => {
                number(message, &mut at)?;
                start..at
            }
            1 => start..start + 8,
            MESSAGE => {
                let length = usize::try_from(number(message, &mut at)?).ok()?;
                at..at.checked_add(length)?
            }
            5 => start..start + 4,
            _ => return None,
        };
        at = value.end;
        if key == wanted {
            return Some(value);
        }
    }
    None
}

/// Reads a number (protobuf, "Base 128 Varints").
fn number(message: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.get(*at)?;
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
