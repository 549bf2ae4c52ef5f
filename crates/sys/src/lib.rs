//! Kernel interfaces: the only crate of Offshoot that holds `unsafe`.
//!
//! Each module wraps one interface, says which man page or kernel version it follows, and gives back plain
//! values and `std::io::Error`. No policy here.

pub mod area_flags;
pub mod btrfs;
pub mod execs;
pub mod first;
pub mod fsx;
pub mod inject;
pub mod loopdev;
pub mod memory;
pub mod merge;
pub mod mount;
pub mod netns;
pub mod pagemap;
pub mod passing;
pub mod preload;
pub mod process;
pub mod sock_diag;
pub mod threads;
pub mod uffd;
pub mod view;
