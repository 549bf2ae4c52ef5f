//! Who is signed in: one-time links, sessions, and how often somebody may try.
//!
//! Links are kept in memory, sessions besides in a file ([`crate::kept`]). Of both only fingerprints are kept. All
//! times here are since the start of the host.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use subtle::ConstantTimeEq as _;

use crate::kept::{self, Kept};
use crate::secret::{Fingerprint, Secret, fingerprint};

/// How long a link can be used.
pub(crate) const LINK_TIME: Duration = Duration::from_secs(15 * 60);
/// A session that asks for nothing for so long has ended.
pub(crate) const IDLE: Duration = Duration::from_secs(12 * 3600);
/// Most links that wait to be used; the oldest goes for a new one.
const LINKS_MAX: usize = 16;
/// What a person does is written to the file this long after what was written last: so much earlier may a session end
/// that goes on in another daemon.
const WRITE_AFTER: Duration = Duration::from_secs(60);
/// Use of the secret that follows from a session's.
const FORMS: &str = "offshoot dashboard forms";
/// Most sessions; the one that was idle longest goes for a new one.
const SESSIONS_MAX: usize = 256;
/// Wrong links from one address within [`TRY_TIME`], after which it has to wait.
const TRIES: u32 = 10;
const TRY_TIME: Duration = Duration::from_secs(60);
/// Most addresses whose failures are counted; while they are full, no new address may sign in.
const ADDRESSES_MAX: usize = 1024;

/// A person who is signed in, as handlers know them.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    id: Fingerprint,
    csrf: Arc<Secret>,
}

impl Session {
    /// What every form of this person's pages carries.
    pub(crate) fn csrf(&self) -> &str {
        self.csrf.as_str()
    }

    /// Whether a form came from one of this person's pages.
    pub(crate) fn sent(&self, csrf: &str) -> bool {
        self.csrf.as_str().as_bytes().ct_eq(csrf.as_bytes()).into()
    }
}

/// Whose doing a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Somebody pressed something.
    Person,
    /// A page keeps itself current.
    Page,
}

/// Why nobody was signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// No such link, or it was used, or it is too old.
    #[error("the link was used already, or is older than 15 minutes")]
    NoLink,
    /// Too many wrong links from there.
    #[error("too many wrong links came from there; wait a minute")]
    TooMany,
    /// The host has no randomness to give.
    #[error("the host gives no random numbers")]
    NoRandomness,
}

struct Failures {
    count: u32,
    since: Duration,
}

#[derive(Default)]
struct State {
    links: HashMap<Fingerprint, Duration>,
    /// When a person last did something in each.
    sessions: kept::Seen,
    failures: HashMap<IpAddr, Failures>,
    file: Option<Kept>,
    written: Duration,
}

impl State {
    /// Writes down who is signed in. The file is small and in memory as a rule; it is written with the lock held, so
    /// that the newest state is the last one written.
    fn keep(&mut self, now: Duration) {
        self.written = now;
        if let Some(file) = &self.file {
            file.write(self.sessions.iter().map(|(cookie, seen)| (*cookie, *seen)));
        }
    }
}

/// All links and sessions of a daemon.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<State>);

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions(..)")
    }
}

impl Sessions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps sessions in a file from now on, and takes up those that are there and have not ended.
    pub(crate) fn keep_in(&self, path: PathBuf, now: Duration) -> io::Result<()> {
        let file = Kept::new(path)?;
        let found = file.read(now);
        let mut state = self.state();
        state.file = Some(file);
        let going_on = found?.into_iter().filter(|(_, seen)| goes_on(*seen, now));
        state.sessions.extend(going_on.take(SESSIONS_MAX));
        Ok(())
    }

    /// Makes a key that signs in one person, once.
    pub(crate) fn link(&self, now: Duration) -> io::Result<Secret> {
        let key = Secret::random()?;
        let mut state = self.state();
        state
            .links
            .retain(|_, made| now.saturating_sub(*made) < LINK_TIME);
        if state.links.len() >= LINKS_MAX {
            let oldest = state.links.iter().min_by_key(|(_, made)| **made);
            if let Some(oldest) = oldest.map(|(link, _)| *link) {
                state.links.remove(&oldest);
            }
        }
        state.links.insert(key.fingerprint(), now);
        Ok(key)
    }

    /// Uses a key up. Answers what the browser is to keep.
    pub(crate) fn sign_in(
        &self,
        key: &str,
        from: IpAddr,
        now: Duration,
    ) -> Result<Secret, Refusal> {
        let from = neighbourhood(from);
        let mut state = self.state();
        state
            .failures
            .retain(|_, failures| now.saturating_sub(failures.since) < TRY_TIME);
        let known = state.failures.get(&from);
        if known.is_some_and(|failures| failures.count >= TRIES)
            || known.is_none() && state.failures.len() >= ADDRESSES_MAX
        {
            return Err(Refusal::TooMany);
        }
        let made = state.links.remove(&fingerprint(key));
        if made.is_none_or(|made| now.saturating_sub(made) >= LINK_TIME) {
            let failures = state.failures.entry(from).or_insert(Failures {
                count: 0,
                since: now,
            });
            failures.count += 1;
            return Err(Refusal::NoLink);
        }
        let cookie = Secret::random().map_err(|_| Refusal::NoRandomness)?;
        state.sessions.retain(|_, seen| goes_on(*seen, now));
        if state.sessions.len() >= SESSIONS_MAX {
            let idlest = state.sessions.iter().min_by_key(|(_, seen)| **seen);
            if let Some(idlest) = idlest.map(|(session, _)| *session) {
                state.sessions.remove(&idlest);
            }
        }
        state.sessions.insert(cookie.fingerprint(), now);
        state.keep(now);
        Ok(cookie)
    }

    /// Whose cookie it is. What a person does ends a session's idleness, what an open page asks for by itself does not.
    pub(crate) fn find(&self, cookie: &str, doing: Doing, now: Duration) -> Option<Session> {
        let id = fingerprint(cookie);
        let mut state = self.state();
        let seen = state.sessions.get_mut(&id)?;
        if !goes_on(*seen, now) {
            state.sessions.remove(&id);
            return None;
        }
        if doing == Doing::Person {
            *seen = now;
            if now.saturating_sub(state.written) >= WRITE_AFTER {
                state.keep(now);
            }
        }
        Some(Session {
            id,
            csrf: Arc::new(Secret::derived(cookie, FORMS)),
        })
    }

    /// Whether a session goes on: streams ask, without making it any less idle.
    pub(crate) fn goes_on(&self, session: &Session, now: Duration) -> bool {
        self.state()
            .sessions
            .get(&session.id)
            .is_some_and(|seen| goes_on(*seen, now))
    }

    /// Ends a session, also for daemons to come.
    pub(crate) fn sign_out(&self, session: &Session, now: Duration) {
        let mut state = self.state();
        state.sessions.remove(&session.id);
        state.keep(now);
    }
}

/// Whether a session that was last used then has not ended.
fn goes_on(seen: Duration, now: Duration) -> bool {
    now.saturating_sub(seen) < IDLE
}

/// Addresses that one party can have at will count as one: an IPv6 /64.
fn neighbourhood(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
