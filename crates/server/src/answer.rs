//! What goes in and out: JSON, problems, accepted operations.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use offshoot_model::{Code, Fault, Operation, Problem};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

/// Type of a problem's body (RFC 9457).
const PROBLEM_JSON: &str = "application/problem+json";
/// Largest JSON body in bytes: manifests carry the files that they mount.
pub(crate) const BODY_MAX: usize = 16 << 20;
/// Longest time for a JSON body to arrive.
const BODY_TIME: Duration = Duration::from_secs(60);

/// A problem as the answer to a request.
#[derive(Debug)]
pub(crate) struct ApiError {
    problem: Problem,
    status: StatusCode,
}

impl ApiError {
    /// A problem with a status of HTTP's own, where the code's says too little.
    pub(crate) fn with_status(status: StatusCode, problem: Problem) -> Self {
        Self { problem, status }
    }

    /// A request that is not understood.
    pub(crate) fn bad_request(what: impl Into<String>, next: &str) -> Self {
        Problem::new(Code::BadRequest, Fault::Request, what, next).into()
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        let status = StatusCode::from_u16(problem.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { problem, status }
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(
            rejection.body_text(),
            "see docs/api.md for the parameters of this path",
        )
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request(rejection.body_text(), "percent-encode names as UTF-8")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { problem, status } = self;
        if problem.fault == Fault::Offshoot {
            tracing::error!(code = %problem.code, what = problem.what, details = ?problem.details, "a defect");
        }
        let mut response = (status, axum::Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON body. An empty one means `{}`.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        check_type(request.headers())?;
        let bytes = whole_body(request).await?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|error| {
            ApiError::bad_request(
                format!("the body is not what is expected here: {error}"),
                "see docs/api.md and GET /api/v1/openapi.json for what this path takes",
            )
        })
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(given) = headers.get(CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = given
        .to_str()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let problem = Problem::new(
        Code::BadRequest,
        Fault::Request,
        format!("the body is {given:?}, not JSON"),
        "send JSON with Content-Type: application/json",
    );
    Err(ApiError::with_status(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        problem,
    ))
}

async fn whole_body(request: Request) -> Result<Bytes, ApiError> {
    let declared = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > BODY_MAX as u64) {
        return Err(too_large());
    }
    match timeout(
        BODY_TIME,
        Limited::new(request.into_body(), BODY_MAX).collect(),
    )
    .await
    {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::bad_request(
            format!("the body broke off: {error}"),
            "send the request again",
        )),
        Err(_) => {
            let problem = Problem::new(
                Code::BadRequest,
                Fault::Request,
                format!("the body took more than {} s", BODY_TIME.as_secs()),
                "send the request again, at once",
            );
            Err(ApiError::with_status(StatusCode::REQUEST_TIMEOUT, problem))
        }
    }
}

fn too_large() -> ApiError {
    let problem = Problem::new(
        Code::BadRequest,
        Fault::Request,
        format!("the body is larger than {} MiB", BODY_MAX >> 20),
        "put large files into an image or a volume instead of the manifest",
    );
    ApiError::with_status(StatusCode::PAYLOAD_TOO_LARGE, problem)
}

/// Query parameters; unknown ones are refused by their types.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub(crate) struct Query<T>(pub(crate) T);

/// Parts of the path.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiError))]
pub(crate) struct Path<T>(pub(crate) T);

/// A change that was accepted: 202, with the place where it can be followed.
#[derive(Debug)]
pub(crate) struct Accepted(pub(crate) Operation);

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let location = format!("{}/operations/{}", crate::routes::PREFIX, self.0.id);
        (
            StatusCode::ACCEPTED,
            [(LOCATION, location)],
            axum::Json(self.0),
        )
            .into_response()
    }
}

/// Runs something that changes the world to its end, also when the client goes away meanwhile.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome.map_err(ApiError::from),
        Err(error) => {
            Err(Problem::internal(format!("a request could not be finished: {error}")).into())
        }
    }
}

/// A response of one line of known bytes.
pub(crate) fn body_of(content_type: &'static str, body: Body) -> Response {
    ([(CONTENT_TYPE, content_type)], body).into_response()
}

impl utoipa::IntoResponses for ApiError {
    /// Every path answers every problem in one shape.
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("Problem")))
            .build();
        let response = ResponseBuilder::new()
            .description("A problem")
            .content(PROBLEM_JSON, content)
            .build();
        BTreeMap::from([("default".to_owned(), response.into())])
    }
}
