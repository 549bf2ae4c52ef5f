//! Against a model of the kernel that orders changes by its lock and lets their events come as late as they may.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::super::pending::Piece;
use super::*;
use model::{Model, Outcome, run};

mod model;

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
