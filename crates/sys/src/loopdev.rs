//! Loop devices by ioctl (loop(4), `linux/loop.h`).

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;

const CONFIGURE: u64 = 0x4C0A;
const GET_STATUS64: u64 = 0x4C05;
const SET_CAPACITY: u64 = 0x4C07;
const CLR_FD: u64 = 0x4C01;
const CTL_GET_FREE: u64 = 0x4C82;
const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_DIRECT_IO: u32 = 16;
/// Where free devices are handed out; missing where the kernel has no loop devices or a container hides them.
pub const CONTROL: &str = "/dev/loop-control";
/// A free device can be taken by somebody else between asking and using it.
const ATTEMPTS: u32 = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct Info64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info64>() == 232);
const _: () = assert!(size_of::<Config>() == 304);

const EMPTY: Info64 = Info64 {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    sizelimit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// A loop device that is open here. With autoclear it lives as long as something has it open or mounted.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its node, for instance `/dev/loop3`.
    pub path: PathBuf,
    /// Whether it reads and writes its file without the page cache.
    pub direct_io: bool,
    file: File,
}

/// Attaches `file` (open for reading and writing) to a free device that goes away with its last user.
/// Direct I/O is used where the file's file system allows it.
///
/// # Errors
/// `NotFound` when [`CONTROL`] is missing; `EBUSY` when every attempt lost its device to somebody else.
pub fn attach(file: &File) -> io::Result<LoopDevice> {
    let mut direct_io = FLAG_DIRECT_IO;
    for _ in 0..ATTEMPTS {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and answers a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), CTL_GET_FREE as _) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut config = Config {
            fd: file.as_raw_fd().cast_unsigned(),
            // btrfs writes whole 4096-byte sectors; a device of the same size lets direct I/O through.
            block_size: 4096,
            info: Info64 {
                flags: FLAG_AUTOCLEAR | direct_io,
                ..EMPTY
            },
            reserved: [0; 8],
        };
        // SAFETY: LOOP_CONFIGURE (since Linux 5.8) reads a loop_config; `fd` stays open through the call, and the kernel
        // takes its own reference.
        let result = unsafe {
            libc::ioctl(
                device.as_raw_fd(),
                CONFIGURE as _,
                std::ptr::from_mut(&mut config),
            )
        };
        if result == 0 {
            let status = status(&device)?;
            return Ok(LoopDevice {
                path,
                direct_io: status.flags & FLAG_DIRECT_IO != 0,
                file: device,
            });
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EBUSY) => {}
            Some(libc::EINVAL) if direct_io != 0 => direct_io = 0,
            _ => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// The device that `file` is attached to, if any: attaching a file twice would corrupt it.
///
/// # Errors
/// When /sys cannot be read.
pub fn attached(file: &File) -> io::Result<Option<LoopDevice>> {
    let wanted = file.metadata()?;
    for entry in std::fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        if !name.to_string_lossy().starts_with("loop")
            || !Path::new("/sys/block").join(&name).join("loop").exists()
        {
            continue;
        }
        let path = Path::new("/dev").join(&name);
        // It may be detached between listing and opening.
        let Ok(device) = OpenOptions::new().read(true).write(true).open(&path) else {
            continue;
        };
        let Ok(status) = status(&device) else {
            continue;
        };
        if (status.device, status.inode) == (wanted.dev(), wanted.ino()) {
            return Ok(Some(LoopDevice {
                path,
                direct_io: status.flags & FLAG_DIRECT_IO != 0,
                file: device,
            }));
        }
    }
    Ok(None)
}

/// Device and inode number of the file behind the loop device `path`; `None` when nothing is attached to it.
///
/// # Errors
/// When the device cannot be opened.
pub fn backing(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match status(&File::open(path)?) {
        Ok(status) => Ok(Some((status.device, status.inode))),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

impl LoopDevice {
    /// Takes over a new size of the file.
    ///
    /// # Errors
    /// As ioctl(2).
    pub fn update_size(&self) -> io::Result<()> {
        // SAFETY: LOOP_SET_CAPACITY takes no argument.
        let result = unsafe { libc::ioctl(self.file.as_fd().as_raw_fd(), SET_CAPACITY as _, 0) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Detaches the file; while the device is in use, as soon as it no longer is.
    ///
    /// # Errors
    /// As ioctl(2).
    pub fn detach(&self) -> io::Result<()> {
        // SAFETY: LOOP_CLR_FD takes no argument.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), CLR_FD as _, 0) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn status(device: &File) -> io::Result<Info64> {
    let mut info = EMPTY;
    // SAFETY: LOOP_GET_STATUS64 writes a loop_info64.
    let result = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            GET_STATUS64 as _,
            std::ptr::from_mut(&mut info),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(info)
    }
}
