//! A shell in a node, in the browser: a page, and the WebSocket (RFC 6455) behind it.
//!
//! The page's first message is a [`Hello`]. From then on its binary messages are what is typed and its text messages
//! [`TerminalSize`]; binary messages to it are what the terminal shows, and the last one is an [`End`] as text.

use std::time::Duration;

use askama::Template;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query};
use axum::response::Response;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use http::HeaderMap;
use offshoot_model::view::{ExecRequest, TerminalSize};
use offshoot_model::{Code, Fault, NodeState, Problem};
use offshoot_operations::{ExecInput, ExecOutput, ExecSession};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::find;
use crate::answer::{Failure, html};
use crate::context::{Context, Shell};
use crate::format::encode;
use crate::kept;
use crate::{gate, live};

/// Largest message from a page in bytes: what somebody pastes.
const MESSAGE_MAX: usize = 1 << 20;
/// Longest wait for the first message, and for a page to take the last one.
const FIRST_TIME: Duration = Duration::from_secs(10);
const LAST_TIME: Duration = Duration::from_secs(5);
/// How often it is looked whether the person is still signed in.
const LOOK: Duration = Duration::from_secs(10);
/// The better one of the usual shells.
const SHELL: &str = "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    node: Option<String>,
}

#[derive(Template)]
#[template(path = "terminal.html")]
struct Page {
    shell: Shell,
    name: String,
    href: String,
    nodes: Vec<(String, bool)>,
    /// The one that is shown; none where it does not run.
    node: Option<String>,
}

/// First message of a page.
#[derive(Deserialize)]
struct Hello {
    /// The token of the person's forms: the page is one of this dashboard.
    csrf: String,
    size: TerminalSize,
}

/// Last message to a page.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum End {
    /// Exit status of the shell, or 128 + signal.
    Exit(i32),
    /// Why it did not begin, or broke off; and what to do next.
    Problem(String, String),
}

impl From<Problem> for End {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem.what, problem.next)
    }
}

type Sink = SplitSink<WebSocket, Message>;
type Stream = SplitStream<WebSocket>;

/// The page with a terminal of one node.
pub(super) async fn show(
    context: Context,
    Path(environment): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let found = find(&context.web, &environment).await?;
    let running: Vec<_> = found
        .layers
        .iter()
        .flat_map(|layer| &layer.nodes)
        .filter(|node| matches!(node.status, NodeState::Running { .. }))
        .map(|node| node.name.clone())
        .collect();
    // Never another node than the one that was asked for: somebody is about to type.
    let node = match asked.node {
        Some(node) => Some(node).filter(|node| running.contains(node)),
        None => running.first().cloned(),
    };
    html(&Page {
        shell: context.shell(format!("Terminal of {}", found.name)),
        href: format!("/environments/{}", encode(&found.name)),
        nodes: running
            .into_iter()
            .map(|name| {
                let current = Some(&name) == node.as_ref();
                (name, current)
            })
            .collect(),
        name: found.name,
        node,
    })
}

/// The WebSocket. Only pages of this dashboard may open it: browsers let every page open WebSockets to everywhere,
/// and say from where.
pub(super) async fn connect(
    context: Context,
    Path((environment, node)): Path<(String, String)>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    if !headers.contains_key(http::header::ORIGIN)
        || !gate::is_own(&context.web.dashboard.settings, &headers)
    {
        let problem = Problem::new(
            Code::Unauthorized,
            Fault::Request,
            "the terminal is asked for by a page of another site",
            "open the terminal from its environment's page",
        );
        return Err(problem.into());
    }
    let upgrade = upgrade.map_err(|_| {
        Failure::bad_request(
            "this path speaks WebSocket",
            "open the terminal from its environment's page",
        )
    })?;
    let room = live::room(&context.web)?;
    Ok(upgrade
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .on_upgrade(move |socket| converse(socket, context, environment, node, room)))
}

async fn converse(
    socket: WebSocket,
    context: Context,
    environment: String,
    node: String,
    _room: OwnedSemaphorePermit,
) {
    let (mut sink, mut stream) = socket.split();
    let end = tokio::select! {
        end = shell(&mut sink, &mut stream, &context, &environment, &node) => end,
        () = signed_out(&context) => Some(over("you are no longer signed in", "sign in again")),
        () = context.web.stop.cancelled() => Some(over("the daemon is stopping", "connect again when it is back")),
    };
    let farewell = async {
        if let Some(end) = end {
            match serde_json::to_string(&end) {
                Ok(text) => sink.send(Message::text(text)).await?,
                Err(error) => tracing::error!(%error, "the end of a terminal cannot be written"),
            }
        }
        sink.close().await?;
        // Until the page has closed too, so that it has read the end before the connection goes.
        while let Some(Ok(_)) = stream.next().await {}
        Ok::<_, axum::Error>(())
    };
    // A page that is gone needs no farewell.
    let _ = timeout(LAST_TIME, farewell).await;
}

async fn signed_out(context: &Context) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let sessions = &context.web.dashboard.sessions;
        if !sessions.goes_on(&context.session, kept::now()) {
            return;
        }
    }
}

fn over(what: &str, next: &str) -> End {
    End::Problem(what.to_owned(), next.to_owned())
}

/// The whole conversation; `None` when the page has gone. Dropping the session ends the shell.
async fn shell(
    sink: &mut Sink,
    stream: &mut Stream,
    context: &Context,
    environment: &str,
    node: &str,
) -> Option<End> {
    let not_understood = || over("the page said nothing that is understood", "load it again");
    let Ok(first) = timeout(FIRST_TIME, stream.next()).await else {
        return Some(not_understood());
    };
    let Ok(Message::Text(first)) = first? else {
        return Some(not_understood());
    };
    let Ok(hello) = serde_json::from_str::<Hello>(&first) else {
        return Some(not_understood());
    };
    if !context.session.sent(&hello.csrf) {
        return Some(over("the page is not of this session", "load it again"));
    }
    let request = ExecRequest {
        args: ["/bin/sh", "-c", SHELL].map(str::to_owned).to_vec(),
        env: vec!["TERM=xterm-256color".to_owned()],
        tty: Some(hello.size),
        ..ExecRequest::default()
    };
    let started = context.web.platform.exec(environment, node, request).await;
    let ExecSession { input, output } = match started {
        Ok(session) => session,
        Err(problem) => return Some(problem.into()),
    };
    // Both at once: a shell that is not read from must still be able to write, and the other way round.
    tokio::select! {
        end = show_output(sink, output) => end,
        () = feed(stream, input) => None,
    }
}

/// Takes what the shell writes to the page. `None` when the page has gone.
async fn show_output(sink: &mut Sink, mut output: mpsc::Receiver<ExecOutput>) -> Option<End> {
    while let Some(piece) = output.recv().await {
        match piece {
            ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => {
                sink.send(Message::Binary(bytes)).await.ok()?;
            }
            ExecOutput::Exit(status) => return Some(End::Exit(status)),
            ExecOutput::Problem(problem) => return Some(problem.into()),
        }
    }
    Some(over("the shell ended without saying how", "connect again"))
}

/// Takes what the page sends to the shell, until the page goes.
async fn feed(stream: &mut Stream, input: mpsc::Sender<ExecInput>) {
    while let Some(Ok(message)) = stream.next().await {
        let piece = match message {
            Message::Binary(bytes) => ExecInput::Stdin(bytes),
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(size) => ExecInput::Resize(size),
                Err(_) => return,
            },
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        // A shell that takes no more input may still write: read on, to see when the page goes.
        let _ = input.send(piece).await;
    }
}
