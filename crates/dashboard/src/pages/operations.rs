//! Operations: what is under way and what was.

use std::sync::Arc;

use askama::Template;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Redirect, Response};
use http::HeaderName;
use http::header::HeaderValue;
use jiff::Timestamp;
use offshoot_model::domain::Domain;
use offshoot_model::operation::{StepRecord, StepState};
use offshoot_model::traffic::compare::Figures;
use offshoot_model::traffic::view::TrafficReport;
use offshoot_model::{
    CloneReport, Code, Fault, Operation, OperationId, OperationKind, OperationState, Problem, Rung,
};
use serde::Deserialize;

use super::{Mark, mark};
use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::{When, bare_address, bytes, duration, encode, web_address};

/// Operations that are listed.
const LISTED: usize = 100;
/// Parts of a cut in which the parent runs.
const BESIDE: [&str; 3] = ["copy ahead", "settle", "complete images"];
/// Shortest bar in thousandths: what took next to nothing is still there to see.
const BAR_MIN: u64 = 4;
/// Element that holds an operation.
const PART: &str = "operation";
/// Tells htmx which address the page has from now on.
const HX_PUSH_URL: HeaderName = HeaderName::from_static("hx-push-url");

pub(super) fn kind(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Create => "Create",
        OperationKind::Clone => "Clone",
        OperationKind::Rename => "Rename",
        OperationKind::Start => "Start",
        OperationKind::Stop => "Stop",
        OperationKind::Remove => "Remove",
        OperationKind::ImagePull => "Image",
        OperationKind::PoolGrow => "Grow pool",
        OperationKind::DomainAdd => "Add domains to",
        OperationKind::DomainRemove => "Remove domain of",
        OperationKind::DomainHttps => "Change HTTPS of",
        OperationKind::Swap => "Swap domains of",
        OperationKind::TrafficSet => "Change traffic of",
        OperationKind::TrafficRamp => "Ramp from",
        OperationKind::Promote => "Promote",
        OperationKind::CertificateAdd => "Get certificate for",
        OperationKind::CertificateRemove => "Remove certificate of",
        OperationKind::CertificateRenew => "Renew certificate of",
    }
}

pub(super) fn state_mark(state: OperationState) -> Mark {
    match state {
        OperationState::Waiting => mark("waiting", "busy"),
        OperationState::Running => mark("running", "busy"),
        OperationState::Undoing => mark("undoing", "warn"),
        OperationState::Done => mark("done", "good"),
        OperationState::Failed => mark("failed", "bad"),
        OperationState::Cancelled => mark("cancelled", "off"),
    }
}

/// A line of a list of operations.
pub(super) struct Line {
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) subject: String,
    pub(super) parent: Option<String>,
    pub(super) mark: Mark,
    pub(super) created: When,
    pub(super) took: String,
    pub(super) freeze: Option<String>,
    pub(super) problem: Option<String>,
}

impl Line {
    pub(super) fn new(operation: &Operation, now: Timestamp) -> Self {
        Self {
            id: operation.id.to_string(),
            kind: kind(operation.kind),
            subject: operation.subject.clone(),
            parent: operation.parent.clone(),
            mark: state_mark(operation.state),
            created: When::new(operation.created, now),
            took: took(operation, now),
            freeze: freeze(operation.report.as_ref()),
            problem: operation
                .problem
                .as_ref()
                .map(|problem| problem.what.clone()),
        }
    }
}

fn took(operation: &Operation, now: Timestamp) -> String {
    let end = operation.ended.unwrap_or(now);
    let us = end.duration_since(operation.created).as_micros();
    duration(u64::try_from(us).unwrap_or(0))
}

fn freeze(report: Option<&CloneReport>) -> Option<String> {
    report
        .filter(|report| report.freeze_us > 0)
        .map(|report| duration(report.freeze_us))
}

#[derive(Template)]
#[template(path = "operations.html")]
struct ListPage {
    shell: Shell,
    lines: Vec<Line>,
}

/// Operations, newest first.
pub(super) async fn list(context: Context) -> Result<Response, Failure> {
    let now = Timestamp::now();
    let operations = context.web.platform.operations(LISTED).await?;
    let page = ListPage {
        shell: context.shell("Operations"),
        lines: operations
            .iter()
            .map(|operation| Line::new(operation, now))
            .collect(),
    };
    html(&page)
}

/// A bar of a drawing: where it begins and how long it is, in thousandths of the whole.
struct Bar {
    name: String,
    mood: &'static str,
    from: u64,
    length: u64,
    text: String,
}

struct Step {
    name: String,
    mark: Mark,
    bar: Option<Bar>,
    time: String,
    progress: Option<Progress>,
}

struct Progress {
    text: String,
    /// In thousandths, where the whole is known.
    done: Option<u64>,
}

struct NodeLine {
    name: String,
    rung: &'static str,
    mood: &'static str,
    way: &'static str,
    memory: String,
    freeze: String,
    restore: String,
    why: Option<String>,
}

struct Report {
    freeze: String,
    predicted: Option<String>,
    ready: Option<String>,
    memory: String,
    frozen: String,
    cut: Option<When>,
    parts: Vec<Bar>,
    /// What the cut took besides, while everything ran; empty when nothing.
    beside: String,
    nodes: Vec<NodeLine>,
}

/// A domain that changes hands.
struct Moved {
    domain: String,
    from: String,
    to: String,
}

/// How a ramp or a promotion goes.
struct TrafficLine {
    new: String,
    percent: u32,
    /// What both sides answered in the time that is compared.
    figures: Vec<SideFigures>,
    keep_until: Option<When>,
}

struct SideFigures {
    name: String,
    requests: u64,
    errors: u64,
    p95: String,
}

/// The environment that the operation was about, where it is still there.
struct Subject {
    name: String,
    href: String,
    url: Option<String>,
    address: Option<String>,
}

#[derive(Template)]
#[template(path = "operation.html")]
struct Page {
    shell: Shell,
    part: Part,
}

#[derive(Template)]
#[template(path = "operation_part.html")]
struct Part {
    id: String,
    title: String,
    parent: Option<(String, String)>,
    subject: Option<Subject>,
    mark: Mark,
    is_final: bool,
    done: bool,
    created: When,
    took: String,
    steps: Vec<Step>,
    report: Option<Report>,
    switched: Option<When>,
    moved: Vec<Moved>,
    traffic: Option<TrafficLine>,
    problem: Option<Problem>,
    notices: Vec<String>,
    csrf: String,
}

/// One operation: its page, or what is inside where only that is wanted.
pub(super) async fn show(
    context: Context,
    Path(operation): Path<String>,
) -> Result<Response, Failure> {
    let operation = context.web.platform.operation(parse(&operation)?).await?;
    let part = draw(&context, &operation).await?;
    if !context.wants_part() {
        let shell = context.shell(part.title.clone());
        return html(&Page { shell, part });
    }
    let mut response = html(&part)?;
    // In a dialog: from now on the page is the operation's, also after a reload.
    if !context.wants(PART)
        && let Ok(address) = HeaderValue::from_str(&format!("/operations/{}", operation.id))
    {
        response.headers_mut().insert(HX_PUSH_URL, address);
    }
    Ok(response)
}

async fn draw(context: &Context, operation: &Operation) -> Result<Part, Failure> {
    let now = Timestamp::now();
    let environments = context.web.platform.environments().await?;
    let subject = environments
        .iter()
        .find(|env| operation.environment.as_ref() == Some(&env.id))
        .map(|env| Subject {
            name: env.name.clone(),
            href: format!("/environments/{}", encode(&env.name)),
            url: env.url.as_deref().and_then(web_address).map(str::to_owned),
            address: env.url.as_deref().map(|url| bare_address(url).to_owned()),
        });
    let title = match &operation.parent {
        Some(parent) => format!("Clone {parent} as {}", operation.subject),
        None => format!("{} {}", kind(operation.kind), operation.subject),
    };
    Ok(Part {
        id: operation.id.to_string(),
        title,
        parent: operation
            .parent
            .clone()
            .map(|name| (format!("/environments/{}", encode(&name)), name)),
        subject,
        mark: state_mark(operation.state),
        is_final: operation.state.is_final(),
        done: operation.state == OperationState::Done,
        created: When::new(operation.created, now),
        took: took(operation, now),
        steps: steps(&operation.steps),
        report: operation.report.as_ref().map(|of| report(of, now)),
        switched: operation
            .swap
            .as_ref()
            .and_then(|swap| swap.switched)
            .map(|at| When::new(at, now)),
        moved: operation
            .swap
            .iter()
            .flat_map(|swap| &swap.moved)
            .map(|moved| Moved {
                domain: Domain {
                    host: moved.host.clone(),
                    path: moved.path.clone(),
                }
                .to_string(),
                from: moved.from.clone(),
                to: moved.to.clone(),
            })
            .collect(),
        traffic: operation.traffic.as_ref().map(|of| traffic(of, now)),
        problem: operation.problem.clone(),
        notices: operation.notices.clone(),
        csrf: context.session.csrf().to_owned(),
    })
}

fn traffic(of: &TrafficReport, now: Timestamp) -> TrafficLine {
    let side = |name: &str, figures: &Option<Figures>| {
        let figures = figures.as_ref()?;
        Some(SideFigures {
            name: name.to_owned(),
            requests: figures.requests,
            errors: figures.errors,
            p95: figures.p95_ms.map_or_else(
                || "–".to_owned(),
                |ms| duration((ms * 1e3).round().max(0.0) as u64),
            ),
        })
    };
    let old = side(&of.old, &of.old_figures);
    let new = side(&of.new, &of.new_figures);
    TrafficLine {
        new: of.new.clone(),
        percent: of.percent,
        figures: old.into_iter().chain(new).collect(),
        keep_until: of.keep_until.map(|at| When::new(at, now)),
    }
}

/// Thousandths of a whole, at most all of it.
fn share(part: u64, whole: u64) -> u64 {
    (part.min(whole)).saturating_mul(1_000) / whole.max(1)
}

fn steps(records: &[StepRecord]) -> Vec<Step> {
    let whole: u64 = records.iter().filter_map(|step| step.us).sum();
    let mut from = 0;
    let mut steps = Vec::with_capacity(records.len());
    for record in records {
        let bar = record.us.map(|us| {
            let begin = from;
            from += us;
            Bar {
                name: record.name.clone(),
                mood: step_mark(record.state).mood,
                from: share(begin, whole).min(1_000 - BAR_MIN),
                length: share(us, whole).max(BAR_MIN),
                text: duration(us),
            }
        });
        steps.push(Step {
            name: record.name.clone(),
            mark: step_mark(record.state),
            time: record.us.map(duration).unwrap_or_default(),
            bar,
            progress: record.progress.as_ref().map(|progress| Progress {
                text: amount(progress),
                done: (progress.total > 0).then(|| share(progress.done, progress.total)),
            }),
        });
    }
    steps
}

fn step_mark(state: StepState) -> Mark {
    match state {
        StepState::Pending => mark("not begun", "off"),
        StepState::Running => mark("running", "busy"),
        StepState::Done => mark("done", "good"),
        StepState::Failed => mark("failed", "bad"),
        StepState::Undone => mark("taken back", "warn"),
    }
}

fn amount(progress: &offshoot_model::operation::Progress) -> String {
    let number = |value: u64| match progress.unit.as_str() {
        "bytes" => bytes(value),
        _ => value.to_string(),
    };
    let unit = match progress.unit.as_str() {
        "bytes" => String::new(),
        unit => format!(" {unit}"),
    };
    let counted = if progress.total > 0 {
        format!(
            "{} of {}{unit}",
            number(progress.done),
            number(progress.total)
        )
    } else {
        format!("{}{unit}", number(progress.done))
    };
    if progress.note.is_empty() {
        counted
    } else {
        format!("{counted} · {}", progress.note)
    }
}

fn report(of: &CloneReport, now: Timestamp) -> Report {
    let (beside, frozen): (Vec<_>, Vec<_>) = of
        .parts
        .iter()
        .partition(|part| BESIDE.contains(&part.what.as_str()));
    let beside = beside
        .iter()
        .map(|part| format!("{} {}", part.what, duration(part.us)));
    let whole: u64 = frozen.iter().map(|part| part.us).sum();
    let mut from = 0;
    let parts = frozen.into_iter().map(|part| {
        let begin = from;
        from += part.us;
        Bar {
            name: part.what.clone(),
            mood: "freeze",
            from: share(begin, whole).min(1_000 - BAR_MIN),
            length: share(part.us, whole).max(BAR_MIN),
            text: duration(part.us),
        }
    });
    let parts = parts.collect();
    let dash = |us: u64| {
        if us > 0 {
            duration(us)
        } else {
            "–".to_owned()
        }
    };
    let nodes = of.nodes.iter().map(|node| {
        let (rung, mood) = match node.rung {
            Rung::Live => ("live", "good"),
            Rung::Disk => ("disk", "warn"),
            Rung::Image => ("image", "off"),
            Rung::Stopped => ("stopped", "off"),
        };
        NodeLine {
            name: node.node.clone(),
            rung,
            mood,
            way: node.memory.as_ref().map_or("–", |memory| memory.way.name()),
            memory: if node.memory_bytes > 0 {
                bytes(node.memory_bytes)
            } else {
                "–".to_owned()
            },
            freeze: dash(node.freeze_us),
            restore: dash(node.restore_us),
            why: node.why.clone(),
        }
    });
    Report {
        freeze: duration(of.freeze_us),
        predicted: of.predicted_us.map(duration),
        ready: of.ready_us.map(duration),
        memory: bytes(of.memory_bytes),
        frozen: bytes(of.frozen_bytes),
        cut: of.cut.map(|cut| When::new(cut, now)),
        parts,
        beside: beside.collect::<Vec<_>>().join(", "),
        nodes: nodes.collect(),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Nothing {}

/// Asks an operation to stop.
pub(super) async fn cancel(
    context: Context,
    Path(operation): Path<String>,
    _form: Form<Nothing>,
) -> Result<Response, Failure> {
    let id = parse(&operation)?;
    let platform = Arc::clone(&context.web.platform);
    match tokio::spawn(async move { platform.cancel(id).await }).await {
        Ok(outcome) => outcome.map(drop)?,
        Err(error) => {
            return Err(Problem::internal(format!("a cancel broke off: {error}")).into());
        }
    }
    Ok(Redirect::to(&format!("/operations/{id}")).into_response())
}

/// What is no id names no operation.
fn parse(text: &str) -> Result<OperationId, Failure> {
    text.parse().map_err(|_| {
        Problem::new(
            Code::OperationUnknown,
            Fault::Request,
            format!("there is no operation {text:?}"),
            "go to the list of operations",
        )
        .into()
    })
}
