//! One request on its way that is also copied.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot};
use tokio::task::AbortHandle;

use super::answer::Answer;
use super::{Asked, Mirror, NAME_MAX, PATH_MAX, beginning, send};

/// Bytes of bodies that are kept for copies, all owners together.
static BODIES: Semaphore = Semaphore::const_new(64 << 20);
/// Longest time of a copy, from connecting to the last byte of its answer.
const LONGEST: Duration = Duration::from_secs(60);

/// A request that is also copied.
pub(crate) struct Copying {
    mirror: Arc<Mirror>,
    host: String,
    stage: Stage,
    /// The visitor's answer, as it comes.
    live: Option<Answer>,
}

enum Stage {
    /// The request is not complete.
    Collecting(Collected),
    /// The copy is on its way.
    Sent {
        began: Instant,
        live: oneshot::Sender<(Answer, Duration)>,
        task: AbortHandle,
    },
    /// It is not copied after all.
    Over,
}

struct Collected {
    place: OwnedSemaphorePermit,
    /// As it was sent to a side.
    header: Option<Box<RequestHeader>>,
    body: Vec<u8>,
    bytes: Option<SemaphorePermit<'static>>,
}

impl Mirror {
    /// Whether a request is copied, and how, from its header on. `host` is its host name in normal form.
    pub(crate) fn begin(
        self: &Arc<Self>,
        header: &RequestHeader,
        host: &str,
    ) -> Option<Box<Copying>> {
        if !self.is_chosen() {
            return None;
        }
        let length = header.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let place = Arc::clone(&self.state.places).try_acquire_owned();
        let (Ok(place), true) = (place, length.unwrap_or(0) <= self.body_bytes) else {
            self.state.skipped();
            return None;
        };
        Some(Box::new(Copying {
            mirror: Arc::clone(self),
            host: host.to_owned(),
            stage: Stage::Collecting(Collected {
                place,
                header: None,
                body: Vec::new(),
                bytes: None,
            }),
            live: None,
        }))
    }
}

impl Copying {
    /// The request's header is about to be sent to a side, and its body from the beginning after it.
    pub(crate) fn header(&mut self, header: &RequestHeader) {
        if let Stage::Collecting(collected) = &mut self.stage {
            collected.header = Some(Box::new(header.clone()));
            collected.body.clear();
            collected.bytes = None;
        }
    }

    /// A part of the request's body is sent to a side; after the last one the copy begins.
    pub(crate) fn body(&mut self, part: Option<&Bytes>, is_last: bool) {
        let Stage::Collecting(collected) = &mut self.stage else {
            return;
        };
        if let Some(part) = part
            && !collected.add(part, self.mirror.body_bytes)
        {
            self.skip();
        } else if is_last {
            self.send();
        }
    }

    /// The header of a side's answer is here.
    pub(crate) fn answer(&mut self, header: &ResponseHeader, is_stream: bool) {
        if is_stream {
            // it ends when somebody likes: nothing to compare
            self.skip();
        } else if !header.status.is_informational() {
            self.live = Some(Answer::new(header.status.as_u16(), header.headers.clone()));
        }
    }

    /// A part of its body.
    pub(crate) fn answer_body(&mut self, part: &[u8]) {
        if let Some(live) = &mut self.live {
            live.add(part);
        }
    }

    /// The visitor has the whole answer, or never will. Only a whole one is compared.
    pub(crate) fn ended(mut self, is_complete: bool) {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Collecting(_) => self.mirror.state.skipped(),
            Stage::Sent { began, live, .. } => {
                if let Some(answer) = self.live.filter(|_| is_complete) {
                    // fails when the copy has failed already
                    let _ = live.send((answer, began.elapsed()));
                }
            }
            Stage::Over => {}
        }
    }

    fn skip(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Collecting(_) => self.mirror.state.skipped(),
            Stage::Sent { task, .. } => {
                task.abort();
                self.mirror.state.skipped();
            }
            Stage::Over => {}
        }
        self.live = None;
    }

    fn send(&mut self) {
        let Stage::Collecting(collected) = std::mem::replace(&mut self.stage, Stage::Over) else {
            return;
        };
        let Collected {
            place,
            header,
            body,
            bytes,
        } = collected;
        let request = header.and_then(|header| send::request(&header, body));
        let Some(request) = request else {
            self.mirror.state.skipped();
            return;
        };
        let asked = Asked {
            method: beginning(request.method().as_str(), NAME_MAX).to_owned(),
            host: std::mem::take(&mut self.host),
            path: beginning(request.uri().path(), PATH_MAX).to_owned(),
        };
        let mirror = Arc::clone(&self.mirror);
        let (live, answer) = oneshot::channel::<(Answer, Duration)>();
        let began = Instant::now();
        let task = tokio::spawn(async move {
            let _place = place;
            let state = &mirror.state;
            let exchange = state
                .connections
                .exchange(&mirror.target, mirror.proxy, request);
            let copy = tokio::select! {
                copy = tokio::time::timeout(LONGEST, exchange) => copy.ok().flatten(),
                () = mirror.target.environment.gone() => None,
            };
            let took = began.elapsed();
            drop(bytes);
            let Some(copy) = copy else {
                state.count(|stats| stats.failed += 1);
                return;
            };
            // the visitor went away, or got no whole answer
            let Ok((live, live_took)) = answer.await else {
                return;
            };
            let statuses = (live.status, copy.status);
            let found = live.differing(copy, &mirror.ignore);
            state.compared(asked, found, statuses, (live_took, took));
        });
        self.stage = Stage::Sent {
            began,
            live,
            task: task.abort_handle(),
        };
    }
}

impl Collected {
    /// Adds a part of the body, unless it becomes too long.
    fn add(&mut self, part: &Bytes, most: u64) -> bool {
        if part.is_empty() {
            return true;
        }
        let length = self.body.len().saturating_add(part.len());
        if length as u64 > most {
            return false;
        }
        let bytes = u32::try_from(part.len())
            .ok()
            .and_then(|bytes| BODIES.try_acquire_many(bytes).ok());
        let Some(bytes) = bytes else { return false };
        match &mut self.bytes {
            Some(all) => all.merge(bytes),
            None => self.bytes = Some(bytes),
        }
        self.body.extend_from_slice(part);
        true
    }
}
