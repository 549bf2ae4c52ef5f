//! What a host (or a cluster of hosts) must be able to do for environments: the trait that engines implement.
//!
//! Free of local ideas: no paths, no pids. Every `ensure_*` may be repeated and may be interrupted at any point;
//! done again, it completes or undoes what an earlier run left. That is what crash recovery stands on.

pub mod failpoint;
mod stream;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use offshoot_model::disk::{Directory, DiskChanges};
use offshoot_model::environment::PortBinding;
use offshoot_model::manifest::ImageConfig;
use offshoot_model::traffic::Policy;
use offshoot_model::traffic::stats::Stats;
use offshoot_model::view::{DoctorReport, ExecRequest, ImageView, LogLine, PoolView};
use offshoot_model::{
    CloneReport, Domain, EnvId, Environment, ImageSource, Node, NodeState, Problem, ProgressSink,
};
use offshoot_plan::{NodeFacts, NodePlan};
use tokio::sync::mpsc;

pub use stream::{ByteStream, ExecInput, ExecOutput, ExecSession, LogQuery};

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyImage {
    /// `sha256:...`, what [`Node::image`] keeps.
    pub id: String,
    /// What it runs by default.
    pub config: ImageConfig,
}

/// What a node is doing and using now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Node name.
    pub node: String,
    /// What it is doing; health is not the engine's to know and always `none`.
    pub state: NodeState,
    /// Memory in use, bytes.
    pub memory_bytes: Option<u64>,
    /// Processor time since the start, microseconds.
    pub cpu_us: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Schedulers in it that stand because jobs are held, each as `cron (process 4711)`.
    pub held: Vec<String>,
}

/// Whether an environment's network lets anything in or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nodes talk to each other and to the outside.
    Open,
    /// Nothing passes, not even between nodes: a clone whose memory is on its way.
    Closed,
}

/// How a node of a clone begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Its processes start afresh.
    Fresh,
    /// Its memory comes from the cut of the operation that clones it.
    FromCut,
}

/// What one cut needs to know.
#[derive(Debug)]
pub struct CutOrder<'a> {
    /// The environment that is cut.
    pub parent: &'a Environment,
    /// The environment that the snapshots are for.
    pub clone: &'a Environment,
    /// How each node is cloned.
    pub nodes: &'a [NodePlan],
    /// Bound on the freeze in milliseconds.
    pub max_freeze_ms: u64,
    /// Whether a node whose memory cannot be taken fails the cut; otherwise it falls back to its disk.
    pub fallback: Fallback,
}

/// What a node does whose memory cannot be taken or brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// It is cloned by its disk.
    Disk,
    /// The clone fails.
    Fail,
}

/// What a cut brought.
#[derive(Debug, Clone, PartialEq)]
pub struct CutOutcome {
    /// Nodes as they were cloned in the end.
    pub nodes: Vec<NodePlan>,
    /// What was measured.
    pub report: CloneReport,
}

/// Whether anything answers at an environment's domains and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Its nodes do.
    Open,
    /// Nothing does: people are told to come back later.
    Closed,
}

/// Where people reach an environment.
#[derive(Debug, Clone, PartialEq)]
pub struct Exposure {
    /// The environment, for its addresses.
    pub environment: Environment,
    /// Domains that lead to its entry layer.
    pub domains: Vec<Domain>,
    /// Published ports.
    pub ports: Vec<PortBinding>,
    /// Whether anything answers there.
    pub reach: Reach,
    /// Those of the domains at which requests without TLS are sent to the same address with it.
    pub only_https: Vec<Domain>,
    /// Host names whose visitors are sent elsewhere.
    pub redirects: Vec<HostRedirect>,
    /// What happens with requests for these domains; `None`: the environment answers them.
    pub policy: Option<Policy<EnvId>>,
}

/// A host name whose visitors are sent elsewhere, for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRedirect {
    /// Host name.
    pub host: String,
    /// Scheme and authority.
    pub to: String,
}

/// What the edge is told beside environments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// Certificates for HTTPS.
    pub certificates: Vec<ShownCertificate>,
    /// Texts to answer at paths of environments' hosts.
    pub texts: Vec<HostText>,
}

/// A certificate that the edge shows. Its files are where the engine keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownCertificate {
    /// Its identity.
    pub id: String,
    /// Host names to show it for.
    pub names: Vec<String>,
}

/// A text that the edge answers by itself, with and without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostText {
    /// The environment at that host.
    pub environment: EnvId,
    /// Host name, or `*.` and one.
    pub host: String,
    /// The path, and what is below it.
    pub path: String,
    /// The whole body.
    pub text: String,
}

/// A published port that the edge could not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPort {
    /// Whose port.
    pub environment: EnvId,
    /// Which, and why.
    pub what: String,
}

/// How the edge took to what it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// Version of the routes that it uses from then on.
    pub version: u64,
    /// When it said so.
    pub at: Timestamp,
    /// From telling it to its answer, microseconds.
    pub us: u64,
    /// Published ports that it could not open. All else is served.
    pub refused: Vec<RefusedPort>,
}

/// Something that runs environments.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Fetches or makes an image, unless it is there.
    async fn ensure_image(
        &self,
        source: &ImageSource,
        progress: &dyn ProgressSink,
    ) -> Result<ReadyImage, Problem>;

    /// As [`Self::ensure_image`], but asks the registry also when the reference is known: its tag may have moved.
    async fn refresh_image(
        &self,
        source: &ImageSource,
        progress: &dyn ProgressSink,
    ) -> Result<ReadyImage, Problem>;

    /// Images that are there; `used_by` is 0.
    async fn images(&self) -> Result<Vec<ImageView>, Problem>;

    /// Removes an image that nothing uses.
    async fn ensure_image_removed(&self, id: &str) -> Result<(), Problem>;

    /// A root file system for every node, from its image, and the environment's own volumes, seeded with what the
    /// image has at their mount points.
    async fn ensure_disks(&self, environment: &Environment) -> Result<(), Problem>;

    /// A root file system from its image for one node of a clone, in place of what may be there.
    async fn renew_disk(&self, environment: &Environment, node: &Node) -> Result<(), Problem>;

    /// The private network. Mail that is held does not pass from its first moment.
    async fn ensure_network(&self, environment: &Environment, gate: Gate) -> Result<(), Problem>;

    /// Starts a node unless it runs. Returns when its main process runs. Where jobs are held, known schedulers in it do not.
    async fn ensure_started(
        &self,
        environment: &Environment,
        node: &Node,
        begin: Begin,
    ) -> Result<(), Problem>;

    /// Stops a node: its stop signal, its grace, then SIGKILL.
    async fn ensure_stopped(&self, environment: &Environment, node: &Node) -> Result<(), Problem>;

    /// Makes what runs of an environment hold what the environment is kept from, and lets the rest go: the network mail, and running nodes
    /// their schedulers. Which nodes run is the caller's.
    async fn ensure_held(&self, environment: &Environment) -> Result<(), Problem>;

    /// Gives running nodes and the name service the names that the environment has now.
    async fn ensure_names(&self, environment: &Environment) -> Result<(), Problem>;

    /// What every node is doing.
    async fn status(&self, environment: &Environment) -> Result<Vec<NodeStatus>, Problem>;

    /// Whether each node's memory could come along, and how much it is (bytes, by node).
    async fn preflight(&self, environment: &Environment) -> Result<Vec<(NodeFacts, u64)>, Problem>;

    /// How long a cut by these plans would have the nodes stand still, all together, microseconds. `None` when no node of them runs,
    /// or when it cannot be told beforehand.
    async fn expected_freeze(
        &self,
        environment: &Environment,
        plans: &[NodePlan],
    ) -> Result<Option<u64>, Problem>;

    /// Everything of a cut that can be done while the parent runs: directories, a sync of the pool.
    async fn prepare_cut(&self, parent: &Environment, clone: &Environment) -> Result<(), Problem>;

    /// Freezes the parent, takes memory and disks at one instant, lets it go. On any failure it is let go first.
    async fn cut(
        &self,
        order: CutOrder<'_>,
        progress: &dyn ProgressSink,
    ) -> Result<CutOutcome, Problem>;

    /// After the clone's nodes run again: ends connections that left the parent, then opens the network.
    async fn ensure_open(&self, environment: &Environment) -> Result<(), Problem>;

    /// Forgets the memory images of a cut.
    async fn ensure_cut_forgotten(&self, clone: &EnvId) -> Result<(), Problem>;

    /// Takes away processes, network and run-time state, not disks.
    async fn ensure_halted(&self, environment: &EnvId) -> Result<(), Problem>;

    /// Takes away everything of an environment. What is not there is no error; what cannot be removed does not
    /// keep the rest from being removed.
    async fn ensure_removed(&self, environment: &EnvId) -> Result<(), Problem>;

    /// Makes exactly these environments known at the edge, with what goes beside them. Answers only when the edge uses them.
    async fn expose(&self, all: Vec<Exposure>, beside: Beside) -> Result<Exposed, Problem>;

    /// What was counted at the domains of these environments; of all when there is none.
    async fn traffic_stats(&self, of: Vec<EnvId>) -> Result<Stats, Problem>;

    /// Lets every side of this environment's policy that is up take requests again; answers its counts.
    async fn traffic_back(&self, owner: &EnvId) -> Result<Stats, Problem>;

    /// `GET path` of a node of the entry layer, past the edge but as it would ask for `host`: the status of the answer,
    /// or in a sentence why there was none. Bounded in time.
    async fn ask_entry(
        &self,
        environment: &Environment,
        node: &Node,
        host: &str,
        path: &str,
    ) -> Result<u16, String>;

    /// Starts again what leads people in, if something ended it, with what was exposed last.
    async fn ensure_entrance(&self) -> Result<(), Problem>;

    /// Waits so long for the end of what leads people in; whether it ended. It has when it does not run, and has not when
    /// that cannot be told.
    async fn entrance_ended(&self, within: Duration) -> bool;

    /// Free host ports for bindings without one; those given have all `host_port`s set.
    async fn choose_ports(&self, ports: Vec<PortBinding>) -> Result<Vec<PortBinding>, Problem>;

    /// Networks that the host already reaches by other ways, so that none is given twice.
    async fn reached_networks(&self) -> Result<Vec<ipnet::Ipv4Net>, Problem>;

    /// Removes whatever on the host belongs to environments of this instance that are not `known`; says what.
    async fn sweep(&self, known: &[EnvId]) -> Result<Vec<String>, Problem>;

    /// Runs a command in a node.
    async fn exec(
        &self,
        environment: &Environment,
        node: &Node,
        request: ExecRequest,
    ) -> Result<ExecSession, Problem>;

    /// Output of nodes.
    async fn logs(
        &self,
        environment: &Environment,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Problem>;

    /// A file or directory of a node as a tar archive.
    async fn copy_out(
        &self,
        environment: &Environment,
        node: &Node,
        path: &str,
    ) -> Result<ByteStream, Problem>;

    /// Unpacks a tar archive into a directory of a node.
    async fn copy_in(
        &self,
        environment: &Environment,
        node: &Node,
        path: &str,
        archive: ByteStream,
    ) -> Result<(), Problem>;

    /// What is in a directory of a node.
    async fn list(
        &self,
        environment: &Environment,
        node: &Node,
        path: &str,
    ) -> Result<Directory, Problem>;

    /// How the disks of an environment differ from those of another, or its root file systems from their images. With
    /// the instant until which both were one it tells whose change it was. Bounded in time.
    async fn changes(
        &self,
        environment: &Environment,
        other: Option<&Environment>,
        cut: Option<Timestamp>,
    ) -> Result<Vec<DiskChanges>, Problem>;

    /// The pool.
    async fn pool(&self) -> Result<PoolView, Problem>;

    /// Grows the pool to this many bytes.
    async fn ensure_pool_size(&self, size: u64) -> Result<(), Problem>;

    /// Refuses when the pool has not this much room.
    async fn ensure_room(&self, bytes: u64) -> Result<(), Problem>;

    /// Bytes that only this volume holds, where that is known.
    async fn volume_bytes(&self, environment: &Environment, volume: &str) -> Option<u64>;

    /// Bytes that only the root file systems of its nodes hold, all together, where that is known of each.
    async fn root_bytes(&self, environment: &Environment) -> Option<u64>;

    /// What the host has and lacks.
    async fn doctor(&self) -> Result<DoctorReport, Problem>;
}
