//! The list of environments: what is shown of it, in which order, each clone below its parent.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use offshoot_model::EnvironmentState;
use offshoot_model::view::EnvironmentView;
use serde::Deserialize;

use crate::format::encode;

/// What somebody wants to see of the list; all of it stands in the address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Selection {
    /// Part of a name, a domain or a layer.
    pub(crate) q: String,
    pub(crate) state: Filter,
    pub(crate) sort: Sort,
}

/// By state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Filter {
    #[default]
    All,
    Running,
    Stopped,
    /// An operation is under way.
    Busy,
    /// Something is not as it should be.
    Unwell,
}

/// Order of environments of one parent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sort {
    #[default]
    Name,
    Memory,
    Cpu,
    Disk,
    /// Youngest first.
    Age,
}

impl Filter {
    pub(crate) const ALL: [(Self, &'static str, &'static str); 5] = [
        (Self::All, "all", "All"),
        (Self::Running, "running", "Running"),
        (Self::Stopped, "stopped", "Stopped"),
        (Self::Busy, "busy", "Busy"),
        (Self::Unwell, "unwell", "Unwell"),
    ];

    fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(filter, _, _)| *filter == self);
        found.map_or("all", |(_, name, _)| name)
    }

    fn shows(self, environment: &EnvironmentView) -> bool {
        match self {
            Self::All => true,
            Self::Running => environment.state == EnvironmentState::Running,
            Self::Stopped => environment.state == EnvironmentState::Stopped,
            Self::Busy => environment.operation.is_some(),
            Self::Unwell => !environment.healthy,
        }
    }
}

impl Sort {
    fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Disk => "disk",
            Self::Age => "age",
        }
    }
}

impl Selection {
    /// The address of the list with this selection.
    pub(crate) fn href(&self) -> String {
        let mut parts = Vec::new();
        if !self.q.is_empty() {
            parts.push(format!("q={}", encode(&self.q)));
        }
        if self.state != Filter::default() {
            parts.push(format!("state={}", self.state.name()));
        }
        if self.sort != Sort::default() {
            parts.push(format!("sort={}", self.sort.name()));
        }
        if parts.is_empty() {
            "/".to_owned()
        } else {
            format!("/?{}", parts.join("&"))
        }
    }

    /// The same with another state.
    pub(crate) fn with_state(&self, state: Filter) -> String {
        Self {
            state,
            ..self.clone()
        }
        .href()
    }

    /// The same in another order.
    pub(crate) fn with_sort(&self, sort: Sort) -> String {
        Self {
            sort,
            ..self.clone()
        }
        .href()
    }

    fn shows(&self, environment: &EnvironmentView) -> bool {
        let wanted = self.q.trim().to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&wanted);
        let found = wanted.is_empty()
            || has(&environment.name)
            || environment.domains.iter().any(|domain| has(&domain.host))
            || environment
                .layers
                .iter()
                .any(|layer| has(&layer.name) || has(&layer.image));
        found && self.state.shows(environment)
    }
}

/// Numbers to sort by.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) memory: Option<u64>,
    pub(crate) cpu: Option<f64>,
    pub(crate) disk: Option<u64>,
}

/// An environment and its place in the tree.
pub(crate) struct Placed<'a> {
    pub(crate) environment: &'a EnvironmentView,
    /// Generations below the first one that is shown.
    pub(crate) depth: usize,
}

/// What a selection shows, as a tree written line by line.
pub(crate) fn arrange<'a>(
    environments: &'a [EnvironmentView],
    selection: &Selection,
    usage: impl Fn(&EnvironmentView) -> Usage,
) -> Vec<Placed<'a>> {
    let shown: Vec<_> = environments
        .iter()
        .filter(|env| selection.shows(env))
        .collect();
    let by_id: HashMap<_, _> = environments.iter().map(|env| (&env.id, env)).collect();
    let ids: HashSet<_> = shown.iter().map(|env| &env.id).collect();
    // The nearest forebear that is shown. Lineage has no circles, but what is stored is not trusted to have none.
    let parent = |env: &'a EnvironmentView| {
        let mut at = env;
        for _ in 0..environments.len() {
            let lineage = at.parent.as_ref()?;
            if ids.contains(&lineage.id) && lineage.id != env.id {
                return Some(&lineage.id);
            }
            at = by_id.get(&lineage.id)?;
        }
        None
    };
    let usages: HashMap<_, _> = shown.iter().map(|env| (&env.id, usage(env))).collect();
    let of = |env: &EnvironmentView| usages.get(&env.id).copied().unwrap_or_default();
    let order = |a: &&EnvironmentView, b: &&EnvironmentView| {
        let (ours, theirs) = (of(a), of(b));
        let most_first = match selection.sort {
            Sort::Name => Ordering::Equal,
            Sort::Memory => theirs.memory.cmp(&ours.memory),
            Sort::Cpu => theirs.cpu.partial_cmp(&ours.cpu).unwrap_or(Ordering::Equal),
            Sort::Disk => theirs.disk.cmp(&ours.disk),
            Sort::Age => b.created.cmp(&a.created),
        };
        most_first.then_with(|| a.name.cmp(&b.name))
    };
    let mut children: HashMap<_, Vec<&EnvironmentView>> = HashMap::new();
    for env in &shown {
        children.entry(parent(env)).or_default().push(env);
    }
    for siblings in children.values_mut() {
        siblings.sort_by(order);
    }
    let mut placed = Vec::with_capacity(shown.len());
    let mut stack: Vec<_> = children.remove(&None).unwrap_or_default();
    stack.reverse();
    let mut stack: Vec<_> = stack.into_iter().map(|env| (env, 0)).collect();
    while let Some((environment, depth)) = stack.pop() {
        placed.push(Placed { environment, depth });
        let below = children.remove(&Some(&environment.id)).unwrap_or_default();
        stack.extend(below.into_iter().rev().map(|env| (env, depth + 1)));
    }
    placed
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
