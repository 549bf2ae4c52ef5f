//! An engine that only pretends: it notes each call, keeps in memory what would be on a host, and fails or hangs where
//! a test says so.

use jiff::Timestamp;
use offshoot_engine::Reach;
use offshoot_model::environment::Health;
use offshoot_model::traffic::Policy;
use offshoot_model::traffic::compare::Tally;
use offshoot_model::{Code, EnvId, Fault, Hold, NodeId, NodeState, Problem};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

mod calls;

/// What happens at a call instead of its success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// It fails and changes nothing.
    Fail,
    /// It fails after it changed everything.
    FailLate,
    /// It hangs until [`Pretend::go_on`], having changed nothing.
    Hang,
    /// It hangs, having changed everything.
    HangLate,
}

/// A host in memory.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// Calls that change something, with their time.
    pub(super) calls: Vec<(Instant, String)>,
    /// What every node that is not stopped does.
    pub(super) nodes: BTreeMap<NodeId, NodeState>,
    /// Environments with disks or a network.
    pub(super) made: BTreeSet<EnvId>,
    /// Environments with memory images of a cut.
    pub(super) cuts: BTreeSet<EnvId>,
    /// What the edge knows, by domain.
    pub(super) exposed: BTreeMap<String, Reach>,
    /// Where the edge leads, by domain.
    pub(super) leads: BTreeMap<String, EnvId>,
    /// Whether the edge serves HTTPS.
    pub(super) https: bool,
    /// Certificates that the edge shows, by name.
    pub(super) certificates: BTreeMap<String, String>,
    /// Texts that it answers, by host and path.
    pub(super) texts: BTreeMap<String, String>,
    /// Hosts that it sends elsewhere.
    pub(super) redirects: BTreeMap<String, String>,
    /// Domains at which it sends people to HTTPS.
    pub(super) only_https: BTreeSet<String>,
    /// Environments whose published ports are taken by others.
    pub(super) ports_taken: BTreeSet<EnvId>,
    /// What the edge does with requests for an environment's domains.
    pub(super) policies: BTreeMap<EnvId, Policy<EnvId>>,
    /// What the edge counted, by owner and side.
    pub(super) counts: BTreeMap<(EnvId, EnvId), Tally>,
    /// What comes to it between two looks.
    pub(super) more: BTreeMap<(EnvId, EnvId), Tally>,
    /// Version of what the edge knows.
    pub(super) version: u64,
    /// Status of the next answers of entry nodes; 200 after the last.
    pub(super) answers: VecDeque<u16>,
    /// Exit status of health checks, by node name; 0 when absent.
    pub(super) checks: HashMap<String, i32>,
    /// Schedulers in nodes, by node name.
    pub(super) schedulers: HashMap<String, Vec<String>>,
    /// What environments were last told to hold.
    pub(super) held: BTreeMap<EnvId, Hold>,
    /// Nodes that end at once with this status when they are started.
    pub(super) ends: HashMap<String, i32>,
    /// What happens at the calls of this name from now on.
    pub(super) acts: HashMap<String, Act>,
    /// What happens once, at the call of this number.
    pub(super) act_at: Option<(usize, Act)>,
}

/// The engine.
#[derive(Debug, Default)]
pub(super) struct Pretend {
    host: Mutex<Host>,
    /// Told when a call hangs.
    pub(super) hangs: Notify,
    go: Notify,
    /// Told when the edge ends.
    pub(super) edge_ends: Notify,
}

impl Pretend {
    pub(super) fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap()
    }

    /// Calls since the last time this was asked.
    pub(super) fn calls(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.host().calls);
        calls.into_iter().map(|(_, call)| call).collect()
    }

    /// Lets calls that hang go on, and none hang from now on.
    pub(super) fn go_on(&self) {
        self.host().acts.clear();
        self.go.notify_waiters();
    }

    pub(super) fn fail(&self, call: &str) {
        self.host().acts.insert(call.to_owned(), Act::Fail);
    }

    pub(super) fn hang(&self, call: &str) {
        self.host().acts.insert(call.to_owned(), Act::Hang);
    }

    /// Nothing of the environment is on the host.
    pub(super) fn nothing_of(&self, id: &EnvId, domain: &str) -> bool {
        let host = self.host();
        !host.made.contains(id)
            && !host.cuts.contains(id)
            && !host.exposed.contains_key(domain)
            && !host.nodes.keys().any(|node| node.env() == id)
    }

    /// Notes a call and does it, unless something else was asked for.
    pub(super) async fn call<R>(
        &self,
        what: impl Into<String>,
        change: impl FnOnce(&mut Host) -> R + Send,
    ) -> Result<R, Problem> {
        let what = what.into();
        let act = {
            let mut host = self.host();
            let number = host.calls.len();
            host.calls.push((Instant::now(), what.clone()));
            let once = host.act_at.filter(|(at, _)| *at == number);
            once.map(|(_, act)| act)
                .or_else(|| host.acts.get(&what).copied())
        };
        let failed = || {
            Problem::new(
                Code::Internal,
                Fault::Host,
                format!("{what} fails as asked"),
                "",
            )
        };
        match act {
            Some(Act::Fail) => return Err(failed()),
            Some(Act::Hang) => self.hang_here().await,
            _ => {}
        }
        let answer = change(&mut self.host());
        match act {
            Some(Act::FailLate) => return Err(failed()),
            Some(Act::HangLate) => self.hang_here().await,
            _ => {}
        }
        Ok(answer)
    }

    async fn hang_here(&self) {
        let go = self.go.notified();
        self.hangs.notify_one();
        go.await;
    }
}

fn running() -> NodeState {
    NodeState::Running {
        pid: 1,
        since: Timestamp::now(),
        health: Health::None,
    }
}

pub(super) fn exited(status: i32) -> NodeState {
    NodeState::Exited {
        status,
        at: Timestamp::now(),
    }
}

fn unused<R>() -> Result<R, Problem> {
    Err(Problem::internal("no test needs this"))
}
