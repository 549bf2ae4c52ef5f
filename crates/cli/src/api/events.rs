//! Following one operation: the event stream, resumed where it broke off, also over a restart of the daemon.

use std::time::Duration;

use http::header::{ACCEPT, HeaderName};
use http_body_util::BodyExt as _;
use offshoot_model::operation::StepState;
use offshoot_model::view::Event;
use offshoot_model::{Code, Operation, OperationId, OperationState, Problem};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::sse::Parser;
use super::{Client, Route};

/// How long the daemon may be away before following ends.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// First and longest wait before it is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// With no event for so long the operation is looked at by itself: an event may have been lost.
const QUIET: Duration = Duration::from_secs(5);

/// States of operation `id`, each newer than or equal to the one before, until the last is final or a problem ends
/// it. Dropping the receiver ends the following.
pub(crate) fn updates(
    client: &Client,
    id: OperationId,
) -> mpsc::Receiver<Result<Operation, Problem>> {
    let (sender, receiver) = mpsc::channel(16);
    let follower = Follower {
        client: client.clone(),
        id,
        sender,
        last_event: None,
        furthest: (0, 0),
    };
    tokio::spawn(follower.run());
    receiver
}

struct Follower {
    client: Client,
    id: OperationId,
    sender: mpsc::Sender<Result<Operation, Problem>>,
    last_event: Option<String>,
    /// How far the operation was when it was last told.
    furthest: (u8, usize),
}

/// Nobody follows any more, or all is known.
struct Finished;

impl Follower {
    async fn run(mut self) {
        let mut wait = RETRY.0;
        let mut away_since: Option<Instant> = None;
        loop {
            let before = self.last_event.clone();
            let problem = match self.follow_connection().await {
                Ok(Finished) => return,
                Err(problem) => problem,
            };
            if problem.code != Code::DaemonUnreachable {
                let _ = self.sender.send(Err(problem)).await;
                return;
            }
            if self.last_event != before {
                away_since = None;
                wait = RETRY.0;
            }
            let since = *away_since.get_or_insert_with(Instant::now);
            if since.elapsed() > AWAY_MAX {
                let _ = self.sender.send(Err(problem)).await;
                return;
            }
            if timeout(wait, self.sender.closed()).await.is_ok() {
                return;
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Follows over one connection; ends in a problem when it breaks.
    async fn follow_connection(&mut self) -> Result<Finished, Problem> {
        let mut headers = vec![(ACCEPT, "text/event-stream".to_owned())];
        if let Some(id) = &self.last_event {
            headers.push((HeaderName::from_static("last-event-id"), id.clone()));
        }
        let route = Route::to("events").with("operation", &self.id.to_string());
        let mut body = self.client.stream(&route, &headers).await?.into_body();
        // What happened before the stream was opened, or while nobody listened.
        if let Some(finished) = self.look().await? {
            return Ok(finished);
        }
        let mut parser = Parser::default();
        let mut messages = Vec::new();
        loop {
            let frame = tokio::select! {
                () = self.sender.closed() => return Ok(Finished),
                frame = timeout(QUIET, body.frame()) => frame,
            };
            let frame = match frame {
                Err(_) => {
                    if let Some(finished) = self.look().await? {
                        return Ok(finished);
                    }
                    continue;
                }
                Ok(None) => return Err(self.client.unreachable("the event stream ended")),
                Ok(Some(frame)) => frame.map_err(|error| self.client.broken(&error))?,
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            parser
                .push(&data, &mut messages)
                .map_err(|_| Problem::internal("the daemon sent an event that is too long"))?;
            for message in messages.drain(..) {
                if !message.id.is_empty() {
                    self.last_event = Some(message.id);
                }
                // Other kinds of events may come with later versions of the daemon.
                let Ok(event) = serde_json::from_str::<Event>(&message.data) else {
                    continue;
                };
                if event.operation.id == self.id
                    && let Some(finished) = self.tell(event.operation).await
                {
                    return Ok(finished);
                }
            }
        }
    }

    async fn look(&mut self) -> Result<Option<Finished>, Problem> {
        let operation = self
            .client
            .get(&Route::to("operations").then(&self.id.to_string()))
            .await?;
        Ok(self.tell(operation).await)
    }

    async fn tell(&mut self, operation: Operation) -> Option<Finished> {
        // The stream repeats what happened before it was opened, which a look has overtaken.
        let far = how_far(&operation);
        if far < self.furthest {
            return None;
        }
        self.furthest = far;
        let is_final = operation.state.is_final();
        let heard = self.sender.send(Ok(operation)).await.is_ok();
        (is_final || !heard).then_some(Finished)
    }
}

/// Grows with every change of state of an operation or a step.
fn how_far(operation: &Operation) -> (u8, usize) {
    let state = match operation.state {
        OperationState::Waiting => 0,
        OperationState::Running => 1,
        OperationState::Undoing => 2,
        OperationState::Done | OperationState::Failed | OperationState::Cancelled => 3,
    };
    let steps = operation.steps.iter().map(|step| match step.state {
        StepState::Pending => 0,
        StepState::Running => 1,
        StepState::Done | StepState::Failed => 2,
        StepState::Undone => 3,
    });
    (state, steps.sum())
}
