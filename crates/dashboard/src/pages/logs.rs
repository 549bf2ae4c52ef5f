//! Output of nodes: the last lines, more as they come, and all of it as a file.

use askama::Template;
use axum::body::Body;
use axum::extract::{Path, Query};
use axum::response::sse::Event as Message;
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use offshoot_model::view::{LogLine, LogStream};
use offshoot_operations::LogQuery;
use serde::{Deserialize, Serialize};
use tokio_stream::wrappers::ReceiverStream;

use super::find;
use crate::answer::{Failure, html};
use crate::context::{Context, Shell};
use crate::format::encode;
use crate::live;

/// Last lines of each node that are shown.
const TAIL: usize = 200;
/// Most bytes of lines on a page: it shall stay small.
const LINES_SIZE: usize = 70_000;
/// Longest piece of a line on a page, characters; the file has all of it.
const LINE_MAX: usize = 160;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    node: Option<String>,
}

impl Asked {
    fn query(self, tail: Option<usize>, follow: bool) -> LogQuery {
        LogQuery {
            node: self.node.filter(|node| !node.is_empty()),
            tail,
            follow,
        }
    }
}

/// A line as pages have it, also those that come later.
#[derive(Serialize)]
struct Shown {
    time: String,
    node: String,
    error: bool,
    line: String,
}

impl Shown {
    fn new(line: LogLine, longest: usize) -> Self {
        let cut = line.line.char_indices().nth(longest).map(|(at, _)| at);
        let mut text = line.line;
        if let Some(cut) = cut {
            text.truncate(cut);
            text.push('…');
        }
        Self {
            time: line.time.strftime("%H:%M:%S").to_string(),
            node: line.node,
            error: line.stream == LogStream::Stderr,
            line: text,
        }
    }

    /// Bytes that it takes on a page, with what stands around it and what is escaped.
    fn size(&self) -> usize {
        const AROUND: usize = 120;
        let bytes = self.node.bytes().chain(self.line.bytes());
        let of = |byte| if b"<>&\"'".contains(&byte) { 6 } else { 1 };
        AROUND + bytes.map(of).sum::<usize>()
    }
}

#[derive(Template)]
#[template(path = "logs.html")]
struct Page {
    shell: Shell,
    name: String,
    href: String,
    nodes: Vec<(String, bool)>,
    query: String,
    lines: Vec<Shown>,
}

/// The last lines.
pub(super) async fn show(
    context: Context,
    Path(environment): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let found = find(&context.web, &environment).await?;
    let chosen = asked.node.clone().unwrap_or_default();
    let query = if chosen.is_empty() {
        String::new()
    } else {
        format!("?node={}", encode(&chosen))
    };
    let stream = context
        .web
        .platform
        .logs(&found.name, asked.query(Some(TAIL), false))
        .await?;
    let mut lines: Vec<LogLine> = ReceiverStream::new(stream).collect().await;
    lines.sort_by_key(|line| line.time);
    let mut lines: Vec<_> = lines
        .into_iter()
        .rev()
        .map(|line| Shown::new(line, LINE_MAX))
        .scan(0, |size, line| {
            *size += line.size();
            (*size <= LINES_SIZE).then_some(line)
        })
        .collect();
    lines.reverse();
    html(&Page {
        shell: context.shell(format!("Logs of {}", found.name)),
        href: format!("/environments/{}", encode(&found.name)),
        nodes: found
            .layers
            .iter()
            .flat_map(|layer| &layer.nodes)
            .map(|node| (node.name.clone(), node.name == chosen))
            .collect(),
        name: found.name,
        query,
        lines,
    })
}

/// The last lines, then each as it comes.
pub(super) async fn follow(
    context: Context,
    Path(environment): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let room = live::room(&context.web)?;
    let lines = context
        .web
        .platform
        .logs(&environment, asked.query(Some(TAIL), true))
        .await?;
    let messages = ReceiverStream::new(lines).map(|line| {
        let shown = Shown::new(line, usize::MAX);
        let message = Message::default().event("line");
        match serde_json::to_string(&shown) {
            Ok(data) => message.data(data),
            Err(error) => {
                tracing::error!(%error, "a line of output cannot be written");
                message.comment("a line was left out")
            }
        }
    });
    Ok(live::send(&context, room, messages))
}

/// Everything that is kept, as text.
pub(super) async fn download(
    context: Context,
    Path(environment): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let room = live::room(&context.web)?;
    let lines = context
        .web
        .platform
        .logs(&environment, asked.query(None, false))
        .await?;
    let text = ReceiverStream::new(lines).map(move |line| {
        let _held = &room;
        let LogLine {
            time, node, line, ..
        } = line;
        Ok::<_, std::convert::Infallible>(format!("{time} {node} {line}\n"))
    });
    let headers = [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CONTENT_DISPOSITION, "attachment; filename=\"logs.txt\""),
    ];
    Ok((headers, Body::from_stream(text)).into_response())
}
