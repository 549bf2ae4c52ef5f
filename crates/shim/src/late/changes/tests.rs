//! Against a model of the kernel that orders changes by its lock and lets their events come as late as they may.

use std::cell::Cell;
use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::super::pending::Piece;
use super::*;

/// Where things are, in pages.
fn at(pages: Range<u64>) -> Range<u64> {
    pages.start * PAGE..pages.end * PAGE
}

/// Pages of which each is to come from the place of its number and `shift` more.
fn piece(pages: Range<u64>, shift: u64) -> Piece {
    Piece {
        offset: (pages.start + shift) * PAGE,
        range: at(pages),
    }
}

/// What is watched after all changes, and where areas begin.
struct Seen(Vec<Range<u64>>, Vec<Vec<Range<u64>>>);

impl Look for Seen {
    fn look(&self, child: Option<usize>, address: u64) -> io::Result<Place> {
        let areas = child.map_or(&self.0, |child| &self.1[child]);
        let page = address / PAGE;
        Ok(match areas.iter().find(|area| area.contains(&page)) {
            None => Place::Unwatched,
            Some(area) if area.start == page => Place::Begins,
            Some(_) => Place::GoesOn,
        })
    }
}

fn moved(from: Range<u64>, to: u64) -> Change {
    Change::Moved {
        from: at(from),
        to: to * PAGE,
    }
}

fn unmapped(pages: Range<u64>) -> Change {
    Change::Unmapped(at(pages))
}

/// As read while others may have been under way.
fn heard(changes: &[Change]) -> Vec<Heard> {
    let heard = |change: &Change| Heard {
        change: change.clone(),
        alone: false,
    };
    changes.iter().map(heard).collect()
}

/// Blocks of four pages at 10, 20, 30, 40: page n comes from place n.
fn table() -> Table {
    let mut table = Table::default();
    for start in [10, 20, 30, 40] {
        table.pending.insert(piece(start..start + 4, 0));
        table.watched.insert(&at(start..start + 4));
    }
    table
}

/// What is to come at which page.
fn flat(pending: &Pending) -> BTreeMap<u64, u64> {
    let pages = |piece: Piece| {
        (0..piece.len() / PAGE)
            .map(move |page| (piece.range.start / PAGE + page, piece.offset / PAGE + page))
    };
    pending.all().flat_map(pages).collect()
}

/// What is to come where, of the blocks at `starts`: each with where it was.
#[track_caller]
fn check(changes: &[Change], areas: &[Range<u64>], blocks: &[(u64, u64)]) {
    let mut table = table();
    let settled = settle(&mut table, &heard(changes), &Seen(areas.to_vec(), vec![])).unwrap();
    let expected = blocks
        .iter()
        .flat_map(|(now, was)| (0..4).map(move |page| (now + page, was + page)))
        .collect();
    assert_eq!(flat(&table.pending), expected);
    let mut whole = settled.gone;
    for piece in table.pending.all() {
        assert!(!whole.meets(&piece.source()));
        whole.insert(&piece.source());
    }
    assert_eq!(
        whole.iter().map(|r| r.end - r.start).sum::<u64>(),
        16 * PAGE
    );
}

#[test]
fn what_leaves_a_place_comes_before_what_arrives_there() {
    // 20 is unmapped, and 30 goes there.
    let areas = [10..14, 20..24, 40..44];
    let (goes, comes, own) = (unmapped(20..24), moved(30..34, 20), unmapped(30..34));
    let blocks = [(10, 10), (20, 30), (40, 40)];
    check(&[goes.clone(), comes.clone(), own.clone()], &areas, &blocks);
    check(&[comes.clone(), goes.clone(), own.clone()], &areas, &blocks);
    check(&[comes, own, goes], &areas, &blocks);
    // 20 goes to 50, and 30 goes there.
    let areas = [10..14, 20..24, 40..44, 50..54];
    let (goes, own) = (moved(20..24, 50), unmapped(20..24));
    let (comes, its) = (moved(30..34, 20), unmapped(30..34));
    let blocks = [(10, 10), (20, 30), (40, 40), (50, 20)];
    let orders = [
        [&goes, &own, &comes, &its],
        [&goes, &comes, &own, &its],
        [&goes, &comes, &its, &own],
        [&comes, &goes, &own, &its],
        [&comes, &its, &goes, &own],
    ];
    for order in orders {
        let changes: Vec<Change> = order.into_iter().cloned().collect();
        check(&changes, &areas, &blocks);
    }
}

#[test]
fn where_it_was_not_known_that_anything_was_the_memory_tells() {
    // Something at 50 of which there was no event is unmapped, and 30 goes there; or 30 goes there and is unmapped.
    let changes = [moved(30..34, 50), unmapped(30..34), unmapped(50..54)];
    let others = [(10, 10), (20, 20), (40, 40)];
    let with = [&others[..], &[(50, 30)]].concat();
    check(&changes, &[10..14, 20..24, 40..44, 50..54], &with);
    check(&changes, &[10..14, 20..24, 40..44], &others);
    // If something may have grown there afterwards it cannot be told.
    let grown = Seen(vec![10..14, 46..54], vec![]);
    let mut table = table();
    let error = settle(&mut table, &heard(&changes), &grown).unwrap_err();
    assert!(error.to_string().contains("cannot be known"), "{error}");
    assert_eq!(table, self::table());
}

#[test]
fn what_follows_from_an_arrival_is_read_after_it() {
    let (there, own) = (moved(30..34, 50), unmapped(30..34));
    let (on, its) = (moved(50..54, 60), unmapped(50..54));
    let areas = [10..14, 20..24, 40..44, 60..64];
    let blocks = [(10, 10), (20, 20), (40, 40), (60, 30)];
    check(&[there, own, on, its], &areas, &blocks);
    // Wiped, then moved.
    let wiped = Change::Removed(at(20..24));
    let blocks = [(10, 10), (30, 30), (40, 40)];
    let areas = [10..14, 30..34, 40..44, 50..54];
    check(
        &[wiped, moved(20..24, 50), unmapped(20..24)],
        &areas,
        &blocks,
    );
}

#[test]
fn what_cannot_be_known_is_an_error() {
    // Which of the two went where: both left 20.
    let changes = [
        moved(30..34, 20),
        unmapped(30..34),
        moved(20..24, 50),
        unmapped(20..24),
        moved(20..24, 60),
        unmapped(20..24),
    ];
    let seen = Seen(vec![10..14, 40..44, 50..54, 60..64], vec![]);
    assert!(settle(&mut table(), &heard(&changes), &seen).is_err());
    // Nothing made room.
    let seen = Seen(vec![10..14, 20..24, 40..44], vec![]);
    assert!(settle(&mut table(), &heard(&[moved(30..34, 20)]), &seen).is_err());
}

#[test]
fn a_child_gets_what_there_was_at_its_birth() {
    let changes = [moved(20..24, 50), Change::Forked(0), unmapped(20..24)];
    let after = vec![10..14, 30..34, 40..44, 50..54];
    let before = vec![10..14, 20..24, 30..34, 40..44];
    for (areas, place) in [(before, 20), (after.clone(), 50)] {
        let seen = Seen(after.clone(), vec![areas]);
        let settled = settle(&mut table(), &heard(&changes), &seen).unwrap();
        let places: BTreeMap<u64, u64> = flat(&settled.children[0]);
        assert_eq!(places.len(), 16);
        assert_eq!(places.get(&place), Some(&20), "{places:?}");
    }
}

/// A child that is changing its memory, and a parent that is seen.
struct Busy(Seen);

impl Look for Busy {
    fn look(&self, child: Option<usize>, address: u64) -> io::Result<Place> {
        match child {
            Some(_) => Err(Errno::AGAIN.into()),
            None => self.0.look(None, address),
        }
    }
}

#[test]
fn what_one_thread_does_alone_happens_in_the_order_read() {
    // The child changes its memory at once: nothing can be learned of it.
    let busy = Busy(Seen(vec![10..14, 30..34, 40..44, 50..54], vec![]));
    let changes = [moved(20..24, 50), unmapped(20..24), Change::Forked(0)];
    let mut heard = heard(&changes);
    let error = settle(&mut table(), &heard, &busy).unwrap_err();
    assert!(error.to_string().contains("cannot be known"), "{error}");
    heard[0].alone = true;
    let settled = settle(&mut table(), &heard, &busy).unwrap();
    let places = flat(&settled.children[0]);
    assert_eq!((places.get(&50), places.get(&20)), (Some(&20), None));
    // The other way round: born before it.
    let changes = [Change::Forked(0), moved(20..24, 50), unmapped(20..24)];
    let mut heard = self::heard(&changes);
    heard[0].alone = true;
    let settled = settle(&mut table(), &heard, &busy).unwrap();
    assert_eq!(flat(&settled.children[0]), flat(&table().pending));
    // It says nothing of what was read before.
    let changes = [moved(20..24, 50), unmapped(20..24), Change::Forked(0)];
    let mut heard = self::heard(&changes);
    heard[2].alone = true;
    assert!(settle(&mut table(), &heard, &busy).is_err());
}

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
struct Model {
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
    fn new(threads: usize, grows: bool) -> Self {
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
enum Outcome {
    Right,
    Doubt,
    Wrong(String),
}

/// Runs a program; `settle` is told of each group of changes. A group is at least so large: moments without a change may be missed.
fn run(
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

fn choices() -> impl Strategy<Value = (usize, Vec<(u8, u64)>)> {
    (
        2..5_usize,
        prop::collection::vec((any::<u8>(), any::<u32>().prop_map(u64::from)), 0..100),
    )
}

/// Never wrong; how often it could not be known.
fn never_wrong(grows: bool) -> (u32, u32) {
    let (doubts, runs) = (Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(Config {
        cases: 150,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&choices(), |(threads, choices)| {
        runs.set(runs.get() + 1);
        match run(&mut Model::new(threads, grows), &choices, 1, settle) {
            Outcome::Right => {}
            Outcome::Doubt => doubts.set(doubts.get() + 1),
            Outcome::Wrong(what) => return Err(TestCaseError::fail(what)),
        }
        Ok(())
    });
    result.unwrap();
    (doubts.get(), runs.get())
}

#[test]
fn one_thread_can_always_be_followed() {
    let mut runner = TestRunner::new(Config {
        cases: 150,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&choices(), |(_, choices)| {
        match run(&mut Model::new(1, true), &choices, 8, settle) {
            Outcome::Right => Ok(()),
            other => Err(TestCaseError::fail(format!("{other:?}"))),
        }
    });
    result.unwrap();
}

#[test]
fn memory_is_never_wrong() {
    let (doubts, runs) = never_wrong(false);
    println!("{doubts} of {runs} programs could not be followed");
    assert!(doubts * 2 < runs);
    let (doubts, runs) = never_wrong(true);
    println!("{doubts} of {runs} programs whose memory grows could not be followed");
}

#[test]
fn in_the_order_read_it_would_be_wrong() {
    let as_read = |table: &mut Table, changes: &[Heard], _: &Seen| {
        let mut children = Vec::new();
        for heard in changes {
            match &heard.change {
                Change::Moved { from, to } => drop(table.pending.relocate(from, *to)),
                Change::Unmapped(range) | Change::Removed(range) => {
                    drop(table.pending.remove(range))
                }
                Change::Forked(_) => children.push(table.pending.clone()),
            }
        }
        Ok(Settled {
            children,
            gone: Ranges::default(),
        })
    };
    let found = Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: 200,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&choices(), |(threads, choices)| {
        if let Outcome::Wrong(_) = run(&mut Model::new(threads, false), &choices, 1, as_read) {
            found.set(found.get() + 1);
        }
        Ok(())
    });
    result.unwrap();
    println!("wrong in {} of 200 programs", found.get());
    assert!(found.get() > 0);
}
