//! What nodes printed.

use std::time::Duration;

use offshoot_engine::LogQuery;
use offshoot_model::view::{LogLine, LogStream};
use offshoot_model::{Environment, Node, Problem};
use offshoot_runtime::{LogReader, Stream, read_logs};
use tokio::sync::mpsc;

use crate::config::LocalConfig;
use crate::nodes::log_dir;

/// Lines in flight.
const ROOM: usize = 256;
/// How often a follower looks whether anybody still listens.
const LOOK: Duration = Duration::from_millis(500);

/// The lines that a query asks for: first those that are there, in the order of their time, then new ones.
pub(crate) fn logs(
    config: &LocalConfig,
    environment: &Environment,
    query: &LogQuery,
) -> Result<mpsc::Receiver<LogLine>, Problem> {
    let wanted = |node: &&Node| match &query.node {
        Some(name) => node.name() == name || node.layer.as_str() == name,
        None => true,
    };
    let mut readers = Vec::new();
    for node in environment.nodes.iter().filter(wanted) {
        let from = offshoot_runtime::LogQuery {
            tail: query.tail,
            since: None,
        };
        let reader = read_logs(&log_dir(config, &node.id), from).map_err(|e| e.problem())?;
        readers.push((node.name().to_owned(), reader));
    }
    let (sender, receiver) = mpsc::channel(ROOM);
    let follow = query.follow;
    tokio::task::spawn_blocking(move || {
        if past(&mut readers, &sender).is_err() || !follow {
            return;
        }
        for (node, mut reader) in readers {
            let sender = sender.clone();
            let spawned = std::thread::Builder::new()
                .name("logs".into())
                .spawn(move || {
                    while let Ok(lines) = reader.follow(LOOK) {
                        let sent = lines
                            .into_iter()
                            .try_for_each(|line| sender.blocking_send(shown(&node, line)));
                        if sent.is_err() || sender.is_closed() {
                            return;
                        }
                    }
                });
            if let Err(error) = spawned {
                tracing::warn!(%error, "a log cannot be followed");
            }
        }
    });
    Ok(receiver)
}

/// Merges what is there by time. Each reader is in order, so only the heads are compared.
fn past(readers: &mut [(String, LogReader)], to: &mpsc::Sender<LogLine>) -> Result<(), ()> {
    let mut heads: Vec<Option<LogLine>> = readers.iter_mut().map(next).collect();
    loop {
        let first = heads
            .iter()
            .enumerate()
            .filter_map(|(at, head)| Some((at, head.as_ref()?.time)))
            .min_by_key(|(_, time)| *time);
        let Some((at, _)) = first else { return Ok(()) };
        let next = readers.get_mut(at).and_then(next);
        if let Some(line) = heads
            .get_mut(at)
            .and_then(|head| std::mem::replace(head, next))
        {
            to.blocking_send(line).map_err(|_| ())?;
        }
    }
}

fn next((node, reader): &mut (String, LogReader)) -> Option<LogLine> {
    reader.next()?.ok().map(|line| shown(node, line))
}

fn shown(node: &str, line: offshoot_runtime::LogLine) -> LogLine {
    LogLine {
        time: line.time,
        node: node.to_owned(),
        stream: match line.stream {
            Stream::Stdout => LogStream::Stdout,
            Stream::Stderr => LogStream::Stderr,
        },
        line: line.line,
    }
}
