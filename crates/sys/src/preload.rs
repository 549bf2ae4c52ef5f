//! Shared objects for other programs (`LD_PRELOAD`, ld.so(8)), carried in this one.

/// CRIU with this finds no page to dump: the source is `preload/criu.rs`. Empty on other processors than x86-64.
pub const CRIU: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/criu.so"));
