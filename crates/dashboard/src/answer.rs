//! What goes in and out: pages, forms, problems.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body_util::{BodyExt as _, Limited};
use offshoot_model::{Code, Fault, Problem};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::Web;
use crate::context::{Context, Shell};
use crate::sessions::Session;

/// Largest form in bytes.
const FORM_MAX: usize = 64 << 10;
/// Longest time for a form to arrive.
const FORM_TIME: Duration = Duration::from_secs(30);

/// A problem as the answer to a request. What it looks like is decided where the request is known: [`dress`].
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) problem: Problem,
    status: StatusCode,
}

impl Failure {
    /// A form that is not from one of this person's pages, or not understood.
    fn form(status: StatusCode, what: &str, next: &str) -> Self {
        Self {
            problem: Problem::new(Code::BadRequest, Fault::Request, what, next),
            status,
        }
    }

    /// A request that is not understood.
    pub(crate) fn bad_request(what: impl Into<String>, next: &str) -> Self {
        Problem::new(Code::BadRequest, Fault::Request, what, next).into()
    }

    /// Nobody is signed in.
    pub(crate) fn signed_out() -> Self {
        Problem::new(
            Code::Unauthorized,
            Fault::Request,
            "nobody is signed in",
            "sign in with a link of `offshoot login-link`",
        )
        .into()
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let status = StatusCode::from_u16(problem.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { problem, status }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self { problem, status } = self;
        if problem.fault == Fault::Offshoot {
            tracing::error!(code = %problem.code, what = problem.what, details = ?problem.details, "a defect");
        }
        let mut response = (status, problem.to_string()).into_response();
        response.extensions_mut().insert(Arc::new(problem));
        response
    }
}

/// Makes a page of a problem, or a part where htmx asked.
pub(crate) async fn dress(State(web): State<Web>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let context = Context::from_request_parts(&mut parts, &web).await;
    let response = next.run(Request::from_parts(parts, body)).await;
    let (Some(problem), Ok(context)) = (response.extensions().get::<Arc<Problem>>(), context)
    else {
        return response;
    };
    let shell = context.shell("A problem");
    let page = if context.wants_part() {
        html(&ProblemPart { problem })
    } else {
        html(&ProblemPage { shell, problem })
    };
    match page {
        Ok(mut page) => {
            *page.status_mut() = response.status();
            page
        }
        Err(_) => response,
    }
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage<'a> {
    shell: Shell,
    problem: &'a Problem,
}

#[derive(Template)]
#[template(path = "problem_part.html")]
pub(crate) struct ProblemPart<'a> {
    pub(crate) problem: &'a Problem,
}

/// A template as text, to be a part of another.
pub(crate) fn rendered(template: &impl Template) -> Result<String, Failure> {
    template
        .render()
        .map_err(|error| Problem::internal(format!("a page could not be made: {error}")).into())
}

/// A rendered template.
pub(crate) fn html(template: &impl Template) -> Result<Response, Failure> {
    let text = rendered(template)?;
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

/// A form that one of this person's pages sent.
#[derive(Debug)]
pub(crate) struct Form<T>(pub(crate) T);

#[derive(Deserialize)]
struct Token {
    csrf: String,
}

impl<T: DeserializeOwned> FromRequest<Web> for Form<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &Web) -> Result<Self, Failure> {
        let session = request.extensions().get::<Session>().cloned();
        let session = session.ok_or_else(Failure::signed_out)?;
        let body = body(request).await?;
        let token = serde_urlencoded::from_bytes::<Token>(&body);
        if !token.is_ok_and(|token| session.sent(&token.csrf)) {
            return Err(Failure::form(
                StatusCode::FORBIDDEN,
                "the form is not from a page of this session",
                "go back, load the page again and send the form again",
            ));
        }
        read(&body).map(Self)
    }
}

/// A form that needs no session.
#[derive(Debug)]
pub(crate) struct OpenForm<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Web> for OpenForm<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &Web) -> Result<Self, Failure> {
        read(&body(request).await?).map(Self)
    }
}

async fn body(request: Request) -> Result<bytes::Bytes, Failure> {
    let kind = request.headers().get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return Err(Failure::form(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "what was sent is no form",
            "send the form of a page; for scripts there is the API",
        ));
    }
    let body = Limited::new(request.into_body(), FORM_MAX).collect();
    match timeout(FORM_TIME, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(Failure::form(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the form is too large or broke off",
            "send it again, with less in it",
        )),
        Err(_) => Err(Failure::form(
            StatusCode::REQUEST_TIMEOUT,
            "the form took too long to arrive",
            "send it again",
        )),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_urlencoded::from_bytes(body).map_err(|error| {
        Failure::bad_request(
            format!("the form is not understood: {error}"),
            "go back, load the page again and send the form again",
        )
    })
}
