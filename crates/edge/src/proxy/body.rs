//! How long a request's body may be, and how slowly it may come.

use std::time::{Duration, Instant};

use http::StatusCode;

/// A body on its way.
///
/// The time a client takes is counted against the bytes it sends at its rate: what is left over must stay below the
/// grace. A part that takes longer than the grace was not waited for (a read is bounded by the same time): the
/// environment did not want it yet, so no more than the grace is counted.
pub(super) struct Body {
    received: u64,
    most: u64,
    rate: u64,
    grace: Duration,
    /// Time taken beyond what the bytes so far may take.
    late: Duration,
    last: Instant,
}

impl Body {
    /// A body of at most `most` bytes, at least `rate` bytes per second (0: any).
    pub(super) fn new(most: u64, rate: u64, grace: Duration) -> Self {
        Self {
            received: 0,
            most,
            rate,
            grace,
            late: Duration::ZERO,
            last: Instant::now(),
        }
    }

    /// A stricter bound for its bytes (0: none).
    pub(super) fn at_most(&mut self, bytes: u64) {
        if bytes > 0 && (self.most == 0 || bytes < self.most) {
            self.most = bytes;
        }
    }

    /// The body is sent once more from its beginning, to another node.
    pub(super) fn again(&mut self) {
        self.received = 0;
    }

    /// Whether a body of this length fits.
    pub(super) fn fits(&self, length: u64) -> bool {
        self.most == 0 || length <= self.most
    }

    /// Counts the next part, which came at `now`.
    ///
    /// # Errors
    /// The status to refuse the request with.
    pub(super) fn part(&mut self, bytes: usize, now: Instant) -> Result<(), StatusCode> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.received = self.received.saturating_add(bytes);
        if !self.fits(self.received) {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        if let Some(ms) = bytes.saturating_mul(1_000).checked_div(self.rate) {
            let taken = now.saturating_duration_since(self.last).min(self.grace);
            self.last = now;
            let allowed = Duration::from_millis(ms);
            self.late = (self.late + taken).saturating_sub(allowed);
            if self.late > self.grace {
                return Err(StatusCode::REQUEST_TIMEOUT);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    /// When a body of such parts is refused: after how many of them.
    fn refused(body: &mut Body, bytes: usize, every: u64, parts: u32) -> Option<(u32, StatusCode)> {
        let begin = body.last;
        (1..=parts).find_map(|part| {
            let at = begin + Duration::from_secs(every) * part;
            body.part(bytes, at).err().map(|status| (part, status))
        })
    }

    #[test]
    fn length_is_bounded_by_the_stricter() {
        let mut body = Body::new(1_000, 0, GRACE);
        body.at_most(0);
        assert!(body.fits(1_000) && !body.fits(1_001));
        body.at_most(500);
        body.at_most(800);
        assert_eq!(
            refused(&mut body, 100, 0, 9),
            Some((6, StatusCode::PAYLOAD_TOO_LARGE))
        );
        let mut body = Body::new(0, 0, GRACE);
        assert_eq!(refused(&mut body, usize::MAX, 0, 9), None);
    }

    #[test]
    fn dripping_is_refused_and_waiting_is_not() {
        let late = StatusCode::REQUEST_TIMEOUT;
        let mut body = Body::new(0, 64, GRACE);
        assert_eq!(
            refused(&mut body, 1, 59, 9),
            Some((2, late)),
            "a byte now and then"
        );
        let mut body = Body::new(0, 64, GRACE);
        assert_eq!(refused(&mut body, 10, 1, 999), Some((72, late)), "too slow");
        let mut body = Body::new(0, 64, GRACE);
        assert_eq!(refused(&mut body, 64, 1, 10_000), None, "just fast enough");
        // the environment takes a part every ten minutes
        let mut body = Body::new(0, 64, GRACE);
        assert_eq!(refused(&mut body, 64 << 10, 600, 100), None);
    }
}
