//! Environments and operations to show.

use offshoot_model::clone::{Memory, MemoryWay, NodeCloneReport, Timing};
use offshoot_model::disk::{
    ChangeKind, ChangedBy, Changes, Directory, Disk, DiskChanges, FileChange, FileEntry, FileKind,
};
use offshoot_model::domain::{DomainHttps, DomainView};
use offshoot_model::environment::Health;
use offshoot_model::environment::PortBinding;
use offshoot_model::manifest::{
    Condition, Dependency, ImageSource, Manifest, Mount, Protocol, PublishedPort, Role, Scaling,
    VolumeClone,
};
use offshoot_model::operation::{OperationKind, OperationState, StepRecord, StepState};
use offshoot_model::view::{EnvironmentView, LayerView, LineageView, NodeView, VolumeView};
use offshoot_model::{
    CloneReport, Code, EnvId, EnvironmentState, Fault, NodeState, Operation, OperationId, Problem,
    Rung,
};

pub const STEPS: [&str; 8] = [
    "preflight",
    "prepare",
    "cut",
    "restore",
    "open",
    "start",
    "route",
    "ready",
];

/// The id that stands for a name.
pub fn id(name: &str) -> EnvId {
    let mut hash = 7_u64;
    for byte in name.bytes() {
        hash = hash.wrapping_mul(31).wrapping_add(u64::from(byte));
    }
    let text: String = (0..8)
        .map(|place| char::from(b'a' + ((hash >> (place * 5)) % 6) as u8))
        .collect();
    text.parse().unwrap()
}

fn at(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

pub fn node(name: &str, host: u8, memory: u64, status: NodeState) -> NodeView {
    let runs = matches!(status, NodeState::Running { .. });
    NodeView {
        name: name.to_owned(),
        status,
        hostname: format!("{name}.shop"),
        inner: format!("10.99.0.{host}"),
        outer: format!("10.208.3.{host}"),
        inner6: None,
        outer6: None,
        memory_bytes: runs.then_some(memory << 20),
        cpu_us: runs.then_some(1_234_567),
        pids: runs.then_some(11),
        restarts: u32::from(host == 13),
    }
}

pub fn running(health: Health) -> NodeState {
    NodeState::Running {
        pid: 4711,
        since: at("2026-11-20T08:30:00Z"),
        health,
    }
}

fn layer(name: &str, role: Role, image: &str, nodes: Vec<NodeView>) -> LayerView {
    LayerView {
        name: name.to_owned(),
        role,
        scaling: if role == Role::App {
            Scaling::Stateless
        } else {
            Scaling::Stateful
        },
        image: image.to_owned(),
        entry: (role == Role::Balancer).then_some(80),
        nodes,
    }
}

pub fn environment(name: &str, parent: Option<&str>) -> EnvironmentView {
    let good = || running(Health::Healthy);
    EnvironmentView {
        id: id(name),
        name: name.to_owned(),
        state: EnvironmentState::Running,
        healthy: true,
        url: Some(format!("http://{name}.localhost:8080/")),
        domains: Vec::new(),
        parent: parent.map(|parent| LineageView {
            id: id(parent),
            name: parent.to_owned(),
            cut: at("2026-11-28T16:04:11.223Z"),
            operation: OperationId::new(),
        }),
        created: at("2026-11-20T08:29:41Z"),
        layers: vec![
            layer(
                "nginx",
                Role::Balancer,
                "docker.io/library/nginx:1.27",
                vec![node("nginx-1", 10, 18, good())],
            ),
            layer(
                "app",
                Role::App,
                "registry.example.org/team/app:42",
                vec![
                    node("app-1", 11, 212, good()),
                    node("app-2", 12, 208, good()),
                ],
            ),
            layer(
                "mariadb",
                Role::Sql,
                "packages:bookworm:mariadb-server",
                vec![node("mariadb-1", 13, 1340, good())],
            ),
            layer(
                "redis",
                Role::Cache,
                "docker.io/library/redis:7",
                vec![node("redis-1", 14, 64, running(Health::None))],
            ),
        ],
        volumes: vec![VolumeView {
            name: "data".to_owned(),
            clone: VolumeClone::Copy,
            shared_with: None,
            exclusive_bytes: Some(name.len() as u64 * 37_000_000),
        }],
        ports: Vec::new(),
        operation: None,
    }
}

/// What a small host might hold.
pub fn environments() -> Vec<EnvironmentView> {
    let mut shop = environment("shop", None);
    shop.domains.push(DomainView {
        host: "shop.example.com".to_owned(),
        path: "/".to_owned(),
        added: at("2026-11-21T08:00:00Z"),
        https: DomainHttps::Offer,
        redirect: None,
    });
    shop.ports.push(PortBinding {
        port: PublishedPort {
            host_ip: "127.0.0.1".to_owned(),
            host_port: Some(33060),
            target: 3306,
            protocol: Protocol::Tcp,
        },
        layer: "mariadb".parse().unwrap(),
    });
    let mut upgrade = environment("upgrade", Some("shop"));
    upgrade.healthy = false;
    upgrade.layers[1].nodes[1].status = NodeState::Exited {
        status: 137,
        at: at("2026-11-28T17:00:00Z"),
    };
    let mut night = environment("upgrade-night", Some("upgrade"));
    night.state = EnvironmentState::Creating;
    night.healthy = false;
    night.operation = Some(OperationId::new());
    let mut docs = environment("docs", None);
    docs.layers.truncate(1);
    docs.state = EnvironmentState::Stopped;
    docs.layers[0].nodes[0] = node("nginx-1", 10, 0, NodeState::Stopped);
    docs.volumes.clear();
    let mut branch = environment("pr-1284", Some("main-line"));
    branch.layers.truncate(2);
    vec![docs, branch, shop, upgrade, night]
}

pub fn step(name: &str, state: StepState, us: Option<u64>) -> StepRecord {
    StepRecord {
        name: name.to_owned(),
        state,
        us,
        progress: None,
    }
}

pub fn operation(kind: OperationKind, subject: &str) -> Operation {
    Operation {
        id: OperationId::new(),
        kind,
        environment: Some(id(subject)),
        subject: subject.to_owned(),
        parent: None,
        state: OperationState::Done,
        created: at("2026-11-28T16:04:08Z"),
        ended: Some(at("2026-11-28T16:04:12.4Z")),
        steps: Vec::new(),
        problem: None,
        report: None,
        swap: None,
        traffic: None,
        notices: Vec::new(),
    }
}

fn node_report(node: &str, rung: Rung, memory: u64, freeze: u64) -> NodeCloneReport {
    NodeCloneReport {
        node: node.to_owned(),
        rung,
        why: (rung == Rung::Disk).then(|| "it has a socket that leads out of the node".to_owned()),
        memory: (rung == Rung::Live).then_some(Memory {
            way: MemoryWay::Tracked,
            why: None,
        }),
        freeze_us: freeze,
        paused_us: 0,
        dump_us: freeze / 2,
        stages: Vec::new(),
        restore_us: freeze * 4,
        memory_bytes: memory << 20,
        frozen_bytes: memory << 14,
        processes: 3,
    }
}

/// A clone that went well.
pub fn cloned(parent: &str, name: &str) -> Operation {
    let times = [
        81_000, 240_000, 312_000, 1_420_000, 22_000, 380_000, 41_000, 902_000,
    ];
    let steps = STEPS
        .iter()
        .zip(times)
        .map(|(name, us)| step(name, StepState::Done, Some(us)));
    let timing = |what: &str, us| Timing {
        what: what.to_owned(),
        us,
    };
    Operation {
        parent: Some(parent.to_owned()),
        steps: steps.collect(),
        report: Some(CloneReport {
            cut: Some(at("2026-11-28T16:04:11.223Z")),
            freeze_us: 148_300,
            predicted_us: Some(160_000),
            skew_us: 900,
            memory_bytes: 1842 << 20,
            frozen_bytes: 31 << 20,
            ready_us: Some(3_400_000),
            parts: vec![
                timing("copy ahead", 180_000),
                timing("settle", 3_000),
                timing("freeze", 9_100),
                timing("dump", 96_000),
                timing("snapshot", 21_000),
                timing("thaw", 22_200),
                timing("complete images", 41_000),
            ],
            nodes: vec![
                node_report("nginx-1", Rung::Live, 18, 121_000),
                node_report("app-1", Rung::Live, 212, 130_000),
                node_report("mariadb-1", Rung::Live, 1340, 148_300),
                node_report("redis-1", Rung::Disk, 0, 96_000),
            ],
        }),
        notices: vec!["port 33060 of the parent is port 33061 of the clone".to_owned()],
        ..operation(OperationKind::Clone, name)
    }
}

/// A change that did not go well.
pub fn failed() -> Operation {
    Operation {
        state: OperationState::Failed,
        steps: vec![
            step("images", StepState::Undone, Some(2_000_000)),
            step("disks", StepState::Failed, Some(40_000)),
            step("network", StepState::Pending, None),
        ],
        problem: Some(
            Problem::new(
                Code::PoolFull,
                Fault::Host,
                "the pool has 1.1 GiB left, and the images need 2.3 GiB",
                "remove images or environments, or grow the pool: `offshoot pool grow +20GiB`",
            )
            .detail("btrfs: No space left on device (os error 28)"),
        ),
        ..operation(OperationKind::Create, "big")
    }
}

/// A secret of [`manifest`]: on no page.
pub const SECRET: &str = "not for screens";

/// The description that [`environment`] might have been made from.
pub fn manifest() -> Manifest {
    let visitors: Manifest =
        serde_json::from_str(include_str!("../../examples/visitors.json")).unwrap();
    let layers = environment("shop", None).layers.into_iter().map(|view| {
        let mut layer = visitors.layers[0].clone();
        layer.name = view.name.parse().unwrap();
        layer.image = ImageSource::Registry {
            reference: view.image,
        };
        layer.role = view.role;
        layer.scaling = view.scaling;
        layer.entry = view.entry;
        layer.replicas = view.nodes.len().try_into().unwrap();
        let variables: &[(&str, &str)] = match view.name.as_str() {
            "app" => &[
                ("DATABASE_HOST", "mariadb"),
                ("DATABASE_PASSWORD", SECRET),
                ("LANG", "C.UTF-8"),
                ("SESSIONS", "redis:6379"),
                ("WORKERS", "4"),
            ],
            "mariadb" => &[("MARIADB_ROOT_PASSWORD", SECRET)],
            _ => &[],
        };
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        layer.environment = variables.iter().map(owned).collect();
        let needs: &[(&str, Condition)] = match view.name.as_str() {
            "nginx" => &[("app", Condition::Started)],
            "app" => &[("mariadb", Condition::Healthy)],
            _ => &[],
        };
        let dependency = |(layer, condition): &(&str, Condition)| Dependency {
            layer: layer.parse().unwrap(),
            condition: *condition,
            required: true,
        };
        layer.depends_on = needs.iter().map(dependency).collect();
        if let Some(check) = layer.healthcheck.as_mut() {
            check.test = match view.name.as_str() {
                "mariadb" => vec!["mariadb-admin".into(), "ping".into(), format!("-p{SECRET}")],
                "redis" => Vec::new(),
                _ => vec![
                    "/bin/sh".into(),
                    "-c".into(),
                    "wget -qO- http://127.0.0.1/health".into(),
                ],
            };
        }
        if view.name == "mariadb" {
            layer.mounts.push(Mount::Volume {
                volume: "data".parse().unwrap(),
                target: "/var/lib/mysql".to_owned(),
                read_only: false,
            });
        }
        layer
    });
    Manifest {
        layers: layers.collect(),
        ..Manifest::default()
    }
}

pub fn directory() -> Directory {
    let entry = |name: &str, kind, size, target: Option<&str>| FileEntry {
        name: name.to_owned(),
        kind,
        size,
        mode: 0o644,
        uid: 0,
        gid: 33,
        modified: at("2026-11-28T16:04:11Z"),
        target: target.map(str::to_owned),
    };
    Directory {
        entries: vec![
            entry("conf.d", FileKind::Directory, 0, None),
            entry("nginx.conf", FileKind::File, 648_123, None),
            entry("modules", FileKind::Link, 0, Some("/usr/lib/nginx/modules")),
            entry("run.sock", FileKind::Other, 0, None),
            entry("caf\u{fffd}", FileKind::File, 3, None),
        ],
        left_out: 0,
    }
}

pub fn changes() -> Changes {
    let file = |path: &str, kind, by| FileChange {
        path: path.to_owned(),
        kind,
        by: Some(by),
    };
    let disk = |disk, files: Vec<FileChange>| DiskChanges {
        disk,
        added: files.len() as u64,
        changed: 0,
        removed: 0,
        files,
        complete: true,
    };
    Changes {
        with: None,
        cut: Some(at("2026-11-28T16:04:11.223Z")),
        disks: vec![
            disk(Disk::Node("nginx-1".to_owned()), Vec::new()),
            DiskChanges {
                added: 1_200,
                changed: 1,
                complete: false,
                ..disk(
                    Disk::Node("app-1".to_owned()),
                    vec![
                        file("srv/app/cache/", ChangeKind::Added, ChangedBy::This),
                        file("srv/app/settings.py", ChangeKind::Changed, ChangedBy::Both),
                    ],
                )
            },
            disk(
                Disk::Volume("data".to_owned()),
                vec![file("ibdata1", ChangeKind::Removed, ChangedBy::Other)],
            ),
        ],
    }
}
