#![allow(clippy::unwrap_used)]

use offshoot_model::view::LineageView;
use offshoot_model::{EnvId, OperationId};

use super::*;

fn id(name: &str) -> EnvId {
    let mut text: String = name.chars().filter(char::is_ascii_lowercase).collect();
    while text.len() < 8 {
        text.push('a');
    }
    text.parse().unwrap()
}

fn environment(name: &str, parent: Option<&str>) -> EnvironmentView {
    EnvironmentView {
        id: id(name),
        name: name.to_owned(),
        state: EnvironmentState::Running,
        healthy: true,
        url: None,
        domains: Vec::new(),
        held: offshoot_model::Hold::default(),
        parent: parent.map(|parent| LineageView {
            id: id(parent),
            name: parent.to_owned(),
            cut: "2026-01-01T00:00:00Z".parse().unwrap(),
            operation: OperationId::new(),
        }),
        created: "2026-01-01T00:00:00Z".parse().unwrap(),
        layers: Vec::new(),
        volumes: Vec::new(),
        ports: Vec::new(),
        operation: None,
    }
}

fn lines(environments: &[EnvironmentView], selection: &Selection) -> Vec<String> {
    arrange(environments, selection, |env| Usage {
        memory: Some(env.name.len() as u64),
        ..Usage::default()
    })
    .iter()
    .map(|placed| format!("{}{}", " ".repeat(placed.depth), placed.environment.name))
    .collect()
}

#[test]
fn clones_stand_below_their_parents() {
    let all = [
        environment("zoo", None),
        environment("shop", None),
        environment("upgrade", Some("try")),
        environment("try", Some("shop")),
        environment("a", Some("shop")),
        environment("orphan", Some("gone")),
    ];
    let tree = ["orphan", "shop", " a", " try", "  upgrade", "zoo"];
    assert_eq!(lines(&all, &Selection::default()), tree);
    let by_memory = Selection {
        sort: Sort::Memory,
        ..Selection::default()
    };
    let tree = ["orphan", "shop", " try", "  upgrade", " a", "zoo"];
    assert_eq!(lines(&all, &by_memory), tree);
    // What is left out does not take its clones with it.
    let some = Selection {
        q: " UP".to_owned(),
        ..Selection::default()
    };
    assert_eq!(lines(&all, &some), ["upgrade"]);
    let some = Selection {
        q: "p".to_owned(),
        ..Selection::default()
    };
    assert_eq!(lines(&all, &some), ["orphan", "shop", " upgrade"]);
}

#[test]
fn a_circle_ends() {
    let all = [environment("a", Some("b")), environment("b", Some("a"))];
    assert!(lines(&all, &Selection::default()).is_empty());
}

#[test]
fn a_selection_is_an_address() {
    let selection = Selection {
        q: "a&b".to_owned(),
        state: Filter::Unwell,
        sort: Sort::Age,
    };
    let href = selection.href();
    assert_eq!(href, "/?q=a%26b&state=unwell&sort=age");
    let (_, query) = href.split_once('?').unwrap();
    assert_eq!(
        serde_urlencoded::from_str::<Selection>(query).unwrap(),
        selection
    );
    assert_eq!(Selection::default().href(), "/");
}
