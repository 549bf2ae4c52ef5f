//! Real nodes: runc, cgroups, mounts and the shim as they are. Needs root, runc and a static busybox.

mod exec;
mod freeze;
mod jobs;
mod late;
mod life;
mod limits;
mod probe;
mod remains;
mod restore;
mod security;
mod storage;
mod support;
mod thin;
