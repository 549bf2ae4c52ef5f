//! Environments and operations as the tests need them.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use offshoot_model::environment::PortBinding;
use offshoot_model::manifest::{Protocol, PublishedPort};
use offshoot_model::operation::{OperationKind, OperationState};
use offshoot_model::{
    EnvId, Environment, EnvironmentState, Manifest, Operation, OperationId, Placement,
};

/// Environment number `n` of its kind: name, outer network and ids follow from it.
pub fn environment(n: u32) -> Environment {
    Environment {
        id: EnvId::random(),
        name: format!("env-{n}").parse().unwrap(),
        state: EnvironmentState::Creating,
        held: offshoot_model::Hold::default(),
        lineage: None,
        created: "2026-01-01T00:00:00Z".parse().unwrap(),
        manifest: Manifest::default(),
        placement: Placement {
            id_base: 1_000_000 + n * 65_536,
            id_count: 65_536,
            inner: "10.99.0.0/24".parse().unwrap(),
            outer: format!("10.208.{n}.0/24").parse().unwrap(),
            inner6: None,
            outer6: Some(format!("fd00:0:0:{n:x}::/64").parse().unwrap()),
        },
        nodes: Vec::new(),
        volumes: Vec::new(),
    }
}

pub fn operation(environment: &Environment) -> Operation {
    Operation {
        id: OperationId::new(),
        kind: OperationKind::Create,
        environment: Some(environment.id.clone()),
        subject: environment.name.to_string(),
        parent: None,
        state: OperationState::Running,
        created: environment.created,
        ended: None,
        steps: Vec::new(),
        problem: None,
        report: None,
        swap: None,
        traffic: None,
        notices: Vec::new(),
    }
}

pub fn port(host_ip: &str, host_port: u16) -> PortBinding {
    PortBinding {
        port: PublishedPort {
            host_ip: host_ip.to_owned(),
            host_port: Some(host_port),
            target: 80,
            protocol: Protocol::Tcp,
        },
        layer: "web".parse().unwrap(),
    }
}
