//! CRIU's RPC messages, written by hand: field numbers and types are those of `images/rpc.proto`, `images/userns.proto`,
//! `images/inventory.proto`, `images/cgroup.proto` and `images/stats.proto` of CRIU 4.2 (<https://github.com/checkpoint-restore/criu>, MIT-licensed interface files). Only
//! what Offshoot uses is here; protobuf skips the rest.

use prost::{Enumeration, Message};

/// `criu_req_type`: what is asked for, repeated in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    Empty = 0,
    Dump = 1,
    Restore = 2,
    PreDump = 4,
    Notify = 6,
    Version = 10,
}

/// `criu_network_lock_method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(crate) enum NetworkLock {
    Iptables = 1,
    Nftables = 2,
    /// Nothing is locked: the environment's own isolation stands between the nodes.
    Skip = 3,
}

/// `criu_pre_dump_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(crate) enum PreDumpMode {
    /// Pages are moved into pipes, and stay in memory a second time until they are written.
    Splice = 1,
    /// Pages are read from the process while it runs (process_vm_readv(2)).
    VmRead = 2,
}

/// `criu_cg_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(crate) enum CgroupMode {
    /// Cgroups are neither dumped nor restored: runc makes them.
    Ignore = 0,
}

/// `ext_mount_map`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ExtMount {
    #[prost(string, required, tag = "1")]
    pub(crate) key: String,
    #[prost(string, required, tag = "2")]
    pub(crate) val: String,
}

/// `criu_opts`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Options {
    #[prost(int32, required, tag = "1")]
    pub(crate) images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pub(crate) pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) leave_running: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(crate) ext_unix_sk: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub(crate) tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "6")]
    pub(crate) evasive_devices: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub(crate) shell_job: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub(crate) file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub(crate) log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub(crate) log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    pub(crate) notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "14")]
    pub(crate) parent_img: Option<String>,
    #[prost(bool, optional, tag = "15")]
    pub(crate) track_mem: Option<bool>,
    #[prost(int32, optional, tag = "17")]
    pub(crate) work_dir_fd: Option<i32>,
    #[prost(bool, optional, tag = "18")]
    pub(crate) link_remap: Option<bool>,
    #[prost(message, repeated, tag = "23")]
    pub(crate) ext_mnt: Vec<ExtMount>,
    #[prost(enumeration = "CgroupMode", optional, tag = "34")]
    pub(crate) manage_cgroups_mode: Option<i32>,
    #[prost(uint32, optional, tag = "35")]
    pub(crate) ghost_limit: Option<u32>,
    #[prost(string, optional, tag = "44")]
    pub(crate) freeze_cgroup: Option<String>,
    #[prost(uint32, optional, tag = "45")]
    pub(crate) timeout: Option<u32>,
    #[prost(bool, optional, tag = "46")]
    pub(crate) tcp_skip_in_flight: Option<bool>,
    #[prost(bool, optional, tag = "50")]
    pub(crate) orphan_pts_master: Option<bool>,
    #[prost(string, optional, tag = "51")]
    pub(crate) config_file: Option<String>,
    #[prost(enumeration = "PreDumpMode", optional, tag = "61")]
    pub(crate) pre_dump_mode: Option<i32>,
    #[prost(enumeration = "NetworkLock", optional, tag = "64")]
    pub(crate) network_lock: Option<i32>,
}

/// `criu_req`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) opts: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) notify_success: Option<bool>,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Notify {
    #[prost(string, optional, tag = "1")]
    pub(crate) script: Option<String>,
}

/// `criu_restore_resp`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct RestoreAnswer {
    #[prost(int32, required, tag = "1")]
    pub(crate) pid: i32,
}

/// `criu_version`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Version {
    #[prost(int32, required, tag = "1")]
    pub(crate) major: i32,
    #[prost(int32, required, tag = "2")]
    pub(crate) minor: i32,
    #[prost(int32, optional, tag = "4")]
    pub(crate) sublevel: Option<i32>,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Answer {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(bool, required, tag = "2")]
    pub(crate) success: bool,
    #[prost(message, optional, tag = "4")]
    pub(crate) restore: Option<RestoreAnswer>,
    #[prost(message, optional, tag = "5")]
    pub(crate) notify: Option<Notify>,
    #[prost(int32, optional, tag = "7")]
    pub(crate) errno: Option<i32>,
    #[prost(string, optional, tag = "9")]
    pub(crate) message: Option<String>,
    #[prost(message, optional, tag = "10")]
    pub(crate) version: Option<Version>,
}

/// `uid_gid_extent`: `count` ids from `first` inside are those from `lower_first` outside.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct IdExtent {
    #[prost(uint32, required, tag = "1")]
    pub(crate) first: u32,
    #[prost(uint32, required, tag = "2")]
    pub(crate) lower_first: u32,
    #[prost(uint32, required, tag = "3")]
    pub(crate) count: u32,
}

/// `userns_entry`, the only record of `userns-<n>.img`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct UserNs {
    #[prost(message, repeated, tag = "1")]
    pub(crate) uid_map: Vec<IdExtent>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) gid_map: Vec<IdExtent>,
}

/// `dump_stats_entry`; times in microseconds, pages of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct DumpStats {
    #[prost(uint32, required, tag = "1")]
    pub(crate) freezing_us: u32,
    #[prost(uint32, required, tag = "2")]
    pub(crate) frozen_us: u32,
    #[prost(uint32, required, tag = "3")]
    pub(crate) memory_dump_us: u32,
    #[prost(uint32, required, tag = "4")]
    pub(crate) memory_write_us: u32,
    #[prost(uint64, required, tag = "7")]
    pub(crate) pages_written: u64,
    #[prost(uint64, optional, tag = "14")]
    pub(crate) shared_pages_written: Option<u64>,
}

/// `stats_entry`, the only record of `stats-dump`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Stats {
    #[prost(message, optional, tag = "1")]
    pub(crate) dump: Option<DumpStats>,
}

/// `pstree_entry`, one record per process in `pstree.img`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct PsTree {
    #[prost(uint32, required, tag = "1")]
    pub(crate) pid: u32,
}

/// `inventory_entry`, the only record of `inventory.img`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Inventory {
    /// Which of [`Cgroups::sets`] CRIU itself was in.
    #[prost(uint32, optional, tag = "5")]
    pub(crate) root_cg_set: Option<u32>,
}

/// `cgroup_entry`, the only record of `cgroup.img`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Cgroups {
    #[prost(message, repeated, tag = "1")]
    pub(crate) sets: Vec<CgroupSet>,
}

/// `cg_set_entry`: the cgroups that some processes are in.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct CgroupSet {
    #[prost(uint32, required, tag = "1")]
    pub(crate) id: u32,
}

/// `vma_entry`: an area of memory.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Vma {
    #[prost(uint64, required, tag = "1")]
    pub(crate) start: u64,
    #[prost(uint64, required, tag = "2")]
    pub(crate) end: u64,
    #[prost(uint64, required, tag = "3")]
    pub(crate) offset: u64,
    /// Of shared memory without a file: the number of the kernel's file.
    #[prost(uint64, required, tag = "4")]
    pub(crate) shared: u64,
    #[prost(uint32, required, tag = "6")]
    pub(crate) flags: u32,
    #[prost(uint32, required, tag = "7")]
    pub(crate) status: u32,
}

/// `mm_entry`, the only record of `mm-<pid>.img`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Mm {
    #[prost(message, repeated, tag = "14")]
    pub(crate) vmas: Vec<Vma>,
}

/// `pagemap_head`, the first record of `pagemap-<pid>.img`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct PagemapHead {
    #[prost(uint32, required, tag = "1")]
    pub(crate) pages_id: u32,
}

/// `pagemap_entry`, the other records of `pagemap-<pid>.img`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct PagemapEntry {
    #[prost(uint64, required, tag = "1")]
    pub(crate) vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    pub(crate) compat_nr_pages: u32,
    #[prost(bool, optional, tag = "3")]
    pub(crate) in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    pub(crate) flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub(crate) nr_pages: Option<u64>,
}

/// `remap_file_path_entry` of `images/remap-file-path.proto`: a file that cannot be opened by its name.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct RemapFilePath {
    /// What stands for it.
    #[prost(int32, optional, tag = "3")]
    pub(crate) kind: Option<i32>,
}

impl RemapFilePath {
    /// A name that CRIU gave it.
    pub(crate) const LINKED: i32 = 0;
}
