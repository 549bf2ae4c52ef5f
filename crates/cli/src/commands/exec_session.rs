//! The WebSocket of `exec`: keys and bytes in, output and the exit status out.
//!
//! Binary messages carry a leading channel byte, text messages carry JSON; docs of the route in the API.

use std::io::Read as _;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use offshoot_model::view::{ExecRequest, TerminalSize};
use offshoot_model::{Code, Fault, Problem};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncWriteExt as _, Stderr, Stdout};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest as _};

use crate::api::{Client, Route, problem_of};
use crate::context::Context;
use crate::failure::Failure;
use crate::signals::{Interrupt, Interrupts};
use crate::term::{self, RawMode};

/// Channel of standard input.
const STDIN: u8 = 0;
/// Channel of standard output, or of the terminal.
const STDOUT: u8 = 1;
/// Channel of standard error.
const STDERR: u8 = 2;
/// Largest piece of standard input in one message.
const PIECE: usize = 32 << 10;
/// Messages that may wait for the daemon; more than that slows standard input down.
const QUEUE: usize = 16;
/// After so many interrupts the command is given up on.
const PATIENCE: u32 = 3;

/// What becomes of this process's standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// The command's is empty.
    None,
    /// It is passed on.
    Bytes,
    /// It is a terminal whose every key is passed on.
    Keys,
}

/// The text messages that end a session.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum End {
    Exit(i32),
    Problem(Problem),
}

type Socket = WebSocketStream<UnixStream>;

/// Runs a command and answers its exit status.
pub(super) async fn run(
    context: &Context,
    route: &Route,
    request: &ExecRequest,
    input: Input,
) -> Result<i32, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut socket = open(&context.client, route).await?;
    let first = serde_json::to_string(request)
        .map_err(|error| Problem::internal(format!("the request could not be written: {error}")))?;
    socket
        .send(Message::text(first))
        .await
        .map_err(|error| lost(&context.client, &error))?;

    // From here to the end of this function every key is the command's; also a panic brings the terminal back.
    let raw = if input == Input::Keys {
        Some(RawMode::enter()?)
    } else {
        None
    };
    let (queue, mut queued) = mpsc::channel(QUEUE);
    match input {
        Input::None => queue_text(&queue, json!({ "close_stdin": true })).await,
        Input::Bytes | Input::Keys => read_stdin(queue.clone()),
    }

    let (mut sink, mut stream) = socket.split();
    let sending = async {
        while let Some(message) = queued.recv().await {
            sink.send(message).await?;
        }
        Ok::<(), tungstenite::Error>(())
    };
    let receiving = async {
        let mut output = Output {
            stdout: tokio::io::stdout(),
            stderr: tokio::io::stderr(),
        };
        while let Some(message) = stream.next().await {
            if let Some(end) = output
                .take(message.map_err(|error| lost(&context.client, &error))?)
                .await?
            {
                return Ok(end);
            }
        }
        Err(Failure::from(
            context
                .client
                .unreachable("the connection ended before the command did"),
        ))
    };
    let steering = async {
        let mut count = 0;
        loop {
            tokio::select! {
                Some(()) = resized.recv(), if request.tty.is_some() => {
                    if let Some(TerminalSize { rows, cols }) = term::size() {
                        queue_text(&queue, json!({ "resize": { "rows": rows, "cols": cols } })).await;
                    }
                }
                interrupt = interrupts.next() => {
                    count += 1;
                    if count >= PATIENCE {
                        return;
                    }
                    let name = match interrupt {
                        Interrupt::Interrupt => "SIGINT",
                        Interrupt::Terminate => "SIGTERM",
                    };
                    // Not waited for: a full queue must not keep the next interrupt from being heard.
                    let _ = queue.try_send(Message::text(json!({ "signal": name }).to_string()));
                }
            }
        }
    };

    tokio::pin!(sending, receiving, steering);
    let mut sending_ended = false;
    let outcome = loop {
        tokio::select! {
            end = &mut receiving => break end,
            // A connection that cannot be written to may still hold the end of the output.
            _ = &mut sending, if !sending_ended => sending_ended = true,
            () = &mut steering => break Ok(End::Exit(130)),
        }
    };
    drop(raw);
    match outcome? {
        End::Exit(status) => Ok(status),
        End::Problem(problem) => Err(problem.into()),
    }
}

/// Where the command's output goes.
struct Output {
    stdout: Stdout,
    stderr: Stderr,
}

impl Output {
    /// Writes what a message holds; answers the end when that was it.
    async fn take(&mut self, message: Message) -> Result<Option<End>, Failure> {
        match message {
            Message::Binary(bytes) => match bytes.split_first() {
                Some((&STDOUT, data)) => {
                    self.stdout.write_all(data).await?;
                    self.stdout.flush().await?;
                }
                Some((&STDERR, data)) => {
                    self.stderr.write_all(data).await?;
                    self.stderr.flush().await?;
                }
                _ => {}
            },
            Message::Text(text) => {
                let end = serde_json::from_str(&text).map_err(|error| {
                    Problem::internal(format!(
                        "a message from the daemon is not understood: {error}"
                    ))
                })?;
                return Ok(Some(end));
            }
            _ => {}
        }
        Ok(None)
    }
}

async fn queue_text(queue: &mpsc::Sender<Message>, value: serde_json::Value) {
    // The receiver is gone only when the session is.
    let _ = queue.send(Message::text(value.to_string())).await;
}

/// Reads standard input on a thread of its own: read(2) on a terminal cannot be cancelled.
fn read_stdin(queue: mpsc::Sender<Message>) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; PIECE];
        loop {
            let count = match stdin.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            let mut message = Vec::with_capacity(count + 1);
            message.push(STDIN);
            message.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if queue
                .blocking_send(Message::Binary(Bytes::from(message)))
                .is_err()
            {
                return;
            }
        }
        let _ = queue.blocking_send(Message::text(json!({ "close_stdin": true }).to_string()));
    });
}

async fn open(client: &Client, route: &Route) -> Result<Socket, Problem> {
    let stream = client.connect().await?;
    let request = format!("ws://localhost{route}")
        .into_client_request()
        .map_err(|error| Problem::internal(format!("a request could not be made: {error}")))?;
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => Err(problem_of(
            response.status(),
            response.body().as_deref().unwrap_or_default(),
        )),
        Err(error) => Err(lost(client, &error)),
    }
}

fn lost(client: &Client, error: &tungstenite::Error) -> Problem {
    use tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
    match error {
        tungstenite::Error::Io(_)
        | tungstenite::Error::ConnectionClosed
        | tungstenite::Error::AlreadyClosed
        | tungstenite::Error::Protocol(ResetWithoutClosingHandshake) => {
            client.unreachable(&error.to_string())
        }
        _ => Problem::new(
            Code::ExecFailed,
            Fault::Offshoot,
            "the connection to the command broke",
            "look at the daemon's log, then try again",
        )
        .detail(error.to_string()),
    }
}
