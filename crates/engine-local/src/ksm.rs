//! Equal memory of clones and their parents is kept once: the kernel's merging thread runs while there are clones that came with their
//! memory, and is put back as it was found afterwards.
//!
//! It is one for the whole host. So it is taken only when it stands, and left to whoever else sets it. It is locked, and what was found is
//! noted at one place of the host: should this daemon be killed, any other one finds it there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use offshoot_model::{EnvId, NodeId};
use offshoot_runtime::{NodeSpec, RunState, SPEC_FILE, Start, observe};
use offshoot_sys::merge::{self, Merger, Run, Settings};

use crate::config::LocalConfig;
use crate::nodes::{names_in, node_dir};

/// Where it is noted what was found. It is of this boot.
const NOTE: &str = "/run/offshoot-ksm";
/// How often clones are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// How often everything is looked at fast after a clone's memory has come: a page is merged when it was the same at two looks, and its
/// partner may be looked at after it.
const FAST_SCANS: u64 = 4;

/// How fast equal pages are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// After a clone came.
    Fast,
    /// When all was looked at: for what becomes equal later.
    Slow,
    /// Hardly at all, while a cut is made: a page that is merged counts as changed, and would be copied in the freeze once more. It
    /// runs nevertheless, for another daemon would take what stands.
    Cut,
}

impl Pace {
    const ALL: [Self; 3] = [Self::Fast, Self::Slow, Self::Cut];

    /// Pages in each helping and milliseconds of rest after it; docs/clone.md says what they cost.
    fn helping(self) -> (u64, u64) {
        match self {
            Self::Fast => (1_500, 20),
            Self::Slow => (100, 20),
            Self::Cut => (100, 60_000),
        }
    }

    /// Whether this is what was set for it.
    fn is(self, now: &Settings) -> bool {
        (now.pages_to_scan, now.sleep_millisecs) == self.helping() && now.run == Run::Merges
    }
}

/// A node that runs on the memory of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clone {
    pid: Option<i32>,
    /// Some of its memory has still to come.
    is_coming: bool,
}

/// Whose the merging thread is.
#[derive(Debug)]
enum Owner {
    /// Somebody else's, or nobody's.
    Other,
    /// Ours. `pace` is absent when it is not known.
    Us { found: Settings, pace: Option<Pace> },
    /// Somebody set it while it was ours: not touched again before the last clone is gone.
    Yielded,
}

struct Keeper {
    merger: Merger,
    /// A directory like the kernel's with what was found; there while the merging thread is ours.
    note: PathBuf,
    /// Held while the merging thread is ours.
    lock: Option<File>,
    owner: Owner,
    seen: BTreeMap<NodeId, Clone>,
    /// Fast until the kernel's `full_scans` reaches this.
    fast_until: u64,
    /// How many cuts are under way.
    cuts: usize,
}

impl Keeper {
    fn new(merger: Merger, note: PathBuf) -> Self {
        let mut keeper = Self {
            merger,
            note,
            lock: None,
            owner: Owner::Other,
            seen: BTreeMap::new(),
            fast_until: 0,
            cuts: 0,
        };
        keeper.adopt();
        keeper
    }

    /// Takes over what a daemon left that was killed: nobody holds the lock, and all is set as it set it.
    fn adopt(&mut self) {
        if !self.note.exists() || !self.hold() {
            return;
        }
        // An incomplete note is of a daemon that had set nothing yet.
        if let (Ok(found), Ok(now)) = (Merger::at(&self.note).settings(), self.merger.settings())
            && Pace::ALL.iter().any(|pace| pace.is(&now))
        {
            self.owner = Owner::Us { found, pace: None };
        } else {
            self.forget();
        }
    }

    /// Whether no other daemon has the merging thread, or is about to take it.
    fn hold(&mut self) -> bool {
        if self.lock.is_none() {
            self.lock = self.merger.hold();
        }
        self.lock.is_some()
    }

    /// Does what is right while these clones run.
    fn look(&mut self, clones: BTreeMap<NodeId, Clone>) -> io::Result<()> {
        if self.cuts > 0 {
            return Ok(());
        }
        if matches!(self.owner, Owner::Other) {
            self.adopt();
        }
        if clones.is_empty() {
            self.seen = clones;
            return self.put_back();
        }
        let scans = self.merger.full_scans()?;
        let is_new = |(node, clone): (&NodeId, &Clone)| {
            clone.is_coming || self.seen.get(node).is_none_or(|seen| seen.pid != clone.pid)
        };
        if clones.iter().any(is_new) {
            self.fast_until = scans + FAST_SCANS;
        }
        self.seen = clones;
        let wanted = if scans < self.fast_until {
            Pace::Fast
        } else {
            Pace::Slow
        };
        let now = self.merger.settings()?;
        match &mut self.owner {
            Owner::Other if now.run == Run::Stands => {
                self.take(now)?;
                self.set(wanted)
            }
            Owner::Us {
                pace: Some(pace), ..
            } if !pace.is(&now) => {
                tracing::info!("somebody set the kernel's merging of equal memory: left to them");
                self.owner = Owner::Yielded;
                self.forget();
                Ok(())
            }
            Owner::Us { pace, .. } if *pace != Some(wanted) => self.set(wanted),
            Owner::Other | Owner::Us { .. } | Owner::Yielded => Ok(()),
        }
    }

    /// Notes what was found before anything is changed.
    fn take(&mut self, found: Settings) -> io::Result<()> {
        if !self.hold() {
            return Ok(());
        }
        self.remove_note();
        fs::create_dir(&self.note)?;
        Merger::at(&self.note).set(&found)?;
        self.owner = Owner::Us { found, pace: None };
        Ok(())
    }

    fn set(&mut self, wanted: Pace) -> io::Result<()> {
        if let Owner::Us { found, pace } = &mut self.owner {
            *pace = None;
            let (pages_to_scan, sleep_millisecs) = wanted.helping();
            self.merger.set(&Settings {
                run: Run::Merges,
                pages_to_scan,
                sleep_millisecs,
                advisor_mode: found.advisor_mode.as_ref().map(|_| "none".to_owned()),
            })?;
            *pace = Some(wanted);
        }
        Ok(())
    }

    /// Puts back what was found, if it is still as we set it. What was merged stays so until it is written to.
    fn put_back(&mut self) -> io::Result<()> {
        if let Owner::Us { found, pace } = &self.owner
            && let Ok(now) = self.merger.settings()
            && pace.is_none_or(|pace| pace.is(&now))
        {
            self.merger.set(found)?;
        }
        if !matches!(self.owner, Owner::Other) {
            self.forget();
        }
        self.owner = Owner::Other;
        Ok(())
    }

    fn forget(&mut self) {
        self.remove_note();
        self.lock = None;
    }

    fn remove_note(&self) {
        if let Err(error) = fs::remove_dir_all(&self.note)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, note = %self.note.display(), "cannot be removed");
        }
    }

    /// A cut begins.
    fn pause(&mut self) -> io::Result<()> {
        self.cuts += 1;
        match &self.owner {
            Owner::Us {
                pace: Some(pace), ..
            } if pace.is(&self.merger.settings()?) => self.set(Pace::Cut),
            _ => Ok(()),
        }
    }

    /// A cut ended. The next look sets the pace.
    fn resume(&mut self) {
        self.cuts -= 1;
    }
}

/// Shares equal memory of clones until it is closed.
pub(crate) struct Sharing {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    keeper: Keeper,
    ends: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sharing {
    /// Begins. Where the configuration does not want it or the kernel cannot, only what an earlier daemon left is put back.
    pub(crate) fn open(config: &LocalConfig) -> Self {
        let dir = Path::new(merge::DIR);
        let keeper = Keeper::new(Merger::at(dir), PathBuf::from(NOTE));
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                keeper,
                ends: false,
            }),
            changed: Condvar::new(),
        });
        if config.share_memory && dir.exists() {
            let (shared, config) = (Arc::clone(&shared), config.clone());
            std::thread::spawn(move || keep(&shared, &config));
        } else {
            report(shared.lock().keeper.put_back());
        }
        Self { shared }
    }

    /// Puts back what was found, for good. The daemon ends without dropping what it has, so this is called.
    pub(crate) fn close(&self) {
        let mut state = self.shared.lock();
        state.ends = true;
        report(state.keeper.put_back());
        self.shared.changed.notify_all();
    }

    /// Has as good as nothing merged while a cut is made.
    pub(crate) fn pause(&self) -> Pause {
        report(self.shared.lock().keeper.pause());
        Pause(Arc::clone(&self.shared))
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        self.close();
    }
}

/// Dropping it ends the pause.
pub(crate) struct Pause(Arc<Shared>);

impl Drop for Pause {
    fn drop(&mut self) {
        self.0.lock().keeper.resume();
    }
}

fn keep(shared: &Shared, config: &LocalConfig) {
    loop {
        // Asks the shims: not with the lock held, for which a cut waits.
        let clones = clones(config);
        let mut state = shared.lock();
        if state.ends {
            return;
        }
        report(state.keeper.look(clones));
        let _ = shared
            .changed
            .wait_timeout_while(state, LOOK, |state| !state.ends);
    }
}

fn report(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "equal memory of clones is not shared");
    }
}

/// The nodes that were restored, and run.
fn clones(config: &LocalConfig) -> BTreeMap<NodeId, Clone> {
    let envs = config.run_envs();
    let nodes = names_in(&envs).into_iter().flat_map(|env| {
        let names = names_in(&envs.join(&env).join("nodes"));
        let env = env.parse::<EnvId>().ok();
        names
            .into_iter()
            .filter_map(move |name| NodeId::new(env.clone()?, &name).ok())
    });
    nodes
        .filter_map(|node| {
            let dir = node_dir(config, &node);
            let spec = NodeSpec::read(&dir.join(SPEC_FILE)).ok()?;
            matches!(spec.start, Start::Restore { .. }).then_some(())?;
            let seen = observe(&dir).ok()?;
            let runs = matches!(seen.state, RunState::Running | RunState::Frozen);
            let clone = Clone {
                pid: seen.pid,
                is_coming: seen.memory_to_come > 0,
            };
            runs.then_some((node, clone))
        })
        .collect()
}

#[cfg(test)]
#[path = "ksm_tests.rs"]
mod tests;
