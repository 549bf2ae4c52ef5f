//! Nodes: from the description of an environment to what the runtime starts.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use offshoot_engine::{Begin, NodeStatus};
use offshoot_images::Images;
use offshoot_model::environment::Health;
use offshoot_model::manifest::{DEFAULT_PIDS, Mount};
use offshoot_model::{Code, EnvId, Environment, Fault, Layer, Node, NodeId, NodeState, Problem};
use offshoot_network::Isolation;
use offshoot_pool::{Pool, Subvolume};
use offshoot_runtime::cgroup::{Hierarchies, NodeCgroup};
use offshoot_runtime::schedulers;
use offshoot_runtime::{
    Access, Bind, FilePlace, NodeClient, NodeFile, NodeSpec, RunState, RuntimeError, Start, Tmpfs,
    Tools, observe, resolve_process,
};
use offshoot_sys::fsx::Root;
use offshoot_sys::process;

use crate::config::LocalConfig;
use crate::cut::images_of;
use crate::disks::volume_subvolume;
use crate::net;
use crate::plant::wait_twins;
use crate::usage::usage;

/// Run-time directory of a node.
pub(crate) fn node_dir(config: &LocalConfig, node: &NodeId) -> PathBuf {
    config
        .run_envs()
        .join(node.env().as_str())
        .join("nodes")
        .join(node.name())
}

/// Where a node's output is kept.
pub(crate) fn log_dir(config: &LocalConfig, node: &NodeId) -> PathBuf {
    config
        .state_envs()
        .join(node.env().as_str())
        .join("logs")
        .join(node.name())
}

/// Programs that run nodes.
pub(crate) fn tools(config: &LocalConfig) -> Tools {
    Tools {
        runc: config.runc.clone(),
        criu_dir: config.criu_dir.clone(),
        criu_kernel: config.criu_kernel(),
        shim: config.shim.clone(),
    }
}

/// What the runtime is to run for a node.
pub(crate) fn node_spec(
    config: &LocalConfig,
    pool: &Pool,
    images: &Images,
    environment: &Environment,
    node: &Node,
    begin: Begin,
) -> Result<NodeSpec, Problem> {
    let layer = layer_of(environment, node)?;
    let rootfs = pool.path(&Subvolume::Rootfs(node.id.clone()));
    let image = images.get(&node.image).map_err(|e| e.problem())?;
    let process = resolve_process(layer, &image.config, &rootfs).map_err(|e| e.problem())?;
    let mut limits = layer.limits;
    limits.pids = limits.pids.or(Some(DEFAULT_PIDS));
    let (start, apart) = match begin {
        Begin::Fresh => (Start::Fresh, Isolation::No),
        Begin::FromCut => {
            let images = images_of(&config.cuts(), &environment.id, node.name());
            (Start::Restore { images }, Isolation::Yes)
        }
    };
    let mut spec = NodeSpec {
        node: node.id.clone(),
        instance: config.instance.clone(),
        run_dir: node_dir(config, &node.id),
        log_dir: log_dir(config, &node.id),
        rootfs,
        binds: Vec::new(),
        files: etc_files(environment, layer, node),
        tmpfs: Vec::new(),
        process,
        hostname: node.hostname.clone(),
        id_base: environment.placement.id_base,
        id_count: environment.placement.id_count,
        limits,
        cap_add: layer.cap_add.clone(),
        cap_drop: layer.cap_drop.clone(),
        sysctls: layer.sysctls.clone(),
        ulimits: layer.ulimits.clone(),
        no_new_privileges: !layer.allow_new_privileges,
        read_only: layer.read_only,
        init: layer.init,
        link: Some(net::link(config, environment, node, apart)),
        start,
        share_memory: config.share_memory,
        hold_jobs: environment.held.jobs,
        tools: tools(config),
    };
    for mount in &layer.mounts {
        add_mount(&mut spec, pool, environment, mount)?;
    }
    Ok(spec)
}

fn layer_of<'a>(environment: &'a Environment, node: &Node) -> Result<&'a Layer, Problem> {
    let layer = environment.manifest.layer(&node.layer);
    layer.ok_or_else(|| Problem::internal(format!("node {} has no layer", node.id)))
}

fn add_mount(
    spec: &mut NodeSpec,
    pool: &Pool,
    environment: &Environment,
    mount: &Mount,
) -> Result<(), Problem> {
    match mount {
        Mount::Volume {
            volume,
            target,
            read_only,
        } => {
            let volume = environment
                .volumes
                .iter()
                .find(|known| known.name == *volume)
                .ok_or_else(|| {
                    Problem::internal(format!("volume {volume} was planned by nobody"))
                })?;
            spec.binds.push(Bind {
                source: pool.path(&volume_subvolume(volume)),
                target: target.clone(),
                access: if *read_only {
                    Access::ReadOnly
                } else {
                    Access::ReadWrite
                },
            });
        }
        Mount::File {
            target,
            content,
            mode,
            uid,
            gid,
            ..
        } => spec.files.push(NodeFile {
            target: target.clone(),
            content: content.clone(),
            mode: *mode,
            uid: *uid,
            gid: *gid,
            place: FilePlace::Mount,
        }),
        Mount::Tmpfs { target, size, mode } => {
            spec.tmpfs.push(Tmpfs {
                target: target.clone(),
                size: *size,
                mode: *mode,
            });
        }
    }
    Ok(())
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` (hosts(5), hostname(5), resolv.conf(5)).
fn etc_files(environment: &Environment, layer: &Layer, node: &Node) -> Vec<NodeFile> {
    let placement = &environment.placement;
    let mut hosts =
        String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let own = [
        Some(IpAddr::V4(placement.inner_at(node.host))),
        placement.inner6_at(node.host).map(IpAddr::V6),
    ];
    for ip in own.into_iter().flatten() {
        hosts.push_str(&format!("{ip}\t{} {}\n", node.hostname, node.name()));
    }
    for (name, ip) in &layer.extra_hosts {
        let ip = if ip == "host-gateway" {
            placement.inner_at(1).to_string()
        } else {
            ip.clone()
        };
        hosts.push_str(&format!("{ip}\t{name}\n"));
    }
    // `search .`: glibc would otherwise ask for every name below the host name's domain first.
    let resolv = format!(
        "nameserver {}\nsearch .\noptions ndots:0\n",
        placement.inner_at(1)
    );
    vec![
        NodeFile::etc("/etc/hosts", hosts),
        NodeFile::etc("/etc/hostname", format!("{}\n", node.hostname)),
        NodeFile::etc("/etc/resolv.conf", resolv),
    ]
}

/// Asks a node to stop, and ends it when it does not. What is left of it at run time goes too.
pub(crate) fn ensure_stopped(
    config: &LocalConfig,
    images: &Images,
    environment: &Environment,
    node: &Node,
) -> Result<(), Problem> {
    let dir = node_dir(config, &node.id);
    let layer = layer_of(environment, node)?;
    wait_twins(&dir)?;
    if let Ok(client) = NodeClient::connect(&dir) {
        let named = layer
            .stop_signal
            .clone()
            .or_else(|| images.get(&node.image).ok()?.config.stop_signal);
        let signal = signal_number(named.as_deref().unwrap_or("SIGTERM"));
        client
            .stop(signal, Duration::from_millis(layer.stop_grace_ms))
            .map_err(|e| e.problem())?;
    }
    offshoot_runtime::ensure_node_removed(&dir, &node.id, &config.instance, &tools(config))
        .map_err(|e| e.problem())
}

/// The number of a signal's name or number; SIGTERM when it is neither (signal(7)).
pub(crate) fn signal_number(text: &str) -> i32 {
    let named = text
        .parse::<nix::sys::signal::Signal>()
        .or_else(|_| format!("SIG{text}").parse());
    named.map_or_else(|_| text.parse().unwrap_or(15), |signal| signal as i32)
}

/// What every node of an environment is doing.
pub(crate) fn status(config: &LocalConfig, environment: &Environment) -> Vec<NodeStatus> {
    environment
        .nodes
        .iter()
        .map(|node| status_of(config, node))
        .collect()
}

fn status_of(config: &LocalConfig, node: &Node) -> NodeStatus {
    let seen = match observe(&node_dir(config, &node.id)) {
        Ok(seen) => seen,
        Err(error) => {
            tracing::debug!(node = %node.id, %error, "a node could not be looked at");
            return NodeStatus {
                node: node.name().to_owned(),
                state: NodeState::Stopped,
                memory_bytes: None,
                cpu_us: None,
                pids: None,
                held: Vec::new(),
            };
        }
    };
    let state = match (seen.state, seen.pid, seen.started, seen.exit) {
        (RunState::Running, Some(pid), Some(since), _) => NodeState::Running {
            pid,
            since,
            health: Health::None,
        },
        (RunState::Frozen, Some(pid), _, _) => NodeState::Frozen { pid },
        (RunState::Exited, _, _, Some(exit)) => NodeState::Exited {
            status: exit.status,
            at: exit.at,
        },
        (RunState::Starting, ..) => NodeState::Starting,
        _ => NodeState::Stopped,
    };
    let runs = matches!(seen.state, RunState::Running | RunState::Frozen);
    let usage = if runs {
        usage(&seen.freezer)
    } else {
        crate::usage::Usage::default()
    };
    NodeStatus {
        node: node.name().to_owned(),
        state,
        memory_bytes: usage.memory_bytes,
        cpu_us: usage.cpu_us,
        pids: usage.pids,
        held: seen.held,
    }
}

/// Makes running nodes hold their schedulers, or let them go.
pub(crate) fn ensure_jobs_held(
    config: &LocalConfig,
    environment: &Environment,
) -> Result<(), Problem> {
    let held = environment.held.jobs;
    for node in &environment.nodes {
        let dir = node_dir(config, &node.id);
        let seen = observe(&dir).map_err(|e| e.problem())?;
        let runs = matches!(seen.state, RunState::Running | RunState::Frozen);
        if !runs || seen.jobs_held == held {
            continue;
        }
        match NodeClient::connect(&dir).and_then(|client| client.hold_jobs(held)) {
            // It ended meanwhile, and starts again as it should.
            Ok(()) | Err(RuntimeError::NotRunning { .. }) => {}
            Err(error) => return Err(error.problem()),
        }
    }
    Ok(())
}

/// Schedulers that run in a node, for people.
pub(crate) fn schedulers(config: &LocalConfig, node: &Node) -> Vec<String> {
    let processes = Hierarchies::of_host()
        .map(|host| NodeCgroup::new(host, &config.instance, &node.id).processes())
        .unwrap_or_default();
    let running = processes
        .into_iter()
        .filter_map(|pid| Some((pid, schedulers::of_process(pid)?)));
    running
        .map(|(pid, name)| format!("{name} (process {pid})"))
        .collect()
}

/// Host pid of a node's main process.
pub(crate) fn pid_of(config: &LocalConfig, node: &Node) -> Option<i32> {
    observe(&node_dir(config, &node.id))
        .ok()
        .filter(|seen| seen.state != RunState::Exited)?
        .pid
}

/// Gives running nodes their present host names.
pub(crate) fn ensure_hostnames(
    config: &LocalConfig,
    pool: &Pool,
    environment: &Environment,
) -> Result<(), Problem> {
    for node in &environment.nodes {
        let layer = layer_of(environment, node)?;
        let rootfs = pool.path(&Subvolume::Rootfs(node.id.clone()));
        let root = Root::open(&rootfs).map_err(|e| unnamed(node, &e))?;
        for file in etc_files(environment, layer, node) {
            root.write(
                Path::new(&file.target),
                file.content.as_bytes(),
                file.mode,
                (file.uid, file.gid),
            )
            .map_err(|e| unnamed(node, &e))?;
        }
        let Some(pid) = pid_of(config, node) else {
            continue;
        };
        process::visit(pid, process::Visit::HostName, || {
            process::set_hostname(&node.hostname)
        })
        .map_err(|e| unnamed(node, &e))?;
    }
    Ok(())
}

fn unnamed(node: &Node, error: &std::io::Error) -> Problem {
    Problem::new(
        Code::Internal,
        Fault::Host,
        format!("node {} cannot be given its host name", node.id),
        "stop and start the environment",
    )
    .caused_by(error)
}

/// Takes away every node of an environment at run time: processes, control groups, run-time directories.
pub(crate) fn ensure_halted(config: &LocalConfig, env: &EnvId) -> Result<(), Problem> {
    let mut names = names_in(&config.run_envs().join(env.as_str()).join("nodes"));
    names.extend(names_in(&group_dir(config).join(env.as_str())));
    names.sort();
    names.dedup();
    let mut first = Ok(());
    for name in names {
        let Ok(node) = NodeId::new(env.clone(), &name) else {
            continue;
        };
        let dir = node_dir(config, &node);
        if let Err(error) = wait_twins(&dir)
            && first.is_ok()
        {
            first = Err(error);
            continue;
        }
        let removed =
            offshoot_runtime::ensure_node_removed(&dir, &node, &config.instance, &tools(config));
        if let Err(error) = removed
            && first.is_ok()
        {
            first = Err(error.problem());
        }
    }
    first
}

/// Where control groups of this instance's nodes are, by environment and node: the freezer's, or version 2's.
pub(crate) fn group_dir(config: &LocalConfig) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let root = if root.join("cgroup.controllers").is_file() {
        root.to_owned()
    } else {
        root.join("freezer")
    };
    root.join(format!("offshoot-{}", config.instance))
}

/// Names of the directories in `dir`; none when it is not there.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
