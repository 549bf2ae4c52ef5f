//! The event stream.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event as Message, KeepAlive};
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderName};
use offshoot_model::OperationId;
use offshoot_model::view::Event;
use serde::Deserialize;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::{Api, operations};
use crate::answer::{ApiError, Query};

/// Where a client has got to (WHATWG HTML, 9.2.4).
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Time between signs of life while nothing happens.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which events are sent.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct EventQuery {
    /// Send what came after this position; the header `Last-Event-ID` goes before. When both are absent the stream
    /// begins with the oldest event still kept.
    after: Option<u64>,
    /// Send only what happens to this operation.
    operation: Option<String>,
}

/// Changes of operations as server-sent events: `id` is the position, `event` is `operation`, `data` is an `Event`.
#[utoipa::path(
    get, path = "/events", tag = "operations", operation_id = "follow_events",
    params(EventQuery, ("Last-Event-ID" = Option<u64>, Header, description = "Resume after this position")),
    responses(
        (status = 200, content_type = "text/event-stream", body = Event),
        ApiError,
    ),
)]
pub(super) async fn follow(
    State(api): State<Api>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Message, Infallible>>>, ApiError> {
    let after = match headers.get(LAST_EVENT_ID) {
        Some(id) => Some(
            id.to_str()
                .ok()
                .and_then(|id| id.trim().parse().ok())
                .ok_or_else(|| {
                    ApiError::bad_request(
                        format!("Last-Event-ID is {id:?}, which is no position"),
                        "send the id of the last event that was received, or no such header",
                    )
                })?,
        ),
        None => query.after,
    };
    let only = query
        .operation
        .as_deref()
        .map(operations::parse)
        .transpose()?;
    if let Some(operation) = only {
        // Unknown operations are said to be, instead of never being heard of.
        api.platform.operation(operation).await?;
    }
    let room = api.stream()?;
    let events = api.platform.events(after.unwrap_or(0)).await?;
    let messages = ReceiverStream::new(events)
        .filter(move |event| std::future::ready(concerns(event, only)))
        .map(move |event| {
            let _held = &room;
            Ok(message(&event))
        })
        .take_until(api.stop.cancelled_owned());
    Ok(Sse::new(messages).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn concerns(event: &Event, only: Option<OperationId>) -> bool {
    only.is_none_or(|operation| event.operation.id == operation)
}

fn message(event: &Event) -> Message {
    let message = Message::default()
        .id(event.seq.to_string())
        .event("operation");
    match serde_json::to_string(event) {
        Ok(data) => message.data(data),
        Err(error) => {
            tracing::error!(%error, seq = event.seq, "an event cannot be written");
            message.comment("an event was left out")
        }
    }
}
