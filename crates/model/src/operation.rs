//! A change that takes time: its steps, its progress, its result.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clone::CloneReport;
use crate::domain::SwapReport;
use crate::id::{EnvId, OperationId};
use crate::problem::Problem;
use crate::traffic::view::TrafficReport;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// Create an environment from a manifest.
    Create,
    /// Clone an environment.
    Clone,
    /// Rename an environment.
    Rename,
    /// Start an environment's nodes.
    Start,
    /// Stop an environment's nodes.
    Stop,
    /// Remove an environment.
    Remove,
    /// Fetch or make an image.
    ImagePull,
    /// Grow the pool.
    PoolGrow,
    /// Give an environment custom domains.
    DomainAdd,
    /// Take a custom domain away from an environment.
    DomainRemove,
    /// Exchange the custom domains of two environments.
    Swap,
    /// Say what requests without TLS get at a custom domain.
    DomainHttps,
    /// Get or take a certificate.
    CertificateAdd,
    /// Take the certificate away from a host name.
    CertificateRemove,
    /// Renew a certificate.
    CertificateRenew,
    /// Set or clear what happens with requests for an environment's domains.
    TrafficSet,
    /// Send more and more of an environment's requests to another.
    TrafficRamp,
    /// Make a clone what people reach at its parent's domains.
    Promote,
    /// Hold an environment's mail or jobs, or let them go.
    Hold,
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// Waits for another operation on the same environment.
    Waiting,
    /// Its steps are being run.
    Running,
    /// A step failed or a cancel came; what was done is being undone.
    Undoing,
    /// Every step is done.
    Done,
    /// It failed; nothing of it is left.
    Failed,
    /// It was cancelled; nothing of it is left.
    Cancelled,
}

impl OperationState {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// An operation as people and the API see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Identity.
    #[schema(value_type = String)]
    pub id: OperationId,
    /// What it does.
    pub kind: OperationKind,
    /// The environment it creates or changes.
    #[schema(value_type = Option<String>)]
    pub environment: Option<EnvId>,
    /// That environment's name (for images, the reference).
    pub subject: String,
    /// For a clone, the parent's name.
    pub parent: Option<String>,
    /// How far it is.
    pub state: OperationState,
    /// When it was asked for.
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>)]
    pub ended: Option<Timestamp>,
    /// Its steps in order; all are known from the start.
    pub steps: Vec<StepRecord>,
    /// Why it failed.
    pub problem: Option<Problem>,
    /// What a clone measured.
    pub report: Option<CloneReport>,
    /// What a swap or a promotion did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapReport>,
    /// How a promotion or a ramp goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficReport>,
    /// Things worth knowing that are no failure, for instance a published port that the clone could not have.
    #[serde(default)]
    pub notices: Vec<String>,
}

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepRecord {
    /// Stable name, for instance `network`, `cut`, `restore`.
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// Time it took, microseconds, once done.
    pub us: Option<u64>,
    /// Amount done and in all (bytes, nodes, ...), while running, where it can be counted.
    pub progress: Option<Progress>,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Being done.
    Running,
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Done or begun, and taken back.
    Undone,
}

/// Amount done of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Done so far.
    pub done: u64,
    /// In all; 0 when unknown.
    pub total: u64,
    /// `bytes`, `nodes`, `packages`, ...
    pub unit: String,
    /// What is being worked on, for instance a layer digest or a package name.
    pub note: String,
}
