use std::collections::BTreeSet;

use jiff::Timestamp;
use offshoot_model::environment::PortBinding;
use offshoot_model::manifest::{CloneMode, Condition, Dependency, PublishedPort, Scaling};
use offshoot_model::{
    EnvId, EnvName, Environment, Hold, ImageSource, Layer, Manifest, Memory, MemoryWay,
    OperationId, Rung, RungChoice,
};
use proptest::prelude::*;

use crate::allocate::tests::host;
use crate::{
    Begins, NodeFacts, PlanError, Taken, Wish, clone_name, plan_clone, plan_create, plan_rungs,
    start_waves, why_held,
};

const TRACKED: Memory = Memory {
    way: MemoryWay::Tracked,
    why: None,
};

fn layer(name: &str, replicas: u32, needs: &[&str]) -> Layer {
    let mut layer: Layer = serde_json::from_value(serde_json::json!({
        "name": name,
        "image": ImageSource::Registry { reference: "docker.io/library/busybox:latest".into() },
        "role": "other", "scaling": "stateful", "clone": "each", "replicas": replicas, "stop_grace_ms": 10_000,
    }))
    .unwrap();
    layer.depends_on = needs
        .iter()
        .map(|need| Dependency {
            layer: need.parse().unwrap(),
            condition: Condition::Started,
            required: true,
        })
        .collect();
    layer
}

fn created(layers: Vec<Layer>, taken: &Taken) -> Result<Environment, PlanError> {
    let manifest = Manifest {
        layers,
        ..Manifest::default()
    };
    let name: EnvName = "shop".parse().unwrap();
    plan_create(
        EnvId::random(),
        name,
        Timestamp::UNIX_EPOCH,
        manifest,
        &host(),
        taken,
    )
    .map(|plan| plan.environment)
}

fn facts(environment: &Environment, bad: &[&str]) -> Vec<NodeFacts> {
    let fact = |node: &offshoot_model::Node| NodeFacts {
        node: node.name().to_owned(),
        running: true,
        memory: Some(TRACKED),
        schedulers: Vec::new(),
        obstacles: bad
            .iter()
            .filter(|b| **b == node.name())
            .map(|_| "a device".to_owned())
            .collect(),
    };
    environment.nodes.iter().map(fact).collect()
}

fn wish(choice: RungChoice) -> Wish {
    Wish {
        choice,
        begins: Begins::Running,
        held: Hold::default(),
    }
}

#[test]
fn what_is_held_is_not_live_and_is_said() {
    let mut worker = layer("worker", 1, &[]);
    worker.jobs = true;
    let parent = created(vec![layer("web", 1, &[]), worker], &Taken::default()).unwrap();
    let mut facts = facts(&parent, &[]);
    facts[0].schedulers = vec!["cron (process 7)".to_owned()];
    let rungs = |wish| {
        let plans = plan_rungs(&parent, &facts, wish).unwrap();
        plans
            .into_iter()
            .map(|plan| (plan.rung, plan.why))
            .collect::<Vec<_>>()
    };
    let held = Wish {
        held: Hold::ALL,
        ..wish(RungChoice::Live)
    };
    // No obstacle to all others with their memory.
    let why = "it runs jobs, which are held: it does not run";
    assert_eq!(
        rungs(held),
        [(Rung::Live, None), (Rung::Disk, Some(why.to_owned()))]
    );
    let not_begun = Wish {
        begins: Begins::Stopped,
        ..wish(RungChoice::Auto)
    };
    let why = Some("the clone is not started".to_owned());
    assert_eq!(
        rungs(not_begun),
        [(Rung::Disk, why.clone()), (Rung::Disk, why)]
    );

    let clone_of = |parent: &Environment, held| {
        plan_clone(
            parent,
            &[],
            EnvId::random(),
            "copy".parse().unwrap(),
            Timestamp::UNIX_EPOCH,
            OperationId::new(),
            &host(),
            &Taken::default(),
            held,
        )
        .unwrap()
    };
    let clone = clone_of(&parent, Hold::ALL);
    assert_eq!(clone.environment.held, Hold::ALL);
    let said = clone.notices.join("\n");
    for part in [
        "ports 25, 465, 587, 2525 outside of it are refused",
        "nodes of copy that run jobs do not run",
        "`offshoot release copy` lets mail and jobs go",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let whys: Vec<_> = clone
        .environment
        .nodes
        .iter()
        .map(|node| why_held(&clone.environment, node, &facts))
        .collect();
    assert_eq!(
        whys,
        [
            Some("jobs are held: cron (process 7) does not go on".to_owned()),
            Some("it runs jobs, which are held: it is made and does not run".to_owned()),
        ]
    );
    // A copy of what is held is held.
    let again = clone_of(&clone.environment, Hold::default());
    assert_eq!(again.environment.held, Hold::ALL);
    assert!(
        again
            .notices
            .iter()
            .any(|notice| notice.contains("because copy holds them too"))
    );
    let free = clone_of(&parent, Hold::default());
    assert_eq!(
        (free.environment.held, free.notices),
        (Hold::default(), Vec::new())
    );
    assert_eq!(
        why_held(&free.environment, &free.environment.nodes[1], &facts),
        None
    );
}

#[test]
fn a_clone_keeps_what_is_inside_and_changes_what_is_outside() {
    let parent = created(
        vec![layer("web", 2, &[]), layer("db", 1, &[])],
        &Taken::default(),
    )
    .unwrap();
    let mut taken = Taken::default();
    taken.networks.insert(parent.placement.outer);
    taken.id_bases.insert(parent.placement.id_base);
    let plan = plan_clone(
        &parent,
        &[],
        EnvId::random(),
        "copy".parse().unwrap(),
        Timestamp::UNIX_EPOCH,
        OperationId::new(),
        &host(),
        &taken,
        Hold::default(),
    )
    .unwrap();
    let clone = plan.environment;
    assert_eq!(clone.placement.inner, parent.placement.inner);
    assert_ne!(clone.placement.outer, parent.placement.outer);
    assert_ne!(clone.placement.id_base, parent.placement.id_base);
    for (a, b) in parent.nodes.iter().zip(&clone.nodes) {
        assert_eq!((a.name(), a.host, a.mac), (b.name(), b.host, b.mac));
        assert_eq!(b.hostname, a.hostname.replace(".shop", ".copy"));
        assert_eq!(b.id.env(), &clone.id);
    }
}

#[test]
fn a_port_that_the_parent_has_is_left_open() {
    let parent = created(vec![layer("web", 1, &[])], &Taken::default()).unwrap();
    let port = PublishedPort {
        host_ip: "0.0.0.0".into(),
        host_port: Some(80),
        target: 80,
        protocol: Default::default(),
    };
    let held = PortBinding {
        port: port.clone(),
        layer: "web".parse().unwrap(),
    };
    let other = PortBinding {
        port: PublishedPort {
            host_port: Some(81),
            ..port
        },
        layer: "web".parse().unwrap(),
    };
    let taken = Taken {
        ports: vec![held.clone()],
        ..Taken::default()
    };
    let plan = plan_clone(
        &parent,
        &[held, other],
        EnvId::random(),
        "copy".parse().unwrap(),
        Timestamp::UNIX_EPOCH,
        OperationId::new(),
        &host(),
        &taken,
        Hold::default(),
    )
    .unwrap();
    let ports: Vec<_> = plan
        .ports
        .iter()
        .map(|binding| binding.port.host_port)
        .collect();
    assert_eq!(ports, [None, Some(81)]);
}

#[test]
fn rungs_follow_the_layer_the_request_and_what_was_seen() {
    let mut master = layer("pool", 2, &[]);
    master.clone = CloneMode::Master;
    let mut fresh = layer("edge", 1, &[]);
    fresh.scaling = Scaling::Stateless;
    let environment = created(vec![layer("db", 2, &[]), master, fresh], &Taken::default()).unwrap();
    let rungs = |bad: &[&str], choice| {
        plan_rungs(&environment, &facts(&environment, bad), wish(choice)).map(|plans| {
            plans
                .into_iter()
                .map(|plan| (plan.node, plan.source, plan.rung))
                .collect::<Vec<_>>()
        })
    };
    let text = |node: &str, source: &str, rung| (node.to_owned(), source.to_owned(), rung);
    assert_eq!(
        rungs(&["db-2"], RungChoice::Auto).unwrap(),
        [
            text("db-1", "db-1", Rung::Live),
            text("db-2", "db-2", Rung::Disk),
            text("pool-1", "pool-1", Rung::Live),
            text("pool-2", "pool-1", Rung::Disk),
            text("edge-1", "edge-1", Rung::Image),
        ]
    );
    let plans = plan_rungs(
        &environment,
        &facts(&environment, &["db-2"]),
        wish(RungChoice::Auto),
    );
    for plan in plans.unwrap() {
        let taken = (plan.rung == Rung::Live).then_some(TRACKED);
        assert_eq!(plan.memory, taken, "{}", plan.node);
    }
    assert!(rungs(&[], RungChoice::Live).is_ok());
    let Err(PlanError::NotLive(not)) = rungs(&["db-2"], RungChoice::Live) else {
        panic!("it was forced")
    };
    assert_eq!(not.reasons, [("db-2".to_owned(), "a device".to_owned())]);
    assert!(
        rungs(&[], RungChoice::Image)
            .unwrap()
            .iter()
            .all(|(_, _, rung)| *rung == Rung::Image)
    );
    assert!(
        rungs(&[], RungChoice::Disk)
            .unwrap()
            .iter()
            .all(|(_, _, rung)| *rung != Rung::Live)
    );
}

#[test]
fn contradictions_are_found() {
    let twice = created(
        vec![layer("a", 1, &[]), layer("a-1", 1, &[])],
        &Taken::default(),
    );
    assert_eq!(twice.unwrap_err(), PlanError::NodeNameTwice("a-1".into()));
    let circle = created(
        vec![layer("a", 1, &["b"]), layer("b", 1, &["a"])],
        &Taken::default(),
    );
    assert!(matches!(circle, Err(PlanError::Cycle(_))));
    let many = (0..4).map(|n| layer(&format!("l{n}"), 64, &[])).collect();
    assert_eq!(
        created(many, &Taken::default()).unwrap_err(),
        PlanError::TooManyNodes(256)
    );
}

proptest! {
    #[test]
    fn a_clones_name_is_valid_and_free(parent in "[a-z][a-z0-9-]{0,46}[a-z0-9]", taken in 0usize..20) {
        let parent: EnvName = parent.parse().unwrap();
        let mut state = Taken::default();
        for _ in 0..taken {
            let name = clone_name(&parent, &state);
            prop_assert!(state.names.insert(name.to_string()), "{name} was taken");
        }
        let first = clone_name(&parent, &Taken::default());
        prop_assert!(first.as_str().ends_with("-clone"));
    }

    #[test]
    fn every_node_has_an_address_name_and_mac_of_its_own(counts in prop::collection::vec(1u32..=20, 1..9)) {
        let layers = counts.iter().enumerate().map(|(n, count)| layer(&format!("layer{n}"), *count, &[])).collect();
        let environment = created(layers, &Taken::default()).unwrap();
        let unique = |values: Vec<String>| values.iter().collect::<BTreeSet<_>>().len() == values.len();
        let nodes = &environment.nodes;
        prop_assert_eq!(nodes.len(), counts.iter().sum::<u32>() as usize);
        prop_assert!(unique(nodes.iter().map(|n| n.host.to_string()).collect()));
        prop_assert!(unique(nodes.iter().map(|n| n.mac.to_string()).collect()));
        prop_assert!(unique(nodes.iter().map(|n| n.name().to_owned()).collect()));
        prop_assert!(nodes.iter().all(|n| n.hostname.len() <= 64));
    }

    #[test]
    fn waves_hold_every_layer_once_and_after_its_needs(edges in prop::collection::vec((0usize..8, 0usize..8), 0..20)) {
        let needs = |at: usize| -> Vec<String> {
            // Only towards lower numbers: no circle.
            edges.iter().filter(|(from, to)| *from == at && to < from).map(|(_, to)| format!("l{to}")).collect()
        };
        let layers: Vec<_> = (0..8)
            .map(|n| layer(&format!("l{n}"), 1, &needs(n).iter().map(String::as_str).collect::<Vec<_>>()))
            .collect();
        let manifest = Manifest { layers, ..Manifest::default() };
        let waves = start_waves(&manifest).unwrap();
        let mut started = BTreeSet::new();
        for wave in waves {
            for name in &wave {
                let layer = manifest.layer(name).unwrap();
                prop_assert!(layer.depends_on.iter().all(|need| started.contains(&need.layer)));
            }
            for name in wave {
                prop_assert!(started.insert(name));
            }
        }
        prop_assert_eq!(started.len(), 8);
    }
}
