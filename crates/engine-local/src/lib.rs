//! The engine of one host: pool, images, network, runtime, checkpoint and edge in one.
//!
//! Everything it puts on the host carries the instance and the environment's id, so that `sweep` finds whatever
//! a crash left. Nothing here decides: what is to be done comes fully planned.

mod blocking;
mod changes;
mod config;
mod copy;
mod cut;
mod dirs;
mod disks;
mod doctor;
mod edge;
mod entry;
mod exec;
mod ksm;
mod leftovers;
mod listing;
mod local;
mod logs;
mod net;
mod nodes;
mod plant;
mod suspects;
mod sweep;
mod usage;
mod views;

pub use config::{EdgeOptions, LocalConfig, certificates_in};
pub use doctor::doctor;
pub use local::Local;
pub use offshoot_edge_api::{Limits as EdgeLimits, LogFormat as EdgeLogFormat};
