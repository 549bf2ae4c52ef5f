//! Whether the nodes behind policies with checks are well: who asks them, and what is kept of it.
//!
//! Each node of such a policy has a task that asks it again and again. What the answers add up to is its owner's
//! [`Health`], which requests look at.

mod health;
mod kept;
mod node;
mod probe;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use offshoot_model::id::EnvId;
use offshoot_model::traffic::{Failover, ProxyVersion};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub(crate) use self::health::Health;
use self::kept::AllKept;
use self::probe::Question;
use crate::table::{Target, Upstream};
use crate::traffic::Owner as PolicyOwner;

/// Checks at a time, all policies together. Each has a socket.
const AT_ONCE: usize = 512;
/// Time from one writing of what is kept to the next.
const WRITE_PAUSE: Duration = Duration::from_millis(100);

/// A policy whose sides are to be checked.
pub(crate) struct Watched {
    health: Arc<Health>,
    failover: Failover,
    proxy: Option<ProxyVersion>,
    /// Its sides, and their nodes.
    sides: Vec<(EnvId, Vec<Upstream>)>,
    /// Without sides: the nodes are those of the owner's routes.
    itself: bool,
    /// A host name of the owner's.
    host: String,
    /// Whether that is a name below a wildcard.
    host_is_made_up: bool,
}

impl Watched {
    /// What an owner's policy wants to have checked, if anything.
    pub(crate) fn of(owner: &PolicyOwner) -> Option<Self> {
        let policy = owner.policy.as_ref()?;
        let sides = owner.sides.iter().map(|side| {
            let target = &side.target;
            (target.environment.id.clone(), target.upstreams.clone())
        });
        let mut sides: Vec<_> = sides.collect();
        let itself = sides.is_empty();
        if itself {
            sides.push((owner.environment.id.clone(), Vec::new()));
        }
        Some(Self {
            health: Arc::clone(owner.health.as_ref()?),
            failover: policy.failover.clone()?,
            proxy: policy.send_proxy,
            sides,
            itself,
            host: String::new(),
            host_is_made_up: false,
        })
    }

    /// Learns a route of the owner's: its first host name is what nodes are asked for, `www` below it when it is a
    /// wildcard.
    pub(crate) fn add_route(&mut self, host: &str, target: &Target) {
        let is_wildcard = host.starts_with('*');
        if self.host.is_empty() || (self.host_is_made_up && !is_wildcard) {
            self.host = host.replacen('*', "www", 1);
            self.host_is_made_up = is_wildcard;
        }
        if self.itself
            && let Some((_, nodes)) = self.sides.first_mut()
        {
            let new = target.upstreams.iter().filter(|node| !nodes.contains(node));
            let new: Vec<_> = new.copied().collect();
            nodes.extend(new);
        }
    }
}

/// All checks of the edge.
pub(crate) struct Checks {
    file: PathBuf,
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    /// What a former process knew, until the first routes are here.
    former: AllKept,
    owners: HashMap<EnvId, Owner>,
}

struct Owner {
    health: Arc<Health>,
    question: Arc<Question>,
    /// By the node's key.
    nodes: HashMap<u64, Running>,
}

/// A task that ends with this.
struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Checks {
    /// None yet; `file` is where a former process kept what must not be forgotten.
    pub(crate) fn new(file: PathBuf) -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_ONCE)),
            state: Mutex::new(State {
                former: kept::read(&file),
                owners: HashMap::new(),
            }),
            file,
        }
    }

    /// Checks these policies, and no others any more.
    pub(crate) fn apply(&self, watched: &HashMap<EnvId, Watched>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let former = std::mem::take(&mut state.former);
        let mut before = std::mem::take(&mut state.owners);
        for (id, policy) in watched {
            let check = policy.failover.check.clone();
            let question = Question {
                host: check.host.clone().unwrap_or_else(|| policy.host.clone()),
                check,
                proxy: policy.proxy,
            };
            let same = |owner: &Owner| Arc::ptr_eq(&owner.health, &policy.health);
            let owner = before.remove(id).filter(same);
            let kept = former.get(id).cloned().unwrap_or_default();
            policy.health.set(&policy.failover, &policy.sides, kept);
            let owner = self.watch(policy, question, owner);
            state.owners.insert(id.clone(), owner);
        }
        if !before.is_empty() {
            kept::changed();
        }
    }

    /// A task for each node; those that ask the same question of the same node go on.
    fn watch(&self, policy: &Watched, question: Question, before: Option<Owner>) -> Owner {
        let (question, mut running) = match before {
            Some(owner) if *owner.question == question => (owner.question, owner.nodes),
            _ => (Arc::new(question), HashMap::new()),
        };
        let upstreams = policy.sides.iter().flat_map(|(_, upstreams)| upstreams);
        let nodes = upstreams.map(|node| {
            let task = running.remove(&node.key).unwrap_or_else(|| {
                let task = ask_again_and_again(
                    Arc::clone(&policy.health),
                    *node,
                    Arc::clone(&question),
                    Arc::clone(&self.places),
                );
                Running(tokio::spawn(task).abort_handle())
            });
            (node.key, task)
        });
        Owner {
            nodes: nodes.collect(),
            health: Arc::clone(&policy.health),
            question,
        }
    }

    /// Writes what must not be forgotten whenever it changed; ends with the edge.
    pub(crate) async fn keep(self: Arc<Self>) {
        loop {
            kept::wait().await;
            self.write_now().await;
            tokio::time::sleep(WRITE_PAUSE).await;
        }
    }

    /// Writes it.
    pub(crate) async fn write_now(self: &Arc<Self>) {
        let checks = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || checks.write()).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(path = %self.file.display(), %error, "what checks found is not kept");
        }
    }

    /// Asks nobody any more.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for owner in state.owners.values_mut() {
            owner.nodes.clear();
        }
    }

    fn write(&self) -> std::io::Result<()> {
        let all: AllKept = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let owners = state.owners.iter();
            owners
                .map(|(id, owner)| (id.clone(), owner.health.kept()))
                .collect()
        };
        kept::write(&self.file, &all)
    }
}

/// The first time at once, so that what is down is known soon; then each node at its own point of the interval.
async fn ask_again_and_again(
    health: Arc<Health>,
    node: Upstream,
    question: Arc<Question>,
    places: Arc<Semaphore>,
) {
    let interval = Duration::from_millis(question.check.interval_ms);
    let share = getrandom::u32().unwrap_or_default();
    let mut due = Instant::now() + interval.mul_f64(f64::from(share) / f64::from(u32::MAX));
    // the semaphore is never closed
    while let Ok(place) = places.acquire().await {
        let outcome = question.ask(node.address).await;
        drop(place);
        health.checked(node.key, outcome);
        tokio::time::sleep_until(due).await;
        due = Instant::now().max(due + interval);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Waits for a number of free places.
    async fn until_free(checks: &Checks, places: usize) {
        let wait = async {
            while checks.places.available_permits() != places {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let bound = Duration::from_secs(20);
        tokio::time::timeout(bound, wait)
            .await
            .expect("it comes so far");
    }

    #[tokio::test]
    async fn only_so_many_are_asked_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let checks = Checks::new(directory.path().join("health.json"));
        // it accepts nothing, and refuses nothing
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        let nodes = (1..=AT_ONCE as u64 + 100).map(|key| Upstream { address, key });
        let mut failover = Failover::default();
        failover.check.timeout_ms = 60_000;
        let side: EnvId = "aaaaaaaa".parse().unwrap();
        let watched = Watched {
            health: Health::new(),
            failover,
            proxy: None,
            sides: vec![(side.clone(), nodes.collect())],
            itself: false,
            host: "a.test".to_owned(),
            host_is_made_up: false,
        };
        let health = Arc::clone(&watched.health);
        checks.apply(&HashMap::from([(side.clone(), watched)]));
        until_free(&checks, 0).await;
        assert_eq!(health.side(&side).unwrap().nodes.len(), AT_ONCE + 100);
        // without a policy none are
        checks.apply(&HashMap::new());
        until_free(&checks, AT_ONCE).await;
    }
}
