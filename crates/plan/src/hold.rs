//! What a clone does not do: nodes that are made and do not run, schedulers that stand, mail that is refused; in sentences.

use offshoot_model::hold::MAIL_PORTS;
use offshoot_model::{Environment, Hold, Node};

use crate::NodeFacts;

/// What a clone of `parent` holds when `asked` is asked for: what its parent holds too, since a copy of what must not write to
/// customers must not either.
#[must_use]
pub fn held_in_clone(parent: &Environment, asked: Hold) -> Hold {
    parent.held.and(asked)
}

/// Why a node of `environment`, or what in it, is held; `None` when nothing is.
#[must_use]
pub fn why_held(environment: &Environment, node: &Node, facts: &[NodeFacts]) -> Option<String> {
    if environment.is_held(node) {
        return Some("it runs jobs, which are held: it is made and does not run".to_owned());
    }
    let seen = facts.iter().find(|fact| fact.node == node.name())?;
    if !environment.held.jobs || seen.schedulers.is_empty() {
        return None;
    }
    Some(format!(
        "jobs are held: {} does not go on",
        seen.schedulers.join(", ")
    ))
}

/// What `clone` does not do, beside what is said of its nodes ([`why_held`]).
#[must_use]
pub fn hold_notices(clone: &Environment, parent: &Environment) -> Vec<String> {
    let name = &clone.name;
    let mut notices = Vec::new();
    if clone.held.mail {
        let ports = MAIL_PORTS.map(|port| port.to_string()).join(", ");
        notices.push(format!(
            "mail is held: connections of {name} to ports {ports} outside of it are refused"
        ));
    }
    if clone.held.jobs {
        notices.push(format!(
            "jobs are held: nodes of {name} that run jobs do not run, and schedulers known by their names stand still; \
             what else runs jobs by itself is not known and not held"
        ));
    }
    if let Some(words) = clone.held.words() {
        let inherited = parent.held.words().map_or(String::new(), |inherited| {
            format!("; {inherited} because {} holds them too", parent.name)
        });
        notices.push(format!(
            "`offshoot release {name}` lets {words} go{inherited}"
        ));
    }
    notices
}
