//! Exchanging domains with another environment: what leads where now, and what then.

use askama::Template;
use axum::extract::{Path, Query};
use axum::response::Response;
use offshoot_model::domain::Warm;
use offshoot_model::view::{EnvironmentView, SwapRequest};
use offshoot_model::{Operation, OperationState, Problem};
use offshoot_operations::Request as Change;
use serde::Deserialize;

use super::{number, others, time};
use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::{bare_address, encode};
use crate::pages::change::to;
use crate::pages::{custom_domains, find};

/// Operations that are searched for the last exchange.
const LOOK_BACK: usize = 200;

/// What was typed or chosen.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::pages) struct Choice {
    with: String,
    /// `yes`: take the last exchange back.
    back: String,
    paths: String,
    answers: String,
    timeout: String,
}

/// What new sides are asked before they get domains, as people type it.
pub(super) fn warm(paths: &str, answers: &str, timeout: &str) -> Result<Warm, Problem> {
    let usual = Warm::default();
    let typed: Vec<_> = paths.split_whitespace().map(str::to_owned).collect();
    Ok(Warm {
        paths: if typed.is_empty() { usual.paths } else { typed },
        answers: number("good answers in a row", answers)?.unwrap_or(usual.answers),
        timeout_ms: time("the longest warm-up", timeout)?.unwrap_or(usual.timeout_ms),
    })
}

/// A domain before and after.
struct Move {
    domain: String,
    now: String,
    then: String,
}

impl Move {
    fn stays(&self) -> bool {
        self.now == self.then
    }
}

struct SwapForm {
    name: String,
    href: String,
    csrf: String,
    back: bool,
    others: Vec<String>,
    choice: Choice,
    moves: Vec<Move>,
    /// Whether any domain changes hands.
    moving: bool,
    options_open: bool,
    problem: Option<Problem>,
}

#[derive(Template)]
#[template(path = "swap.html")]
struct Page {
    shell: Shell,
    form: SwapForm,
}

#[derive(Template)]
#[template(path = "swap_part.html")]
struct Part {
    form: SwapForm,
}

/// The form, with the preview for who is chosen so far.
pub(in crate::pages) async fn form(
    context: Context,
    Path(environment): Path<String>,
    Query(choice): Query<Choice>,
) -> Result<Response, Failure> {
    show(&context, &environment, choice, None).await
}

/// Takes the form. What is wrong with it is said in it.
pub(in crate::pages) async fn submit(
    context: Context,
    Path(environment): Path<String>,
    Form(choice): Form<Choice>,
) -> Result<Response, Failure> {
    match begin(&context, &environment, &choice).await {
        Ok(operation) => Ok(to(&operation)),
        Err(failure) => show(&context, &environment, choice, Some(failure.problem)).await,
    }
}

async fn begin(
    context: &Context,
    environment: &str,
    choice: &Choice,
) -> Result<Operation, Failure> {
    let request = SwapRequest {
        with: choice.with.clone(),
        back: choice.back == "yes",
        warm: warm(&choice.paths, &choice.answers, &choice.timeout)?,
    };
    let change = Change::Swap(environment.to_owned(), request);
    crate::pages::submit(&context.web, change).await
}

async fn show(
    context: &Context,
    environment: &str,
    mut choice: Choice,
    problem: Option<Problem>,
) -> Result<Response, Failure> {
    let found = find(&context.web, environment).await?;
    let others = others(context, &found).await?;
    if choice.with.is_empty() {
        choice.with = others.first().cloned().unwrap_or_default();
    }
    let (moves, problem) = match find(&context.web, &choice.with).await {
        Ok(other) => (preview(&found, &other), problem),
        Err(_) if choice.with.is_empty() => (Vec::new(), problem),
        Err(failure) => (Vec::new(), Some(problem.unwrap_or(failure.problem))),
    };
    let form = SwapForm {
        href: format!("/environments/{}", encode(&found.name)),
        csrf: context.session.csrf().to_owned(),
        back: choice.back == "yes",
        others,
        moving: moves.iter().any(|one| !one.stays()),
        moves,
        options_open: ![&choice.answers, &choice.timeout]
            .iter()
            .all(|typed| typed.trim().is_empty()),
        choice,
        problem,
        name: found.name,
    };
    if context.wants_part() {
        return html(&Part { form });
    }
    let what = if form.back { "Swap back" } else { "Swap" };
    html(&Page {
        shell: context.shell(format!("{what} {}", form.name)),
        form,
    })
}

/// Every domain of the two, with who has it before and after. Default domains and former names stay.
fn preview(one: &EnvironmentView, other: &EnvironmentView) -> Vec<Move> {
    let mut moves = Vec::new();
    for (from, to) in [(one, other), (other, one)] {
        for view in &from.domains {
            let then = if view.redirect.is_some() { from } else { to };
            moves.push(Move {
                domain: view.domain().to_string(),
                now: from.name.clone(),
                then: then.name.clone(),
            });
        }
    }
    for stays in [one, other] {
        if let Some(url) = &stays.url {
            moves.push(Move {
                domain: bare_address(url).to_owned(),
                now: stays.name.clone(),
                then: stays.name.clone(),
            });
        }
    }
    moves
}

/// With whom the last exchange of an environment's domains was, while it can be taken back: every domain still is where
/// that exchange put it.
pub(super) async fn last(
    context: &Context,
    environment: &EnvironmentView,
) -> Result<Option<String>, Failure> {
    let platform = &context.web.platform;
    let operations = platform.operations(LOOK_BACK).await?;
    let name = &environment.name;
    let last = operations.iter().find_map(|operation| {
        let swap = operation.swap.as_ref()?;
        let done = operation.state == OperationState::Done && swap.switched.is_some();
        let other = match () {
            () if operation.subject == *name => &swap.with,
            () if swap.with == *name => &operation.subject,
            () => return None,
        };
        done.then_some((other, swap))
    });
    let Some((other, swap)) = last else {
        return Ok(None);
    };
    let all = platform.environments().await?;
    let has = |name: &String| {
        let found = all.iter().find(|one| one.name == *name)?;
        let mut domains = custom_domains(found);
        domains.sort_unstable();
        Some(domains)
    };
    let got = |name: &String| {
        let moved = swap.moved.iter().filter(|moved| moved.to == *name);
        let domain = |moved: &offshoot_model::domain::MovedDomain| {
            offshoot_model::domain::Domain {
                host: moved.host.clone(),
                path: moved.path.clone(),
            }
            .to_string()
        };
        let mut domains: Vec<_> = moved.map(domain).collect();
        domains.sort_unstable();
        domains
    };
    let as_then = [name, other]
        .into_iter()
        .all(|name| has(name).is_some_and(|domains| domains == got(name)));
    Ok(as_then.then(|| other.clone()))
}
