//! The way in: routes and published ports, which the edge process serves.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use offshoot_edge_api::{
    AccessLog, Certificate, EdgeConfig, EdgeControl, Https, PortReport, PortRoute, PortState,
    Redirect, Route, RoutesFile, Traffic, ended_within, ensure_edge,
};
use offshoot_engine::{Beside, Exposed, Exposure, HostText, Reach, RefusedPort, ShownCertificate};
use offshoot_model::environment::PortBinding;
use offshoot_model::manifest::Protocol;
use offshoot_model::traffic::stats::Stats;
use offshoot_model::{Code, EnvId, Environment, Fault, LayerName, Problem};

use crate::config::LocalConfig;

/// The edge's own configuration.
pub(crate) fn edge_config(config: &LocalConfig) -> EdgeConfig {
    let dir = config.run_dir.join("edge");
    let options = &config.edge_options;
    EdgeConfig {
        listen: config.edge_listen.clone(),
        listen_tls: config.edge_listen_tls.clone(),
        access_log: Some(AccessLog {
            format: options.log_format,
            query: options.log_query,
            ..AccessLog::new(config.state_dir.join("edge-access.log"))
        }),
        limits: options.limits.clone(),
        proxy_from: options.proxy_from.clone(),
        trust: options.trust.clone(),
        metrics: options.metrics,
        ..EdgeConfig::new(dir.join("routes.json"), dir.join("control.sock"))
    }
}

/// Starts the edge unless it runs, with the routes that are there.
pub(crate) fn ensure(config: &LocalConfig) -> Result<(), Problem> {
    ensure_edge(&edge_config(config), &config.edge)
        .map(|_| ())
        .map_err(|e| e.problem())
}

/// Waits so long for the end of the edge's process; whether it ended.
pub(crate) fn ended(config: &LocalConfig, within: Duration) -> Result<bool, Problem> {
    ended_within(&edge_config(config), within)
        .map_err(|e| Problem::internal(format!("which process the edge is cannot be told: {e}")))
}

/// The version of the routes that were last written; when their file is damaged or gone, of those that the edge serves.
fn last_version(edge: &EdgeConfig) -> u64 {
    let served = || EdgeControl::connect(&edge.control)?.status();
    match RoutesFile::read(&edge.routes) {
        Ok(file) if file.version > 0 => file.version,
        _ => served().map_or(0, |status| status.version),
    }
}

/// Makes exactly these environments reachable.
pub(crate) fn expose(
    config: &LocalConfig,
    all: &[Exposure],
    beside: &Beside,
) -> Result<Exposed, Problem> {
    let edge = edge_config(config);
    let before = last_version(&edge);
    let file = RoutesFile {
        version: before + 1,
        routes: all
            .iter()
            .flat_map(routes)
            .chain(beside.texts.iter().map(text))
            .collect(),
        ports: all.iter().flat_map(ports).collect(),
        certificates: beside
            .certificates
            .iter()
            .map(|one| certificate(config, one))
            .collect(),
        traffic: traffic(all),
    };
    file.write_atomically(&edge.routes)
        .map_err(|e| e.problem())?;
    ensure(config)?;
    let mut control = EdgeControl::connect(&edge.control).map_err(|e| e.problem())?;
    let told = Instant::now();
    let answer = control.reload().map_err(|e| e.problem())?;
    Ok(Exposed {
        version: answer.version,
        at: Timestamp::now(),
        us: u64::try_from(told.elapsed().as_micros()).unwrap_or(u64::MAX),
        refused: refused(&file, &answer.ports),
    })
}

/// Ports that were not opened, with whose they are.
fn refused(file: &RoutesFile, reports: &[PortReport]) -> Vec<RefusedPort> {
    let why = |report: &PortReport| match &report.state {
        PortState::Open { .. } => None,
        PortState::InUse => Some("another program has it".to_owned()),
        PortState::Failed { error } => Some(error.clone()),
    };
    let of = |report: &PortReport| {
        let why = why(report)?;
        let same =
            |port: &&PortRoute| (port.listen, port.protocol) == (report.listen, report.protocol);
        Some(RefusedPort {
            environment: file.ports.iter().find(same)?.environment.clone(),
            what: format!("{}/{}: {why}", report.listen, report.protocol),
        })
    };
    reports.iter().filter_map(of).collect()
}

fn certificate(config: &LocalConfig, shown: &ShownCertificate) -> Certificate {
    let dir = config.certificates();
    Certificate {
        hosts: shown.names.clone(),
        chain: dir.join(format!("{}.pem", shown.id)),
        key: dir.join(format!("{}.key", shown.id)),
    }
}

fn text(text: &HostText) -> Route {
    Route {
        path: text.path.clone(),
        text: Some(text.text.clone()),
        ..Route::new(text.host.clone(), text.environment.clone(), Vec::new())
    }
}

/// What was counted at the domains of these environments, or of all.
pub(crate) fn stats(config: &LocalConfig, of: Vec<EnvId>) -> Result<Stats, Problem> {
    EdgeControl::connect(&edge_config(config).control)
        .and_then(|mut control| control.stats(of))
        .map_err(|e| e.problem())
}

/// Lets sides that are up take requests again.
pub(crate) fn back(config: &LocalConfig, owner: EnvId) -> Result<Stats, Problem> {
    EdgeControl::connect(&edge_config(config).control)
        .and_then(|mut control| control.back(owner))
        .map_err(|e| e.problem())
}

/// The policies, each with where everyone answers whom it names; whoever is stopped, or not there, answers nowhere.
fn traffic(all: &[Exposure]) -> Vec<Traffic> {
    let entries: BTreeMap<&EnvId, Vec<SocketAddr>> = all
        .iter()
        .map(|exposure| (&exposure.environment.id, entry(exposure)))
        .collect();
    let of_one = |exposure: &Exposure| {
        let policy = exposure.policy.clone()?;
        exposure.environment.manifest.entry()?;
        let answers = |id: &EnvId| entries.get(id).cloned().unwrap_or_default();
        Some(Traffic {
            environment: exposure.environment.id.clone(),
            upstreams: policy
                .environments()
                .map(|id| (id.clone(), answers(id)))
                .collect(),
            policy,
        })
    };
    all.iter().filter_map(of_one).collect()
}

fn port_in_use(what: String) -> Problem {
    Problem::new(
        Code::PortInUse,
        Fault::Request,
        what,
        "publish another port, or stop what listens there (`ss -ltnup` shows it)",
    )
}

fn routes(exposure: &Exposure) -> Vec<Route> {
    let environment = &exposure.environment;
    if environment.manifest.entry().is_none() {
        return Vec::new();
    }
    let upstreams = entry(exposure);
    exposure
        .domains
        .iter()
        .map(|domain| Route {
            path: domain.path.clone(),
            https: if exposure.only_https.contains(domain) {
                Https::Redirect
            } else {
                Https::Offer
            },
            ..Route::new(
                domain.host.clone(),
                environment.id.clone(),
                upstreams.clone(),
            )
        })
        .chain(exposure.redirects.iter().map(|redirect| Route {
            redirect: Some(Redirect {
                to: redirect.to.clone(),
                status: 308,
            }),
            ..Route::new(redirect.host.clone(), environment.id.clone(), Vec::new())
        }))
        .collect()
}

/// Where its entry layer answers.
fn entry(exposure: &Exposure) -> Vec<SocketAddr> {
    let environment = &exposure.environment;
    match (exposure.reach, environment.manifest.entry()) {
        (Reach::Open, Some((layer, port))) => upstreams(environment, &layer.name, port),
        _ => Vec::new(),
    }
}

fn ports(exposure: &Exposure) -> Vec<PortRoute> {
    if exposure.reach == Reach::Closed {
        return Vec::new();
    }
    exposure
        .ports
        .iter()
        .filter_map(|binding| {
            Some(PortRoute {
                listen: SocketAddr::new(host_ip(&binding.port.host_ip)?, binding.port.host_port?),
                protocol: match binding.port.protocol {
                    Protocol::Tcp => offshoot_edge_api::Protocol::Tcp,
                    Protocol::Udp => offshoot_edge_api::Protocol::Udp,
                },
                environment: exposure.environment.id.clone(),
                upstreams: upstreams(&exposure.environment, &binding.layer, binding.port.target),
            })
        })
        .collect()
}

fn upstreams(environment: &Environment, layer: &LayerName, port: u16) -> Vec<SocketAddr> {
    environment
        .nodes_of(layer)
        .map(|node| SocketAddr::new(environment.placement.outer_at(node.host).into(), port))
        .collect()
}

fn host_ip(text: &str) -> Option<IpAddr> {
    match text {
        "" | "*" => Some(Ipv4Addr::UNSPECIFIED.into()),
        text => text.trim_matches(['[', ']']).parse().ok(),
    }
}

/// Decides the ports that are left open and tries those that are not: a port that nothing can listen on is found
/// out before anything is made.
pub(crate) fn choose_ports(mut bindings: Vec<PortBinding>) -> Result<Vec<PortBinding>, Problem> {
    for binding in &mut bindings {
        let port = &mut binding.port;
        let ip = host_ip(&port.host_ip).ok_or_else(|| {
            Problem::new(
                Code::ManifestInvalid,
                Fault::Request,
                format!("{:?} is not an address to publish a port on", port.host_ip),
                "write an IP address of this host",
            )
        })?;
        port.host_ip = ip.to_string();
        let wanted = SocketAddr::new(ip, port.host_port.unwrap_or(0));
        let bound = match port.protocol {
            Protocol::Tcp => TcpListener::bind(wanted).and_then(|socket| socket.local_addr()),
            Protocol::Udp => UdpSocket::bind(wanted).and_then(|socket| socket.local_addr()),
        };
        match bound {
            Ok(address) => port.host_port = Some(address.port()),
            Err(error) => {
                let what = format!("port {wanted} cannot be published: {error}");
                return Err(port_in_use(what));
            }
        }
    }
    Ok(bindings)
}
