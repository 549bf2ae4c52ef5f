//! The whole edge: listeners, the current table of routes, signals, draining.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use offshoot_edge_api::{EdgeConfig, EdgeStatus, Https, Refusal, Reloaded, RoutesFile};
use offshoot_model::id::EnvId;
use offshoot_model::traffic::stats::Stats;
use rustix::process::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::access_log::AccessLog;
use crate::certificates::Certificates;
use crate::checks::Checks;
use crate::clients::Connections;
use crate::metrics::{self, Counters};
use crate::ports::Ports;
use crate::proxy::{Http, Scheme};
use crate::table::Table;
use crate::traffic::{Owner, saved};
use crate::{control, sockets};

/// What all parts share.
pub(crate) struct Edge {
    pub(crate) config: EdgeConfig,
    pub(crate) table: ArcSwap<Table>,
    /// Changes after each switch to another table.
    pub(crate) switches: watch::Sender<()>,
    pub(crate) access_log: AccessLog,
    checks: Arc<Checks>,
    /// Requests answered.
    pub(crate) requests: AtomicU64,
    /// Everything else that is counted of all together.
    pub(crate) counters: Counters,
    pub(crate) client_connections: Arc<Connections>,
    /// Becomes true once, when the edge stops.
    pub(crate) stopping: watch::Receiver<bool>,
    connections: Arc<Semaphore>,
    connections_max: u32,
    ports: tokio::sync::Mutex<Ports>,
    last_error: Mutex<Option<String>>,
    listen: Vec<SocketAddr>,
    /// HTTPS addresses, port 0 replaced.
    pub(crate) listen_tls: Vec<SocketAddr>,
    started: Instant,
}

/// Serves until SIGTERM or SIGINT, then lets requests finish within their bound.
pub(crate) async fn serve(config: EdgeConfig) -> anyhow::Result<()> {
    let (listeners, listen) = listeners(&config.listen)?;
    let (tls_listeners, listen_tls) = self::listeners(&config.listen_tls)?;
    if listen.is_empty() && listen_tls.is_empty() {
        bail!("no address to listen on");
    }
    let (stop, stopping) = watch::channel(false);
    let connections_max = places(config.limits.connections);
    let edge = Arc::new(Edge {
        access_log: AccessLog::open(config.access_log.as_ref())?,
        checks: Arc::new(Checks::new(config.health_file())),
        table: ArcSwap::from_pointee(Table::before(saved::read(&config.stats_file()))),
        switches: watch::Sender::new(()),
        requests: AtomicU64::new(0),
        counters: Counters::default(),
        client_connections: Arc::default(),
        stopping,
        connections: Arc::new(Semaphore::new(usize::try_from(connections_max)?)),
        connections_max,
        ports: tokio::sync::Mutex::default(),
        last_error: Mutex::default(),
        listen,
        listen_tls,
        started: Instant::now(),
        config,
    });
    edge.load_at_start().await;
    let health_keeper = tokio::spawn(Arc::clone(&edge.checks).keep());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut reopen = signal(SignalKind::user_defined1())?;
    let http = Arc::new(Http::new(Arc::clone(&edge)));
    if let Some(address) = edge.config.metrics {
        let address = metrics::listen(&edge, address)
            .with_context(|| format!("cannot listen on {address}, for metrics"))?;
        tracing::info!(%address, "metrics");
    }
    let control = control::listen(&edge)?;
    let (end, ended) = oneshot::channel::<()>();
    let keeper = tokio::spawn(saved::keep(Arc::clone(&edge), ended));
    for listener in listeners {
        tokio::spawn(Arc::clone(&http).accept(listener, Scheme::Http));
    }
    for listener in tls_listeners {
        tokio::spawn(Arc::clone(&http).accept(listener, Scheme::Https));
    }
    tracing::info!(listen = ?edge.listen, tls = ?edge.listen_tls, version = edge.table.load().version, "serving");
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = reopen.recv() => edge.access_log.reopen(),
            _ = hang_up.recv() => { let _ = edge.reload().await; }
        }
    }
    let bound = Duration::from_secs(edge.config.limits.drain_seconds);
    tracing::info!(connections = edge.open_connections(), ?bound, "stopping");
    // environments may be stopping too, which is no failure of theirs
    edge.checks.stop();
    health_keeper.abort();
    edge.checks.write_now().await;
    control.abort();
    stop.send_replace(true);
    http.stop().await;
    edge.ports.lock().await.close_listeners().await;
    if tokio::time::timeout(bound, edge.connections.acquire_many(edge.connections_max))
        .await
        .is_err()
    {
        tracing::warn!(
            connections = edge.open_connections(),
            "cut off after the bound"
        );
    }
    drop(end);
    keeper.await?;
    Ok(())
}

/// Places for clients: as many as wanted, unless there are too few file descriptors. A client may need two, its own
/// and one towards its environment; an eighth of all is for everything else. Without this bound clients would get a
/// place and no answer.
fn places(wanted: usize) -> u32 {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let fit = usize::try_from((files - files / 8) / 2).unwrap_or(usize::MAX);
    if fit < wanted {
        tracing::warn!(
            wanted,
            connections = fit,
            "fewer connections: the limit of open files is {files}"
        );
    }
    let places = wanted.min(fit).clamp(1, Semaphore::MAX_PERMITS);
    u32::try_from(places).unwrap_or(u32::MAX >> 4)
}

fn listeners(addresses: &[SocketAddr]) -> anyhow::Result<(Vec<TcpListener>, Vec<SocketAddr>)> {
    let mut listeners = Vec::new();
    let mut listen = Vec::new();
    for address in addresses {
        match sockets::tcp_listener(*address) {
            Ok(listener) => {
                listen.push(listener.local_addr()?);
                listeners.push(listener);
            }
            Err(error) if address.is_ipv6() && no_ipv6(&error) => {
                tracing::warn!(%address, %error, "left out: the host has no IPv6");
            }
            Err(error) => return Err(error).with_context(|| format!("cannot listen on {address}")),
        }
    }
    Ok((listeners, listen))
}

fn no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL]
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

impl Edge {
    /// A place for one more client connection; waits while there is none.
    pub(crate) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).acquire_owned().await.ok()
    }

    fn open_connections(&self) -> usize {
        usize::try_from(self.connections_max)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.connections.available_permits())
    }

    /// Reads the routes file and switches to it, as one step. On an error everything stays as it was.
    pub(crate) async fn reload(self: &Arc<Self>) -> Result<Reloaded, Refusal> {
        // the lock makes reloads one after the other
        let mut ports = self.ports.lock().await;
        let path = self.config.routes.clone();
        let old = self.table.load_full();
        let edge = Arc::clone(self);
        let began = Instant::now();
        let read = tokio::task::spawn_blocking(move || {
            if old.version > 0 && !path.exists() {
                let gone = format!("{} is gone", path.display());
                return Err(Refusal::of_request(gone));
            }
            let file = RoutesFile::read(&path).map_err(|e| Refusal::of_request(e.to_string()))?;
            let table = edge.strict_table(&old, &file)?;
            Ok::<_, Refusal>((file, table))
        });
        let read = read.await.map_err(|e| Refusal::of_request(e.to_string()));
        let (file, table) = match read.flatten() {
            Ok(read) => read,
            Err(refusal) => {
                self.counters.reloads_failed.fetch_add(1, Ordering::Relaxed);
                let error = &refusal.error;
                tracing::warn!(%error, version = self.table.load().version, "routes kept");
                *self
                    .last_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
                return Err(refusal);
            }
        };
        let load_us = micros(began);
        let reloaded = Reloaded {
            load_us,
            ..self.switch(&mut ports, table).await
        };
        *self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
        let last_good = self.last_good();
        let kept = tokio::task::spawn_blocking(move || file.write_atomically(&last_good)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "cannot keep a copy of the routes");
        }
        Ok(reloaded)
    }

    async fn switch(self: &Arc<Self>, ports: &mut Ports, table: Table) -> Reloaded {
        let table = Arc::new(table);
        let began = Instant::now();
        self.checks.apply(&table.watched);
        let old = self.table.swap(Arc::clone(&table));
        ports.apply(self, &table).await;
        old.retire(&table);
        self.switches.send_replace(());
        self.counters.reloads.fetch_add(1, Ordering::Relaxed);
        tracing::info!(version = table.version, routes = table.routes(), "routes");
        Reloaded {
            version: table.version,
            routes: table.routes(),
            ports: ports.reports(),
            load_us: 0,
            switch_us: micros(began),
        }
    }

    /// The next table when everything that the file asks for can be had.
    fn strict_table(&self, old: &Table, file: &RoutesFile) -> Result<Table, Refusal> {
        let only_https = file.routes.iter().find(|r| r.https == Https::Redirect);
        if let Some(route) = only_https.filter(|_| self.listen_tls.is_empty()) {
            return Err(Refusal::of_request(format!(
                "{} is to be reached by HTTPS, for which the edge has no address",
                route.host
            )));
        }
        let certificates =
            Certificates::load(&file.certificates).map_err(Refusal::of_certificate)?;
        let mut table = Table::next(old, file.clone());
        table.certificates = certificates;
        Ok(table)
    }

    /// At the start a routes file that cannot be used is replaced by the last one that could. What could be used
    /// once may have a certificate that expired since: then the rest of it is served, since otherwise one
    /// environment's certificate would take all of them from the net.
    async fn load_at_start(self: &Arc<Self>) {
        let last_good = self.last_good();
        let first = self.config.routes.exists() || !last_good.exists();
        if first && self.reload().await.is_ok() {
            return;
        }
        tracing::warn!("the routes file cannot be used: the last good one is");
        let former = [&last_good, &self.config.routes];
        let mut former = former.into_iter().filter(|path| path.exists());
        let usable = former.find_map(|path| {
            let file = RoutesFile::read(path);
            file.inspect_err(|error| tracing::warn!(%error, "not served"))
                .ok()
        });
        let Some(file) = usable else {
            tracing::warn!("no former routes either");
            return;
        };
        let old = self.table.load_full();
        let table = self.strict_table(&old, &file).unwrap_or_else(|_| {
            let (certificates, left_out) = Certificates::load_usable(&file.certificates);
            for error in left_out {
                tracing::warn!(%error, "served without this certificate");
            }
            let mut table = Table::next(&old, file);
            table.certificates = certificates;
            table
        });
        let mut ports = self.ports.lock().await;
        self.switch(&mut ports, table).await;
    }

    fn last_good(&self) -> std::path::PathBuf {
        self.config.control.with_extension("last-good.json")
    }

    /// What was counted at the domains of these environments; of all when there is none.
    pub(crate) fn stats(&self, of: &[EnvId]) -> Stats {
        let table = self.table.load();
        let owners = table.owners(of);
        let mut owners: Vec<_> = owners.into_iter().filter_map(Owner::stats).collect();
        owners.sort_by(|a, b| a.environment.cmp(&b.environment));
        owners.dedup_by(|a, b| a.environment == b.environment);
        Stats { owners }
    }

    /// Lets the sides of an environment's policy that are up take requests again, and says how they are. `None`: it has
    /// no policy with checks.
    pub(crate) fn back(&self, owner: &EnvId) -> Option<Stats> {
        let of = std::slice::from_ref(owner);
        let table = self.table.load();
        table.owners(of).first()?.health.as_ref()?.back();
        Some(self.stats(of))
    }

    /// What is served.
    pub(crate) async fn status(&self) -> EdgeStatus {
        let table = self.table.load_full();
        EdgeStatus {
            version: table.version,
            pid: std::process::id(),
            edge: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            config: self.config.clone(),
            listen: self.listen.clone(),
            listen_tls: self.listen_tls.clone(),
            routes: table.routes(),
            environments: table.environments(),
            ports: self.ports.lock().await.reports(),
            connections: self.open_connections(),
            requests: self.requests.load(Ordering::Relaxed),
            last_error: self
                .last_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
