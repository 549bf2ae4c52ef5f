//! Decides everything about a change before anything is done: names, addresses, id ranges, ports, rungs, order.
//!
//! Pure: no I/O, no clock, no randomness. The same input gives the same plan, so a dry run prints what a real
//! run does.

mod allocate;
mod clone;
mod create;
mod hold;
mod order;
#[cfg(test)]
mod tests;

pub use allocate::{Exhausted, Host, Taken};
pub use clone::{
    Begins, ClonePlan, NodeFacts, NodePlan, NotLive, Wish, clone_name, plan_clone, plan_rungs,
};
pub use create::{CreatePlan, hostname, plan_create, rehost};
pub use hold::{held_in_clone, hold_notices, why_held};
pub use order::{Cycle, start_waves};

use offshoot_model::{Code, Fault, Problem};

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing of a kind is left to give.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// `depends_on` goes in a circle.
    #[error(transparent)]
    Cycle(#[from] Cycle),
    /// The manifest has more nodes than a network has room for.
    #[error("the environment would have {0} nodes; at most {max} fit", max = offshoot_model::manifest::MAX_NODES)]
    TooManyNodes(usize),
    /// Two nodes would have one name, for instance `web-1` as a layer and node 1 of `web`.
    #[error("two nodes would be named {0:?}")]
    NodeNameTwice(String),
    /// A layer mounts a volume that the manifest does not have.
    #[error("layer {layer} mounts volume {volume}, which the manifest does not have")]
    VolumeUnknown {
        /// The layer.
        layer: String,
        /// The volume.
        volume: String,
    },
    /// Memory was asked for and cannot come along.
    #[error(transparent)]
    NotLive(#[from] NotLive),
}

impl PlanError {
    /// The error as a person sees it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let text = self.to_string();
        match self {
            Self::Exhausted(e) => Problem::new(Code::Exhausted, Fault::Host, text, e.next()),
            Self::Cycle(_)
            | Self::TooManyNodes(_)
            | Self::NodeNameTwice(_)
            | Self::VolumeUnknown { .. } => Problem::new(
                Code::ManifestInvalid,
                Fault::Request,
                text,
                "change the manifest",
            ),
            Self::NotLive(e) => {
                let mut problem = Problem::new(
                    Code::NotCheckpointable,
                    Fault::Environment,
                    text,
                    "clone without `--rung live` to take the disks of these nodes and start them afresh",
                );
                problem.details = e
                    .reasons
                    .iter()
                    .map(|(node, why)| format!("{node}: {why}"))
                    .collect();
                problem
            }
        }
    }
}
