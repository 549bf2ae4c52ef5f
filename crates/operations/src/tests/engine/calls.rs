//! What each call of the engine does to the host in memory.

use async_trait::async_trait;
use jiff::Timestamp;
use offshoot_engine::{
    Begin, Beside, ByteStream, CutOrder, CutOutcome, Engine, ExecOutput, ExecSession, Exposed,
    Exposure, Gate, LogQuery, NodeStatus, ReadyImage, RefusedPort,
};
use offshoot_model::disk::{Directory, DiskChanges};
use offshoot_model::environment::PortBinding;
use offshoot_model::manifest::ImageConfig;
use offshoot_model::traffic::stats::{OwnerStats, SideStats, Stats};
use offshoot_model::view::{DoctorReport, ExecRequest, ImageView, LogLine, LogStream, PoolView};
use offshoot_model::{
    CloneReport, EnvId, Environment, ImageSource, Node, NodeState, Problem, ProgressSink,
};
use offshoot_plan::{NodeFacts, NodePlan};
use std::time::Duration;
use tokio::sync::mpsc;

use super::{Host, Pretend, exited, running, unused};

#[async_trait]
impl Engine for Pretend {
    async fn ensure_image(
        &self,
        source: &ImageSource,
        _: &dyn ProgressSink,
    ) -> Result<ReadyImage, Problem> {
        let image = ReadyImage {
            id: format!("sha256:{}", source.display()),
            config: ImageConfig::default(),
        };
        self.call("image", |_| image).await
    }

    async fn refresh_image(
        &self,
        source: &ImageSource,
        progress: &dyn ProgressSink,
    ) -> Result<ReadyImage, Problem> {
        self.ensure_image(source, progress).await
    }

    async fn images(&self) -> Result<Vec<ImageView>, Problem> {
        Ok(Vec::new())
    }

    async fn ensure_image_removed(&self, _: &str) -> Result<(), Problem> {
        Ok(())
    }

    async fn ensure_disks(&self, environment: &Environment) -> Result<(), Problem> {
        let id = environment.id.clone();
        self.call("disks", |host| host.made.insert(id)).await?;
        Ok(())
    }

    async fn renew_disk(&self, _: &Environment, node: &Node) -> Result<(), Problem> {
        self.call(format!("renew {}", node.name()), |_| ()).await
    }

    async fn ensure_network(&self, environment: &Environment, gate: Gate) -> Result<(), Problem> {
        let id = environment.id.clone();
        let what = format!("network {gate:?}").to_lowercase();
        let held = environment.held;
        self.call(what, |host| {
            host.held.insert(id.clone(), held);
            host.made.insert(id)
        })
        .await?;
        Ok(())
    }

    async fn ensure_started(
        &self,
        _: &Environment,
        node: &Node,
        begin: Begin,
    ) -> Result<(), Problem> {
        let what = match begin {
            Begin::Fresh => format!("start {}", node.name()),
            Begin::FromCut => format!("restore {}", node.name()),
        };
        self.call(what, |host| {
            let ends = host.ends.get(node.name()).copied();
            host.nodes
                .insert(node.id.clone(), ends.map_or_else(running, exited));
        })
        .await
    }

    async fn ensure_stopped(&self, _: &Environment, node: &Node) -> Result<(), Problem> {
        let what = format!("stop {}", node.name());
        self.call(what, |host| host.nodes.remove(&node.id)).await?;
        Ok(())
    }

    async fn ensure_held(&self, environment: &Environment) -> Result<(), Problem> {
        let (id, held) = (environment.id.clone(), environment.held);
        let what = format!("hold {}", held.words().unwrap_or("nothing"));
        self.call(what, |host| host.held.insert(id, held)).await?;
        Ok(())
    }

    async fn ensure_names(&self, environment: &Environment) -> Result<(), Problem> {
        let what = format!("names of {}", environment.name);
        self.call(what, |_| ()).await
    }

    async fn status(&self, environment: &Environment) -> Result<Vec<NodeStatus>, Problem> {
        let host = self.host();
        let status = |node: &Node| NodeStatus {
            node: node.name().to_owned(),
            state: host
                .nodes
                .get(&node.id)
                .map_or(NodeState::Stopped, Clone::clone),
            memory_bytes: None,
            cpu_us: None,
            pids: None,
            held: Vec::new(),
        };
        Ok(environment.nodes.iter().map(status).collect())
    }

    async fn preflight(&self, environment: &Environment) -> Result<Vec<(NodeFacts, u64)>, Problem> {
        let facts = |node: &Node, host: &Host| NodeFacts {
            node: node.name().to_owned(),
            running: matches!(host.nodes.get(&node.id), Some(NodeState::Running { .. })),
            obstacles: Vec::new(),
            memory: None,
            schedulers: host
                .schedulers
                .get(node.name())
                .cloned()
                .unwrap_or_default(),
        };
        self.call("preflight", |host| {
            let nodes = environment.nodes.iter();
            nodes.map(|node| (facts(node, host), 1 << 20)).collect()
        })
        .await
    }

    async fn expected_freeze(
        &self,
        _: &Environment,
        _: &[NodePlan],
    ) -> Result<Option<u64>, Problem> {
        Ok(None)
    }

    async fn prepare_cut(&self, _: &Environment, clone: &Environment) -> Result<(), Problem> {
        let id = &clone.id;
        self.call("prepare cut", |host| {
            host.made.insert(id.clone());
            host.cuts.insert(id.clone());
        })
        .await
    }

    async fn cut(
        &self,
        order: CutOrder<'_>,
        progress: &dyn ProgressSink,
    ) -> Result<CutOutcome, Problem> {
        let nodes: Vec<NodePlan> = order.nodes.to_vec();
        self.call("cut", |_| ()).await?;
        if progress.cancelled() {
            return Err(crate::runner::cancelled());
        }
        Ok(CutOutcome {
            nodes,
            report: CloneReport {
                cut: Some(Timestamp::now()),
                ..CloneReport::default()
            },
        })
    }

    async fn ensure_open(&self, _: &Environment) -> Result<(), Problem> {
        self.call("open", |_| ()).await
    }

    async fn ensure_cut_forgotten(&self, clone: &EnvId) -> Result<(), Problem> {
        self.call("forget cut", |host| host.cuts.remove(clone))
            .await?;
        Ok(())
    }

    async fn ensure_halted(&self, id: &EnvId) -> Result<(), Problem> {
        self.call("halt", |host| host.nodes.retain(|node, _| node.env() != id))
            .await
    }

    async fn ensure_removed(&self, id: &EnvId) -> Result<(), Problem> {
        self.call("remove", |host| {
            host.nodes.retain(|node, _| node.env() != id);
            host.made.remove(id);
        })
        .await
    }

    async fn ask_entry(
        &self,
        environment: &Environment,
        _: &Node,
        host: &str,
        path: &str,
    ) -> Result<u16, String> {
        let what = format!("ask {} for {host}{path}", environment.name);
        self.call(what, |host| host.answers.pop_front().unwrap_or(200))
            .await
            .map_err(|problem| problem.what)
    }

    async fn expose(&self, all: Vec<Exposure>, beside: Beside) -> Result<Exposed, Problem> {
        let by_domain = |one: &Exposure| {
            one.domains
                .iter()
                .map(|d| (d.to_string(), one.reach))
                .collect::<Vec<_>>()
        };
        let exposed = all.iter().flat_map(by_domain).collect();
        let leads = all
            .iter()
            .flat_map(|one| {
                one.domains
                    .iter()
                    .map(|d| (d.to_string(), one.environment.id.clone()))
            })
            .collect();
        let policies = all
            .iter()
            .filter_map(|one| Some((one.environment.id.clone(), one.policy.clone()?)))
            .collect();
        let each = |shown: &offshoot_engine::ShownCertificate| {
            let id = shown.id.clone();
            let names = shown.names.clone();
            names.into_iter().map(move |name| (name, id.clone()))
        };
        let certificates = beside.certificates.iter().flat_map(each).collect();
        let text = |text: offshoot_engine::HostText| (text.host + &text.path, text.text);
        let texts = beside.texts.into_iter().map(text).collect();
        let redirects = all
            .iter()
            .flat_map(|one| one.redirects.clone())
            .map(|one| (one.host, one.to))
            .collect();
        let only_https = all
            .iter()
            .flat_map(|one| &one.only_https)
            .map(ToString::to_string)
            .collect();
        self.call("expose", |host| {
            (host.exposed, host.leads, host.policies) = (exposed, leads, policies);
            (host.certificates, host.texts) = (certificates, texts);
            (host.redirects, host.only_https) = (redirects, only_https);
            let refused = |one: &Exposure| RefusedPort {
                environment: one.environment.id.clone(),
                what: "0.0.0.0:1/tcp: another program has it".to_owned(),
            };
            let taken = |one: &&Exposure| host.ports_taken.contains(&one.environment.id);
            let refused = all.iter().filter(taken).map(refused).collect();
            host.version += 1;
            Exposed {
                version: host.version,
                at: Timestamp::now(),
                us: 70,
                refused,
            }
        })
        .await
    }

    async fn traffic_stats(&self, of: Vec<EnvId>) -> Result<Stats, Problem> {
        let mut host = self.host();
        if host.acts.contains_key("stats") {
            return Err(Problem::internal("stats fails as asked"));
        }
        let host = &mut *host;
        for (place, more) in &host.more {
            let counts = host.counts.entry(place.clone()).or_default();
            counts.requests += more.requests;
            counts.errors += more.errors;
            for _ in 0..more.requests {
                counts.latency.add(more.latency.quantile(0.5).unwrap());
            }
        }
        let owner = |owner: &EnvId| OwnerStats {
            environment: owner.clone(),
            since: Timestamp::UNIX_EPOCH,
            sides: host
                .counts
                .iter()
                .filter(|((whose, _), _)| whose == owner)
                .map(|((_, side), tally)| SideStats {
                    requests: tally.requests,
                    errors: tally.errors,
                    latency: tally.latency.clone(),
                    ..SideStats::none(side.clone())
                })
                .collect(),
            refused: 0,
            mirror: None,
            changes: Vec::new(),
        };
        let owners = of.iter().map(owner).collect();
        Ok(Stats { owners })
    }

    async fn traffic_back(&self, owner: &EnvId) -> Result<Stats, Problem> {
        self.call("back", |_| ()).await?;
        self.traffic_stats(vec![owner.clone()]).await
    }

    async fn ensure_entrance(&self) -> Result<(), Problem> {
        self.call("entrance", |_| ()).await
    }

    async fn entrance_ended(&self, within: Duration) -> bool {
        tokio::time::timeout(within, self.edge_ends.notified())
            .await
            .is_ok()
    }

    async fn choose_ports(&self, ports: Vec<PortBinding>) -> Result<Vec<PortBinding>, Problem> {
        Ok(ports)
    }

    async fn reached_networks(&self) -> Result<Vec<ipnet::Ipv4Net>, Problem> {
        Ok(Vec::new())
    }

    async fn sweep(&self, known: &[EnvId]) -> Result<Vec<String>, Problem> {
        let mut host = self.host();
        host.made.retain(|id| known.contains(id));
        host.cuts.retain(|id| known.contains(id));
        host.nodes.retain(|node, _| known.contains(node.env()));
        Ok(Vec::new())
    }

    async fn exec(
        &self,
        _: &Environment,
        node: &Node,
        _: ExecRequest,
    ) -> Result<ExecSession, Problem> {
        let name = node.name();
        let status = self
            .call(format!("check {name}"), |host| {
                host.checks.get(name).copied().unwrap_or(0)
            })
            .await?;
        let (input, _) = mpsc::channel(1);
        let (sender, output) = mpsc::channel(1);
        let _ = sender.send(ExecOutput::Exit(status)).await;
        Ok(ExecSession { input, output })
    }

    async fn logs(
        &self,
        _: &Environment,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Problem> {
        let (sender, lines) = mpsc::channel(1);
        let line = LogLine {
            time: Timestamp::now(),
            node: query.node.unwrap_or_default(),
            stream: LogStream::Stderr,
            line: "last words".to_owned(),
        };
        let _ = sender.send(line).await;
        Ok(lines)
    }

    async fn list(&self, _: &Environment, _: &Node, _: &str) -> Result<Directory, Problem> {
        unused()
    }

    async fn changes(
        &self,
        _: &Environment,
        _: Option<&Environment>,
        _: Option<Timestamp>,
    ) -> Result<Vec<DiskChanges>, Problem> {
        unused()
    }

    async fn copy_out(&self, _: &Environment, _: &Node, _: &str) -> Result<ByteStream, Problem> {
        unused()
    }

    async fn copy_in(
        &self,
        _: &Environment,
        _: &Node,
        _: &str,
        _: ByteStream,
    ) -> Result<(), Problem> {
        unused()
    }

    async fn pool(&self) -> Result<PoolView, Problem> {
        unused()
    }

    async fn ensure_pool_size(&self, _: u64) -> Result<(), Problem> {
        self.call("grow", |_| ()).await
    }

    async fn ensure_room(&self, _: u64) -> Result<(), Problem> {
        self.call("room", |_| ()).await
    }

    async fn volume_bytes(&self, _: &Environment, _: &str) -> Option<u64> {
        None
    }

    async fn root_bytes(&self, _: &Environment) -> Option<u64> {
        None
    }

    async fn doctor(&self) -> Result<DoctorReport, Problem> {
        unused()
    }
}
