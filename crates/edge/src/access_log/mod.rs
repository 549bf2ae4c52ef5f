//! One line per request, written by a thread of its own behind a bounded queue: a slow disk costs lines, which
//! are counted, never requests.

mod combined;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use offshoot_edge_api::{AccessLog as Settings, LogFormat};
use serde::Serialize;

use crate::lines::Lines;
use crate::rotating::RotatingFile;

const QUEUE: usize = 8_192;

/// A request as it is logged. The query is left out unless it is asked for: it may hold secrets.
#[derive(Serialize)]
pub(crate) struct Record {
    pub(crate) time: Timestamp,
    pub(crate) client: Option<String>,
    pub(crate) protocol: &'static str,
    pub(crate) scheme: &'static str,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) query: Option<String>,
    pub(crate) status: u16,
    pub(crate) bytes: usize,
    pub(crate) duration_ms: f64,
    pub(crate) environment: Option<String>,
    pub(crate) upstream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Where the client says it comes from; only for the format that has it.
    #[serde(skip)]
    pub(crate) referer: Option<String>,
    /// What the client says it is; likewise.
    #[serde(skip)]
    pub(crate) agent: Option<String>,
}

enum Entry {
    Request(Box<Record>),
    /// The file was moved.
    Reopen,
}

/// What is logged of a request beside what is always.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) query: bool,
    /// `Referer` and `User-Agent`.
    pub(crate) fields: bool,
}

impl Wanted {
    /// What is logged of a `Referer`, which may have a query of its own.
    pub(crate) fn referer(self, referer: Option<&str>) -> Option<String> {
        let referer = referer.filter(|_| self.fields)?;
        let page = referer.split(['?', '#']).next().filter(|_| !self.query);
        Some(page.unwrap_or(referer).to_owned())
    }
}

/// Where requests are logged to. Dropping the last one lets the thread write what is queued and end.
#[derive(Clone)]
pub(crate) struct AccessLog {
    queue: Option<SyncSender<Entry>>,
    wanted: Wanted,
    lost: Arc<AtomicU64>,
}

impl AccessLog {
    /// Opens the log and starts its thread; without settings nothing is logged.
    pub(crate) fn open(settings: Option<&Settings>) -> anyhow::Result<Self> {
        let lost = Arc::new(AtomicU64::new(0));
        let Some(settings) = settings else {
            return Ok(Self {
                queue: None,
                wanted: Wanted {
                    query: false,
                    fields: false,
                },
                lost,
            });
        };
        let file = RotatingFile::open(&settings.path, settings.max_bytes, settings.keep)
            .with_context(|| format!("cannot open the access log {}", settings.path.display()))?;
        let (queue, records) = sync_channel(QUEUE);
        let counter = Arc::clone(&lost);
        let format = settings.format;
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&records, file, format, &counter))
            .context("cannot start the access log's thread")?;
        Ok(Self {
            queue: Some(queue),
            wanted: Wanted {
                query: settings.query,
                fields: format == LogFormat::Combined,
            },
            lost,
        })
    }

    /// What of requests is logged; `None` when nothing is.
    pub(crate) fn wants(&self) -> Option<Wanted> {
        self.queue.as_ref().map(|_| self.wanted)
    }

    /// Goes on in a new file after the old one was moved. Under a flood it may be forgotten: it is asked for again.
    pub(crate) fn reopen(&self) {
        if let Some(queue) = &self.queue
            && queue.try_send(Entry::Reopen).is_err()
        {
            tracing::warn!("the access log is too busy to be opened anew");
        }
    }

    /// Queues a record, or counts it as lost.
    pub(crate) fn log(&self, record: Record) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_)) = queue.try_send(Entry::Request(Box::new(record))) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write(entries: &Receiver<Entry>, file: RotatingFile, format: LogFormat, lost: &AtomicU64) {
    let mut out = Lines::new(file);
    let mut said = 0;
    while let Ok(first) = entries.recv() {
        let mut next = Some(first);
        while let Some(entry) = next {
            let line = match (entry, format) {
                (Entry::Request(record), LogFormat::Json) => serde_json::to_vec(&record).ok(),
                (Entry::Request(record), LogFormat::Combined) => {
                    Some(combined::line(&record).into())
                }
                (Entry::Reopen, _) => {
                    out.write();
                    if let Err(error) = out.file().reopen() {
                        tracing::warn!(%error, "the access log cannot be opened anew");
                    }
                    None
                }
            };
            if let Some(mut line) = line {
                line.push(b'\n');
                out.push(&line);
            }
            next = entries.recv_timeout(Duration::from_millis(20)).ok();
        }
        out.write();
        let now = lost.load(Ordering::Relaxed);
        if now > said {
            tracing::warn!(
                lines = now - said,
                "the access log was too slow and lost lines"
            );
            said = now;
        }
    }
}
