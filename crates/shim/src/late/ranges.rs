//! Sets of addresses.

use std::collections::BTreeMap;
use std::ops::Range;

/// Addresses, as ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(
    /// The end of each by its start.
    BTreeMap<u64, u64>,
);

impl Ranges {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }

    /// What of it lies inside `range`.
    pub(crate) fn inside(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let before = self.0.range(..range.start).next_back();
        let rest = self.0.range(range.start..range.end.max(range.start));
        let meeting = before.into_iter().chain(rest);
        meeting
            .map(|(start, end)| range.start.max(*start)..range.end.min(*end))
            .filter(|part| part.start < part.end)
            .collect()
    }

    pub(crate) fn meets(&self, range: &Range<u64>) -> bool {
        !self.inside(range).is_empty()
    }

    pub(crate) fn insert(&mut self, range: &Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((first, last)) = self.0.range(..=end).next_back().map(|(a, b)| (*a, *b))
            && last >= start
        {
            self.0.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.0.insert(start, end);
    }

    pub(crate) fn remove(&mut self, range: &Range<u64>) {
        if range.start >= range.end {
            return;
        }
        while let Some((first, last)) = self.0.range(..range.end).next_back().map(|(a, b)| (*a, *b))
            && last > range.start
        {
            self.0.remove(&first);
            if first < range.start {
                self.0.insert(first, range.start);
            }
            if last > range.end {
                self.0.insert(range.end, last);
            }
            if first <= range.start {
                break;
            }
        }
    }

    /// Keeps what is in `other` too.
    pub(crate) fn keep(&mut self, other: &Self) {
        let mut lacking = self.clone();
        for range in other.iter() {
            lacking.remove(&range);
        }
        for range in lacking.iter() {
            self.remove(&range);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn flat(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.iter().flatten().collect()
    }

    proptest! {
        #[test]
        fn ranges_are_what_a_set_is(
            steps in prop::collection::vec((any::<bool>(), 0..40_u64, 0..40_u64), 0..30),
            others in prop::collection::vec((0..40_u64, 0..40_u64), 0..8),
        ) {
            let mut set = BTreeSet::new();
            let mut ranges = Ranges::default();
            for (insert, a, b) in steps {
                let range = a.min(b)..a.max(b);
                if insert {
                    ranges.insert(&range);
                    set.extend(range.clone());
                } else {
                    ranges.remove(&range);
                    set.retain(|address| !range.contains(address));
                }
                prop_assert_eq!(&flat(&ranges), &set);
                let ends: Vec<_> = ranges.iter().collect();
                prop_assert!(ends.windows(2).all(|pair| pair[0].end < pair[1].start));
                let part: BTreeSet<u64> = ranges.inside(&(5..25)).into_iter().flatten().collect();
                prop_assert_eq!(part, set.iter().copied().filter(|at| (5..25).contains(at)).collect());
            }
            let mut other = Ranges::default();
            for (a, b) in others {
                other.insert(&(a.min(b)..a.max(b)));
            }
            let both = set.intersection(&flat(&other)).copied().collect();
            ranges.keep(&other);
            prop_assert_eq!(flat(&ranges), both);
        }
    }
}
