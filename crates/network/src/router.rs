//! The router process of an environment: it owns the network namespace, so that when it ends, however it ends, the
//! kernel takes bridge, ports, uplink, host routes and rules away with it.

use std::cell::Cell;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use offshoot_sys::netns::{Netns, become_holder, keep_only_net_admin};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::command::Nft;
use crate::control::{self, PortStatus, RouterStatus};
use crate::dns::{self, Directory};
use crate::error::{NetworkError, chain};
use crate::files::RunDir;
use crate::forward::HostSide;
use crate::netlink::{Links, PortSwitch, Position};
use crate::rules::mail_rules;
use crate::setup;
use crate::spec::{GATEWAY_HOST, Gate, Mail, Names, RouterSpec, check_names};
use crate::zone::Zone;

type Result<T> = std::result::Result<T, NetworkError>;

/// What a router says on its standard output, once: that it is ready, or why it will never be.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "router")]
pub(crate) enum Readiness {
    Ready,
    Failed { why: String },
}

/// Runs the router described by the JSON file at `spec_path` until it is told to end; `offshoot-shim router --spec FILE`.
/// Call it from the main thread of a process that has no other threads: the process gets a network namespace of its own.
///
/// # Errors
/// When the spec is not valid, another router runs for it already, or anything could not be set up. What had been set up
/// then ends with the process.
pub fn run(spec_path: &Path) -> Result<()> {
    let started = start(spec_path);
    let readiness = match &started {
        Ok(_) => Readiness::Ready,
        Err(error) => Readiness::Failed { why: chain(error) },
    };
    if let Ok(line) = serde_json::to_string(&readiness) {
        // Nobody may be listening.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
    let started = started?;
    started.runtime.block_on(
        started
            .local
            .run_until(control::serve(started.listener, started.router)),
    );
    Ok(())
}

struct Started {
    runtime: tokio::runtime::Runtime,
    local: LocalSet,
    listener: UnixListener,
    router: Rc<Running>,
    _lock: std::fs::File,
}

fn start(spec_path: &Path) -> Result<Started> {
    let spec = RunDir::read_spec(spec_path)?;
    let dir = RunDir::open(&spec.run_dir)?;
    let lock = dir.lock_as_router()?;
    // Before the namespace is left: its thread stays behind.
    let host = HostSide::start(spec.clone())?;
    become_holder().map_err(|e| NetworkError::io("making a network namespace", e))?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| NetworkError::io("starting the router's runtime", e))?;
    let local = LocalSet::new();
    let (router, listener) = runtime.block_on(local.run_until(async {
        let router = Rc::new(Running::set_up(spec, host).await?);
        Ok::<_, NetworkError>((router, dir.listen()?))
    }))?;
    // From here on it serves nodes.
    keep_only_net_admin().map_err(|e| NetworkError::io("giving up capabilities", e))?;
    RunDir::write_pid(&lock)?;
    Ok(Started {
        runtime,
        local,
        listener,
        router,
        _lock: lock,
    })
}

/// A router that is set up.
pub(crate) struct Running {
    spec: RouterSpec,
    names: std::cell::RefCell<Names>,
    links: Links,
    bridge: u32,
    directory: Rc<Directory>,
    mail: Cell<Mail>,
    pub(crate) isolation_held: Cell<bool>,
    pub(crate) shutdown: Notify,
}

impl Running {
    async fn set_up(spec: RouterSpec, host: HostSide) -> Result<Self> {
        let netns =
            Netns::current().map_err(|e| NetworkError::io("opening the router's namespace", e))?;
        let rules = setup::settings_and_rules(&spec)?;
        let links = Links::open()?;
        let bridge = setup::ensure_bridge(&links, &spec.placement).await?;
        host.make_uplink(netns).await?;
        // Closed before there is a route out, whatever the spec says: the rules are not in force yet.
        setup::set_gate(&links, Gate::Closed, &spec.placement).await?;
        setup::configure_uplink(&links, &spec.placement).await?;
        host.settle_uplink().await?;
        let directory = Rc::new(Directory {
            zone: Zone::new(&spec.names, &spec.placement).into(),
            upstream: std::cell::RefCell::new(spec.upstream_dns.clone().into()),
            gate: Cell::new(spec.gate),
            host,
        });
        let v6 = spec.placement.inner6_at(GATEWAY_HOST).map(IpAddr::V6);
        for address in std::iter::once(spec.placement.inner_at(GATEWAY_HOST).into()).chain(v6) {
            dns::serve(address, &directory).await?;
        }
        rules.wait()?;
        if spec.gate == Gate::Open {
            setup::set_gate(&links, Gate::Open, &spec.placement).await?;
        }
        let mail = spec.mail;
        Ok(Self {
            names: std::cell::RefCell::new(spec.names.clone()),
            spec,
            links,
            bridge,
            directory,
            mail: Cell::new(mail),
            isolation_held: Cell::new(false),
            shutdown: Notify::new(),
        })
    }

    pub(crate) async fn status(&self) -> Result<RouterStatus> {
        let ports = self.links.ports(self.bridge).await?;
        Ok(RouterStatus {
            pid: std::process::id().cast_signed(),
            spec: RouterSpec {
                names: self.names.borrow().clone(),
                upstream_dns: self.directory.upstream.borrow().to_vec(),
                gate: self.directory.gate.get(),
                mail: self.mail.get(),
                ..self.spec.clone()
            },
            ports: ports
                .into_iter()
                .map(|link| PortStatus {
                    name: link.name,
                    isolated: link.isolated,
                })
                .collect(),
            isolation_held: self.isolation_held.get(),
        })
    }

    pub(crate) fn set_names(
        &self,
        names: Names,
        upstream_dns: Option<Vec<SocketAddr>>,
    ) -> Result<()> {
        check_names(&names)?;
        self.directory
            .zone
            .replace(Zone::new(&names, &self.spec.placement));
        self.names.replace(names);
        if let Some(servers) = upstream_dns {
            self.directory.upstream.replace(Arc::from(servers));
        }
        Ok(())
    }

    /// A switch for the ports that are not isolated now.
    pub(crate) async fn prepare_isolation(&self) -> Result<PortSwitch> {
        let ports = self.links.ports(self.bridge).await?;
        let ports: Vec<u32> = ports
            .iter()
            .filter(|link| !link.isolated)
            .map(|link| link.index)
            .collect();
        PortSwitch::new(&ports)
    }

    /// Lifts the isolation that nodes were attached with.
    pub(crate) async fn lift_all(&self) -> Result<()> {
        if self.isolation_held.get() {
            return Err(NetworkError::Invalid(
                "a cut holds the nodes isolated".into(),
            ));
        }
        let ports = self.links.ports(self.bridge).await?;
        let ports: Vec<u32> = ports
            .iter()
            .filter(|link| link.isolated)
            .map(|link| link.index)
            .collect();
        PortSwitch::new(&ports)?.put(Position::Together)
    }

    /// Holds mail or lets it pass. The rules are another program's to set: meanwhile this one goes on.
    pub(crate) async fn set_mail(&self, mail: Mail) -> Result<()> {
        let rules = mail_rules(mail);
        tokio::task::spawn_blocking(move || Nft::apply(&rules)?.wait())
            .await
            .map_err(|e| NetworkError::io("setting the rules for mail", e.into()))??;
        self.mail.set(mail);
        Ok(())
    }

    pub(crate) async fn set_gate(&self, gate: Gate) -> Result<()> {
        setup::set_gate(&self.links, gate, &self.spec.placement).await?;
        self.directory.gate.set(gate);
        Ok(())
    }
}
