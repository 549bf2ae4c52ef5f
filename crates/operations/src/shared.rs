//! What every operation works with.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use offshoot_engine::{Beside, Engine, Exposed, Exposure, HostRedirect, Reach, RefusedPort};
use offshoot_model::domain::{DomainHttps, DomainView};
use offshoot_model::{
    Code, Domain, EnvId, Environment, EnvironmentState, Fault, NodeId, OperationId, Problem,
};
use offshoot_plan::{Host, Taken};
use offshoot_store::{Store, StoreError};
use tokio::sync::{Notify, broadcast};

use crate::health::HealthBook;
use crate::https::{Https, Proofs};
use crate::live::Live;
use crate::locks::Locks;
use crate::supervise::Restarts;

/// Settings of the daemon that operations need.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the host has to give.
    pub host: Host,
    /// Bound on a freeze when the request names none, milliseconds.
    pub max_freeze_ms: u64,
    /// How long to wait for a new environment's or clone's health checks.
    pub ready_timeout: Duration,
    /// Certificates, and who signs them.
    pub https: Https,
}

/// What an operation said about an environment before the store says it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Announced {
    Open,
    Closed,
    Gone,
}

/// What is about to differ from what the store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    /// Nothing.
    None,
    /// This environment can be reached.
    Open(&'a EnvId),
    /// It cannot, but it is there.
    Close(&'a EnvId),
    /// It is not there.
    Forget(&'a EnvId),
}

/// Shared by all operations of a daemon.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) settings: Settings,
    pub(crate) locks: Locks,
    pub(crate) health: HealthBook,
    pub(crate) restarts: Restarts,
    /// Wakes event streams; the events themselves are in the store.
    pub(crate) news: broadcast::Sender<u64>,
    /// Operations that are not final.
    pub(crate) live: Mutex<HashMap<OperationId, Arc<Live>>>,
    /// Changes that operations made known and the store does not know yet: whoever else tells the edge meanwhile must
    /// not take them back.
    announced: Mutex<HashMap<EnvId, (OperationId, Announced)>>,
    /// What the edge answers while certificates are ordered.
    pub(crate) proofs: Proofs,
    /// Held from the recording of a certificate to the end of its operation.
    pub(crate) certifying: Arc<tokio::sync::Mutex<()>>,
    /// Only one task at a time tells the edge what to do.
    exposing: tokio::sync::Mutex<()>,
    /// Only one request at a time is planned and recorded, so that no two are given the same places.
    pub(crate) submitting: tokio::sync::Mutex<()>,
    /// Woken when an operation ended.
    pub(crate) ended: Notify,
}

impl Shared {
    pub(crate) fn new(store: Arc<Store>, engine: Arc<dyn Engine>, settings: Settings) -> Self {
        Self {
            store,
            engine,
            settings,
            locks: Locks::default(),
            health: HealthBook::default(),
            restarts: Restarts::default(),
            news: broadcast::channel(256).0,
            live: Mutex::default(),
            announced: Mutex::default(),
            proofs: Proofs::default(),
            certifying: Arc::default(),
            exposing: tokio::sync::Mutex::default(),
            submitting: tokio::sync::Mutex::default(),
            ended: Notify::new(),
        }
    }

    /// The environment of that name or id.
    pub(crate) fn find(&self, name_or_id: &str) -> Result<Environment, Problem> {
        let by_name = self
            .store
            .environment_by_name(name_or_id)
            .map_err(store_problem)?;
        match (by_name, name_or_id.parse()) {
            (Some(found), _) => Ok(found),
            (None, Ok(id)) => self.by_id(&id),
            (None, Err(_)) => Err(unknown(name_or_id)),
        }
    }

    /// The environment of that id.
    pub(crate) fn by_id(&self, id: &EnvId) -> Result<Environment, Problem> {
        self.store
            .environment(id)
            .map_err(store_problem)?
            .ok_or_else(|| unknown(id.as_str()))
    }

    /// What is no longer free on this host.
    pub(crate) async fn taken(&self) -> Result<Taken, Problem> {
        let environments = self.store.environments().map_err(store_problem)?;
        let mut networks: std::collections::BTreeSet<_> =
            environments.iter().map(|env| env.placement.outer).collect();
        networks.extend(self.engine.reached_networks().await?);
        Ok(Taken {
            names: environments
                .iter()
                .map(|env| env.name.to_string())
                .collect(),
            id_bases: environments
                .iter()
                .map(|env| env.placement.id_base)
                .collect(),
            networks,
            ports: self
                .store
                .all_ports()
                .map_err(store_problem)?
                .into_iter()
                .map(|(_, port)| port)
                .collect(),
        })
    }

    /// Tells the edge which environments there are and which of them can be reached: those that should run, with
    /// the operation's `change`, which holds until it has ended ([`Self::forget_announced`]).
    pub(crate) async fn expose(
        &self,
        operation: Option<OperationId>,
        change: Change<'_>,
    ) -> Result<(), Problem> {
        self.expose_after(operation, change, || Ok(()))
            .await
            .map(|_| ())
    }

    /// As [`Self::expose`], after `record`, which changes the store: nobody else tells the edge between the two, so what
    /// it answers is the moment of the change.
    pub(crate) async fn expose_after(
        &self,
        operation: Option<OperationId>,
        change: Change<'_>,
        record: impl FnOnce() -> Result<(), Problem> + Send,
    ) -> Result<Exposed, Problem> {
        let _one_at_a_time = self.exposing.lock().await;
        record()?;
        let change = match change {
            Change::None => None,
            Change::Open(id) => Some((id, Announced::Open)),
            Change::Close(id) => Some((id, Announced::Closed)),
            Change::Forget(id) => Some((id, Announced::Gone)),
        };
        let announced = {
            let mut announced = self
                .announced
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let (Some(operation), Some((id, what))) = (operation, change) {
                announced.insert(id.clone(), (operation, what));
            }
            announced.clone()
        };
        let mut all = Vec::new();
        for environment in self.store.environments().map_err(store_problem)? {
            let announced = announced.get(&environment.id).map(|(_, what)| what);
            let reach = match (announced, environment.state) {
                (Some(Announced::Open), _) | (None, EnvironmentState::Running) => Reach::Open,
                (Some(Announced::Closed), _) | (None, EnvironmentState::Stopped) => Reach::Closed,
                (Some(Announced::Gone), _)
                | (
                    None,
                    EnvironmentState::Creating
                    | EnvironmentState::Removing
                    | EnvironmentState::Broken,
                ) => continue,
            };
            all.push(self.exposure(environment, reach)?);
        }
        leave_out_doubles(&mut all);
        self.end_redirects(&mut all)?;
        self.ensure_automatic(&all);
        let beside = Beside {
            certificates: self.shown_certificates()?,
            texts: self.proof_texts()?,
        };
        let exposed = self.engine.expose(all, beside).await?;
        let own = |port: &RefusedPort| matches!(change, Some((id, Announced::Open)) if *id == port.environment);
        for port in &exposed.refused {
            tracing::warn!(environment = %port.environment, "a published port is not open: {}", port.what);
        }
        let failed: Vec<_> = exposed.refused.iter().filter(|port| own(port)).collect();
        if failed.is_empty() {
            return Ok(exposed);
        }
        let mut problem = Problem::new(
            Code::PortInUse,
            Fault::Request,
            format!("{} published ports cannot be listened on", failed.len()),
            "publish another port, or stop what listens there (`ss -ltnup` shows it)",
        );
        problem.details = failed.into_iter().map(|port| port.what.clone()).collect();
        Err(problem)
    }

    /// A former default domain that is a domain of an environment again leads to that one.
    fn end_redirects(&self, all: &mut [Exposure]) -> Result<(), Problem> {
        let taken: HashSet<Domain> = all.iter().flat_map(|one| one.domains.clone()).collect();
        for one in all {
            for ended in one.redirects.extract_if(.., |redirect| {
                taken.contains(&Domain::of_host(&redirect.host))
            }) {
                self.store
                    .remove_redirect(&ended.host)
                    .map_err(store_problem)?;
            }
        }
        Ok(())
    }

    /// The store knows now what the operation made of its environment.
    pub(crate) fn forget_announced(&self, operation: OperationId) {
        self.announced
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, (by, _)| *by != operation);
    }

    /// A node starts afresh: nothing of its past counts.
    pub(crate) fn begin_afresh(&self, node: &NodeId) {
        self.health.reset(node);
        self.restarts.forget(node);
    }

    fn exposure(&self, environment: Environment, reach: Reach) -> Result<Exposure, Problem> {
        let ports = self.store.ports(&environment.id).map_err(store_problem)?;
        let default = self.settings.host.domain(environment.name.as_str());
        let mut domains = vec![Domain::of_host(default)];
        let custom = self.store.domains(&environment.id).map_err(store_problem)?;
        domains.extend(custom.iter().map(DomainView::domain));
        let only_https = custom
            .iter()
            .filter(|view| self.settings.https.served && view.https == DomainHttps::Redirect)
            .map(DomainView::domain)
            .collect();
        let to = self.settings.host.url(environment.name.as_str());
        let redirects = self
            .store
            .redirects()
            .map_err(store_problem)?
            .into_iter()
            .filter(|one| one.environment == environment.id)
            .map(|one| HostRedirect {
                host: one.host,
                to: to.trim_end_matches('/').to_owned(),
            })
            .collect();
        Ok(Exposure {
            only_https,
            redirects,
            environment,
            domains,
            ports,
            reach,
        })
    }

    pub(crate) fn live_of(&self, id: OperationId) -> Option<Arc<Live>> {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    /// The operation that holds or waits for an environment, if any; the oldest.
    pub(crate) fn holder(&self, environment: &EnvId) -> Option<OperationId> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.iter()
            .filter(|(_, live)| live.touches(environment))
            .map(|(id, _)| *id)
            .min()
    }
}

/// The edge refuses a name that leads to two places. Custom domains that became somebody's default domain, because the
/// configuration changed, give way.
fn leave_out_doubles(all: &mut [Exposure]) {
    let mut seen: HashSet<Domain> = all
        .iter()
        .filter_map(|one| one.domains.first().cloned())
        .collect();
    for one in all {
        let name = &one.environment.name;
        let mut first = true;
        one.domains.retain(|domain| {
            let keep = std::mem::take(&mut first) || seen.insert(domain.clone());
            if !keep {
                tracing::warn!(environment = %name, %domain,
                    "a custom domain is not served: it is an environment's default domain");
            }
            keep
        });
    }
}

/// No environment of that name.
pub(crate) fn unknown(name: &str) -> Problem {
    Problem::new(
        Code::EnvironmentUnknown,
        Fault::Request,
        format!("there is no environment {name:?}"),
        "see `offshoot ls` for those that are there",
    )
}

/// A store's error as a person sees it.
#[expect(clippy::needless_pass_by_value, reason = "used as map_err's argument")]
pub(crate) fn store_problem(error: StoreError) -> Problem {
    error.problem()
}
