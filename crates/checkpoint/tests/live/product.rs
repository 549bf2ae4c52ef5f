//! The same with Offshoot's own parts around it: shims, router, leases that end with their holder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use offshoot_checkpoint::{
    Container, Criu, CutNode, CutRequest, Foreign, Freezer, Isolate, Lease, preflight, rewrite_ids,
};
use offshoot_model::clone::Rung;
use offshoot_model::environment::{MacAddr, Placement};
use offshoot_model::{EnvId, NodeId};
use offshoot_network::{
    Gate, Isolation, IsolationLease, NodeLink, Router, RouterSpec, ensure_router,
    ensure_router_removed,
};
use offshoot_runtime::{
    Access, Bind, ExecSpec, FreezeLease, NodeClient, NodeSpec, ProcessSpec, Start, Tools,
    ensure_node, ensure_node_removed, exec,
};
use offshoot_sys::netns::Netns;

use crate::support::*;

/// The shim that was built with the tests.
fn shim() -> Option<PathBuf> {
    let shim = std::env::current_exe()
        .unwrap()
        .parent()?
        .parent()?
        .join("offshoot-shim");
    if !shim.exists() {
        println!("SKIPPED: {} is not built", shim.display());
        return None;
    }
    Some(shim)
}

struct Thaw(FreezeLease);

impl Lease for Thaw {
    fn end(self: Box<Self>) -> Result<(), Foreign> {
        Ok(self.0.thaw().map(|_| ())?)
    }
}

struct Lift(IsolationLease);

impl Lease for Lift {
    fn end(self: Box<Self>) -> Result<(), Foreign> {
        Ok(self.0.lift().map(|_| ())?)
    }
}

/// An environment by hand, as the engine makes it.
struct Environment {
    router: RouterSpec,
    nodes: Vec<NodeSpec>,
}

impl Freezer for Environment {
    fn freeze(&self, node: &str, max: Duration) -> Result<Box<dyn Lease>, Foreign> {
        let spec = self
            .nodes
            .iter()
            .find(|n| n.node.name() == node)
            .ok_or("no such node")?;
        Ok(Box::new(Thaw(
            NodeClient::connect(&spec.run_dir)?.freeze(max)?,
        )))
    }
}

impl Isolate for Environment {
    fn isolate(&self, max: Duration) -> Result<Box<dyn Lease>, Foreign> {
        Ok(Box::new(Lift(
            Router::connect(&self.router.run_dir)?.isolate(max)?,
        )))
    }
}

impl Environment {
    fn new(
        place: &Place,
        number: u8,
        id_base: u32,
        shim: &Path,
        criu: &Criu,
        nodes: &[(&str, &[&str])],
    ) -> Self {
        let env = EnvId::random();
        let dir = place
            .path(&format!("run/envs/{env}/x"))
            .parent()
            .unwrap()
            .to_owned();
        let placement = Placement {
            id_base,
            id_count: 65536,
            inner: "10.9.0.0/24".parse().unwrap(),
            outer: format!("10.208.{number}.0/24").parse().unwrap(),
            inner6: None,
            outer6: None,
        };
        let router = RouterSpec {
            env: env.clone(),
            instance: "ckpt".to_owned(),
            placement: placement.clone(),
            run_dir: dir.join("router"),
            names: Vec::new(),
            upstream_dns: Vec::new(),
            gate: Gate::Open,
            mail: offshoot_network::Mail::Passes,
        };
        let nodes = nodes.iter().zip(10..).map(|((name, args), host)| NodeSpec {
            node: NodeId::new(env.clone(), name).unwrap(),
            instance: router.instance.clone(),
            run_dir: dir.join("nodes").join(name),
            log_dir: dir.join("logs").join(name),
            rootfs: place.path(&format!("disk/{env}-{name}")),
            binds: vec![Bind {
                source: "/usr".into(),
                target: "/usr".to_owned(),
                access: Access::ReadOnly,
            }],
            files: Vec::new(),
            tmpfs: Vec::new(),
            process: ProcessSpec {
                args: args.iter().map(|a| (*a).to_owned()).collect(),
                env: vec![
                    "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
                    "HOME=/".to_owned(),
                ],
                cwd: "/data".to_owned(),
                ..ProcessSpec::default()
            },
            hostname: format!("{name}-{number}"),
            id_base,
            id_count: 65536,
            limits: offshoot_model::manifest::Limits::default(),
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            sysctls: BTreeMap::new(),
            ulimits: BTreeMap::new(),
            no_new_privileges: true,
            read_only: false,
            init: false,
            link: Some(NodeLink {
                router_dir: router.run_dir.clone(),
                port_name: format!("n{host}"),
                ifname: "eth0".to_owned(),
                mac: MacAddr([2, 0, 0, 0, 0, host]),
                host,
                placement: placement.clone(),
                ports_isolated: Isolation::No,
            }),
            start: Start::Fresh,
            share_memory: false,
            hold_jobs: false,
            tools: Tools {
                runc: "/usr/sbin/runc".into(),
                criu_dir: criu.path().parent().map(Path::to_owned),
                criu_kernel: None,
                shim: shim.to_owned(),
            },
        });
        let environment = Self {
            nodes: nodes.collect(),
            router,
        };
        ensure_router(&environment.router, shim).unwrap();
        environment
    }

    fn count(&self, node: usize) -> u64 {
        std::fs::read_to_string(self.nodes[node].rootfs.join("data/count"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }

    fn container(&self, node: usize) -> Container {
        let spec = &self.nodes[node];
        Container::of_runc(&spec.run_dir.join("runc"), &spec.node.to_string()).unwrap()
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        for node in &self.nodes {
            if std::thread::panicking() {
                let log =
                    std::fs::read_to_string(node.run_dir.join("shim.log")).unwrap_or_default();
                eprintln!("--- shim of {}:\n{log}", node.node);
            }
            if let Err(error) =
                ensure_node_removed(&node.run_dir, &node.node, &node.instance, &node.tools)
            {
                eprintln!("{error}");
            }
        }
        if let Err(error) = ensure_router_removed(
            &self.router.run_dir,
            &self.router.env,
            &self.router.instance,
        ) {
            eprintln!("{error}");
        }
    }
}

#[test]
fn shims_and_a_router_clone_two_nodes_alive() {
    let (Some(criu), Some(shim)) = (host(), shim()) else {
        return;
    };
    // In a network namespace that plays the host.
    let host = Netns::create().unwrap();
    host.run(|| clone_two_nodes(&criu, &shim)).unwrap();
}

fn clone_two_nodes(criu: &Criu, shim: &Path) {
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
    let place = Place::new();
    let client = crate::two_nodes::CLIENT.replace("10.9.0.2", "10.9.0.10");
    let kinds: &[(&str, &[&str])] = &[
        (
            "db-1",
            &[
                "redis-server",
                "--save",
                "",
                "--protected-mode",
                "no",
                "--bind",
                "0.0.0.0",
            ],
        ),
        ("app-1", &["python3", "-c", &client]),
    ];
    let parent = Environment::new(&place, 1, 300_000, shim, criu, kinds);
    for spec in &parent.nodes {
        std::fs::rename(new_rootfs(&place, spec.node.name()), &spec.rootfs).unwrap();
        ensure_node(spec).unwrap_or_else(|e| panic!("{:?}", e.problem()));
    }
    until("the client counts", || parent.count(1) > 20);

    let guest = ExecSpec {
        args: vec!["sleep".to_owned(), "1000".to_owned()],
        ..exec_spec()
    };
    let mut guests: Vec<_> = parent
        .nodes
        .iter()
        .map(|spec| exec(spec, &guest).unwrap())
        .collect();
    let clone = Environment::new(&place, 2, 500_000, shim, criu, kinds);
    let clone = clone_into(&place, criu, &parent, clone);
    for guest in &mut guests {
        assert_eq!(
            guest.wait(Duration::ZERO).unwrap(),
            None,
            "a session of the parent ended"
        );
        guest.signal(9).unwrap();
    }
    // A clone can be cloned like anything else, into a third range of ids.
    let second = Environment::new(&place, 3, 700_000, shim, criu, kinds);
    let second = clone_into(&place, criu, &clone, second);
    for environment in [&parent, &clone, &second] {
        let now = environment.count(1);
        until("all three count on", || environment.count(1) > now + 20);
    }
}

fn exec_spec() -> ExecSpec {
    ExecSpec {
        args: Vec::new(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
    }
}

fn clone_into(
    place: &Place,
    criu: &Criu,
    parent: &Environment,
    mut clone: Environment,
) -> Environment {
    let nodes: Vec<CutNode> = parent
        .nodes
        .iter()
        .enumerate()
        .map(|(n, spec)| CutNode {
            node: spec.node.name().to_owned(),
            container: parent.container(n),
            images: place.images(&spec.node.to_string()),
            rung: Rung::Live,
            memory: offshoot_checkpoint::Ladder::of_host().best(),
        })
        .collect();
    for node in &nodes {
        assert_eq!(preflight(&node.container).unwrap(), []);
    }
    let request = CutRequest {
        isolate: Some(parent),
        ..request(criu, nodes, parent)
    };
    let report = offshoot_checkpoint::cut(request, &|| {
        for (from, to) in parent.nodes.iter().zip(&clone.nodes) {
            run(Command::new("cp")
                .arg("-a")
                .arg(&from.rootfs)
                .arg(&to.rootfs));
        }
        Ok(())
    });
    let (report, _tracking) = report.unwrap_or_else(|e| panic!("{:?}", e.problem()));
    println!("{report:#?}");
    let at_cut = clone.count(1);
    until("the parent counts on", || parent.count(1) > at_cut + 20);
    for (from, spec) in parent.nodes.iter().zip(&mut clone.nodes) {
        let images = place.images(&from.node.to_string());
        rewrite_ids(&images, spec.id_base, spec.id_count).unwrap();
        spec.start = Start::Restore { images };
        // Until all are there: a node that is restored before its peer would be told that the connection is unknown.
        if let Some(link) = &mut spec.link {
            link.ports_isolated = Isolation::Yes;
        }
        let started = std::time::Instant::now();
        ensure_node(spec).unwrap_or_else(|e| panic!("{:?}", e.problem()));
        println!("{} restored in {:?}", spec.node, started.elapsed());
    }
    Router::connect(&clone.router.run_dir)
        .unwrap()
        .lift()
        .unwrap();
    until("the clone counts on", || clone.count(1) > at_cut + 20);
    for n in 0..clone.nodes.len() {
        let processes =
            std::fs::read_to_string(clone.container(n).freezer.join("cgroup.procs")).unwrap();
        assert_eq!(
            processes.lines().count(),
            1,
            "{} is in other cgroups than its own",
            clone.nodes[n].node
        );
    }
    clone
}
