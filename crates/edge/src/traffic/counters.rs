//! What is counted of an owner's sides.

use super::Ended;

/// Counts of an owner; allocated with its first request.
#[derive(Default)]
pub(super) struct Counters {}

impl Counters {
    /// Counts a request that went to a side.
    pub(super) fn ended(&self, _side: usize, _ended: &Ended) {}
}
