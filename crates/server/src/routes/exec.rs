//! Commands in nodes, over a WebSocket.
//!
//! The client's first message is an [`ExecRequest`] as text. From then on binary messages carry bytes behind one
//! byte that names the stream, and text messages carry [`Control`] one way and at last [`End`] the other way.

use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use offshoot_model::view::{ExecRequest, TerminalSize};
use offshoot_model::{Code, Fault, Problem};
use offshoot_operations::{ExecInput, ExecOutput, ExecSession};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::Api;
use crate::answer::{ApiError, Path};

/// Largest message from a client in bytes.
const MESSAGE_MAX: usize = 1 << 20;
/// Longest wait for the first message.
const FIRST_TIME: Duration = Duration::from_secs(10);
/// Longest wait for a client to take the last message.
const LAST_TIME: Duration = Duration::from_secs(5);

/// First byte of binary messages.
mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
}

/// Text message to a running command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Control {
    /// The terminal has another size.
    Resize(TerminalSize),
    /// `true`: the end of its standard input.
    CloseStdin(bool),
    /// A signal to send, a name such as `SIGINT`.
    Signal(String),
}

/// Last text message from a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// It ended with this status, or 128 + signal.
    Exit(i32),
    /// It could not be run, or the conversation broke.
    Problem(Problem),
}

type Sink = SplitSink<WebSocket, Message>;
type Stream = SplitStream<WebSocket>;

/// Runs a command in a node over a WebSocket (RFC 6455). The client's first message is an `ExecRequest` as text.
/// Then binary messages carry bytes behind one byte: 0 standard input, 1 standard output or terminal, 2 standard
/// error. Text messages from the client are `Control`; the last message from the daemon is an `End` as text. A
/// client that goes away ends the command.
#[utoipa::path(
    get, path = "/environments/{environment}/nodes/{node}/exec", tag = "nodes", operation_id = "exec",
    params(
        ("environment" = String, Path, description = "Name or id"),
        ("node" = String, Path, description = "Node, or a layer for its first node"),
    ),
    responses((status = 101, description = "The WebSocket is open"), ApiError),
)]
pub(super) async fn run(
    State(api): State<Api>,
    Path((environment, node)): Path<(String, String)>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|rejection| {
        let problem = Problem::new(
            Code::BadRequest,
            Fault::Request,
            format!("this path speaks WebSocket: {}", rejection.body_text()),
            "open it with a WebSocket client; see docs/api.md",
        );
        ApiError::with_status(StatusCode::UPGRADE_REQUIRED, problem)
    })?;
    let room = api.stream()?;
    Ok(upgrade
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .on_upgrade(move |socket| converse(socket, api, environment, node, room)))
}

async fn converse(
    socket: WebSocket,
    api: Api,
    environment: String,
    node: String,
    _room: OwnedSemaphorePermit,
) {
    let (mut sink, mut stream) = socket.split();
    let end = tokio::select! {
        end = command(&mut sink, &mut stream, &api, &environment, &node) => end,
        () = api.stop.cancelled() => Some(End::Problem(Problem::new(
            Code::Interrupted,
            Fault::Host,
            "the daemon is stopping",
            "run the command again when the daemon is back",
        ))),
    };
    let farewell = async {
        if let Some(end) = end {
            match serde_json::to_string(&end) {
                Ok(text) => sink.send(Message::text(text)).await?,
                Err(error) => tracing::error!(%error, "the end of a command cannot be written"),
            }
        }
        sink.close().await?;
        // Until the client has closed too, so that it has read the end before the connection goes.
        while let Some(Ok(_)) = stream.next().await {}
        Ok::<_, axum::Error>(())
    };
    // A client that is gone needs no farewell.
    let _ = timeout(LAST_TIME, farewell).await;
}

/// The whole conversation; `None` when the client has gone. Dropping the session ends the command.
async fn command(
    sink: &mut Sink,
    stream: &mut Stream,
    api: &Api,
    environment: &str,
    node: &str,
) -> Option<End> {
    let request = match timeout(FIRST_TIME, first(stream)).await {
        Ok(Ok(request)) => request?,
        Ok(Err(problem)) => return Some(End::Problem(problem)),
        Err(_) => return Some(End::Problem(not_understood("no request came"))),
    };
    let ExecSession { input, output } = match api.platform.exec(environment, node, request).await {
        Ok(session) => session,
        Err(problem) => return Some(End::Problem(problem)),
    };
    // Both at once: a command that is not read from must still be able to write, and the other way round.
    tokio::select! {
        end = show(sink, output) => end,
        problem = feed(stream, input) => problem.map(End::Problem),
    }
}

/// The request; `None` when the client has gone.
async fn first(stream: &mut Stream) -> Result<Option<ExecRequest>, Problem> {
    while let Some(Ok(message)) = stream.next().await {
        match message {
            Message::Text(text) => {
                let request: ExecRequest = serde_json::from_str(&text).map_err(|error| {
                    not_understood(&format!("the request is not what is expected: {error}"))
                })?;
                if request.args.is_empty() {
                    return Err(not_understood("the request has no command"));
                }
                return Ok(Some(request));
            }
            Message::Binary(_) => return Err(not_understood("the first message is not text")),
            Message::Close(_) => return Ok(None),
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
    Ok(None)
}

/// Takes what the command writes to the client. `None` when the client has gone.
async fn show(sink: &mut Sink, mut output: mpsc::Receiver<ExecOutput>) -> Option<End> {
    while let Some(piece) = output.recv().await {
        let message = match piece {
            ExecOutput::Stdout(bytes) => framed(channel::STDOUT, &bytes),
            ExecOutput::Stderr(bytes) => framed(channel::STDERR, &bytes),
            ExecOutput::Exit(status) => return Some(End::Exit(status)),
            ExecOutput::Problem(problem) => return Some(End::Problem(problem)),
        };
        sink.send(message).await.ok()?;
    }
    Some(End::Problem(Problem::internal(
        "a command ended without saying how",
    )))
}

/// Takes what the client sends to the command, until the client goes (`None`) or sends what is not understood.
async fn feed(stream: &mut Stream, input: mpsc::Sender<ExecInput>) -> Option<Problem> {
    loop {
        let message = match stream.next().await? {
            Ok(message) => message,
            Err(error) => return Some(not_understood(&error.to_string())),
        };
        let piece = match message {
            Message::Binary(bytes) => match bytes.split_first() {
                Some((&channel::STDIN, _)) => ExecInput::Stdin(bytes.slice(1..)),
                Some((other, _)) => {
                    return Some(not_understood(&format!(
                        "channel {other} is not for clients"
                    )));
                }
                None => return Some(not_understood("a binary message without a channel")),
            },
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(Control::Resize(size)) => ExecInput::Resize(size),
                Ok(Control::CloseStdin(true)) => ExecInput::CloseStdin,
                Ok(Control::CloseStdin(false)) => continue,
                Ok(Control::Signal(signal)) => ExecInput::Signal(signal),
                Err(error) => return Some(not_understood(&error.to_string())),
            },
            Message::Close(_) => return None,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        // A command that takes no more input may still write: read on, to see when the client goes.
        let _ = input.send(piece).await;
    }
}

fn framed(channel: u8, bytes: &Bytes) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.freeze())
}

fn not_understood(what: &str) -> Problem {
    Problem::new(
        Code::BadRequest,
        Fault::Request,
        format!("the conversation is not understood: {what}"),
        "see docs/api.md for how commands are run",
    )
}
