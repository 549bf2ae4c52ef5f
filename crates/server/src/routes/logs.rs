//! Output of nodes.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use offshoot_model::view::LogLine;
use offshoot_operations::LogQuery;
use serde::Deserialize;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::Api;
use crate::answer::{ApiError, Path, Query, body_of};

/// Lines that are sent together when they are there together.
const TOGETHER: usize = 128;

/// Which lines are sent.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct LinesQuery {
    /// Node or layer; all nodes when absent.
    node: Option<String>,
    /// Only so many of the last lines of each node.
    tail: Option<usize>,
    /// Go on with lines as they come.
    #[param(required = false)]
    follow: bool,
}

/// Output of nodes, one JSON document per line.
#[utoipa::path(
    get, path = "/environments/{environment}/logs", tag = "nodes", operation_id = "follow_logs",
    params(("environment" = String, Path, description = "Name or id"), LinesQuery),
    responses(
        (status = 200, content_type = "application/x-ndjson", body = LogLine),
        ApiError,
    ),
)]
pub(super) async fn follow(
    State(api): State<Api>,
    Path(environment): Path<String>,
    Query(LinesQuery { node, tail, follow }): Query<LinesQuery>,
) -> Result<Response, ApiError> {
    let room = api.stream()?;
    let lines = api
        .platform
        .logs(&environment, LogQuery { node, tail, follow })
        .await?;
    // When the client goes the body is dropped, with it the receiver, and the platform sees that nobody listens.
    let pieces = ReceiverStream::new(lines)
        .ready_chunks(TOGETHER)
        .map(move |lines| {
            let _held = &room;
            Ok::<_, Infallible>(ndjson(&lines))
        })
        .take_until(api.stop.cancelled_owned());
    Ok(body_of("application/x-ndjson", Body::from_stream(pieces)))
}

fn ndjson(lines: &[LogLine]) -> Bytes {
    let mut text = BytesMut::new().writer();
    for line in lines {
        if let Err(error) = serde_json::to_writer(&mut text, line) {
            tracing::error!(%error, "a line of output cannot be written");
        }
        text.get_mut().put_u8(b'\n');
    }
    text.into_inner().freeze()
}
