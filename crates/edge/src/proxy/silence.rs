//! How long a client may be silent in the middle of a body over HTTP/2, where the library does not look.
//!
//! Time in which the environment takes nothing is not the client's: nobody reads then what it sends.

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

/// How often is looked within a bound: so much of it the end may come late.
const LOOKS: u32 = 4;

/// What is seen of a request's body.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// Nothing more of it is waited for.
    over: AtomicBool,
    /// Grows with everything that happens.
    moves: AtomicU64,
    /// Whether the environment takes what comes.
    taken: AtomicBool,
}

impl Body {
    /// A part came.
    pub(super) fn part(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended, there is none, or it may be silent.
    pub(super) fn over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Whether the environment took something just now.
    pub(super) fn taken(&self, taken: bool) {
        self.taken.store(taken, Ordering::Relaxed);
        self.part();
    }

    /// Waits until the client was silent for this long while more was wanted of it.
    pub(super) async fn silent(&self, bound: Duration) {
        let (mut seen, mut looks) = (self.moves.load(Ordering::Relaxed), 0);
        while looks < LOOKS {
            sleep(bound / LOOKS).await;
            if self.over.load(Ordering::Relaxed) {
                return pending().await;
            }
            let now = self.moves.load(Ordering::Relaxed);
            let still = now == seen && self.taken.load(Ordering::Relaxed);
            looks = if still { looks + 1 } else { 0 };
            seen = now;
        }
    }
}
