//! When a node is up: a matter of counting, without clocks and sockets.

/// What the answers to checks add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judge {
    up: bool,
    /// Whether a check was ever good.
    proven: bool,
    good: u32,
    bad: u32,
}

impl Judge {
    /// A node that nobody has asked yet: up, so that a new one gets requests at once, until its first bad answer.
    pub(super) fn new() -> Self {
        Self {
            up: true,
            proven: false,
            good: 0,
            bad: 0,
        }
    }

    /// A node of a side that was down, of which nothing is known: down until it was well `rise` times.
    pub(super) fn returning() -> Self {
        Self {
            up: false,
            ..Self::new()
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Counts the answer to a check; returns whether the node went up or down by it. One that was never well has no
    /// `fall` answers to lose.
    pub(super) fn checked(&mut self, good: bool, rise: u32, fall: u32) -> bool {
        let before = self.up;
        if good {
            self.proven = true;
            self.bad = 0;
            self.good = self.good.saturating_add(1);
            self.up = self.up || self.good >= rise;
        } else {
            self.good = 0;
            self.bad = self.bad.saturating_add(1);
            let fall = if self.proven { fall } else { 1 };
            self.up = self.up && self.bad < fall;
        }
        self.up != before
    }

    /// Puts it down because visitors' requests failed; returns whether it was up. It needs all of `rise` again.
    pub(super) fn put_down(&mut self) -> bool {
        self.good = 0;
        std::mem::replace(&mut self.up, false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(answers: &[bool]) -> Judge {
        let mut judge = Judge::new();
        for good in answers {
            judge.checked(*good, 2, 3);
        }
        judge
    }

    #[test]
    fn it_falls_and_rises_after_as_many_as_were_asked_for() {
        assert!(Judge::new().is_up());
        assert!(!after(&[false]).is_up(), "it was never well");
        assert!(after(&[true, false, false]).is_up());
        assert!(!after(&[true, false, false, false]).is_up());
        assert!(!after(&[true, false, false, false, true]).is_up());
        assert!(after(&[true, false, false, false, true, true]).is_up());
        assert!(!after(&[false, true, false, true]).is_up(), "not in a row");
    }

    #[test]
    fn visitors_put_it_down_and_checks_bring_it_back() {
        let mut judge = after(&[true, true, true]);
        assert!(judge.put_down());
        assert!(!judge.put_down());
        assert!(!judge.checked(true, 2, 3));
        assert!(judge.checked(true, 2, 3));
    }

    #[test]
    fn one_that_returns_is_used_when_it_was_well_often_enough() {
        let mut judge = Judge::returning();
        assert!(!judge.checked(true, 2, 3));
        assert!(!judge.checked(false, 2, 3), "not in a row");
        assert!(!judge.checked(true, 2, 3));
        assert!(judge.checked(true, 2, 3) && judge.is_up());
    }

    proptest! {
        /// Whatever comes: up only changes to down after `fall` bad ones in a row, and to up after `rise` good ones.
        #[test]
        fn it_changes_only_after_enough_in_a_row(
            answers in prop::collection::vec(any::<bool>(), 0..200), rise in 1u32..5, fall in 1u32..5,
        ) {
            let mut judge = Judge::new();
            judge.checked(true, rise, fall);
            let mut row = (true, 1);
            for good in answers {
                row = if row.0 == good { (good, row.1 + 1) } else { (good, 1) };
                let enough = row.1 >= if good { rise } else { fall };
                if judge.checked(good, rise, fall) {
                    prop_assert_eq!(judge.is_up(), good);
                    prop_assert!(enough);
                } else {
                    prop_assert!(judge.is_up() == good || !enough);
                }
            }
        }
    }
}
