//! Offshoot's words as types: what an environment is, what a clone answers, what an error says.
//!
//! No I/O, no clock, no async. Everything here can be kept in the database and sent over the API,
//! so a change to a public field is a change to both.

pub mod certificate;
pub mod clone;
pub mod disk;
pub mod domain;
pub mod environment;
pub mod hold;
pub mod id;
pub mod manifest;
pub mod name;
pub mod operation;
pub mod problem;
pub mod progress;
pub mod quantity;
pub mod traffic;
pub mod view;

pub use clone::{CloneReport, Memory, MemoryWay, NodeCloneReport, Rung, RungChoice};
pub use domain::Domain;
pub use environment::{Environment, EnvironmentState, Lineage, Node, NodeState, Placement, Volume};
pub use hold::Hold;
pub use id::{EnvId, NodeId, OperationId};
pub use manifest::{ImageSource, Layer, Manifest};
pub use name::{EnvName, LayerName, VolumeName};
pub use operation::{Operation, OperationKind, OperationState, StepRecord};
pub use problem::{Code, Fault, Problem};
pub use progress::{ProgressSink, Unobserved};
