//! bpf(2), as much as a program of a few instructions needs that the kernel runs for each area of a process and whose output is read like
//! a file (`Documentation/bpf/bpf_iterators.rst`, Linux 6.1).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const ITER_CREATE: libc::c_int = 33;
const PROG_TYPE_TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
/// `bpf_seq_write` is for programs that say so; it is the program's name for its licence, not ours.
const LICENSE: &std::ffi::CStr = c"Dual MIT/GPL";

/// An instruction (`struct bpf_insn`): operation, registers (destination in the low half), offset, constant.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Instruction(pub(super) u8, pub(super) u8, pub(super) i16, pub(super) i32);

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to what is needed; the kernel takes the rest for zeros.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
#[derive(Default)]
struct Link {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    padding: u32,
}

/// And for `BPF_ITER_CREATE`.
#[repr(C)]
#[derive(Default)]
struct Iter {
    link_fd: u32,
    flags: u32,
}

/// Which task (`union bpf_iter_link_info`).
#[repr(C)]
#[derive(Default)]
struct Task {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

/// Loads a program for an iterator whose function has that number in the kernel's BTF.
pub(super) fn load(program: &[Instruction], iterator: u32) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(b"offshoot_areas") {
        *to = *from;
    }
    let attributes = Load {
        prog_type: PROG_TYPE_TRACING,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        prog_name: name,
        expected_attach_type: TRACE_ITER,
        attach_btf_id: iterator,
        ..Load::default()
    };
    // SAFETY: it points to the borrowed instructions, of the number that is told, and to a text that lives for ever.
    unsafe { bpf(PROG_LOAD, &attributes) }
}

/// What the program writes for the areas of process `pid`, to be read like a file.
pub(super) fn over_areas(program: BorrowedFd<'_>, pid: u32) -> io::Result<OwnedFd> {
    let task = Task {
        tid: pid,
        ..Task::default()
    };
    let attributes = Link {
        prog_fd: number(program),
        attach_type: TRACE_ITER,
        iter_info: &raw const task as u64,
        iter_info_len: size_of::<Task>() as u32,
        ..Link::default()
    };
    // SAFETY: it points to `task`, of the length that is told, which lives until the call is over.
    let link = unsafe { bpf(LINK_CREATE, &attributes) }?;
    let attributes = Iter {
        link_fd: number(std::os::fd::AsFd::as_fd(&link)),
        ..Iter::default()
    };
    // SAFETY: nothing in it is an address.
    unsafe { bpf(ITER_CREATE, &attributes) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Does what gives a new descriptor.
///
/// # Safety
/// `attributes` is what the kernel takes for `command`, and all addresses in it are good for that.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let (at, size) = (std::ptr::from_ref(attributes), size_of::<T>());
    // SAFETY: the kernel reads `size` bytes at `at`; the rest is the caller's promise.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, at, size) };
    match i32::try_from(fd) {
        // SAFETY: the kernel just made this descriptor, close-on-exec, for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
