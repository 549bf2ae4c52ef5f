//! How long work reports what it has done and learns that it should stop.

/// Receives the progress of one step and answers whether it was cancelled. Cheap to call often.
pub trait ProgressSink: Send + Sync {
    /// `done` of `total` (0: unknown) in `unit` (`bytes`, `packages`, ...); `note` says what is being worked on.
    fn report(&self, done: u64, total: u64, unit: &str, note: &str);

    /// Whether the work should stop at the next safe point.
    fn cancelled(&self) -> bool;
}

/// Progress that nobody looks at and that is never cancelled.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl ProgressSink for Unobserved {
    fn report(&self, _done: u64, _total: u64, _unit: &str, _note: &str) {}

    fn cancelled(&self) -> bool {
        false
    }
}
