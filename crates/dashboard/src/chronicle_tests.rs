use offshoot_model::EnvironmentState;
use offshoot_model::manifest::{Role, Scaling};
use offshoot_model::view::LayerView;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn environment(name: &str, status: NodeState, restarts: u32) -> EnvironmentView {
    EnvironmentView {
        id: name.parse().unwrap(),
        name: name.to_owned(),
        state: EnvironmentState::Running,
        healthy: true,
        url: None,
        domains: Vec::new(),
        parent: None,
        created: Timestamp::UNIX_EPOCH,
        layers: vec![LayerView {
            name: "web".to_owned(),
            role: Role::App,
            scaling: Scaling::Stateful,
            image: String::new(),
            entry: None,
            nodes: vec![NodeView {
                name: "web-1".to_owned(),
                status,
                hostname: String::new(),
                inner: String::new(),
                outer: String::new(),
                inner6: None,
                outer6: None,
                memory_bytes: None,
                cpu_us: None,
                pids: None,
                restarts,
                held: false,
                held_processes: Vec::new(),
            }],
        }],
        volumes: Vec::new(),
        ports: Vec::new(),
        operation: None,
        held: offshoot_model::Hold::default(),
    }
}

fn running(since: i64, health: Health) -> NodeState {
    NodeState::Running {
        pid: 1,
        since: at(since),
        health,
    }
}

fn exited(second: i64) -> NodeState {
    NodeState::Exited {
        status: 137,
        at: at(second),
    }
}

#[test]
fn what_changes_between_two_looks_is_an_event_once() {
    let chronicle = Chronicle::default();
    let states = [
        (running(5, Health::Starting), 0),
        (running(5, Health::Starting), 0),
        (running(5, Health::Healthy), 0),
        (NodeState::Frozen { pid: 1 }, 0),
        (running(5, Health::Healthy), 0),
        (running(5, Health::Unhealthy), 0),
        (exited(60), 0),
        (running(62, Health::Starting), 1),
        (NodeState::Stopped, 1),
        (NodeState::Stopped, 1),
    ];
    for (second, (state, restarts)) in (10..).step_by(10).zip(states) {
        let environment = environment("abcdefgh", state, restarts);
        chronicle.look(&[environment], at(second));
    }
    let events = chronicle.of(&"abcdefgh".parse().unwrap());
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.at.as_second(), event.what))
        .collect();
    assert_eq!(
        told,
        [
            (5, Happened::Started),
            (30, Happened::Healthy),
            (60, Happened::Unhealthy),
            (60, Happened::Ended(137)),
            (62, Happened::StartedAgain(1)),
            (90, Happened::Stopped),
        ]
    );
}

#[test]
fn what_is_kept_has_a_bound_and_goes_with_its_environment() {
    let chronicle = Chronicle::default();
    let id = "abcdefgh".parse().unwrap();
    for second in 0..500 {
        let environment = environment("abcdefgh", exited(second), 0);
        chronicle.look(&[environment], at(second));
    }
    let events = chronicle.of(&id);
    assert_eq!(events.len(), EVENTS_MAX);
    assert_eq!(events.last().unwrap().at, at(499));
    let never_ran = environment("bbbbbbbb", NodeState::Stopped, 0);
    chronicle.look(std::slice::from_ref(&never_ran), at(501));
    assert!(chronicle.of(&never_ran.id).is_empty());
    assert!(chronicle.of(&id).is_empty());
}
