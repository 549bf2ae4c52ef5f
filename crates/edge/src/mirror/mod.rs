//! Copies of visitors' requests: sent to another environment while they are answered, and the two answers compared.
//!
//! The visitor waits for none of it. A copy is sent when the whole request is here, so its body is collected on the way;
//! of answers only a hash is kept. All of it is bounded, and what goes beyond a bound is not copied but counted.

mod answer;
mod copying;
mod send;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderName;
use jiff::Timestamp;
use offshoot_model::id::EnvId;
use offshoot_model::traffic::stats::{Difference, MirrorStats};
use offshoot_model::traffic::{Policy, ProxyVersion};
use tokio::sync::Semaphore;

use self::answer::Differing;
pub(crate) use self::copying::Copying;
use self::send::Connections;
pub(crate) use self::send::MARK;
use crate::table::Target;

/// Copies under way at a time, of one owner.
const AT_ONCE: usize = 64;
/// Differences that are remembered.
const DIFFERENCES: usize = 32;
/// Longest part of a path that is remembered, bytes.
const PATH_MAX: usize = 256;
/// Longest part of a method and of a field's name, and most of these.
const NAME_MAX: usize = 64;
const NAMES_MAX: usize = 32;

/// Where copies of an owner's requests go.
pub(crate) struct Mirror {
    target: Arc<Target>,
    proxy: Option<ProxyVersion>,
    permille: u32,
    body_bytes: u64,
    ignore: Vec<HeaderName>,
    state: Arc<State>,
}

/// What stays as long as the copies go to the same environment.
struct State {
    places: Arc<Semaphore>,
    connections: Connections,
    stats: Mutex<MirrorStats>,
}

/// What was asked, for people who look at a difference.
struct Asked {
    method: String,
    host: String,
    path: String,
}

impl Mirror {
    /// The mirror of a policy, if it has one. It goes on counting when `former` is about the same environment.
    pub(crate) fn of(
        policy: &Policy<EnvId>,
        target: Arc<Target>,
        former: Option<&Arc<Self>>,
        saved: Option<MirrorStats>,
    ) -> Option<Arc<Self>> {
        let mirror = policy.mirror.as_ref()?;
        let former = former.filter(|former| former.target.environment.id == mirror.environment);
        let state = former.map_or_else(
            || Arc::new(State::new(saved.unwrap_or_default())),
            |former| Arc::clone(&former.state),
        );
        Some(Arc::new(Self {
            target,
            proxy: policy.send_proxy,
            permille: mirror.permille,
            body_bytes: mirror.body_bytes,
            ignore: mirror
                .ignore
                .iter()
                .filter_map(|name| name.parse().ok())
                .collect(),
            state,
        }))
    }

    /// What came of the copies so far.
    pub(crate) fn stats(&self) -> MirrorStats {
        self.state.count(|stats| stats.clone())
    }

    /// Whether chance chooses a request.
    fn is_chosen(&self) -> bool {
        self.permille >= 1_000 || getrandom::u32().unwrap_or_default() % 1_000 < self.permille
    }
}

impl State {
    fn new(stats: MirrorStats) -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_ONCE)),
            connections: Connections::default(),
            stats: Mutex::new(stats),
        }
    }

    fn count<T>(&self, change: impl FnOnce(&mut MirrorStats) -> T) -> T {
        change(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn skipped(&self) {
        self.count(|stats| stats.skipped += 1);
    }

    /// Counts two answers to one request: how they differ, their statuses, how long they took.
    fn compared(
        &self,
        asked: Asked,
        found: Differing,
        statuses: (u16, u16),
        took: (Duration, Duration),
    ) {
        self.count(|stats| {
            stats.compared += 1;
            stats.live.add(took.0);
            stats.copy.add(took.1);
            if found.is_nothing() {
                stats.same += 1;
                return;
            }
            if found.status {
                stats.status += 1;
            } else {
                stats.headers += u64::from(!found.headers.is_empty());
                stats.body += u64::from(found.bodies.is_some());
            }
            if stats.differences.len() >= DIFFERENCES {
                stats.differences.remove(0);
            }
            let names = found.headers.iter().take(NAMES_MAX);
            let names = names.map(|name| beginning(name, NAME_MAX).to_owned());
            let ms = |took: Duration| took.as_secs_f64() * 1e3;
            stats.differences.push(Difference {
                at: Timestamp::now(),
                method: asked.method,
                host: asked.host,
                path: asked.path,
                statuses,
                headers: names.collect(),
                bodies: found.bodies,
                ms: (ms(took.0), ms(took.1)),
            });
        });
    }
}

/// At most so many bytes, and no part of a character.
fn beginning(text: &str, most: usize) -> &str {
    let ends = text.char_indices().map(|(begin, c)| begin + c.len_utf8());
    let end = ends.take_while(|end| *end <= most).last();
    text.get(..end.unwrap_or_default()).unwrap_or(text)
}
