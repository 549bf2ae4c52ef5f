//! The application layer: all that the API and the dashboard may ask for.
//!
//! A trait, so that the server's tests need no host. Handlers call this and nothing below it.

use std::sync::Arc;

use async_trait::async_trait;
use offshoot_engine::{ByteStream, ExecSession, LogQuery};
use offshoot_model::certificate::{CertificateRequest, CertificatesView};
use offshoot_model::disk::{Changes, Directory};
use offshoot_model::domain::{DomainHttps, DomainView};
use offshoot_model::traffic::Policy;
use offshoot_model::traffic::view::{PromoteRequest, RampRequest, TrafficView};
use offshoot_model::view::{
    CloneRequest, CreateRequest, DoctorReport, DomainAddRequest, EnvironmentView, Event,
    ExecRequest, ImageView, LogLine, PlanView, PoolView, RenameRequest, SwapRequest,
};
use offshoot_model::{Hold, ImageSource, Manifest, Operation, OperationId, Problem};
use tokio::sync::mpsc;

/// A change that a person asks for; each becomes an operation.
#[derive(Debug, Clone)]
pub enum Request {
    /// Create an environment and start it.
    Create(CreateRequest),
    /// Clone the environment of that name or id.
    Clone(String, CloneRequest),
    /// Give an environment another name, and with it another domain.
    Rename(String, RenameRequest),
    /// Start the nodes.
    Start(String),
    /// Stop the nodes.
    Stop(String),
    /// Keep an environment from exactly this.
    Hold(String, Hold),
    /// Remove the environment with its data.
    Remove(String),
    /// Fetch or make an image.
    ImagePull(ImageSource),
    /// Grow the pool to this many bytes.
    PoolGrow(u64),
    /// Give an environment custom domains.
    DomainAdd(String, DomainAddRequest),
    /// Take a custom domain, as people type it, away from an environment.
    DomainRemove(String, String),
    /// Say what requests without TLS get at a custom domain, as people type it.
    DomainHttps(String, DomainHttps),
    /// Get or take a certificate.
    CertificateAdd(CertificateRequest),
    /// Take the certificate away from a host name.
    CertificateRemove(String),
    /// Renew the certificate of a host name.
    CertificateRenew(String),
    /// Exchange the custom domains of an environment with another's.
    Swap(String, SwapRequest),
    /// Give an environment a traffic policy in place of the one it has; environments by name or id.
    TrafficSet(String, Policy<String>),
    /// The same, for somebody who changed the policy that they saw: refused when the environment has another by then.
    TrafficReplace {
        /// The environment, by name or id.
        environment: String,
        /// The policy that was seen; an empty one where there was none.
        before: Box<Policy<String>>,
        /// What it is to be.
        after: Policy<String>,
    },
    /// Take an environment's traffic policy away.
    TrafficClear(String),
    /// Send more and more of an environment's requests to another.
    TrafficRamp(String, RampRequest),
    /// Give a clone its parent's domains, and go back when it is worse.
    Promote(String, PromoteRequest),
}

/// All that can be asked for. Environments are named by name or id, nodes by name (`web-1`) or layer (`web`, its
/// first node).
#[async_trait]
pub trait Platform: Send + Sync + 'static {
    /// Checks a request, records it as an operation and lets it run. Answers as soon as it is recorded.
    async fn submit(&self, request: Request) -> Result<Operation, Problem>;

    /// What a create would do. `name` as in the request to come.
    async fn plan_create(&self, name: &str, manifest: &Manifest) -> Result<PlanView, Problem>;

    /// What a clone would do, with pre-flight of every node; touches nothing.
    async fn plan_clone(
        &self,
        environment: &str,
        request: &CloneRequest,
    ) -> Result<PlanView, Problem>;

    /// An operation.
    async fn operation(&self, id: OperationId) -> Result<Operation, Problem>;

    /// Operations, newest first, at most `limit`.
    async fn operations(&self, limit: usize) -> Result<Vec<Operation>, Problem>;

    /// Asks an operation to stop at its next safe point and undo what it did.
    async fn cancel(&self, id: OperationId) -> Result<Operation, Problem>;

    /// Changes of operations from after `seq` on (0: from the oldest still kept), then as they come.
    async fn events(&self, seq: u64) -> Result<mpsc::Receiver<Event>, Problem>;

    /// All environments, by name.
    async fn environments(&self) -> Result<Vec<EnvironmentView>, Problem>;

    /// One environment.
    async fn environment(&self, environment: &str) -> Result<EnvironmentView, Problem>;

    /// Custom domains of an environment, by name.
    async fn domains(&self, environment: &str) -> Result<Vec<DomainView>, Problem>;

    /// All certificates.
    async fn certificates(&self) -> Result<CertificatesView, Problem>;

    /// The root of the instance's own authority, PEM; made when there is none yet.
    async fn certificate_root(&self) -> Result<String, Problem>;
    /// The traffic policy of an environment, and what was counted at its domains.
    async fn traffic(&self, environment: &str) -> Result<TrafficView, Problem>;

    /// Lets every side of an environment's policy that is up take requests again.
    async fn traffic_back(&self, environment: &str) -> Result<TrafficView, Problem>;

    /// An environment's manifest, secrets left out.
    async fn manifest(&self, environment: &str) -> Result<Manifest, Problem>;

    /// Runs a command in a node.
    async fn exec(
        &self,
        environment: &str,
        node: &str,
        request: ExecRequest,
    ) -> Result<ExecSession, Problem>;

    /// Output of nodes.
    async fn logs(
        &self,
        environment: &str,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Problem>;

    /// A file or directory of a node as a tar archive.
    async fn copy_out(
        &self,
        environment: &str,
        node: &str,
        path: &str,
    ) -> Result<ByteStream, Problem>;

    /// Unpacks a tar archive into a directory of a node.
    async fn copy_in(
        &self,
        environment: &str,
        node: &str,
        path: &str,
        archive: ByteStream,
    ) -> Result<(), Problem>;

    /// What is in a directory of a node.
    async fn list(&self, environment: &str, node: &str, path: &str) -> Result<Directory, Problem>;

    /// How the disks of an environment differ from those of another: its parent when none is named, and the images of its
    /// nodes when that is gone or it has none.
    async fn changes(&self, environment: &str, other: Option<&str>) -> Result<Changes, Problem>;

    /// Images in the pool.
    async fn images(&self) -> Result<Vec<ImageView>, Problem>;

    /// Removes an image that no environment uses; by id, unique beginning of an id, or source.
    async fn image_remove(&self, image: &str) -> Result<(), Problem>;

    /// Bytes that only the root file systems of an environment's nodes hold, all together; a look at every file, so it takes a while.
    /// `None` where there are too many for that, or the pool cannot tell.
    async fn root_bytes(&self, environment: &str) -> Result<Option<u64>, Problem>;

    /// The pool.
    async fn pool(&self) -> Result<PoolView, Problem>;

    /// What the host has and lacks.
    async fn doctor(&self) -> Result<DoctorReport, Problem>;
}

/// A platform as handlers hold it.
pub type SharedPlatform = Arc<dyn Platform>;
