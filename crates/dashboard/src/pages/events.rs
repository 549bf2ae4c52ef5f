//! What happened to an environment: operations, nodes, and the checks of its sides, in one list.

use askama::Template;
use axum::extract::{Path, Query};
use axum::response::Response;
use jiff::Timestamp;
use offshoot_model::traffic::view::ChangeView;
use offshoot_model::view::EnvironmentView;
use offshoot_model::{Operation, OperationKind};
use serde::Deserialize;

use super::operations::Line;
use super::{Mark, find, mark};
use crate::answer::{Failure, html};
use crate::chronicle::{Happened, NodeEvent};
use crate::context::{Context, Shell};
use crate::format::{When, encode, shortened};

/// Operations that are searched.
const SEARCHED: usize = 500;
/// Events on a page of their own.
const SHOWN: usize = 100;
/// Characters of a reason: some are whole messages of programs.
const REASON_MAX: usize = 120;
/// Element that holds the list.
const PART: &str = "events";

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Operation,
    Node,
    Check,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Operation, Self::Node, Self::Check];

    /// Its value in an address.
    fn name(self) -> &'static str {
        match self {
            Self::Operation => "operations",
            Self::Node => "nodes",
            Self::Check => "checks",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Operation => "Operations",
            Self::Node => "Nodes",
            Self::Check => "Checks",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text)
    }
}

/// An event as it is shown.
pub(super) struct Entry {
    at: Timestamp,
    kind: Kind,
    pub(super) when: When,
    pub(super) mark: Mark,
    /// Whom or what it is about.
    pub(super) subject: String,
    /// Where there is more.
    pub(super) href: String,
    /// What came of it, or why.
    pub(super) detail: String,
}

/// Everything that is known to have happened to an environment, the newest first, at most `most`.
pub(super) async fn of(
    context: &Context,
    environment: &EnvironmentView,
    operations: &[Operation],
    most: usize,
    now: Timestamp,
) -> Vec<Entry> {
    let mut entries = all(context, environment, operations, now).await;
    entries.truncate(most);
    entries
}

async fn all(
    context: &Context,
    environment: &EnvironmentView,
    operations: &[Operation],
    now: Timestamp,
) -> Vec<Entry> {
    let href = format!("/environments/{}", encode(&environment.name));
    let about = |operation: &&Operation| is_about(operation, environment);
    let operations = operations.iter().filter(about).map(|of| operation(of, now));
    let nodes = context.web.chronicle.of(&environment.id);
    let nodes = nodes.iter().map(|event| node(event, &href, now));
    // Who is gone, or whose edge cannot be asked, has no changes to tell.
    let changes = match context.web.platform.traffic(&environment.name).await {
        Ok(view) => view.changes,
        Err(_) => Vec::new(),
    };
    let checks = changes.iter().map(|change| check(change, &href, now));
    let mut entries: Vec<_> = operations.chain(nodes).chain(checks).collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.at));
    entries
}

/// Whether it changed the environment, made a clone of it, or exchanged its domains.
fn is_about(operation: &Operation, environment: &EnvironmentView) -> bool {
    let swapped = |with: &str| with == environment.name;
    operation.environment.as_ref() == Some(&environment.id)
        || operation.kind == OperationKind::Clone
            && operation.parent.as_deref() == Some(environment.name.as_str())
        || operation
            .swap
            .as_ref()
            .is_some_and(|report| swapped(&report.with))
}

fn operation(operation: &Operation, now: Timestamp) -> Entry {
    let line = Line::new(operation, now);
    let at = operation.ended.unwrap_or(operation.created);
    let mut detail = match operation.ended {
        Some(_) => format!("took {}", line.took),
        None => format!("for {}", line.took),
    };
    if let Some(freeze) = &line.freeze {
        detail.push_str(&format!(", stood still {freeze}"));
    }
    if let Some(problem) = &line.problem {
        detail = shortened(problem, REASON_MAX);
    }
    Entry {
        at,
        kind: Kind::Operation,
        when: When::new(at, now),
        mark: line.mark,
        subject: match &line.parent {
            Some(parent) => format!("Clone {parent} as {}", line.subject),
            None => format!("{} {}", line.kind, line.subject),
        },
        href: format!("/operations/{}", line.id),
        detail,
    }
}

fn node(event: &NodeEvent, href: &str, now: Timestamp) -> Entry {
    let (mark, detail) = match event.what {
        Happened::Started => (mark("started", "good"), String::new()),
        Happened::StartedAgain(times) => (
            mark("started again", "warn"),
            format!("{times} × by its restart policy so far"),
        ),
        Happened::Ended(0) => (mark("ended", "off"), "with status 0".to_owned()),
        Happened::Ended(status) => (mark("failed", "bad"), format!("with status {status}")),
        Happened::Stopped => (mark("stopped", "off"), String::new()),
        Happened::Healthy => (mark("healthy", "good"), String::new()),
        Happened::Unhealthy => (
            mark("unhealthy", "bad"),
            "its health check fails".to_owned(),
        ),
    };
    Entry {
        at: event.at,
        kind: Kind::Node,
        when: When::new(event.at, now),
        mark,
        subject: event.node.clone(),
        href: format!("{href}/logs?node={}", encode(&event.node)),
        detail,
    }
}

fn check(change: &ChangeView, href: &str, now: Timestamp) -> Entry {
    Entry {
        at: change.at,
        kind: Kind::Check,
        when: When::new(change.at, now),
        mark: match change.takes {
            true => mark("takes requests", "good"),
            false => mark("takes no requests", "bad"),
        },
        subject: format!("Side {}", change.environment),
        href: format!("{href}/traffic"),
        detail: shortened(&change.why, REASON_MAX),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    kind: String,
}

/// A choice of what is shown.
struct Choice {
    title: &'static str,
    href: String,
    count: usize,
    current: bool,
}

#[derive(Template)]
#[template(path = "events.html")]
struct Page {
    shell: Shell,
    part: Part,
}

#[derive(Template)]
#[template(path = "events_part.html")]
struct Part {
    name: String,
    href: String,
    /// What the part asks for itself with.
    here: String,
    choices: Vec<Choice>,
    entries: Vec<Entry>,
    more: usize,
}

/// Events of one environment, all or of one kind.
pub(super) async fn show(
    context: Context,
    Path(environment): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Failure> {
    let now = Timestamp::now();
    let found = find(&context.web, &environment).await?;
    let operations = context.web.platform.operations(SEARCHED).await?;
    let mut entries = all(&context, &found, &operations, now).await;
    let kind = Kind::parse(&wanted.kind);
    let href = format!("/environments/{}", encode(&found.name));
    let address = |kind: Option<Kind>| match kind {
        Some(kind) => format!("{href}/events?kind={}", kind.name()),
        None => format!("{href}/events"),
    };
    let choice = |of: Option<Kind>| Choice {
        title: of.map_or("Everything", Kind::title),
        href: address(of),
        count: entries
            .iter()
            .filter(|entry| of.is_none_or(|kind| entry.kind == kind))
            .count(),
        current: of == kind,
    };
    let choices = std::iter::once(None).chain(Kind::ALL.map(Some));
    let choices = choices.map(choice).collect();
    let here = address(kind);
    entries.retain(|entry| kind.is_none_or(|kind| entry.kind == kind));
    let more = entries.len().saturating_sub(SHOWN);
    entries.truncate(SHOWN);
    let part = Part {
        name: found.name,
        href,
        here,
        choices,
        entries,
        more,
    };
    if context.wants(PART) {
        return html(&part);
    }
    html(&Page {
        shell: context.shell(format!("Events of {}", part.name)),
        part,
    })
}
