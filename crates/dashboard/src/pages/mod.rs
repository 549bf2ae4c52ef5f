//! The pages, a file for each group.

mod certificates;
mod change;
mod changes;
mod clone;
mod compare;
mod environment;
mod environments;
mod events;
mod family;
mod files;
mod graphs;
mod health;
mod logs;
mod operations;
mod sign_in;
mod terminal;
mod topology;
mod traffic;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use http::Uri;
use offshoot_model::environment::Health;
use offshoot_model::view::EnvironmentView;
use offshoot_model::{Code, EnvironmentState, Fault, NodeState, Operation, Problem};
use offshoot_operations::Request as Change;
use std::sync::Arc;

use crate::answer::{self, Failure};
use crate::{Web, assets, gate, live};

/// All paths, behind the gate.
pub(crate) fn router(web: Web) -> Router {
    let pages = Router::new()
        .route("/", get(environments::list))
        .route("/live", get(live::follow))
        .route("/examples/{example}", post(change::create_example))
        .route("/environments/{environment}", get(environment::show))
        .route(
            "/environments/{environment}/clone",
            get(clone::form).post(clone::submit),
        )
        .route("/environments/{environment}/clone/name", get(clone::name))
        .route(
            "/environments/{environment}/rename",
            get(change::rename_form).post(change::rename),
        )
        .route(
            "/environments/{environment}/remove",
            get(change::remove_form).post(change::remove),
        )
        .route("/environments/{environment}/start", post(change::start))
        .route("/environments/{environment}/stop", post(change::stop))
        .route("/environments/{environment}/release", post(change::release))
        .route("/environments/{environment}/logs", get(logs::show))
        .route("/environments/{environment}/logs/follow", get(logs::follow))
        .route("/environments/{environment}/logs.txt", get(logs::download))
        .route("/environments/{environment}/files", get(files::show))
        .route(
            "/environments/{environment}/files/download",
            get(files::fetch),
        )
        .route("/environments/{environment}/events", get(events::show))
        .route("/environments/{environment}/graphs", get(graphs::show))
        .route("/environments/{environment}/terminal", get(terminal::show))
        .route(
            "/environments/{environment}/nodes/{node}/terminal",
            get(terminal::connect),
        )
        .route("/compare", get(compare::show))
        .route("/compare/changes", get(changes::show))
        .route("/certificates", get(certificates::list))
        .route("/certificates/root.pem", get(certificates::root))
        .route(
            "/certificates/add",
            get(certificates::add_form).post(certificates::add),
        )
        .route("/certificates/renew", post(certificates::renew))
        .route(
            "/certificates/remove",
            get(certificates::remove_form).post(certificates::remove),
        )
        .route("/operations", get(operations::list))
        .route("/operations/{operation}", get(operations::show))
        .route("/operations/{operation}/cancel", post(operations::cancel))
        .route("/sign-out", post(sign_in::sign_out))
        .route("/theme", post(sign_in::theme))
        .merge(traffic::router())
        .fallback(unknown)
        .layer(from_fn_with_state(web.clone(), answer::dress))
        .layer(from_fn(gate::signed_in));
    Router::new()
        .route(gate::SIGN_IN, get(sign_in::form).post(sign_in::sign_in))
        .route("/assets/{version}/{name}", get(assets::serve))
        .merge(pages)
        .layer(from_fn_with_state(web.clone(), gate::guard))
        .with_state(web)
}

async fn unknown(uri: Uri) -> Failure {
    Problem::new(
        Code::NotFound,
        Fault::Request,
        format!("there is no page {}", uri.path()),
        "go to the list of environments",
    )
    .into()
}

/// Has the platform take up a change, also when the browser goes away meanwhile.
async fn submit(web: &Web, change: Change) -> Result<Operation, Failure> {
    let platform = Arc::clone(&web.platform);
    match tokio::spawn(async move { platform.submit(change).await }).await {
        Ok(outcome) => Ok(outcome?),
        Err(error) => Err(Problem::internal(format!("a request broke off: {error}")).into()),
    }
}

/// The environment of that name or id, as in the list.
async fn find(web: &Web, environment: &str) -> Result<EnvironmentView, Failure> {
    let all = web.platform.environments().await?;
    let found = all
        .iter()
        .find(|env| env.name == environment)
        .or_else(|| all.iter().find(|env| env.id.as_str() == environment));
    web.meter.survey(&web.platform, &all);
    found.cloned().ok_or_else(|| {
        Problem::new(
            Code::EnvironmentUnknown,
            Fault::Request,
            format!("there is no environment {environment:?}"),
            "go to the list of environments; it may have been renamed or removed",
        )
        .into()
    })
}

/// A state as a word with a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    word: &'static str,
    /// A class of the style sheet: `good`, `busy`, `warn`, `bad` or `off`.
    mood: &'static str,
}

const fn mark(word: &'static str, mood: &'static str) -> Mark {
    Mark { word, mood }
}

/// Custom domains that lead to an environment, without former names that lead elsewhere.
fn custom_domains(environment: &EnvironmentView) -> Vec<String> {
    let domains = environment.domains.iter();
    domains
        .filter(|domain| domain.redirect.is_none())
        .map(|domain| domain.domain().to_string())
        .collect()
}

/// Whether an environment can be asked for a change now.
fn settled(environment: &EnvironmentView) -> bool {
    matches!(
        environment.state,
        EnvironmentState::Running | EnvironmentState::Stopped
    )
}

fn environment_mark(environment: &EnvironmentView) -> Mark {
    match environment.state {
        EnvironmentState::Creating => mark("creating", "busy"),
        EnvironmentState::Removing => mark("removing", "busy"),
        EnvironmentState::Broken => mark("broken", "bad"),
        EnvironmentState::Stopped if environment.healthy => mark("stopped", "off"),
        EnvironmentState::Running if environment.healthy => mark("running", "good"),
        _ if environment.operation.is_some() => mark("changing", "busy"),
        EnvironmentState::Stopped => mark("not all stopped", "warn"),
        EnvironmentState::Running => mark("unwell", "warn"),
    }
}

fn node_mark(state: &NodeState) -> Mark {
    match state {
        NodeState::Stopped => mark("stopped", "off"),
        NodeState::Starting => mark("starting", "busy"),
        NodeState::Frozen { .. } => mark("frozen", "busy"),
        NodeState::Exited { status: 0, .. } => mark("ended", "off"),
        NodeState::Exited { .. } => mark("failed", "bad"),
        NodeState::Running { health, .. } => match health {
            Health::None => mark("running", "good"),
            Health::Healthy => mark("healthy", "good"),
            Health::Starting => mark("starting", "busy"),
            Health::Unhealthy => mark("unhealthy", "bad"),
        },
    }
}
