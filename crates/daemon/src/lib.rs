//! The daemon, put together: configuration, store, engine, operations, API.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use offshoot_certificates::{Acme, AcmeConfig, Authority, Files, Own};
use offshoot_checkpoint::Criu;
use offshoot_engine_local::{EdgeLimits, EdgeLogFormat, EdgeOptions, Local, LocalConfig};
use offshoot_images::ImagesConfig;
use offshoot_model::view::DoctorReport;
use offshoot_model::{Code, Fault, Problem};
use offshoot_network::Forwarding;
use offshoot_operations::{Https, Operations, Settings};
use offshoot_plan::Host;
use offshoot_pool::{Backing, PoolConfig};
use offshoot_server::config::{self, Config};
use offshoot_server::{Dashboard, Server};
use offshoot_store::Store;

/// Runs a daemon until `shutdown` resolves. Nodes, routers and the edge go on after it. `greet` is told of the
/// dashboard, where there is one, once it listens.
///
/// # Errors
/// When the host lacks something that no environment can do without, or another daemon has the state directory.
pub async fn run(
    config: Config,
    greet: impl FnOnce(&Dashboard),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Problem> {
    let local = local_config(&config)?;
    make_private(&config.state_dir)?;
    let store = Arc::new(Store::open(&config.database()).map_err(|e| e.problem())?);
    let engine = tokio::task::spawn_blocking(move || Local::open(local))
        .await
        .map_err(|e| Problem::internal(format!("the engine's start broke off: {e}")))??;
    let engine = Arc::new(engine);
    let operations =
        Operations::start(store, Arc::<Local>::clone(&engine), settings(&config)).await?;
    let served = async {
        let server = Server::bind(&config.server()).await?;
        if let Some(dashboard) = server.dashboard() {
            greet(dashboard);
        }
        server.run(Arc::new(operations), shutdown).await
    };
    let served = served.await;
    engine.close();
    served.map_err(|e| e.problem())
}

/// Looks at the host without a daemon.
///
/// # Errors
/// When the configuration names a program that is not there.
pub fn doctor(config: &Config) -> Result<DoctorReport, Problem> {
    let local = local_config(config)?;
    let (_, criu) = Criu::find(local.criu_dir.as_deref());
    Ok(offshoot_engine_local::doctor(&local, &criu))
}

fn make_private(dir: &Path) -> Result<(), Problem> {
    std::fs::create_dir_all(dir).map_err(|e| {
        Problem::new(
            Code::HostUnfit,
            Fault::Host,
            format!("the state directory {} cannot be made", dir.display()),
            "run as root, or set `state_dir` in the configuration",
        )
        .caused_by(&e)
    })
}

fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

fn edge_options(edge: &config::Edge) -> EdgeOptions {
    EdgeOptions {
        proxy_from: edge.proxy_from.clone(),
        trust: edge.trust.clone(),
        metrics: edge.metrics,
        log_format: match edge.access_log {
            config::LogFormat::Json => EdgeLogFormat::Json,
            config::LogFormat::Combined => EdgeLogFormat::Combined,
        },
        log_query: edge.access_log_query,
        limits: EdgeLimits {
            client_connections: edge.client_connections,
            body_bytes: edge.body_bytes,
            body_rate: edge.body_rate,
            moved_seconds: edge.moved_seconds,
            ..EdgeLimits::default()
        },
    }
}

fn wants_ipv6(config: &Config) -> bool {
    config.network.ipv6 == config::Ipv6::Auto && has_ipv6()
}

fn settings(config: &Config) -> Settings {
    let ipv6 = wants_ipv6(config);
    Settings {
        host: Host {
            outer_pool: config.network.outer_pool,
            inner: config.network.inner,
            outer_pool6: ipv6.then_some(config.network.outer_pool6),
            inner6: ipv6.then_some(config.network.inner6),
            id_base: config.ids.base,
            id_count: config.ids.count,
            id_ranges: config.ids.ranges,
            base_domain: config.base_domain.as_str().to_owned(),
            edge_port: config.edge_port(),
        },
        max_freeze_ms: u64::try_from(config.clone.max_freeze.as_millis()).unwrap_or(u64::MAX),
        ready_timeout: config.clone.ready_timeout,
        https: https(config),
    }
}

fn https(config: &Config) -> Https {
    let files = Files::new(offshoot_engine_local::certificates_in(&config.state_dir));
    let acme = config.edge.acme.as_ref().map(|acme| {
        let server = AcmeConfig {
            directory: acme.directory.clone(),
            email: acme.email.clone(),
            ca_file: acme.ca_file.clone(),
        };
        Arc::new(Acme::new(server, files.clone())) as Arc<dyn Authority>
    });
    Https {
        served: !config.edge.listen_tls.is_empty(),
        own: Arc::new(Own::new(files.clone(), config.instance.as_str().to_owned())),
        files,
        acme,
    }
}

fn local_config(config: &Config) -> Result<LocalConfig, Problem> {
    let backing = match config.pool.backing {
        config::Backing::Loop => Backing::LoopFile {
            path: config.pool_path(),
            size: config.pool.size,
        },
        config::Backing::Device => Backing::Device(config.pool_path()),
        config::Backing::Mounted => Backing::Mounted,
    };
    let mount = match config.pool.backing {
        config::Backing::Mounted => config.pool_path(),
        config::Backing::Loop | config::Backing::Device => config.state_dir.join("pool"),
    };
    let missing = |e: config::ToolMissing| e.problem();
    Ok(LocalConfig {
        instance: config.instance.as_str().to_owned(),
        state_dir: config.state_dir.clone(),
        run_dir: config.run_dir.clone(),
        pool: PoolConfig { mount, backing },
        images: ImagesConfig {
            auth_file: config.images.auth_file.clone(),
            insecure_registries: config.images.insecure_registries.clone(),
            ..ImagesConfig::new(config.state_dir.join("images"))
        },
        runc: config.tools.find_runc().map_err(missing)?,
        criu_dir: config.tools.find_criu_dir(),
        shim: config.tools.find_shim().map_err(missing)?,
        edge: config.tools.find_edge().map_err(missing)?,
        edge_listen: config.edge.listen.clone(),
        edge_options: edge_options(&config.edge),
        edge_listen_tls: config.edge.listen_tls.clone(),
        outer_pool: config.network.outer_pool,
        outer_pool6: wants_ipv6(config).then_some(config.network.outer_pool6),
        forwarding: match config.network.forwarding {
            config::Forwarding::Leave => Forwarding::Leave,
            config::Forwarding::Enable => Forwarding::Enable,
        },
        dns: config.network.dns.clone(),
        share_memory: config.clone.share_memory,
    })
}
