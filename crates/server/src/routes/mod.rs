//! The paths of the API.

mod certificates;
mod disks;
mod domains;
mod environments;
mod events;
mod exec;
mod files;
mod host;
mod images;
mod logs;
mod operations;
mod traffic;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Router};
use http::{Method, StatusCode, Uri};
use offshoot_dashboard::Dashboard;
use offshoot_model::{Code, Fault, Problem};
use offshoot_operations::{Request as Change, SharedPlatform};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{Accepted, ApiError, detached};
use crate::gate::{self, Gate};

/// Where the API begins.
pub(crate) const PREFIX: &str = "/api/v1";
/// Streams (events, logs, files, exec) at a time, all clients together.
pub(crate) const STREAMS_MAX: usize = 256;
/// Longest time until an answer begins; uploads are bounded by their pieces instead.
const ANSWER_TIME: Duration = Duration::from_secs(110);

/// What handlers share.
#[derive(Clone)]
pub(crate) struct Api {
    platform: SharedPlatform,
    instance: Arc<str>,
    dashboard: Option<Dashboard>,
    stop: CancellationToken,
    streams: Arc<Semaphore>,
}

impl Api {
    pub(crate) fn new(
        platform: SharedPlatform,
        instance: String,
        dashboard: Option<Dashboard>,
    ) -> Self {
        Self {
            platform,
            instance: instance.into(),
            dashboard,
            stop: CancellationToken::new(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }

    /// Cancelled when the daemon ends: streams end too.
    pub(crate) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Room for streams.
    pub(crate) fn streams(&self) -> Arc<Semaphore> {
        Arc::clone(&self.streams)
    }

    /// Has the platform take up a change.
    async fn submit(&self, change: Change) -> Result<Accepted, ApiError> {
        let platform = Arc::clone(&self.platform);
        detached(async move { platform.submit(change).await })
            .await
            .map(Accepted)
    }

    /// Room for one stream, held for as long as it lasts.
    fn stream(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            let problem = Problem::new(
                Code::Busy,
                Fault::Request,
                format!("{STREAMS_MAX} streams are open already"),
                "end some of the commands, logs or event streams that are running",
            );
            ApiError::with_status(StatusCode::SERVICE_UNAVAILABLE, problem)
        })
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Offshoot",
        description = "Runs application environments and clones them alive. Errors are `Problem` documents with a \
            stable code. Changes that take time answer 202 with an operation and its place in `Location`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    servers((url = "http://localhost", description = "The unix socket, or loopback TCP with the token")),
    modifiers(&Token),
    security((), ("token" = [])),
    components(schemas(
        Problem,
        offshoot_model::view::Event,
        offshoot_model::view::LogLine,
        offshoot_model::view::ExecRequest,
        exec::Control,
        exec::End,
    )),
    tags(
        (name = "environments", description = "Environments and what is done to them"),
        (name = "nodes", description = "Inside the nodes: commands, files, output"),
        (name = "operations", description = "Changes under way and past"),
        (name = "certificates", description = "Certificates for HTTPS"),
        (name = "images", description = "Images in the pool"),
        (name = "host", description = "The host and the daemon"),
    ),
)]
struct Document;

/// The token of the API over TCP.
struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", scheme);
    }
}

fn api_router() -> OpenApiRouter<Api> {
    let bounded = OpenApiRouter::new()
        .routes(routes!(environments::list, environments::create))
        .routes(routes!(environments::show, environments::remove))
        .routes(routes!(environments::manifest))
        .routes(routes!(environments::clone))
        .routes(routes!(environments::rename))
        .routes(routes!(environments::hold))
        .routes(routes!(environments::start))
        .routes(routes!(environments::stop))
        .routes(routes!(environments::plan))
        .routes(routes!(domains::list, domains::add))
        .routes(routes!(domains::remove))
        .routes(routes!(domains::swap))
        .routes(routes!(domains::https))
        .routes(routes!(certificates::list, certificates::add))
        .routes(routes!(certificates::authority))
        .routes(routes!(certificates::remove))
        .routes(routes!(certificates::renew))
        .routes(routes!(traffic::show, traffic::set, traffic::clear))
        .routes(routes!(traffic::back))
        .routes(routes!(traffic::ramp))
        .routes(routes!(traffic::promote))
        .routes(routes!(disks::changes))
        .routes(routes!(disks::list))
        .routes(routes!(logs::follow))
        .routes(routes!(exec::run))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show))
        .routes(routes!(operations::cancel))
        .routes(routes!(events::follow))
        .routes(routes!(images::list, images::pull))
        .routes(routes!(images::remove))
        .routes(routes!(host::pool))
        .routes(routes!(host::grow))
        .routes(routes!(host::doctor))
        .routes(routes!(host::version))
        .routes(routes!(host::login_link))
        .routes(routes!(host::openapi))
        .layer(from_fn(in_time));
    let files = OpenApiRouter::new().routes(routes!(files::copy_out, files::copy_in));
    OpenApiRouter::with_openapi(Document::openapi()).nest(PREFIX, bounded.merge(files))
}

/// The OpenAPI document, made from the handlers.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    api_router().into_openapi()
}

/// All paths, behind the gate.
pub(crate) fn router(api: Api, gate: Arc<Gate>) -> Router {
    let (router, document) = api_router().split_for_parts();
    let document = host::Document(
        document
            .to_json()
            .unwrap_or_else(|error| error.to_string())
            .into(),
    );
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(Extension(document))
        .layer(from_fn_with_state(gate, gate::check))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(log))
        .with_state(api)
}

async fn unknown_path(uri: Uri) -> ApiError {
    Problem::new(
        Code::NotFound,
        Fault::Request,
        format!("there is no {} here", uri.path()),
        "see docs/api.md or GET /api/v1/openapi.json for the paths there are",
    )
    .into()
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let problem = Problem::new(
        Code::BadRequest,
        Fault::Request,
        format!("{} does not take {method}", uri.path()),
        "use one of the methods in the header Allow",
    );
    ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, problem)
}

async fn in_time(request: Request, next: Next) -> Response {
    match timeout(ANSWER_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let problem = Problem::new(
                Code::Busy,
                Fault::Host,
                format!(
                    "the daemon has not come to an answer within {} s",
                    ANSWER_TIME.as_secs()
                ),
                "look at the daemon's log and at the load of the host, then try again",
            );
            ApiError::with_status(StatusCode::GATEWAY_TIMEOUT, problem).into_response()
        }
    }
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    ApiError::from(Problem::internal("the request met a defect").detail(text)).into_response()
}

async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let begun = Instant::now();
    let response = next.run(request).await;
    tracing::debug!(%method, path, status = response.status().as_u16(), us = begun.elapsed().as_micros(), "answered");
    response
}
