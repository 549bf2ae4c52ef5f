//! The lineage of an environment as a tree: all that come from the same first one, with the instant of every cut and how long the
//! parent stood still for it.

use std::collections::HashMap;

use askama::Template;
use jiff::Timestamp;
use offshoot_model::view::EnvironmentView;
use offshoot_model::{EnvId, Operation, OperationId};

use super::{Mark, environment_mark};
use crate::answer::{Failure, rendered};
use crate::format::{When, duration, encode};
use crate::tree::{Selection, Usage, arrange};

/// Most environments of a tree that a page shows.
const MEMBERS_MAX: usize = 60;

#[derive(Template)]
#[template(path = "family.html")]
struct Family {
    /// Name of the first one, when it is gone.
    gone: Option<String>,
    members: Vec<Member>,
    more: usize,
}

struct Member {
    name: String,
    href: String,
    depth: usize,
    mark: Mark,
    current: bool,
    cut: Option<Cut>,
    /// Where it is compared with its parent.
    compare: Option<String>,
}

struct Cut {
    at: When,
    operation: OperationId,
    freeze: Option<String>,
}

/// The tree as a part of a page; `None` where there is only one environment and it is no clone.
pub(super) fn tree(
    environment: &EnvironmentView,
    all: &[EnvironmentView],
    operations: &[Operation],
    now: Timestamp,
) -> Result<Option<String>, Failure> {
    let by_id: HashMap<_, _> = all.iter().map(|env| (&env.id, env)).collect();
    let first = first(environment, &by_id);
    let family: Vec<_> = all
        .iter()
        .filter(|env| self::first(env, &by_id).0 == first.0)
        .cloned()
        .collect();
    let gone = first.1.filter(|_| !by_id.contains_key(first.0));
    if family.len() < 2 && gone.is_none() {
        return Ok(None);
    }
    let placed = arrange(&family, &Selection::default(), |_| Usage::default());
    let total = placed.len();
    // This one is always among those that are shown.
    let here = placed
        .iter()
        .position(|one| one.environment.id == environment.id);
    let begin = here.unwrap_or_default().saturating_sub(MEMBERS_MAX - 1);
    let members: Vec<_> = placed
        .into_iter()
        .skip(begin)
        .take(MEMBERS_MAX)
        .map(|one| {
            let env = one.environment;
            Member {
                href: format!("/environments/{}", encode(&env.name)),
                depth: (one.depth + usize::from(gone.is_some())).min(6),
                mark: environment_mark(env),
                current: env.id == environment.id,
                cut: env.parent.as_ref().map(|lineage| Cut {
                    at: When::new(lineage.cut, now),
                    operation: lineage.operation,
                    freeze: operations
                        .iter()
                        .find(|operation| operation.id == lineage.operation)
                        .and_then(|operation| operation.report.as_ref())
                        .map(|report| duration(report.freeze_us)),
                }),
                compare: env
                    .parent
                    .as_ref()
                    .and_then(|lineage| by_id.get(&lineage.id))
                    .map(|parent| super::compare::href(&parent.name, &env.name)),
                name: env.name.clone(),
            }
        })
        .collect();
    let more = total - members.len();
    rendered(&Family {
        gone: gone.map(str::to_owned),
        members,
        more,
    })
    .map(Some)
}

/// The first forebear that is known of, and its name where only a clone tells of it.
fn first<'a>(
    environment: &'a EnvironmentView,
    by_id: &HashMap<&'a EnvId, &'a EnvironmentView>,
) -> (&'a EnvId, Option<&'a str>) {
    let mut at = environment;
    // Lineage has no circles, but what is stored is not trusted to have none.
    for _ in 0..by_id.len() {
        let Some(lineage) = &at.parent else {
            break;
        };
        match by_id.get(&lineage.id) {
            Some(parent) => at = parent,
            None => return (&lineage.id, Some(&lineage.name)),
        }
    }
    (&at.id, None)
}
