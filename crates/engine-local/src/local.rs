//! The engine itself: each call handed to the part that does it, off the asynchronous threads.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use offshoot_checkpoint::{Criu, CriuInfo, Ladder};
use offshoot_engine::{
    Begin, Beside, ByteStream, CutOrder, CutOutcome, Engine, ExecSession, Exposed, Exposure, Gate,
    LogQuery, NodeStatus, ReadyImage,
};
use offshoot_images::Images;
use offshoot_model::disk::{Directory, DiskChanges};
use offshoot_model::environment::PortBinding;
use offshoot_model::traffic::stats::Stats;
use offshoot_model::view::{DoctorReport, ExecRequest, ImageView, LogLine, PoolView};
use offshoot_model::{EnvId, Environment, ImageSource, Node, Problem, ProgressSink, VolumeName};
use offshoot_network::Router;
use offshoot_plan::{NodeFacts, NodePlan};
use offshoot_pool::{Pool, Subvolume};
use tokio::sync::mpsc;

use crate::blocking::blocking;
use crate::config::LocalConfig;
use crate::dirs::ensure_passable;
use crate::ksm::Sharing;
use crate::leftovers::Leftovers;
use crate::{
    changes, copy, cut, disks, doctor, edge, exec, listing, logs, net, nodes, sweep, views,
};

mod clone;

/// The engine of this host.
pub struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    config: LocalConfig,
    pool: Arc<Pool>,
    images: Images,
    criu: Option<Criu>,
    criu_info: CriuInfo,
    ladder: Ladder,
    sharing: Sharing,
    leftovers: Leftovers,
}

impl Local {
    /// Brings up what all environments share: directories, the pool, the host's part of the network, the edge.
    ///
    /// # Errors
    /// When one of them cannot be had. A missing CRIU is no error: clones then take disks only.
    pub fn open(mut config: LocalConfig) -> Result<Self, Problem> {
        for dir in [config.state_dir.clone(), config.run_dir.clone()] {
            ensure_passable(&dir)?;
        }
        for dir in [
            config.run_envs(),
            config.state_envs(),
            config.cuts(),
            config.run_dir.join("edge"),
        ] {
            ensure_passable(&dir)?;
        }
        if let Err(error) = config.renew_criu_kernel() {
            // then it finds out anew each time
            tracing::warn!(%error, "no place for what CRIU finds out about the kernel");
        }
        let (criu, criu_info) = Criu::find(config.criu_dir.as_deref());
        let criu = criu.map(|criu| criu.keeping(config.criu_kernel()));
        if let Some(why) = &criu_info.why {
            tracing::warn!(why, "no CRIU works: clones take disks only");
        }
        config.criu_dir = criu
            .as_ref()
            .and_then(|criu| criu.path().parent())
            .map(std::path::Path::to_owned);
        let pool = Arc::new(Pool::open(&config.pool).map_err(|e| e.problem())?);
        let images =
            Images::open(Arc::clone(&pool), config.images.clone()).map_err(|e| e.problem())?;
        images.clean_up().map_err(|e| e.problem())?;
        offshoot_network::ensure_host(
            &config.instance,
            config.outer_pool,
            config.outer_pool6,
            config.forwarding,
        )
        .map_err(|e| e.problem())?;
        edge::ensure(&config)?;
        Ok(Self {
            inner: Arc::new(Inner {
                sharing: Sharing::open(&config),
                leftovers: Leftovers::default(),
                config,
                pool,
                images,
                criu,
                criu_info,
                ladder: Ladder::of_host(),
            }),
        })
    }

    /// Gives back what is only borrowed from the host while a daemon runs. Environments go on.
    pub fn close(&self) {
        self.inner.sharing.close();
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let inner = Arc::clone(&self.inner);
        blocking(move || work(&inner)).await
    }
}

impl Inner {
    fn ensure_network(&self, environment: &Environment, gate: Gate) -> Result<(), Problem> {
        ensure_passable(&self.config.run_envs().join(environment.id.as_str()))?;
        let spec = net::router_spec(&self.config, environment, gate);
        let router =
            offshoot_network::ensure_router(&spec, &self.config.shim).map_err(|e| e.problem())?;
        if router.started() == offshoot_network::Started::Now {
            // Its predecessor took the nodes' links along.
            for node in &environment.nodes {
                if let Some(pid) = nodes::pid_of(&self.config, node) {
                    let link = net::link(
                        &self.config,
                        environment,
                        node,
                        offshoot_network::Isolation::No,
                    );
                    offshoot_network::attach(pid, &link).map_err(|e| e.problem())?;
                }
            }
        }
        Ok(())
    }

    fn router(&self, env: &EnvId) -> Result<Router, Problem> {
        Router::connect(&net::router_dir(&self.config, env)).map_err(|e| e.problem())
    }
}

#[async_trait]
impl Engine for Local {
    async fn ensure_image(
        &self,
        source: &ImageSource,
        progress: &dyn ProgressSink,
    ) -> Result<ReadyImage, Problem> {
        views::ready(self.inner.images.ensure(source, progress).await)
    }

    async fn refresh_image(
        &self,
        source: &ImageSource,
        progress: &dyn ProgressSink,
    ) -> Result<ReadyImage, Problem> {
        views::ready(self.inner.images.refresh(source, progress).await)
    }

    async fn images(&self) -> Result<Vec<ImageView>, Problem> {
        self.run(|inner| {
            let images = inner.images.list().map_err(|e| e.problem())?;
            Ok(images.into_iter().map(views::image).collect())
        })
        .await
    }

    async fn ensure_image_removed(&self, id: &str) -> Result<(), Problem> {
        let id = id.to_owned();
        self.run(move |inner| inner.images.remove(&id).map_err(|e| e.problem()))
            .await
    }

    async fn ensure_disks(&self, environment: &Environment) -> Result<(), Problem> {
        let environment = environment.clone();
        self.run(move |inner| disks::ensure_disks(&inner.pool, &environment))
            .await
    }

    async fn renew_disk(&self, _environment: &Environment, node: &Node) -> Result<(), Problem> {
        let node = node.clone();
        self.run(move |inner| disks::renew_disk(&inner.pool, &node))
            .await
    }

    async fn ensure_network(&self, environment: &Environment, gate: Gate) -> Result<(), Problem> {
        let environment = environment.clone();
        self.run(move |inner| inner.ensure_network(&environment, gate))
            .await
    }

    async fn ensure_started(
        &self,
        environment: &Environment,
        node: &Node,
        begin: Begin,
    ) -> Result<(), Problem> {
        let (environment, node) = (environment.clone(), node.clone());
        self.run(move |inner| {
            let spec = nodes::node_spec(
                &inner.config,
                &inner.pool,
                &inner.images,
                &environment,
                &node,
                begin,
            )?;
            offshoot_runtime::ensure_node(&spec)
                .map(|_| ())
                .map_err(|e| e.problem())
        })
        .await
    }

    async fn ensure_stopped(&self, environment: &Environment, node: &Node) -> Result<(), Problem> {
        let (environment, node) = (environment.clone(), node.clone());
        self.run(move |inner| {
            nodes::ensure_stopped(&inner.config, &inner.images, &environment, &node)
        })
        .await
    }

    async fn ensure_held(&self, environment: &Environment) -> Result<(), Problem> {
        let environment = environment.clone();
        self.run(move |inner| {
            inner.ensure_network(&environment, Gate::Open)?;
            nodes::ensure_jobs_held(&inner.config, &environment)
        })
        .await
    }

    async fn ensure_names(&self, environment: &Environment) -> Result<(), Problem> {
        let environment = environment.clone();
        self.run(move |inner| {
            nodes::ensure_hostnames(&inner.config, &inner.pool, &environment)?;
            let router = inner.router(&environment.id)?;
            router
                .set_names(&net::names(&environment), None)
                .map_err(|e| e.problem())
        })
        .await
    }

    async fn status(&self, environment: &Environment) -> Result<Vec<NodeStatus>, Problem> {
        let environment = environment.clone();
        self.run(move |inner| Ok(nodes::status(&inner.config, &environment)))
            .await
    }

    async fn preflight(&self, environment: &Environment) -> Result<Vec<(NodeFacts, u64)>, Problem> {
        let environment = environment.clone();
        self.run(move |inner| Ok(inner.preflight(&environment)))
            .await
    }

    async fn expected_freeze(
        &self,
        environment: &Environment,
        plans: &[NodePlan],
    ) -> Result<Option<u64>, Problem> {
        let (environment, plans) = (environment.clone(), plans.to_vec());
        self.run(move |inner| Ok(inner.expected_freeze(&environment, &plans)))
            .await
    }

    async fn prepare_cut(&self, parent: &Environment, clone: &Environment) -> Result<(), Problem> {
        let (parent, clone) = (parent.id.clone(), clone.clone());
        self.run(move |inner| inner.prepare_cut(&parent, &clone))
            .await
    }

    async fn cut(
        &self,
        order: CutOrder<'_>,
        progress: &dyn ProgressSink,
    ) -> Result<CutOutcome, Problem> {
        let (parent, clone, plans) = (
            order.parent.clone(),
            order.clone.clone(),
            order.nodes.to_vec(),
        );
        let (max_freeze_ms, fallback) = (order.max_freeze_ms, order.fallback);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let work = self.run(move |inner| {
            let cancelled = || seen.load(std::sync::atomic::Ordering::Acquire);
            inner.cut(&parent, &clone, plans, max_freeze_ms, fallback, &cancelled)
        });
        tokio::pin!(work);
        let mut look = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = look.tick() => stop.store(progress.cancelled(), std::sync::atomic::Ordering::Release),
            }
        }
    }

    async fn ensure_open(&self, environment: &Environment) -> Result<(), Problem> {
        let environment = environment.clone();
        self.run(move |inner| inner.ensure_open(&environment)).await
    }

    async fn ensure_cut_forgotten(&self, clone: &EnvId) -> Result<(), Problem> {
        let clone = clone.clone();
        self.run(move |inner| inner.ensure_cut_forgotten(&clone))
            .await
    }

    async fn ensure_halted(&self, environment: &EnvId) -> Result<(), Problem> {
        let environment = environment.clone();
        self.run(move |inner| sweep::ensure_halted(&inner.config, &environment))
            .await
    }

    async fn ensure_removed(&self, environment: &EnvId) -> Result<(), Problem> {
        let environment = environment.clone();
        self.run(move |inner| sweep::ensure_removed(&inner.config, &inner.pool, &environment))
            .await
    }

    async fn expose(&self, all: Vec<Exposure>, beside: Beside) -> Result<Exposed, Problem> {
        self.run(move |inner| edge::expose(&inner.config, &all, &beside))
            .await
    }

    async fn traffic_stats(&self, of: Vec<EnvId>) -> Result<Stats, Problem> {
        self.run(move |inner| edge::stats(&inner.config, of)).await
    }

    async fn traffic_back(&self, owner: &EnvId) -> Result<Stats, Problem> {
        let owner = owner.clone();
        self.run(move |inner| edge::back(&inner.config, owner))
            .await
    }

    async fn ask_entry(
        &self,
        environment: &Environment,
        node: &Node,
        host: &str,
        path: &str,
    ) -> Result<u16, String> {
        crate::entry::ask(environment, node, host, path).await
    }

    async fn ensure_entrance(&self) -> Result<(), Problem> {
        self.run(|inner| edge::ensure(&inner.config)).await
    }

    async fn entrance_ended(&self, within: Duration) -> bool {
        let ended = self.run(move |inner| edge::ended(&inner.config, within));
        match ended.await {
            Ok(ended) => ended,
            Err(_) => {
                tokio::time::sleep(within).await;
                false
            }
        }
    }

    async fn choose_ports(&self, ports: Vec<PortBinding>) -> Result<Vec<PortBinding>, Problem> {
        self.run(move |_| edge::choose_ports(ports)).await
    }

    async fn reached_networks(&self) -> Result<Vec<ipnet::Ipv4Net>, Problem> {
        self.run(|inner| net::reached_networks(&inner.config.instance))
            .await
    }

    async fn sweep(&self, known: &[EnvId]) -> Result<Vec<String>, Problem> {
        let known = known.to_vec();
        self.run(move |inner| {
            for clone in cut::remembered(&inner.config.cuts()) {
                if !known.contains(&clone) {
                    cut::ensure_forgotten(&inner.config.cuts(), &clone)?;
                }
            }
            sweep::sweep(&inner.config, &inner.pool, &known)
        })
        .await
    }

    async fn exec(
        &self,
        environment: &Environment,
        node: &Node,
        request: ExecRequest,
    ) -> Result<ExecSession, Problem> {
        let (environment, node) = (environment.clone(), node.clone());
        self.run(move |inner| {
            let spec = nodes::node_spec(
                &inner.config,
                &inner.pool,
                &inner.images,
                &environment,
                &node,
                Begin::Fresh,
            )?;
            exec::run(&spec, request)
        })
        .await
    }

    async fn logs(
        &self,
        environment: &Environment,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Problem> {
        logs::logs(&self.inner.config, environment, &query)
    }

    async fn copy_out(
        &self,
        environment: &Environment,
        node: &Node,
        path: &str,
    ) -> Result<ByteStream, Problem> {
        copy::copy_out(&self.inner.pool, environment, node, path)
    }

    async fn copy_in(
        &self,
        environment: &Environment,
        node: &Node,
        path: &str,
        archive: ByteStream,
    ) -> Result<(), Problem> {
        let (environment, node, path) = (environment.clone(), node.clone(), path.to_owned());
        self.run(move |inner| copy::copy_in(&inner.pool, &environment, &node, &path, archive))
            .await
    }

    async fn list(
        &self,
        environment: &Environment,
        node: &Node,
        path: &str,
    ) -> Result<Directory, Problem> {
        let (environment, node, path) = (environment.clone(), node.clone(), path.to_owned());
        self.run(move |inner| listing::list(&inner.pool, &environment, &node, &path))
            .await
    }

    async fn changes(
        &self,
        environment: &Environment,
        other: Option<&Environment>,
        cut: Option<Timestamp>,
    ) -> Result<Vec<DiskChanges>, Problem> {
        let (environment, other) = (environment.clone(), other.cloned());
        self.run(move |inner| changes::changes(&inner.pool, &environment, other.as_ref(), cut))
            .await
    }

    async fn pool(&self) -> Result<PoolView, Problem> {
        self.run(|inner| views::pool(&inner.pool)).await
    }

    async fn ensure_pool_size(&self, size: u64) -> Result<(), Problem> {
        self.run(move |inner| inner.pool.grow(size).map_err(|e| e.problem()))
            .await
    }

    async fn ensure_room(&self, bytes: u64) -> Result<(), Problem> {
        self.run(move |inner| inner.pool.ensure_room(bytes).map_err(|e| e.problem()))
            .await
    }

    async fn volume_bytes(&self, environment: &Environment, volume: &str) -> Option<u64> {
        let owner = environment
            .volumes
            .iter()
            .find(|known| known.name.as_str() == volume)?
            .owner
            .clone();
        let name: VolumeName = volume.parse().ok()?;
        let work = self.run(move |inner| {
            inner
                .pool
                .usage(&Subvolume::Volume(owner, name))
                .map_err(|e| e.problem())
        });
        work.await.ok()?.exclusive
    }

    async fn root_bytes(&self, environment: &Environment) -> Option<u64> {
        let nodes: Vec<_> = environment
            .nodes
            .iter()
            .map(|node| &node.id)
            .cloned()
            .collect();
        let work = self.run(move |inner| {
            let usage = |id| inner.pool.usage(&Subvolume::Rootfs(id));
            let all: Result<Vec<_>, _> = nodes.into_iter().map(usage).collect();
            all.map_err(|e| e.problem())
        });
        let all = work.await.ok()?;
        all.into_iter().map(|usage| usage.exclusive).sum()
    }

    async fn doctor(&self) -> Result<DoctorReport, Problem> {
        self.run(|inner| Ok(doctor::doctor(&inner.config, &inner.criu_info)))
            .await
    }
}
