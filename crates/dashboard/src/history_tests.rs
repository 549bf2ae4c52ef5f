use offshoot_model::manifest::{Role, Scaling};
use offshoot_model::view::{LayerView, NodeView};
use offshoot_model::{EnvironmentState, NodeState};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn environment(memory: Option<u64>, cpu_us: u64) -> EnvironmentView {
    EnvironmentView {
        id: "abcdefgh".parse().unwrap(),
        name: "shop".to_owned(),
        state: EnvironmentState::Running,
        healthy: true,
        url: None,
        domains: Vec::new(),
        held: offshoot_model::Hold::default(),
        parent: None,
        created: jiff::Timestamp::UNIX_EPOCH,
        layers: vec![LayerView {
            name: "web".to_owned(),
            role: Role::App,
            scaling: Scaling::Stateful,
            image: String::new(),
            entry: None,
            nodes: vec![NodeView {
                name: "web-1".to_owned(),
                status: NodeState::Stopped,
                hostname: String::new(),
                inner: String::new(),
                outer: String::new(),
                inner6: None,
                outer6: None,
                memory_bytes: memory,
                cpu_us: Some(cpu_us),
                pids: None,
                restarts: 0,
                held: false,
                held_processes: Vec::new(),
            }],
        }],
        volumes: Vec::new(),
        ports: Vec::new(),
        operation: None,
    }
}

#[test]
fn an_hour_and_a_day_are_kept_and_no_more() {
    let history = History::new();
    let id = environment(None, 0).id;
    let mut now = history.begin;
    // Half a processor, over a day and a bit.
    for look in 0..9_000_u64 {
        now = history.begin + SECOND * 10 * u32::try_from(look).unwrap();
        history.look(&[environment(Some(1_000 + look), look * 5_000_000)], now);
    }
    for (span, least) in [(Span::Hour, 8_999 - 360), (Span::Day, 8_999 - 360 * 24)] {
        let points = history.points(&id, "web-1", span, now);
        assert_eq!(points.len(), POINTS as usize);
        assert_eq!(points.last().unwrap().0, POINTS);
        assert!(points.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0));
        assert!(
            points
                .iter()
                .all(|(_, point)| (point.cpu.unwrap() - 50.0).abs() < 0.01)
        );
        let first = points[0].1.memory - 1_000.0;
        assert!((first - least as f32).abs() <= 24.0, "{first}");
    }
}

#[test]
fn gaps_stay_gaps_and_what_is_gone_is_forgotten() {
    let history = History::new();
    let id = environment(None, 0).id;
    let at = |seconds: u32| history.begin + SECOND * seconds;
    history.look(&[environment(Some(7), 1_000_000)], at(0));
    history.look(&[environment(None, 0)], at(10));
    // Started again: its counter begins anew.
    history.look(&[environment(Some(9), 10)], at(20));
    let points = history.points(&id, "web-1", Span::Hour, at(30));
    let places: Vec<_> = points.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, [POINTS - 3, POINTS - 1]);
    assert_eq!(points[1].1.cpu, None);
    // In a day's picture they are one point: the most memory.
    let day = history.points(&id, "web-1", Span::Day, at(30));
    assert_eq!(day.len(), 1);
    assert!((day[0].1.memory - 9.0).abs() < f32::EPSILON);
    assert_eq!(history.points(&id, "web-1", Span::Hour, at(3_700)).len(), 0);
    history.look(&[], at(40));
    assert!(history.points(&id, "web-1", Span::Hour, at(40)).is_empty());
}
