//! CRIU makes children for what takes less time than a child does: 4 ms of a processor, in the freeze, each. So some are not made:
//!
//! - the one that tries whether the other namespaces are the user namespace's: they are, for runc made them;
//! - `tar` of an empty directory: [`archive`];
//! - those that look into a namespace of names or of System V objects, write what is there, and end. CRIU does so itself: [`fork`] returns as in
//!   a child, and when that would end, once more as in its parent, with the stack that was there ("returns twice", setjmp(3)). What such a child opens
//!   stays open, as it stays in CRIU's memory that it is. If it enters a namespace that there is no way back from, it becomes a child then.
//!
//! In a restore CRIU runs a script at each of its stages. Where the environment variable `OFFSHOOT_STAGE` names the only one that is of interest, it is
//! not run at others.
//!
//! CRIU is told by [`waitpid`] how they ended.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};

use crate::ids;
use crate::{AT_FDCWD, O_CLOEXEC, SYS_OPENAT, archive, close, getenv, is_dump, syscall};

const O_CREAT: c_int = 0o100;
const SYS_WAIT4: i64 = 61;
const SYS_SETNS: i64 = 308;
const NEW_NAMES: c_int = 0x0400_0000;
const NEW_SYSTEM_V: c_int = 0x0800_0000;
/// So much of the stack is kept: the frame of whoever calls fork, and more.
const KEPT: usize = 1024;
/// Larger than any process's number (`PID_MAX_LIMIT`).
const NOBODY: c_int = c_int::MAX;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
}

/// The place in CRIU's work at which it makes a child.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Elsewhere,
    /// It has read which ids the user namespace has.
    TriesNamespaces,
    /// It has opened a directory, and the image for its archive.
    Archives { directory: c_int, image: c_int },
    /// It has written all that is about processes.
    LooksIntoNamespaces,
}

struct State {
    place: Place,
    /// What was opened last.
    opened: c_int,
    /// The way back of a child that is none.
    child: Option<Way>,
    /// This is a child.
    is_child: bool,
    /// How many children that are none have ended, until CRIU asks, and how the last that failed did.
    ended: u32,
    status: c_int,
    stack: [u8; KEPT],
}

/// Where [`fork`] was called, and the namespaces that there were.
#[derive(Clone, Copy)]
struct Way {
    frame: *mut u8,
    names: c_int,
    system_v: c_int,
}

struct Global(UnsafeCell<State>);
// SAFETY: CRIU has one thread.
unsafe impl Sync for Global {}

static NOW: Global = Global(UnsafeCell::new(State {
    place: Place::Elsewhere,
    opened: -1,
    child: None,
    is_child: false,
    ended: 0,
    status: 0,
    stack: [0; KEPT],
}));

impl State {
    /// A child that is none ended with exit status `code`.
    fn nobody_ended(&mut self, code: c_int) -> c_int {
        self.ended += 1;
        if code & 0xff != 0 {
            self.status = (code & 0xff) << 8;
        }
        NOBODY
    }

    /// How such a child ended, as waitpid(2) tells it; one that failed is told first.
    fn asked(&mut self) -> Option<c_int> {
        self.ended = self.ended.checked_sub(1)?;
        Some(core::mem::take(&mut self.status))
    }
}

fn with<T>(work: impl FnOnce(&mut State) -> T) -> T {
    // SAFETY: CRIU has one thread, and `work` never comes back here.
    work(unsafe { &mut *NOW.0.get() })
}

/// Whether this is a child of the CRIU that was started.
pub(crate) fn is_one() -> bool {
    with(|now| now.is_child)
}

/// CRIU has opened a file.
pub(crate) fn opened(name: &[u8], flags: c_int, file: c_int) {
    with(|now| {
        let is_image = flags & O_CREAT != 0;
        now.place = match now.place {
            _ if name == b"gid_map" => Place::TriesNamespaces,
            _ if is_image && name.starts_with(b"tmpfs-") => Place::Archives {
                directory: now.opened,
                image: file,
            },
            _ if is_image && name == b"pstree.img" => Place::LooksIntoNamespaces,
            Place::LooksIntoNamespaces if name != b"cgroup.img" => Place::LooksIntoNamespaces,
            _ => Place::Elsewhere,
        };
        now.opened = file;
    });
}

/// Takes from the stack what a function has to leave as it was, and returns.
macro_rules! leave {
    () => {
        "pop rbp\npop rbx\npop r12\npop r13\npop r14\npop r15\nret"
    };
}

/// fork(2), in the place of the C library's.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub extern "C" fn fork() -> c_int {
    // What a function has to leave as it was, and where it returns to, are the frame that is kept.
    core::arch::naked_asm!(
        "push r15",
        "push r14",
        "push r13",
        "push r12",
        "push rbx",
        "push rbp",
        "mov rdi, rsp",
        "sub rsp, 8",
        "call {begin}",
        "add rsp, 8",
        leave!(),
        begin = sym begin,
    )
}

/// Returns from [`fork`] once more, with `child`: the stack from `frame` on is what it was.
#[unsafe(naked)]
unsafe extern "C" fn resume(frame: *mut u8, stack: *const u8, length: usize, child: c_int) -> ! {
    core::arch::naked_asm!(
        "mov rsp, rdi",
        "mov eax, ecx",
        "mov rcx, rdx",
        "cld",
        "rep movsb",
        leave!(),
    )
}

/// What [`fork`], with this frame, returns.
extern "C" fn begin(frame: *mut u8) -> c_int {
    with(|now| {
        if !is_dump() {
            return if script_does_nothing() { now.nobody_ended(0) } else { really(now) };
        }
        match now.place {
            _ if now.child.is_some() => really(now),
            Place::TriesNamespaces => now.nobody_ended(0),
            Place::Archives { directory, image } if archive::write_empty(directory, image, &ids::owners()) => {
                now.nobody_ended(0)
            }
            Place::Elsewhere | Place::Archives { .. } => really(now),
            Place::LooksIntoNamespaces => {
                let (Some(names), Some(system_v)) = (own(c"/proc/thread-self/ns/uts"), own(c"/proc/thread-self/ns/ipc")) else {
                    return really(now);
                };
                // SAFETY: the stack is longer: this is called by what is called by CRIU's main function, whose arguments alone are more.
                unsafe { core::ptr::copy_nonoverlapping(frame, now.stack.as_mut_ptr(), KEPT) };
                now.child = Some(Way { frame, names, system_v });
                0
            }
        }
    })
}

/// Whether CRIU is about to run a script, at a stage that is of no interest.
fn script_does_nothing() -> bool {
    // SAFETY: strings; what comes back are strings of the environment, or null.
    unsafe {
        let (wanted, now) = (getenv(c"OFFSHOOT_STAGE".as_ptr()), getenv(c"CRTOOLS_SCRIPT_ACTION".as_ptr()));
        !wanted.is_null() && !now.is_null() && CStr::from_ptr(wanted) != CStr::from_ptr(now)
    }
}

/// A namespace of CRIU's own.
fn own(path: &CStr) -> Option<c_int> {
    // SAFETY: a string.
    let file = unsafe { syscall(SYS_OPENAT, AT_FDCWD, path.as_ptr(), O_CLOEXEC, 0) as c_int };
    (file >= 0).then_some(file)
}

/// Makes a child, which makes its own as it likes.
fn really(now: &mut State) -> c_int {
    let real = next(c"fork");
    if real.is_null() {
        return -1;
    }
    // SAFETY: fork(2) of the C library.
    let real: extern "C" fn() -> c_int = unsafe { core::mem::transmute(real) };
    let child = real();
    if child == 0 {
        now.child = None;
        now.is_child = true;
        now.ended = 0;
        now.place = Place::Elsewhere;
    }
    child
}

/// The function of this name that stands behind the one here (dlsym(3), `RTLD_NEXT`).
fn next(name: &CStr) -> *mut c_void {
    // SAFETY: a string, and the handle that stands for the objects after this one.
    unsafe { dlsym(usize::MAX as *mut c_void, name.as_ptr()) }
}

/// Goes back to where [`fork`] returned first, where there is a child that is none.
fn back(child: c_int) {
    let Some((way, stack)) = with(|now| Some((now.child.take()?, now.stack.as_ptr()))) else { return };
    // SAFETY: descriptors of this process; then as `begin` found it: CRIU has not returned from where it called `fork`.
    unsafe {
        syscall(SYS_SETNS, way.names, NEW_NAMES);
        syscall(SYS_SETNS, way.system_v, NEW_SYSTEM_V);
        close(way.names);
        close(way.system_v);
        resume(way.frame, stack, KEPT, child)
    }
}

/// exit(3), in the place of the C library's.
#[unsafe(no_mangle)]
pub extern "C" fn exit(status: c_int) -> ! {
    if with(|now| now.child.is_some()) {
        back(with(|now| now.nobody_ended(status)));
    }
    let real = next(c"exit");
    if !real.is_null() {
        // SAFETY: exit(3) of the C library.
        let real: extern "C" fn(c_int) -> ! = unsafe { core::mem::transmute(real) };
        real(status)
    }
    loop {
        const SYS_EXIT_GROUP: i64 = 231;
        // SAFETY: a number.
        unsafe { syscall(SYS_EXIT_GROUP, status) };
    }
}

/// setns(2), in the place of the C library's.
#[unsafe(no_mangle)]
pub extern "C" fn setns(namespace: c_int, kind: c_int) -> c_int {
    if kind != NEW_NAMES && kind != NEW_SYSTEM_V && with(|now| now.child.is_some()) {
        match with(really) {
            0 => {}
            child => back(child),
        }
    }
    // SAFETY: numbers.
    unsafe { syscall(SYS_SETNS, namespace, kind) as c_int }
}

/// waitpid(2), in the place of the C library's.
///
/// # Safety
/// As waitpid(2): `status` is null or has room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waitpid(child: c_int, status: *mut c_int, options: c_int) -> c_int {
    if (child == NOBODY || child == -1)
        && let Some(ended) = with(State::asked)
    {
        if !status.is_null() {
            // SAFETY: the caller's.
            unsafe { status.write(ended) };
        }
        return NOBODY;
    }
    // SAFETY: the caller's arguments, handed on.
    unsafe { syscall(SYS_WAIT4, child, status, options, 0_usize) as c_int }
}
