//! Cloning: what would come along and how, the name, the options, and the start.

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use offshoot_model::name::ENV_NAME_MAX;
use offshoot_model::quantity::parse_duration_ms;
use offshoot_model::view::{CloneRequest, PlanView};
use offshoot_model::{
    Code, EnvName, Hold, OperationKind, OperationState, Problem, Rung, RungChoice,
};
use offshoot_operations::Request as Change;
use serde::Deserialize;

use super::change::to;
use super::{custom_domains, find};
use crate::Web;
use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::{bare_address, bytes, duration, encode};

/// Operations that are searched for the last clone of an environment.
const LOOK_BACK: usize = 200;

/// What was typed or chosen.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Choice {
    name: Option<String>,
    rung: String,
    max_freeze: String,
    /// Each is not empty when it was ticked.
    hold_mail: String,
    hold_jobs: String,
    no_start: String,
}

impl Choice {
    /// What it asks for.
    fn request(&self) -> Result<CloneRequest, Problem> {
        let bad = |what: String, next: &str| {
            Problem::new(Code::BadRequest, offshoot_model::Fault::Request, what, next)
        };
        let rung = match self.rung.as_str() {
            "" | "auto" => RungChoice::Auto,
            "live" => RungChoice::Live,
            "disk" => RungChoice::Disk,
            "image" => RungChoice::Image,
            other => {
                return Err(bad(
                    format!("nodes cannot be copied as {other:?}"),
                    "choose one of those that are offered",
                ));
            }
        };
        let max_freeze = self.max_freeze.trim();
        let max_freeze_ms = match max_freeze {
            "" => None,
            text => Some(parse_duration_ms(text).map_err(|why| {
                bad(
                    why,
                    "give the longest freeze as 500ms or 2s, or leave it empty",
                )
            })?),
        };
        Ok(CloneRequest {
            name: self.typed().map(str::to_owned),
            rung,
            max_freeze_ms,
            start: self.no_start.is_empty(),
            hold: self.hold(),
        })
    }

    fn hold(&self) -> Hold {
        Hold {
            mail: !self.hold_mail.is_empty(),
            jobs: !self.hold_jobs.is_empty(),
        }
    }

    fn typed(&self) -> Option<&str> {
        self.name
            .as_deref()
            .map(str::trim)
            .filter(|name| !name.is_empty())
    }
}

#[derive(Template)]
#[template(path = "clone.html")]
struct Page {
    shell: Shell,
    form: CloneForm,
}

#[derive(Template)]
#[template(path = "clone_part.html")]
struct Part {
    form: CloneForm,
}

struct CloneForm {
    parent: String,
    href: String,
    csrf: String,
    name: String,
    name_check: NameCheck,
    rung: &'static str,
    max_freeze: String,
    hold: Hold,
    no_start: bool,
    options_open: bool,
    plan: Option<Plan>,
    problem: Option<Problem>,
}

/// What would be done.
struct Plan {
    address: Option<String>,
    layers: Vec<PlannedLayer>,
    volumes: Vec<(String, &'static str)>,
    ports: Vec<String>,
    notices: Vec<String>,
    memory: Option<String>,
    /// How long all nodes are expected to stand still together.
    freeze: Option<String>,
    /// Whether any node stands still.
    stands_still: bool,
    /// What the last clone of this environment measured.
    last_freeze: Option<String>,
    not_carried: Vec<String>,
}

struct PlannedLayer {
    name: String,
    nodes: usize,
    rung: &'static str,
    mood: &'static str,
    /// How, a sentence.
    how: &'static str,
    memory: Option<String>,
    /// Why not better.
    why: Option<String>,
}

/// Whether a name can be had.
#[derive(Template)]
#[template(path = "clone_name.html")]
struct NameCheck {
    good: bool,
    text: String,
}

fn check_name(name: &str, taken: bool) -> NameCheck {
    let (good, text) = match name.parse::<EnvName>() {
        Err(_) if name.is_empty() => (true, "Left empty, a name is chosen.".to_owned()),
        Err(_) => (
            false,
            format!(
                "Lower-case letters, digits and hyphens, no hyphen at either end, at most {ENV_NAME_MAX}."
            ),
        ),
        Ok(_) if taken => (false, format!("There is an environment {name} already.")),
        Ok(_) => (true, "This name is free.".to_owned()),
    };
    NameCheck { good, text }
}

/// Looks at a name while it is typed.
pub(super) async fn name(
    State(web): State<Web>,
    _context: Context,
    Path(_environment): Path<String>,
    Query(choice): Query<Choice>,
) -> Result<Response, Failure> {
    let name = choice.typed().unwrap_or_default().to_owned();
    html(&check_name(&name, is_taken(&web, &name).await?))
}

async fn is_taken(web: &Web, name: &str) -> Result<bool, Failure> {
    if name.parse::<EnvName>().is_err() {
        return Ok(false);
    }
    match web.platform.domains(name).await {
        Ok(_) => Ok(true),
        Err(problem) if problem.code == Code::EnvironmentUnknown => Ok(false),
        Err(problem) => Err(problem.into()),
    }
}

/// The form, with the plan for what is chosen so far.
pub(super) async fn form(
    context: Context,
    Path(environment): Path<String>,
    Query(choice): Query<Choice>,
) -> Result<Response, Failure> {
    show(&context, &environment, choice, None).await
}

/// Has what is chosen begun.
async fn begin(context: &Context, environment: &str, choice: &Choice) -> Result<Response, Failure> {
    let change = Change::Clone(environment.to_owned(), choice.request()?);
    Ok(to(&super::submit(&context.web, change).await?))
}

/// Takes the form. What is wrong with it is said in it.
pub(super) async fn submit(
    context: Context,
    Path(environment): Path<String>,
    Form(choice): Form<Choice>,
) -> Result<Response, Failure> {
    match begin(&context, &environment, &choice).await {
        Ok(response) => Ok(response),
        Err(failure) => show(&context, &environment, choice, Some(failure.problem)).await,
    }
}

async fn show(
    context: &Context,
    environment: &str,
    choice: Choice,
    problem: Option<Problem>,
) -> Result<Response, Failure> {
    let parent = find(&context.web, environment).await?;
    let platform = &context.web.platform;
    let planned = match choice.request() {
        // A name that cannot be had is said beside the name; the plan is of interest all the same.
        Ok(mut request) => {
            let name = request.name.clone().unwrap_or_default();
            let taken = is_taken(&context.web, &name).await?;
            let check = check_name(&name, taken);
            if !check.good {
                request.name = None;
            }
            let plan = platform.plan_clone(&parent.name, &request).await;
            plan.map(|plan| (plan, check))
        }
        Err(problem) => Err(problem),
    };
    let (plan, name_check, problem) = match planned {
        Ok((plan, check)) => (Some(plan), check, problem),
        Err(found) => (None, check_name("", false), Some(problem.unwrap_or(found))),
    };
    let name = choice.typed().map(str::to_owned);
    let suggested = plan.as_ref().map(|plan| plan.name.clone());
    let name_check = match (&name, &suggested) {
        (None, Some(suggested)) => check_name(suggested, false),
        _ => name_check,
    };
    let plan = match plan {
        Some(plan) => Some(picture(context, &parent.name, plan).await?),
        None => None,
    };
    let form = CloneForm {
        href: format!("/environments/{}", encode(&parent.name)),
        csrf: context.session.csrf().to_owned(),
        name: name.or(suggested).unwrap_or_default(),
        name_check,
        rung: match choice.rung.as_str() {
            "live" => "live",
            "disk" => "disk",
            "image" => "image",
            _ => "auto",
        },
        options_open: !matches!(choice.rung.as_str(), "" | "auto")
            || !choice.max_freeze.is_empty()
            || choice.hold().any()
            || !choice.no_start.is_empty(),
        hold: choice.hold(),
        no_start: !choice.no_start.is_empty(),
        max_freeze: choice.max_freeze,
        plan: plan.map(|mut plan| {
            let domains = custom_domains(&parent);
            if !domains.is_empty() {
                plan.not_carried
                    .push(format!("custom domains: {}", domains.join(", ")));
            }
            plan
        }),
        problem,
        parent: parent.name,
    };
    if context.wants_part() {
        return html(&Part { form });
    }
    let shell = context.shell(format!("Clone {}", form.parent));
    html(&Page { shell, form })
}

async fn picture(context: &Context, parent: &str, plan: PlanView) -> Result<Plan, Failure> {
    let operations = context.web.platform.operations(LOOK_BACK).await?;
    let last = operations.iter().find(|operation| {
        operation.kind == OperationKind::Clone
            && operation.state == OperationState::Done
            && operation.parent.as_deref() == Some(parent)
    });
    let last_freeze = last
        .and_then(|operation| operation.report.as_ref())
        .filter(|report| report.freeze_us > 0)
        .map(|report| duration(report.freeze_us));
    let stands = |rung| rung != Some(Rung::Stopped);
    let memory: u64 = plan.nodes.iter().filter_map(|node| node.memory_bytes).sum();
    Ok(Plan {
        address: plan.url.as_deref().map(|url| bare_address(url).to_owned()),
        layers: layers(&plan),
        freeze: plan.predicted_freeze_us.map(about),
        stands_still: plan.nodes.iter().any(|node| stands(node.rung)),
        volumes: plan
            .volumes
            .iter()
            .map(|volume| (volume.name.clone(), volume_words(volume.clone)))
            .collect(),
        ports: plan
            .ports
            .iter()
            .map(|binding| {
                let port = binding.port.host_port.unwrap_or_default();
                format!("{port} leads to {}:{}", binding.layer, binding.port.target)
            })
            .collect(),
        notices: plan.notices,
        memory: (memory > 0).then(|| bytes(memory)),
        last_freeze,
        not_carried: Vec::new(),
    })
}

/// An expected time, with no more digits than are meant: `about 150 ms`.
fn about(us: u64) -> String {
    let step = match us {
        0..20_000 => 1_000,
        20_000..1_000_000 => 10_000,
        _ => 100_000,
    };
    duration(us.next_multiple_of(step).max(step))
}

fn volume_words(clone: offshoot_model::manifest::VolumeClone) -> &'static str {
    use offshoot_model::manifest::VolumeClone;
    match clone {
        VolumeClone::Copy => "as of the cut",
        VolumeClone::Empty => "empty",
        VolumeClone::Shared => "shared with the parent",
    }
}

/// Nodes of a layer that come along in the same way are one line.
fn layers(plan: &PlanView) -> Vec<PlannedLayer> {
    let mut lines: Vec<(Option<Rung>, PlannedLayer, u64)> = Vec::new();
    for node in &plan.nodes {
        let layer = node
            .name
            .rsplit_once('-')
            .map_or(node.name.as_str(), |(layer, _)| layer);
        let why = node
            .why
            .clone()
            .or_else(|| node.memory.as_ref().and_then(|memory| memory.why.clone()));
        let known = lines
            .iter_mut()
            .find(|(rung, line, _)| *rung == node.rung && line.name == layer && line.why == why);
        if let Some((_, line, memory)) = known {
            line.nodes += 1;
            *memory += node.memory_bytes.unwrap_or(0);
            continue;
        }
        let (word, mood, how) = match node.rung {
            Some(Rung::Live) => ("live", "good", "Memory and disk; its processes go on."),
            Some(Rung::Disk) => ("disk", "warn", "Disk only; its processes start afresh."),
            Some(Rung::Image) => ("image", "off", "New, from its image."),
            Some(Rung::Stopped) => (
                "stopped",
                "off",
                "Disk only; it stays stopped, as it is now.",
            ),
            None => ("new", "off", "New."),
        };
        lines.push((
            node.rung,
            PlannedLayer {
                name: layer.to_owned(),
                nodes: 1,
                rung: word,
                mood,
                how,
                memory: None,
                why,
            },
            node.memory_bytes.unwrap_or(0),
        ));
    }
    lines
        .into_iter()
        .map(|(_, line, memory)| PlannedLayer {
            memory: (memory > 0).then(|| bytes(memory)),
            ..line
        })
        .collect()
}
