//! Traffic of an environment: which domains lead to it, who answers how much and how well, and what is done about it.

mod bounds;
mod checks;
mod clear;
mod copies;
mod domains;
mod figures;
mod matter;
mod policy;
mod read;
mod rules;
mod split;
mod swap;
mod ways;

use askama::Template;
use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use offshoot_model::quantity::parse_duration_ms;
use offshoot_model::traffic::Policy;
use offshoot_model::view::EnvironmentView;
use offshoot_model::{Code, Fault, Problem};
use std::sync::Arc;

use super::change::Nothing;
use super::{Mark, environment_mark, find, settled};
use crate::Web;
use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::{When, encode};
use domains::Domains;
pub(super) use domains::certificate_mark;

/// Element that holds what changes.
const PART: &str = "traffic";

/// Its paths.
pub(super) fn router() -> Router<Web> {
    let matters = [&checks::MATTER, &copies::MATTER, &bounds::MATTER];
    matters
        .into_iter()
        .fold(Router::new(), matter::route)
        .route(
            "/environments/{environment}/traffic/rules",
            get(rules::form).post(rules::submit),
        )
        .route(
            "/environments/{environment}/traffic/clear",
            get(clear::form).post(clear::submit),
        )
        .route("/environments/{environment}/traffic", get(show))
        .route("/environments/{environment}/traffic/back", post(back))
        .route(
            "/environments/{environment}/traffic/domains/add",
            get(domains::add_form).post(domains::add),
        )
        .route(
            "/environments/{environment}/traffic/domains/remove",
            get(domains::remove_form).post(domains::remove),
        )
        .route(
            "/environments/{environment}/traffic/domains/https",
            post(domains::https),
        )
        .route(
            "/environments/{environment}/traffic/swap",
            get(swap::form).post(swap::submit),
        )
        .route(
            "/environments/{environment}/traffic/split",
            get(split::form).post(split::submit),
        )
        .route(
            "/environments/{environment}/traffic/ramp",
            get(ways::ramp_form).post(ways::ramp),
        )
        .route(
            "/environments/{environment}/traffic/promote",
            get(ways::promote_form).post(ways::promote),
        )
}

#[derive(Template)]
#[template(path = "traffic.html")]
struct Page {
    shell: Shell,
    part: Part,
}

#[derive(Template)]
#[template(path = "traffic_part.html")]
struct Part {
    name: String,
    href: String,
    csrf: String,
    mark: Mark,
    operation: Option<String>,
    settled: bool,
    /// Whether there is another environment that could answer.
    others: bool,
    /// With whom the last exchange of domains can be taken back.
    undo: Option<(String, String)>,
    domains: Domains,
    /// What the policy says, with where each matter is changed.
    settings: Vec<policy::Setting>,
    /// Whether there is anything to clear.
    has_settings: bool,
    has_policy: bool,
    sides: Vec<figures::Side>,
    since: Option<When>,
    refused: u64,
    goals: Vec<figures::Goal>,
    checked: bool,
    /// Whether a side is up and waits for a person.
    waits: bool,
    changes: Vec<figures::Change>,
    mirror_of: Option<String>,
    mirror: Option<figures::Mirror>,
    uncounted: Option<String>,
}

/// Traffic of an environment, or what changes of its page where only that is wanted.
async fn show(context: Context, Path(environment): Path<String>) -> Result<Response, Failure> {
    let part = draw(&context, &environment).await?;
    if context.wants(PART) {
        return html(&part);
    }
    html(&Page {
        shell: context.shell(format!("Traffic of {}", part.name)),
        part,
    })
}

async fn draw(context: &Context, environment: &str) -> Result<Part, Failure> {
    let now = Timestamp::now();
    let platform = &context.web.platform;
    let found = find(&context.web, environment).await?;
    let view = platform.traffic(&found.name).await?;
    let certificates = platform.certificates().await?;
    let others = others(context, &found).await?;
    let undo = swap::last(context, &found).await?;
    let href = format!("/environments/{}", encode(&found.name));
    Ok(Part {
        csrf: context.session.csrf().to_owned(),
        mark: environment_mark(&found),
        operation: found.operation.map(|id| id.to_string()),
        settled: settled(&found),
        others: !others.is_empty(),
        undo: undo.map(|name| {
            (
                format!("{href}/traffic/swap?back=yes&with={}", encode(&name)),
                name,
            )
        }),
        domains: domains::draw(&found, &certificates, now),
        settings: policy::settings(&view.policy),
        has_settings: view.policy != Policy::default(),
        has_policy: !view.policy.sides.is_empty(),
        sides: figures::sides(&view, now),
        since: view.since.map(|since| When::new(since, now)),
        refused: view.refused,
        goals: figures::goals(&view),
        checked: view.policy.failover.is_some(),
        waits: view.sides.iter().any(|side| {
            let health = side.health.as_ref();
            health.is_some_and(|health| health.up && !health.takes)
        }),
        changes: figures::changes(&view.changes, now),
        mirror_of: view.policy.mirror.as_ref().map(|mirror| {
            let share = f64::from(mirror.permille) / 10.0;
            format!(
                "{share} % of the requests are copied to {}",
                mirror.environment
            )
        }),
        mirror: view
            .mirror
            .as_ref()
            .map(|stats| figures::mirror(stats, now)),
        uncounted: view.uncounted,
        name: found.name,
        href,
    })
}

/// Names of all other environments that people can reach: the parent first, then its clones, then the rest.
async fn others(context: &Context, environment: &EnvironmentView) -> Result<Vec<String>, Failure> {
    let all = context.web.platform.environments().await?;
    let distance = |other: &EnvironmentView| {
        let is_of = |of: &EnvironmentView, parent: &EnvironmentView| {
            of.parent.as_ref().is_some_and(|one| one.id == parent.id)
        };
        match () {
            () if is_of(environment, other) => 0,
            () if is_of(other, environment) => 1,
            () => 2,
        }
    };
    let mut others: Vec<_> = all
        .iter()
        .filter(|other| other.id != environment.id && settled(other))
        .filter(|other| other.layers.iter().any(|layer| layer.entry.is_some()))
        .collect();
    others.sort_by_key(|other| distance(other));
    Ok(others.into_iter().map(|other| other.name.clone()).collect())
}

/// Lets sides that are up take requests again.
async fn back(
    context: Context,
    Path(environment): Path<String>,
    _form: Form<Nothing>,
) -> Result<Response, Failure> {
    let platform = Arc::clone(&context.web.platform);
    let name = environment.clone();
    // To its end, also when the browser goes away meanwhile.
    match tokio::spawn(async move { platform.traffic_back(&name).await }).await {
        Ok(outcome) => outcome.map(drop)?,
        Err(error) => {
            return Err(Problem::internal(format!("bringing back broke off: {error}")).into());
        }
    }
    let href = format!("/environments/{}/traffic", encode(&environment));
    Ok(Redirect::to(&href).into_response())
}

/// Something in a form that cannot be.
fn bad(what: impl Into<String>, next: &str) -> Problem {
    Problem::new(Code::BadRequest, Fault::Request, what, next)
}

/// A time that was typed; nothing is nothing.
fn time(what: &str, text: &str) -> Result<Option<u64>, Problem> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    parse_duration_ms(text).map(Some).map_err(|why| {
        bad(
            format!("{what}: {why}"),
            "correct it, or leave it empty for what is usual",
        )
    })
}

/// A number that was typed; nothing is nothing.
fn number<T: std::str::FromStr>(what: &str, text: &str) -> Result<Option<T>, Problem> {
    let text = text.trim().trim_end_matches('%').trim_end();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        bad(
            format!("{what}: {text:?} is not such a number"),
            "correct it, or leave it empty for what is usual",
        )
    })
}
