//! The kernel's side of it: threads that change their memory, and events that come as late as they may.

use std::collections::VecDeque;

use super::*;

/// A page of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Page {
    /// Which area it is in, if that is watched.
    area: Option<u64>,
    /// What is to come to it.
    to_come: Option<u64>,
}

type Memory = BTreeMap<u64, Page>;

fn areas(memory: &Memory) -> Vec<Range<u64>> {
    let mut areas: Vec<(u64, Range<u64>)> = Vec::new();
    for (page, what) in memory {
        match (what.area, areas.last_mut()) {
            (None, _) => {}
            (Some(area), Some((last, range))) if *last == area && range.end == *page => {
                range.end += 1;
            }
            (Some(area), _) => areas.push((area, *page..page + 1)),
        }
    }
    areas.into_iter().map(|(_, range)| range).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Has let go of the lock and tells next.
    Tells,
    Waits,
    /// Its event was read; counted until it goes on.
    GoesOn,
}

/// A thread's call under way.
#[derive(Debug)]
struct Call {
    events: VecDeque<Change>,
    stage: Stage,
    /// What the program has of it afterwards.
    block: Option<Range<u64>>,
}

/// The threads of a program that never use what they cannot know of, and the kernel.
pub(super) struct Model {
    memory: Memory,
    /// What the program has and no call is about.
    blocks: Vec<Range<u64>>,
    calls: Vec<Option<Call>>,
    next_area: u64,
    grows: bool,
    /// Each with what another thread gave up during the fork: it may be there or not.
    children: Vec<(Memory, Vec<Range<u64>>)>,
}

const SPACE: u64 = 28;

impl Model {
    pub(super) fn new(threads: usize, grows: bool) -> Self {
        let mut model = Self {
            memory: Memory::new(),
            blocks: Vec::new(),
            calls: (0..threads).map(|_| None).collect(),
            next_area: 0,
            grows,
            children: Vec::new(),
        };
        for (block, start) in [2, 6, 10, 14, 18_u64].into_iter().enumerate() {
            let pages = start..start + 2 + block as u64 % 2;
            // Not all of it may be watched.
            let watched = if block == 3 {
                start + 1..pages.end
            } else {
                pages.clone()
            };
            for page in pages.clone() {
                let inside = watched.contains(&page);
                let what = Page {
                    area: inside.then_some(model.next_area),
                    to_come: inside.then_some(page + 100),
                };
                model.memory.insert(page, what);
            }
            model.next_area += 1;
            model.blocks.push(pages);
        }
        model
    }

    fn table(&self) -> Table {
        let mut table = Table::default();
        for (page, what) in &self.memory {
            if let Some(from) = what.to_come {
                table.pending.insert(piece(*page..page + 1, from - page));
            }
            if what.area.is_some() {
                table.watched.insert(&at(*page..page + 1));
            }
        }
        table
    }

    fn is_changing(&self) -> bool {
        self.calls.iter().any(Option::is_some)
    }

    /// Whether nobody but `thread` has a call under way.
    fn is_alone(&self, thread: usize) -> bool {
        let mut calls = self.calls.iter().enumerate();
        calls.all(|(number, call)| number == thread || call.is_none())
    }

    fn under_way(&self) -> Vec<Change> {
        let calls = self.calls.iter().flatten();
        calls.flat_map(|call| call.events.iter().cloned()).collect()
    }

    fn is_free(&self, pages: Range<u64>) -> bool {
        self.memory.range(pages).next().is_none()
    }

    /// Does one more thing and gives what was read.
    fn go(&mut self, thread: usize, choice: u64) -> Option<Change> {
        let Some(call) = self.calls[thread].as_mut() else {
            self.calls[thread] = self.call(choice);
            return None;
        };
        match call.stage {
            Stage::Tells => call.stage = Stage::Waits,
            Stage::Waits => {
                call.stage = Stage::GoesOn;
                return call.events.front().cloned();
            }
            Stage::GoesOn => {
                if let Some(Change::Removed(range)) = call.events.pop_front() {
                    let pages = range.start / PAGE..range.end / PAGE;
                    self.memory
                        .range_mut(pages)
                        .for_each(|(_, page)| page.to_come = None);
                }
                call.stage = Stage::Tells;
                if call.events.is_empty() {
                    self.blocks.extend(call.block.take());
                    self.calls[thread] = None;
                }
            }
        }
        None
    }

    fn unmap(&mut self, pages: &Range<u64>) -> Option<Change> {
        let watched = self
            .memory
            .range(pages.clone())
            .any(|(_, page)| page.area.is_some());
        self.memory.retain(|page, _| !pages.contains(page));
        watched.then(|| unmapped(pages.clone()))
    }

    /// A call up to where the lock is let go; nothing if there is nothing to tell.
    fn call(&mut self, choice: u64) -> Option<Call> {
        let (what, choice) = (choice % 16, choice / 16);
        if self.blocks.is_empty() {
            return None;
        }
        let block = self
            .blocks
            .swap_remove((choice % self.blocks.len() as u64) as usize);
        let choice = choice / 8;
        let (start, end) = (block.start, block.end);
        let mut kept = Some(block.clone());
        let mut events = VecDeque::new();
        let one_area = {
            let mut pages = self.memory.range(block.clone()).map(|(_, page)| page.area);
            let first = pages.next().flatten();
            first.is_some() && pages.all(|area| area == first)
        };
        match what {
            0..2 => {
                kept = None;
                events.extend(self.unmap(&block));
            }
            2..9 if one_area => {
                // Moves, perhaps with more or less behind it.
                let grown = if self.grows { choice % 3 } else { 0 };
                let choice = choice / 3;
                let len = end - start;
                let mut places = (0..SPACE).filter(|to| self.is_free(*to..to + len + grown));
                let count = places.clone().count() as u64;
                if let Some(to) = places.nth(choice.checked_rem(count).unwrap_or(0) as usize) {
                    let pages: Vec<Page> =
                        self.memory.range(block.clone()).map(|(_, p)| *p).collect();
                    self.memory.retain(|page, _| !block.contains(page));
                    let area = Some(self.next_area);
                    self.next_area += 1;
                    for page in 0..len + grown {
                        let to_come = pages.get(page as usize).and_then(|page| page.to_come);
                        self.memory.insert(to + page, Page { area, to_come });
                    }
                    events.extend([moved(block, to), unmapped(start..end)]);
                    kept = Some(to..to + len + grown);
                }
            }
            9..11 => {
                // Not watched, at a place of its own.
                let mut places = (0..SPACE).filter(|to| self.is_free(*to..to + 2));
                let count = places.clone().count() as u64;
                if let Some(to) = places.nth(choice.checked_rem(count).unwrap_or(0) as usize) {
                    for page in to..to + 2 {
                        self.memory.insert(
                            page,
                            Page {
                                area: None,
                                to_come: None,
                            },
                        );
                    }
                    self.blocks.push(to..to + 2);
                }
            }
            11 if one_area => {
                for event in self.under_way() {
                    if let Change::Forked(child) = event {
                        self.children[child].1.push(block.clone());
                    }
                }
                events.push_back(Change::Removed(at(start..end)));
            }
            12 if one_area => {
                let given_up = self
                    .under_way()
                    .into_iter()
                    .filter_map(|event| match event {
                        Change::Removed(range) => Some(range.start / PAGE..range.end / PAGE),
                        _ => None,
                    });
                events.push_back(Change::Forked(self.children.len()));
                self.children
                    .push((self.memory.clone(), given_up.collect()));
            }
            13 if end - start > 1 => {
                kept = Some(start..end - 1);
                events.extend(self.unmap(&(end - 1..end)));
            }
            14 if one_area && self.grows && self.is_free(end..end + 1) => {
                let last = self.memory[&(end - 1)];
                self.memory.insert(
                    end,
                    Page {
                        to_come: None,
                        ..last
                    },
                );
                kept = Some(start..end + 1);
            }
            _ => {}
        }
        if events.is_empty() {
            self.blocks.extend(kept);
            return None;
        }
        Some(Call {
            events,
            stage: Stage::Tells,
            block: kept,
        })
    }
}

fn wrong(memory: &Memory, loose: &[Range<u64>], pending: &Pending) -> Option<String> {
    let told = flat(pending);
    let differ = |page: &u64, what: &Page| {
        what.area.is_some()
            && told.get(page).copied() != what.to_come
            && !loose.iter().any(|range| range.contains(page))
    };
    let (page, what) = memory.iter().find(|(page, what)| differ(page, what))?;
    Some(format!("page {page}: {:?}, not {what:?}", told.get(page)))
}

/// How a run went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Right,
    Doubt,
    Wrong(String),
}

/// Runs a program; `settle` is told of each group of changes. A group is at least so large: moments without a change may be missed.
pub(super) fn run(
    model: &mut Model,
    choices: &[(u8, u64)],
    least: usize,
    mut settle: impl FnMut(&mut Table, &[Heard], &Seen) -> io::Result<Settled>,
) -> Outcome {
    let mut table = model.table();
    let mut group = Vec::new();
    let mut log = Vec::new();
    let threads = model.calls.len();
    // In the end all calls return.
    let end = (0..200).map(|turn| (turn as u8, 2 * 16));
    let mut calm = false;
    let mut turns = choices.iter().copied().chain(end).peekable();
    while let Some((turn, choice)) = turns.next() {
        calm |= choice == 32 && turn == 0;
        let thread = usize::from(turn) % threads;
        if calm && model.calls[thread].is_none() {
            continue;
        }
        let read = model.go(thread, choice);
        log.extend(read.clone());
        group.extend(read.map(|change| Heard {
            alone: model.is_alone(thread),
            change,
        }));
        let missed = group.len() < least && turns.peek().is_some();
        if group.is_empty() || model.is_changing() || missed {
            continue;
        }
        let children: Vec<Vec<Range<u64>>> = model
            .children
            .iter()
            .map(|(memory, _)| areas(memory))
            .collect();
        // Numbers are those of the group.
        let born: Vec<usize> = group
            .iter()
            .filter_map(|heard| match &heard.change {
                Change::Forked(child) => Some(*child),
                _ => None,
            })
            .collect();
        let mut renamed = group.clone();
        for heard in &mut renamed {
            if let Change::Forked(child) = &mut heard.change {
                *child = born.iter().position(|b| b == child).unwrap();
            }
        }
        let seen = Seen(
            areas(&model.memory),
            born.iter().map(|b| children[*b].clone()).collect(),
        );
        let Ok(settled) = settle(&mut table, &renamed, &seen) else {
            return Outcome::Doubt;
        };
        let mut found = wrong(&model.memory, &[], &table.pending);
        for (child, pending) in born.iter().zip(&settled.children) {
            let (memory, loose) = &model.children[*child];
            found = found.or_else(|| wrong(memory, loose, pending));
        }
        if let Some(what) = found {
            return Outcome::Wrong(format!("{what} after {log:x?}"));
        }
        group.clear();
    }
    Outcome::Right
}
