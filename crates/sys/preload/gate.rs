//! Between its stage `pre-dump` and its first look at the processes CRIU reads much that is not theirs: the code that the kernel gives itself,
//! control groups, plug-ins. So that it does this while they run, it stops once more when it opens their freezer: it says so by the line that it got its
//! request by, as a stage of its own would (`criu_notify` of `images/rpc.proto`), and goes on when it is told to. Before, it gets hold of the pages
//! of its own code and data, which would come one by one afterwards.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::areas::{Lines, addresses};
use crate::{child, request};
use crate::{AT_FDCWD, O_CLOEXEC, SYS_OPENAT, is_dump, read, syscall, write};

const SYS_MADVISE: i64 = 28;
const SYS_ALARM: i64 = 37;
/// madvise(2), from Linux 5.14 on.
const POPULATE_READ: i32 = 22;
const POPULATE_WRITE: i32 = 23;

/// The freezer's files, of control groups of version 1 and 2.
const FREEZERS: [&[u8]; 2] = [b"/freezer.state", b"/cgroup.freeze"];
/// `criu_resp`: of type NOTIFY, with success, and the name of the stage.
const STAGE: &[u8] = b"\x08\x06\x10\x01\x2a\x0a\x0a\x08freezing";

/// Called when CRIU ends (`.fini_array` of an ELF file).
#[used]
#[unsafe(link_section = ".fini_array")]
static END: extern "C" fn() = end;

/// CRIU has said how it ended: what it had goes when nobody waits for the processor. It goes on when whoever asked it hangs up.
extern "C" fn end() {
    if PASSED.load(Ordering::Relaxed)
        && !child::is_one()
        && let Some(line) = request::line()
    {
        let mut nothing = [0_u8; 1];
        // SAFETY: room for one byte.
        unsafe { read(line, nothing.as_mut_ptr().cast(), nothing.len()) };
    }
}

/// Whether it has stopped once.
static PASSED: AtomicBool = AtomicBool::new(false);

/// Stops if `path`, which is about to be opened, is the freezer's. Whether it may go on.
pub(crate) fn pass(path: &[u8]) -> bool {
    if !FREEZERS.iter().any(|freezer| path.ends_with(freezer)) || !is_dump() || PASSED.swap(true, Ordering::Relaxed) {
        return true;
    }
    let Some(line) = request::line() else { return true };
    get_own_pages();
    let mut answer = [0_u8; 256];
    // SAFETY: as many bytes as there are, and as there is room for.
    let got = unsafe {
        // Its time for getting hold of the processes runs already.
        let left = syscall(SYS_ALARM, 0);
        write(line, STAGE.as_ptr().cast(), STAGE.len());
        let got = read(line, answer.as_mut_ptr().cast(), answer.len());
        syscall(SYS_ALARM, left);
        got
    };
    let got = usize::try_from(got).unwrap_or(0);
    answer.get(..got).is_some_and(request::says_go_on)
}

/// Has all there that this process has mapped for itself.
fn get_own_pages() {
    // SAFETY: a string.
    let maps = unsafe { syscall(SYS_OPENAT, AT_FDCWD, c"/proc/self/maps".as_ptr(), O_CLOEXEC, 0) as i32 };
    if maps < 0 {
        return;
    }
    let mut lines = Lines::of(maps);
    while let Some(line) = lines.next() {
        let mut fields = line.split(|byte| *byte == b' ');
        let (Some((start, end)), Some(access)) = (fields.next().and_then(addresses), fields.next()) else {
            return;
        };
        let how = match access {
            [b'r', b'w', _, b'p'] => POPULATE_WRITE,
            [b'r', _, _, b'p'] => POPULATE_READ,
            _ => continue,
        };
        // SAFETY: no page changes. Where that cannot be, nothing is done.
        unsafe { syscall(SYS_MADVISE, start, end - start, how) };
    }
}
