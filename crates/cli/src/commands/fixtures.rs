//! Views for the tests of tables.

use jiff::Timestamp;
use offshoot_model::domain::{DomainView, MovedDomain, SwapReport};
use offshoot_model::environment::{EnvironmentState, Health, NodeState, PortBinding};
use offshoot_model::manifest::{ImageConfig, Protocol, PublishedPort, Role, Scaling, VolumeClone};
use offshoot_model::operation::{Progress, StepState};
use offshoot_model::traffic::compare::{Figures, difference, share};
use offshoot_model::traffic::stats::{Difference, Histogram, MirrorStats, NodeHealth, SideHealth};
use offshoot_model::traffic::view::{ChangeView, GoalView, SideView, TrafficReport, TrafficView};
use offshoot_model::view::{
    DoctorCheck, DoctorReport, EnvironmentView, ImageView, LayerView, LineageView, NodeView,
    Verdict, VolumeView,
};
use offshoot_model::{
    CloneReport, Code, EnvId, Fault, Memory, MemoryWay, NodeCloneReport, Operation, OperationId,
    OperationKind, OperationState, Problem, Rung, StepRecord, clone::Stage, clone::Timing,
};

/// The instant at which the tests look.
pub(crate) fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() - seconds).unwrap()
}

fn id(text: &str) -> EnvId {
    text.parse().unwrap()
}

fn operation_id(number: u8) -> OperationId {
    format!("0195{number:04x}-0000-7000-8000-000000000000")
        .parse()
        .unwrap()
}

fn node(name: &str, host: u8, third: u8, status: NodeState) -> NodeView {
    let running = matches!(status, NodeState::Running { .. });
    NodeView {
        name: name.to_owned(),
        status,
        hostname: format!("{name}.shop"),
        inner: format!("10.0.0.{host}"),
        outer: format!("10.208.{third}.{host}"),
        inner6: None,
        outer6: None,
        memory_bytes: running.then_some(u64::from(host) << 20),
        cpu_us: running.then_some(1_234_567),
        pids: running.then_some(7),
        restarts: u32::from(!running),
        held: false,
        held_processes: Vec::new(),
    }
}

fn running(seconds: i64, health: Health) -> NodeState {
    NodeState::Running {
        pid: 4242,
        since: ago(seconds),
        health,
    }
}

fn environment(env: &str, name: &str, third: u8) -> EnvironmentView {
    let layer = |name: &str, role, image: &str, entry, nodes| LayerView {
        name: name.to_owned(),
        role,
        scaling: if entry == Some(80) {
            Scaling::Stateless
        } else {
            Scaling::Stateful
        },
        image: image.to_owned(),
        entry,
        nodes,
    };
    EnvironmentView {
        id: id(env),
        name: name.to_owned(),
        state: EnvironmentState::Running,
        healthy: true,
        url: Some(format!("http://{name}.localhost:8080/")),
        domains: Vec::new(),
        held: offshoot_model::Hold::default(),
        parent: None,
        created: ago(7_300),
        layers: vec![
            layer(
                "web",
                Role::Balancer,
                "docker.io/library/nginx:1.27",
                Some(80),
                vec![
                    node("web-1", 10, third, running(7_200, Health::None)),
                    node("web-2", 11, third, running(90, Health::Starting)),
                ],
            ),
            layer(
                "db",
                Role::Sql,
                "packages:bookworm:mariadb-server",
                None,
                vec![node("db-1", 12, third, running(7_200, Health::Healthy))],
            ),
        ],
        volumes: vec![VolumeView {
            name: "db_data".to_owned(),
            clone: VolumeClone::Copy,
            shared_with: None,
            exclusive_bytes: Some(150 << 20),
        }],
        ports: vec![PortBinding {
            port: PublishedPort {
                host_ip: "127.0.0.1".to_owned(),
                host_port: Some(8081),
                target: 3306,
                protocol: Protocol::Tcp,
            },
            layer: "db".parse().unwrap(),
        }],
        operation: None,
    }
}

/// The shop with two custom domains.
pub(crate) fn shop_with_domains() -> EnvironmentView {
    let held = |host: &str, seconds| DomainView {
        https: offshoot_model::domain::DomainHttps::Offer,
        redirect: None,
        host: host.to_owned(),
        path: "/".to_owned(),
        added: ago(seconds),
    };
    EnvironmentView {
        domains: vec![held("shop.example.com", 7_200), held("www.example.com", 60)],
        ..shop()
    }
}

pub(crate) fn swap_operation() -> Operation {
    let moved = |host: &str, from: &str, to: &str| MovedDomain {
        host: host.to_owned(),
        path: "/".to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
    };
    Operation {
        kind: OperationKind::Swap,
        environment: Some(id("aaaaaaaa")),
        subject: "shop".to_owned(),
        parent: None,
        steps: vec![
            step("preflight", StepState::Done, Some(300)),
            step("warm", StepState::Done, Some(9_000)),
            step("switch", StepState::Done, Some(2_000)),
        ],
        report: None,
        swap: Some(SwapReport {
            with: "next".to_owned(),
            moved: vec![
                moved("shop.example.com", "shop", "next"),
                moved("next.example.com", "next", "shop"),
            ],
            switched: Some(ago(181)),
            us: Some(840),
            version: Some(42),
        }),
        notices: Vec::new(),
        ..clone_operation()
    }
}

/// The same as a promotion.
pub(crate) fn promote_operation() -> Operation {
    let figures = |requests, errors, p95_ms| {
        Some(Figures {
            requests,
            errors,
            p95_ms: Some(p95_ms),
        })
    };
    Operation {
        kind: OperationKind::Promote,
        subject: "next".to_owned(),
        traffic: Some(TrafficReport {
            old: "shop".to_owned(),
            new: "next".to_owned(),
            percent: 100,
            old_figures: figures(1_200, 3, 21.5),
            new_figures: figures(34_000, 12, 19.1),
            keep_until: Some(ago(-86_400)),
        }),
        ..swap_operation()
    }
}

/// A shop of which a tenth goes to `next`, with all that a policy can have.
pub(crate) fn traffic() -> TrafficView {
    let goal = |reached, of, first| GoalView {
        name: "paid".to_owned(),
        reached,
        of,
        share: share(reached, of),
        beside_first: Option::and_then(first, |first| difference((reached, of), first)),
    };
    let health = |up, last: &str| {
        Some(SideHealth {
            up,
            takes: up,
            nodes: vec![NodeHealth {
                address: "10.208.0.10:80".parse().unwrap(),
                up,
                since: ago(60),
                last: last.to_owned(),
            }],
        })
    };
    let side = |name: &str, share, requests| SideView {
        environment: name.to_owned(),
        share,
        requests,
        errors: 9,
        p50_ms: Some(4.2),
        p95_ms: Some(21.0),
        p99_ms: Some(12_345.0),
        visitors: requests / 10,
        ..SideView::default()
    };
    let mut latency = Histogram::default();
    latency.add(std::time::Duration::from_millis(5));
    TrafficView {
        policy: serde_json::from_value(serde_json::json!({
            "sides": [{"environment": "shop", "weight": 90}, {"environment": "next", "weight": 10}],
            "sticky": {"cookie": "sid"},
            "rules": [{"when": [{"header": {"name": "x-country", "values": ["AT", "CH"]}}, {"path": "/new"}], "to": "next"}],
            "failover": {"check": {"path": "/health"}, "passive": {}, "back": "by-hand"},
            "mirror": {"environment": "copy", "permille": 125},
            "goals": [{"name": "paid", "path": "/thanks"}],
            "bounds": {"client_requests_per_second": 20, "body_bytes": 1_048_576},
            "send_proxy": "v2",
        }))
        .unwrap(),
        since: Some(ago(3_600)),
        sides: vec![
            SideView {
                goals: vec![goal(480, 8_000, None)],
                health: health(true, "200 in 3 ms"),
                ..side("shop", 0.9, 80_000)
            },
            SideView {
                goals: vec![goal(70, 900, Some((480, 8_000)))],
                health: health(false, "connection refused"),
                ..side("next", 0.1, 9_000)
            },
        ],
        refused: 17,
        mirror: Some(MirrorStats {
            compared: 1_000,
            same: 990,
            status: 4,
            headers: 0,
            body: 6,
            failed: 1,
            skipped: 2,
            live: latency.clone(),
            copy: latency,
            differences: vec![Difference {
                at: ago(5),
                method: "GET".to_owned(),
                host: "shop.example.com".to_owned(),
                path: "/cart".to_owned(),
                statuses: (200, 200),
                headers: vec!["etag".to_owned()],
                bodies: Some((120, 121)),
                ms: (3.0, 4.0),
            }],
        }),
        changes: vec![ChangeView {
            at: ago(60),
            environment: "next".to_owned(),
            takes: false,
            why: "3 checks failed: connection refused".to_owned(),
        }],
        uncounted: None,
    }
}

pub(crate) fn shop() -> EnvironmentView {
    environment("aaaaaaaa", "shop", 0)
}

/// Lineage that names `parent`.
pub(crate) fn lineage(parent: &EnvironmentView) -> LineageView {
    LineageView {
        id: parent.id.clone(),
        name: parent.name.clone(),
        cut: ago(180),
        operation: operation_id(1),
    }
}

pub(crate) fn clone() -> EnvironmentView {
    let mut view = environment("bbbbbbbb", "shop-clone", 1);
    view.parent = Some(lineage(&shop()));
    view.created = ago(180);
    view.healthy = false;
    view.layers[1].nodes[0].status = NodeState::Exited {
        status: 137,
        at: ago(20),
    };
    view.operation = Some(operation_id(3));
    view
}

/// A tree: two roots, clones of clones, one whose parent is gone.
pub(crate) fn family() -> Vec<EnvironmentView> {
    let child = |env: &str, name: &str, parent: &EnvironmentView| {
        let mut view = environment(env, name, 9);
        view.parent = Some(lineage(parent));
        view
    };
    let shop = shop();
    let first = clone();
    let mut second = child("cccccccc", "shop-clone2", &shop);
    second.state = EnvironmentState::Stopped;
    let deep = child("dddddddd", "deeper", &first);
    let mut blog = environment("eeeeeeee", "blog", 3);
    blog.layers.clear();
    blog.url = None;
    blog.state = EnvironmentState::Creating;
    let gone = environment("ffffffff", "gone", 4);
    let orphan = child("gggggggg", "orphan", &gone);
    vec![blog, deep, orphan, shop, first, second]
}

fn step(name: &str, state: StepState, us: Option<u64>) -> StepRecord {
    StepRecord {
        name: name.to_owned(),
        state,
        us,
        progress: None,
    }
}

fn stages(us: u64) -> Vec<Stage> {
    let stages = [
        ("CRIU: seizing processes", 0, us / 10),
        ("CRIU: memory", us / 10, us * 4 / 10),
        ("CRIU: everything else", us / 2, us * 3 / 10),
        ("letting go", us * 9 / 10, us / 100),
    ];
    stages
        .into_iter()
        .filter(|_| us > 0)
        .map(|(what, from_us, us)| Stage {
            what: what.to_owned(),
            from_us,
            us,
        })
        .collect()
}

fn node_report(node: &str, rung: Rung, why: Option<&str>, us: u64) -> NodeCloneReport {
    NodeCloneReport {
        node: node.to_owned(),
        rung,
        why: why.map(str::to_owned),
        memory: (rung == Rung::Live).then(|| Memory {
            way: MemoryWay::PreDump,
            why: Some("Linux 6.7 or newer tracks memory while it runs; this is 6.1.0".to_owned()),
        }),
        freeze_us: us,
        paused_us: us / 5,
        dump_us: us * 8 / 10,
        stages: stages(us),
        restore_us: us * 3,
        memory_bytes: us << 10,
        frozen_bytes: us << 7,
        processes: u32::from(us > 0) * 5,
    }
}

pub(crate) fn clone_operation() -> Operation {
    Operation {
        id: operation_id(1),
        kind: OperationKind::Clone,
        environment: Some(id("bbbbbbbb")),
        subject: "shop-clone".to_owned(),
        parent: Some("shop".to_owned()),
        state: OperationState::Done,
        created: ago(183),
        ended: Some(ago(181)),
        steps: vec![
            step("claim", StepState::Done, Some(900)),
            step("network", StepState::Done, Some(120_000)),
            step("cut", StepState::Done, Some(400_000)),
            step("restore", StepState::Done, Some(700_000)),
            step("route", StepState::Done, Some(4_000)),
        ],
        problem: None,
        report: Some(CloneReport {
            cut: Some(ago(182)),
            freeze_us: 187_400,
            predicted_us: Some(152_000),
            skew_us: 1_900,
            memory_bytes: 310 << 20,
            frozen_bytes: 18 << 20,
            ready_us: Some(1_240_000),
            parts: vec![
                Timing {
                    what: "freeze".to_owned(),
                    us: 1_900,
                },
                Timing {
                    what: "dump".to_owned(),
                    us: 150_000,
                },
                Timing {
                    what: "snapshot".to_owned(),
                    us: 30_000,
                },
                Timing {
                    what: "thaw".to_owned(),
                    us: 500,
                },
            ],
            nodes: vec![
                node_report("db-1", Rung::Live, None, 186_000),
                node_report("web-1", Rung::Image, Some("the layer is stateless"), 0),
                node_report(
                    "web-2",
                    Rung::Disk,
                    Some("it uses io_uring, which cannot be checkpointed"),
                    0,
                ),
            ],
        }),
        swap: None,
        traffic: None,
        notices: vec!["port 8081 is taken by shop; the clone has 8082".to_owned()],
    }
}

pub(crate) fn failed_operation() -> Operation {
    let mut fetch = step("images", StepState::Failed, None);
    fetch.progress = Some(Progress {
        done: 1,
        total: 2,
        unit: "images".to_owned(),
        note: String::new(),
    });
    Operation {
        id: operation_id(2),
        kind: OperationKind::Create,
        environment: None,
        subject: "blog".to_owned(),
        parent: None,
        state: OperationState::Failed,
        created: ago(100),
        ended: Some(ago(95)),
        steps: vec![
            step("claim", StepState::Undone, Some(1_000)),
            fetch,
            step("start", StepState::Pending, None),
        ],
        problem: Some(
            Problem::new(
                Code::ImageNotFound,
                Fault::Request,
                "the image docker.io/library/nginks:1 does not exist",
                "check its name and tag",
            )
            .detail("the registry answered 404"),
        ),
        report: None,
        swap: None,
        traffic: None,
        notices: Vec::new(),
    }
}

pub(crate) fn images() -> Vec<ImageView> {
    vec![ImageView {
        id: format!("sha256:{}", "0123456789abcdef".repeat(4)),
        source: "docker.io/library/nginx:1.27".to_owned(),
        created: ago(86_400 * 3),
        size: 190 << 20,
        used_by: 2,
        config: ImageConfig::default(),
    }]
}

pub(crate) fn doctor() -> DoctorReport {
    let check =
        |name: &str, verdict, found: &str, cost: Option<&str>, next: Option<&str>| DoctorCheck {
            name: name.to_owned(),
            verdict,
            found: found.to_owned(),
            cost: cost.map(str::to_owned),
            next: next.map(str::to_owned),
        };
    DoctorReport {
        fit: false,
        checks: vec![
            check("runc", Verdict::Good, "1.1.5 at /usr/sbin/runc", None, None),
            check(
                "btrfs",
                Verdict::Missing,
                "mkfs.btrfs not found",
                Some("no pool, so no environments"),
                Some("apt install btrfs-progs"),
            ),
            check(
                "criu",
                Verdict::Lacking,
                "not found",
                Some("clones start afresh instead of going on"),
                Some("run packaging/setup.sh"),
            ),
        ],
    }
}
