//! Checkpointing: the memory of running nodes, taken by CRIU together with their disks in one cut.
//!
//! - [`probe()`] finds a CRIU and tries it on the running kernel.
//! - [`Ladder`] tells in which way memory is taken here.
//! - [`preflight()`] tells beforehand what in a node cannot be checkpointed.
//! - [`expected_freeze`] tells beforehand how long nodes would stand still.
//! - [`cut()`] freezes all nodes of an environment, takes memory and disks, and lets them go.
//! - [`rewrite_ids`] gives the clone its own range of user ids.
//!
//! Restoring is `runc restore`, run by the clone's shim on the images that a cut left.

mod container;
mod cut;
mod dump;
mod error;
mod family;
mod forecast;
mod images;
mod ladder;
mod log;
mod memory;
mod parallel;
mod predump;
mod preflight;
mod probe;
mod rpc;
mod stages;
mod swrk;
mod watch;
mod wire;
mod working;

pub use container::Container;
pub use cut::{
    CutNode, CutNodeReport, CutReport, CutRequest, Freezer, Insist, Isolate, Lease, Tracking, cut,
};
pub use error::{CriuError, CutError, Foreign};
pub use forecast::expected_freeze;
pub use images::rewrite_ids;
pub use ladder::Ladder;
pub use log::errors_in;
pub use memory::{Late, Plant, Twin};
pub use preflight::{Obstacle, preflight};
pub use probe::{Criu, CriuInfo, probe};
