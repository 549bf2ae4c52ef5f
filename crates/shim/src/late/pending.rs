//! Which pages of a process have still to come, and where each is in the file that holds them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::pages::PAGE;

/// Pages side by side: where they belong, and where in the file they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) range: Range<u64>,
    pub(crate) offset: u64,
}

impl Piece {
    /// The part of it inside `range`, if there is one.
    fn part(&self, range: &Range<u64>) -> Option<Self> {
        let start = self.range.start.max(range.start);
        let end = self.range.end.min(range.end);
        (start < end).then(|| Self {
            range: start..end,
            offset: self.offset + (start - self.range.start),
        })
    }

    pub(crate) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Where it is in the file.
    pub(crate) fn source(&self) -> Range<u64> {
        self.offset..self.offset + self.len()
    }

    /// How far its place in the file is from where it belongs.
    fn shift(&self) -> u64 {
        self.offset.wrapping_sub(self.range.start)
    }
}

/// Pieces that do not overlap. All addresses are those of whole pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// By first address.
    pieces: BTreeMap<u64, Piece>,
    bytes: u64,
}

impl Pending {
    /// Adds a piece where none is.
    pub(crate) fn insert(&mut self, piece: Piece) {
        self.bytes += piece.len();
        self.pieces.insert(piece.range.start, piece);
    }

    /// Bytes that have still to come.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// What is to come inside `range`.
    pub(crate) fn inside(&self, range: &Range<u64>) -> Vec<Piece> {
        let before = self.pieces.range(..range.start).next_back();
        let rest = self.pieces.range(range.start..range.end.max(range.start));
        let meeting = before.into_iter().chain(rest);
        meeting.filter_map(|(_, piece)| piece.part(range)).collect()
    }

    /// All that is to come.
    pub(crate) fn all(&self) -> impl Iterator<Item = Piece> {
        self.pieces.values().cloned()
    }

    /// Whether the same pages are to come to the same places.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let same = |piece: Piece| {
            let parts = other.inside(&piece.range);
            let shifts = parts.iter().all(|part| part.shift() == piece.shift());
            shifts && parts.iter().map(Piece::len).sum::<u64>() == piece.len()
        };
        self.bytes == other.bytes && self.all().all(same)
    }

    /// Adds what is to come by `other`. False when another page would have to come to the same place; then nothing certain is added.
    pub(crate) fn join(&mut self, other: &Self) -> bool {
        for piece in other.all() {
            let there = self.inside(&piece.range);
            if there.iter().any(|part| part.shift() != piece.shift()) {
                return false;
            }
            self.remove(&piece.range);
            self.insert(piece);
        }
        true
    }

    /// The first addresses of pages that are to come by this and not by `other`.
    pub(crate) fn beyond(&self, other: &Self) -> Vec<u64> {
        let pages = |piece: Piece| piece.range.step_by(PAGE as usize);
        let pages = self.all().flat_map(pages);
        pages
            .filter(|page| other.inside(&(*page..page + PAGE)).is_empty())
            .collect()
    }

    /// The next piece at or after `address`, at most `max` bytes of it; after the last comes the first.
    pub(crate) fn next(&self, address: u64, max: u64) -> Option<Piece> {
        let before = self.pieces.range(..address).next_back();
        let rest = self.pieces.range(address..);
        let all = before.into_iter().chain(rest).map(|(_, piece)| piece);
        let found = all
            .filter_map(|piece| piece.part(&(address..u64::MAX)))
            .next()
            .or_else(|| self.pieces.values().next().cloned())?;
        let end = found.range.end.min(found.range.start.saturating_add(max));
        found.part(&(found.range.start..end))
    }

    /// Forgets what was to come inside `range` and gives it.
    pub(crate) fn remove(&mut self, range: &Range<u64>) -> Vec<Piece> {
        let gone = self.inside(range);
        let Some(first) = gone.first() else {
            return gone;
        };
        let starts: Vec<u64> = self
            .pieces
            .range(..range.end)
            .rev()
            .take_while(|(_, piece)| piece.range.end > first.range.start)
            .map(|(start, _)| *start)
            .collect();
        for start in starts {
            let Some(piece) = self.pieces.remove(&start) else {
                continue;
            };
            self.bytes -= piece.len();
            for outside in [0..range.start, range.end..u64::MAX] {
                if let Some(part) = piece.part(&outside) {
                    self.insert(part);
                }
            }
        }
        gone
    }

    /// What is inside `from` belongs elsewhere now, in the same order from `to` on; what was to come there is forgotten and given.
    pub(crate) fn relocate(&mut self, from: &Range<u64>, to: u64) -> Vec<Piece> {
        let moving = self.remove(from);
        let gone = self.remove(&(to..to.saturating_add(from.end - from.start)));
        for piece in moving {
            let start = to + (piece.range.start - from.start);
            self.insert(Piece {
                range: start..start + piece.len(),
                offset: piece.offset,
            });
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 64;

    #[derive(Debug, Clone)]
    enum Step {
        Remove(Range<u64>),
        Relocate(Range<u64>, u64),
        Next(u64, u64),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..PAGES, 0..PAGES).prop_map(|(a, b)| a.min(b)..a.max(b))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            range().prop_map(Step::Remove),
            // old and new place do not overlap (mremap(2))
            range().prop_map(|from| {
                let to = (from.start + PAGES) % (2 * PAGES);
                Step::Relocate(from, to)
            }),
            (0..2 * PAGES, 1..8_u64).prop_map(|(at, max)| Step::Next(at, max)),
        ]
    }

    /// Page by page.
    type Model = BTreeMap<u64, u64>;

    fn flat(pieces: &[Piece]) -> Model {
        let pages = |piece: &Piece| {
            let offset = piece.offset;
            let start = piece.range.start;
            piece
                .range
                .clone()
                .map(move |page| (page, offset + page - start))
        };
        pieces.iter().flat_map(pages).collect()
    }

    fn split(model: &mut Model, range: &Range<u64>) -> Model {
        let gone: Model = model
            .iter()
            .filter(|(page, _)| range.contains(page))
            .map(|(page, offset)| (*page, *offset))
            .collect();
        model.retain(|page, _| !range.contains(page));
        gone
    }

    proptest! {
        #[test]
        fn pieces_are_what_a_table_of_pages_is(
            runs in prop::collection::vec(0..PAGES, 0..20),
            steps in prop::collection::vec(step(), 0..40),
        ) {
            let mut model = Model::new();
            let mut pending = Pending::default();
            let mut bounds = runs;
            bounds.sort_unstable();
            bounds.dedup();
            for pair in bounds.chunks_exact(2) {
                let piece = Piece { range: pair[0]..pair[1], offset: pair[0] + 1000 };
                model.extend(flat(std::slice::from_ref(&piece)));
                pending.insert(piece);
            }
            for step in steps {
                match step {
                    Step::Remove(range) => {
                        prop_assert_eq!(flat(&pending.remove(&range)), split(&mut model, &range));
                    }
                    Step::Relocate(from, to) => {
                        let moving = split(&mut model, &from);
                        let gone = split(&mut model, &(to..to + from.end - from.start));
                        let shifted = moving.into_iter().map(|(page, at)| (page - from.start + to, at));
                        model.extend(shifted);
                        prop_assert_eq!(flat(&pending.relocate(&from, to)), gone);
                    }
                    Step::Next(at, max) => {
                        let next = pending.next(at, max);
                        let first = model.range(at..).next().or_else(|| model.iter().next());
                        prop_assert_eq!(
                            next.as_ref().map(|piece| (piece.range.start, piece.offset)),
                            first.map(|(page, offset)| (*page, *offset))
                        );
                        if let Some(piece) = next {
                            prop_assert!((1..=max).contains(&piece.len()));
                            prop_assert!(flat(&[piece]).iter().all(|(p, o)| model.get(p) == Some(o)));
                        }
                    }
                }
                let all = flat(&pending.inside(&(0..u64::MAX)));
                prop_assert_eq!(&all, &model);
                prop_assert_eq!(pending.bytes(), model.len() as u64);
                prop_assert_eq!(pending.is_empty(), model.is_empty());
            }
        }
    }
}
