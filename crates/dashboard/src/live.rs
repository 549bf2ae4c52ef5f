//! What makes pages live: one stream of server-sent events, each of which only says what changed. Pages then ask for
//! the part they show, with whatever they show of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::{Stream, StreamExt as _, stream};
use offshoot_model::{Code, Fault, Problem};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::{IntervalStream, ReceiverStream};

use crate::answer::Failure;
use crate::context::Context;
use crate::kept;
use crate::{STREAMS_MAX, Web};

/// Time between two looks at what is used (memory, processors).
const TICK: Duration = Duration::from_secs(5);
/// A position behind every event: only what comes is sent.
const NOW: u64 = u64::MAX;

/// Room for one stream, held for as long as it lasts.
pub(crate) fn room(web: &Web) -> Result<OwnedSemaphorePermit, Failure> {
    let room = Arc::clone(&web.streams).try_acquire_owned();
    room.map_err(|_| {
        Problem::new(
            Code::Busy,
            Fault::Request,
            format!("{STREAMS_MAX} pages are open already"),
            "close some of the pages of the dashboard",
        )
        .into()
    })
}

/// Sends messages for as long as the person is signed in and the daemon runs.
pub(crate) fn send(
    context: &Context,
    room: OwnedSemaphorePermit,
    messages: impl Stream<Item = Message> + Send + 'static,
) -> Response {
    let sessions = Arc::clone(&context.web.dashboard.sessions);
    let session = context.session.clone();
    let stop = context.web.stop.clone();
    let messages = messages
        .take_while(move |_| std::future::ready(sessions.goes_on(&session, kept::now())))
        .map(move |message| {
            let _held = &room;
            Ok::<_, Infallible>(message)
        })
        .take_until(stop.cancelled_owned());
    Sse::new(messages)
        .keep_alive(KeepAlive::default())
        .into_response()
}

/// `operation`, with the id of the one that changed, and `tick`.
pub(crate) async fn follow(State(web): State<Web>, context: Context) -> Result<Response, Failure> {
    let room = room(&web)?;
    let events = ReceiverStream::new(web.platform.events(NOW).await?);
    let changes = events.map(|event| {
        Message::default()
            .event("operation")
            .data(event.operation.id.to_string())
    });
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ticks = IntervalStream::new(ticks)
        .skip(1)
        .map(|_| Message::default().event("tick").data("now"));
    Ok(send(&context, room, stream::select(changes, ticks)))
}
