//! Lines on their way to a log file. A disk that takes none costs lines, which are counted and said now and then.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::rotating::RotatingFile;

/// What is collected before it is written, bytes: larger than any line.
const BUFFER: usize = 256 << 10;
/// Lost lines are said at most so often: on a disk that is almost full some fit and some do not.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Collects whole lines, and keeps none that the file did not take.
pub(crate) struct Lines<F = RotatingFile> {
    file: F,
    buffer: Vec<u8>,
    /// Lines in the buffer.
    waiting: u64,
    /// Lines lost that were not said, and why the last were.
    lost: u64,
    why: Option<io::Error>,
    said: Option<Instant>,
}

impl<F: Write> Lines<F> {
    /// No lines yet.
    pub(crate) fn new(file: F) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(BUFFER),
            waiting: 0,
            lost: 0,
            why: None,
            said: None,
        }
    }

    /// Where they go, to be opened anew for instance.
    pub(crate) fn file(&mut self) -> &mut F {
        &mut self.file
    }

    /// Adds a line with its end.
    pub(crate) fn push(&mut self, line: &[u8]) {
        if self.buffer.len() + line.len() > BUFFER {
            self.write();
        }
        self.buffer.extend_from_slice(line);
        self.waiting += 1;
    }

    /// Writes what was collected, or drops it.
    pub(crate) fn write(&mut self) {
        if !self.buffer.is_empty() {
            // one write, so that no line is split between two files
            if let Err(error) = self.file.write_all(&self.buffer) {
                self.lost += self.waiting;
                self.why = Some(error);
            }
            self.buffer.clear();
            self.waiting = 0;
        }
        let due = self.said.is_none_or(|at| at.elapsed() >= SAY_EVERY);
        if due && let Some(error) = self.why.take() {
            tracing::warn!(%error, lines = self.lost, "the access log cannot be written and lost lines");
            self.lost = 0;
            self.said = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with so much room.
    struct Disk {
        room: usize,
        has: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, content: &[u8]) -> io::Result<usize> {
            if content.len() > self.room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= content.len();
            self.has.extend_from_slice(content);
            Ok(content.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_never_written_later() {
        let has = Vec::new();
        let mut lines = Lines::new(Disk { room: 9, has });
        lines.push(b"one\n");
        lines.write();
        for _ in 0..3 {
            lines.push(b"two\n");
            lines.push(b"three\n");
            lines.write();
        }
        assert_eq!(
            (lines.lost, lines.why.is_some()),
            (4, true),
            "two were said"
        );
        lines.file.room = 100;
        lines.push(b"four\n");
        lines.write();
        assert_eq!(lines.file.has, b"one\nfour\n");
    }

    #[test]
    fn it_is_bounded() {
        let has = Vec::new();
        let mut lines = Lines::new(Disk { room: 0, has });
        let line = vec![b'x'; BUFFER / 3];
        for _ in 0..9 {
            lines.push(&line);
        }
        assert!(lines.buffer.capacity() <= BUFFER);
        assert!(lines.said.is_some() && lines.waiting == 3);
    }
}
