//! Puts what a process did to its memory into the order in which it happened.
//!
//! The kernel orders changes by a lock and tells of them after it let go of the lock, one event at a time: so two threads' events come in
//! another order than what they tell of. One moves memory from A to B, another gets the free addresses A and moves memory from C there; the
//! second event may come first. What is certain:
//!
//! - Only changes that were under way at the same time come in a wrong order (`Userfaultfd::is_changing`). They are a *group*.
//! - mremap(2) puts memory where nothing is. So whatever left a place comes before what arrives there.
//! - What is read after an event while whose reading no other change was under way happened after it ([`super::alone`]).
//! - A thread knows that memory has arrived somewhere when its call returns, after its event was read. So whoever moves, unmaps or wipes
//!   it after that is read after that.
//! - What is watched after all changes of the group is what is watched now. Memory can also grow over free addresses, of which there is no
//!   event; but then its area began before them.
//!
//! All orders of a group that agree with this are looked at. They nearly always end in the same table of missing pages; where they do not, it
//! cannot be known what the memory should be, and that is an error.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use rustix::io::Errno;

use super::pages::PAGE;
use super::pending::Pending;
use super::ranges::Ranges;

/// Bound on the states of memory that are looked at after each number of changes.
const STATES_MAX: usize = 1000;

/// What a userfaultfd tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// mremap(2). The old place is unmapped by another event, with `MREMAP_DONTUNMAP` not at all.
    Moved {
        from: Range<u64>,
        to: u64,
    },
    Unmapped(Range<u64>),
    /// madvise(2).
    Removed(Range<u64>),
    /// The child of this number, in the order read.
    Forked(usize),
}

/// A change whose event was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) change: Change,
    /// No other change of this memory was under way when it was read: what is read later happened later ([`super::alone`]).
    pub(crate) alone: bool,
}

/// What there is at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Unwatched,
    /// The first address of an area that is watched.
    Begins,
    /// Another address of one.
    GoesOn,
}

/// Looks at the memory of a process, or of its child of a number, as it is when no change is under way.
pub(crate) trait Look {
    /// # Errors
    /// `EAGAIN`: changes are under way.
    fn look(&self, child: Option<usize>, address: u64) -> io::Result<Place>;
}

/// The memory of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) pending: Pending,
    /// Certainly watched. More may be: memory grows without an event.
    pub(crate) watched: Ranges,
}

/// What comes of a group of changes, beside the table.
#[derive(Debug)]
pub(crate) struct Settled {
    /// What is to come to the children, by their numbers.
    pub(crate) children: Vec<Pending>,
    /// Places in the file of pages that will not come to the process any more.
    pub(crate) gone: Ranges,
}

/// Applies a group of changes, in the order read, after which no change was under way.
///
/// # Errors
/// When their order cannot be known; `EAGAIN` when changes are under way again, and others of [`Look`]. The table is as it was then.
pub(crate) fn settle(
    table: &mut Table,
    changes: &[Heard],
    look: &impl Look,
) -> io::Result<Settled> {
    let steps = steps(changes);
    let forks = steps
        .iter()
        .filter(|step| matches!(step.change, Change::Forked(_)))
        .count();
    let mut ends = Vec::new();
    for part in parts(&steps) {
        ends.push(part.end(table, look)?);
    }
    let mut settled = Settled {
        children: vec![table.pending.clone(); forks],
        gone: Ranges::default(),
    };
    for end in ends {
        for range in end.touched.iter() {
            for piece in table.pending.remove(&range) {
                settled.gone.insert(&piece.source());
            }
            table.watched.remove(&range);
            for child in &mut settled.children {
                child.remove(&range);
            }
        }
        for piece in end.table.pending.all() {
            settled.gone.remove(&piece.source());
            table.pending.insert(piece);
        }
        for range in end.table.watched.iter() {
            table.watched.insert(&range);
        }
        for (child, pending) in settled.children.iter_mut().zip(end.children) {
            for piece in pending.all() {
                child.insert(piece);
            }
        }
    }
    Ok(settled)
}

/// A change, or a move together with the unmapping of its old place: the lock is held for both.
#[derive(Debug)]
struct Step {
    change: Change,
    /// Of a move: whether its old place is unmapped.
    unmaps: bool,
    /// When its event was read.
    read: usize,
    /// As [`Heard::alone`].
    alone: bool,
}

impl Step {
    fn ranges(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let (one, two) = match &self.change {
            Change::Moved { from, to } => (Some(from.clone()), Some(target(from, *to))),
            Change::Unmapped(range) | Change::Removed(range) => (Some(range.clone()), None),
            Change::Forked(_) => (None, None),
        };
        one.into_iter().chain(two)
    }

    /// Where something is to whoever knows of this step, that is, once it was read: what arrived, or what was wiped.
    fn told(&self) -> Option<Range<u64>> {
        match &self.change {
            Change::Moved { from, to } => Some(target(from, *to)),
            Change::Removed(range) => Some(range.clone()),
            Change::Unmapped(_) | Change::Forked(_) => None,
        }
    }

    /// Whether it certainly came before `later`: else it would have to do with what `later` told, and would have been read after that.
    /// Memory is given up after its event was read; to who does not know of that, such as a child of a fork(2) meanwhile, it may be there
    /// or not.
    fn precedes(&self, later: &Self) -> bool {
        use Change::{Forked, Removed};
        self.read < later.read
            && (self.alone
                || matches!(
                    (&self.change, &later.change),
                    (Removed(_), Forked(_)) | (Forked(_), Removed(_))
                )
                || later.told().is_some_and(|told| {
                    self.ranges()
                        .any(|range| range.start < told.end && told.start < range.end)
                }))
    }
}

fn target(from: &Range<u64>, to: u64) -> Range<u64> {
    to..to.saturating_add(from.end - from.start)
}

fn steps(changes: &[Heard]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (read, Heard { change, alone }) in changes.iter().enumerate() {
        if let Change::Unmapped(range) = change
            && let Some(moved) = steps.iter_mut().find(|step| {
                !step.unmaps && matches!(&step.change, Change::Moved { from, .. } if from == range)
            })
        {
            moved.unmaps = true;
            continue;
        }
        steps.push(Step {
            change: change.clone(),
            unmaps: false,
            read,
            alone: *alone,
        });
    }
    steps
}

/// Steps that have to do with each other, and all forks.
#[derive(Default)]
struct Part<'a> {
    steps: Vec<&'a Step>,
    touched: Ranges,
}

/// What a part of the memory is in the end.
struct End {
    touched: Ranges,
    table: Table,
    /// By their numbers.
    children: Vec<Pending>,
}

fn parts(steps: &[Step]) -> Vec<Part<'_>> {
    let mut parts: Vec<Part<'_>> = Vec::new();
    let (forks, others): (Vec<&Step>, Vec<&Step>) = steps
        .iter()
        .partition(|step| step.ranges().next().is_none());
    for step in others {
        let mut whole = Part::default();
        step.ranges().for_each(|range| whole.touched.insert(&range));
        let met = |part: &Part<'_>| step.ranges().any(|range| part.touched.meets(&range));
        let (near, far): (Vec<_>, Vec<_>) = parts.into_iter().partition(met);
        for mut part in near {
            whole.steps.append(&mut part.steps);
            part.touched.iter().for_each(|r| whole.touched.insert(&r));
        }
        whole.steps.push(step);
        parts = far;
        parts.push(whole);
    }
    for part in &mut parts {
        part.steps.extend(&forks);
    }
    parts
}

impl Part<'_> {
    /// Finds out what this part of `table` is after its steps.
    fn end(self, table: &Table, look: &impl Look) -> io::Result<End> {
        let mut start = Table::default();
        for range in self.touched.iter() {
            let pieces = table.pending.inside(&range);
            pieces.into_iter().for_each(|p| start.pending.insert(p));
            let watched = table.watched.inside(&range);
            watched.iter().for_each(|part| start.watched.insert(part));
        }
        let only_goes =
            |step: &&Step| matches!(step.change, Change::Unmapped(_) | Change::Removed(_));
        if self.steps.iter().all(only_goes) {
            // The order does not matter.
            for step in &self.steps {
                for range in step.ranges() {
                    start.pending.remove(&range);
                    if matches!(step.change, Change::Unmapped(_)) {
                        start.watched.remove(&range);
                    }
                }
            }
            return Ok(End {
                touched: self.touched,
                table: start,
                children: Vec::new(),
            });
        }
        let mut states = self.states(start)?;
        if !alike(states.iter().map(|state| &state.now.table.pending)) {
            let places = self.places(|address| look.look(None, address))?;
            states.retain(|state| state.now.agrees(&places));
            if !alike(states.iter().map(|state| &state.now.table.pending)) {
                return Err(self.doubt());
            }
        }
        let children = self.children(&states, look)?;
        let mut states = states.into_iter().map(|state| state.now.table);
        let mut table = states.next().ok_or_else(|| self.doubt())?;
        for other in states {
            table.watched.keep(&other.watched);
        }
        Ok(End {
            touched: self.touched,
            table,
            children,
        })
    }

    /// What may have become of it, by every order of the steps that can be.
    fn states(&self, start: Table) -> io::Result<Vec<State>> {
        let mut states = vec![State {
            done: vec![false; self.steps.len()],
            now: Moment {
                table: start,
                left: Ranges::default(),
            },
            forks: BTreeMap::new(),
        }];
        for _ in &self.steps {
            let mut next: Vec<State> = Vec::new();
            for state in &states {
                for number in 0..self.steps.len() {
                    if let Some(after) = state.after(number, &self.steps)
                        && !next.contains(&after)
                    {
                        next.push(after);
                    }
                }
                if next.len() > STATES_MAX {
                    return Err(self.doubt());
                }
            }
            states = next;
        }
        Ok(states)
    }

    /// What is at every address where something may begin or end.
    fn places(&self, look: impl Fn(u64) -> io::Result<Place>) -> io::Result<Vec<(u64, Place)>> {
        let ends = |range: Range<u64>| [range.start, range.end];
        let mut all: Vec<u64> = self
            .steps
            .iter()
            .flat_map(|step| step.ranges())
            .flat_map(ends)
            .filter(|address| self.touched.meets(&(*address..address + PAGE)))
            .collect();
        all.sort_unstable();
        all.dedup();
        let places = all.into_iter().map(|address| Ok((address, look(address)?)));
        places.collect()
    }

    /// What is to come to the children. When they came to be need not be certain: nothing is asked for where nothing is watched.
    fn children(&self, states: &[State], look: &impl Look) -> io::Result<Vec<Pending>> {
        let mut children = Vec::new();
        let forks = self.steps.iter().filter_map(|step| match step.change {
            Change::Forked(child) => Some(child),
            _ => None,
        });
        for child in forks {
            let mut births: Vec<&Moment> = states
                .iter()
                .filter_map(|state| state.forks.get(&child))
                .collect();
            // It may be changing its memory already, or lack what was not to be inherited (`MADV_DONTFORK`): then nothing is learned.
            if !alike(births.iter().map(|birth| &birth.table.pending))
                && let Ok(places) = self.places(|address| look.look(Some(child), address))
                && births.iter().any(|birth| birth.agrees(&places))
            {
                births.retain(|birth| birth.agrees(&places));
            }
            let mut pending = Pending::default();
            if !births
                .iter()
                .all(|birth| pending.join(&birth.table.pending))
            {
                return Err(self.doubt());
            }
            let uncertain: Vec<u64> = births
                .iter()
                .flat_map(|birth| pending.beyond(&birth.table.pending))
                .collect();
            for page in uncertain {
                match look.look(Some(child), page) {
                    Ok(Place::Unwatched) => drop(pending.remove(&(page..page + PAGE))),
                    Ok(_) => return Err(self.doubt()),
                    // It ended, or executes another program.
                    Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => {}
                    Err(_) => return Err(self.doubt()),
                }
            }
            children.push(pending);
        }
        Ok(children)
    }

    fn doubt(&self) -> io::Error {
        let steps: Vec<&Change> = self.steps.iter().map(|step| &step.change).collect();
        io::Error::other(format!(
            "the order in which a process changed its memory cannot be known: {steps:x?}"
        ))
    }
}

/// Whether there are any, all with the same pages.
fn alike<'a>(mut all: impl Iterator<Item = &'a Pending>) -> bool {
    all.next()
        .is_some_and(|first| all.all(|other| other.is_like(first)))
}

/// Memory after some of the steps.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Moment {
    table: Table,
    /// What nothing watched was left at; it may have grown there since.
    left: Ranges,
}

impl Moment {
    fn agrees(&self, places: &[(u64, Place)]) -> bool {
        places.iter().all(|(address, place)| {
            let page = *address..address + PAGE;
            if self.table.watched.meets(&page) {
                *place != Place::Unwatched
            } else {
                *place != Place::Begins || !self.left.meets(&page)
            }
        })
    }
}

/// One way in which things may have gone.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    done: Vec<bool>,
    now: Moment,
    /// The moments at which children came to be.
    forks: BTreeMap<usize, Moment>,
}

impl State {
    /// The state after one more step, if that can be next.
    fn after(&self, number: usize, steps: &[&Step]) -> Option<Self> {
        let step = steps.get(number)?;
        let mut others = steps.iter().zip(&self.done);
        if *self.done.get(number)? || others.any(|(other, done)| !done && other.precedes(step)) {
            return None;
        }
        let mut after = self.clone();
        *after.done.get_mut(number)? = true;
        let Moment { table, left } = &mut after.now;
        match &step.change {
            Change::Moved { from, to } => {
                let target = target(from, *to);
                if table.watched.meets(&target) {
                    return None;
                }
                // All of what is moved is watched.
                if step.unmaps {
                    table.watched.remove(from);
                    left.insert(from);
                } else {
                    table.watched.insert(from);
                    left.remove(from);
                }
                table.watched.insert(&target);
                left.remove(&target);
                table.pending.relocate(from, *to);
            }
            Change::Unmapped(range) => {
                table.pending.remove(range);
                table.watched.remove(range);
                left.insert(range);
            }
            Change::Removed(range) => {
                // So is all of what is wiped.
                table.pending.remove(range);
                table.watched.insert(range);
                left.remove(range);
            }
            Change::Forked(child) => {
                after.forks.insert(*child, self.now.clone());
            }
        }
        Some(after)
    }
}

#[cfg(test)]
mod tests;
