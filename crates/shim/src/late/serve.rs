//! Delivers missing pages: those that a process waits for at once, the rest when there is time.
//!
//! What must hold: whatever has been read of a process's events is known before a page is filled, in the order in which it happened
//! ([`super::changes`]). The kernel refuses to fill pages (`EAGAIN`) while it has an event that was not read, so a page can never come from
//! what was there before an munmap(2), mremap(2), madvise(2) or fork(2).

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use offshoot_runtime::cgroup::NodeCgroup;
use offshoot_sys::process::poll_readable;
use offshoot_sys::uffd::{Event, Filled, Userfaultfd};
use rustix::io::Errno;

use super::alone::is_alone;
use super::changes::{Change, Heard, Look, Place, Table, settle};
use super::pages::{Copy, PAGE};
use super::pending::{Pending, Piece};
use super::ranges::Ranges;

/// Bytes delivered with a page that is waited for: neighbours are asked for next.
const AROUND: u64 = 64 << 10;
/// Bytes delivered at a time in the background: whoever waits for a page meanwhile waits at most that long.
const CHUNK: u64 = 256 << 10;
/// After each chunk this many times the time it took is left to others: half of one processor at most.
const REST: u32 = 1;
/// At first only what is waited for comes: other nodes of the clone are just being restored, and all of them have few processors.
const AT_FIRST: Duration = Duration::from_secs(3);
/// Until something is tried again that the kernel refused because the process was changing its memory.
const AGAIN: Duration = Duration::from_micros(100);
/// From so many changes on, without a moment in which none is under way, the process has to stand.
const CHANGES_MAX: usize = 8;
/// How often it is looked, one after the other, for events and the end of changes. Threads need a moment to go on.
const LOOKS: u32 = 32;
/// How long the kernel may have no room for a page before the process cannot go on.
const NO_ROOM_MAX: Duration = Duration::from_secs(60);

/// The memory of one process, and what of it has still to come.
pub(crate) struct Space {
    uffd: Userfaultfd,
    /// Whose memory it is; of a forked child it is not told.
    pid: Option<i32>,
    table: Table,
    /// What was read and is not in the table yet, for more may have happened before it.
    changes: Vec<Heard>,
    /// The children among them.
    born: Vec<Userfaultfd>,
    /// Shared with forked children.
    copy: Rc<Copy>,
    /// Pages that threads wait for.
    waiting: Vec<u64>,
    /// Where the background goes on.
    cursor: u64,
    /// Since when there has been no room.
    no_room: Option<Instant>,
}

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Events have to be read first.
    Later,
    /// The process ended or executes another program.
    Gone,
}

/// Whose memory is looked at: a process and its children.
struct Eyes<'a>(&'a Userfaultfd, &'a [Userfaultfd]);

impl Look for Eyes<'_> {
    fn look(&self, child: Option<usize>, address: u64) -> io::Result<Place> {
        let uffd = match child {
            Some(number) => self.1.get(number).ok_or(io::ErrorKind::NotFound)?,
            None => self.0,
        };
        let before = address.saturating_sub(PAGE);
        Ok(if !uffd.is_watched(&(address..address + PAGE))? {
            Place::Unwatched
        } else if uffd.is_watched(&(before..address + PAGE))? {
            Place::GoesOn
        } else {
            Place::Begins
        })
    }
}

impl Space {
    /// The memory of `pid` behind `uffd`: what has to come, and what is watched.
    pub(crate) fn new(
        uffd: Userfaultfd,
        pid: Option<i32>,
        pending: Pending,
        watched: Ranges,
        copy: Rc<Copy>,
    ) -> Self {
        Self {
            uffd,
            pid,
            table: Table { pending, watched },
            changes: Vec::new(),
            born: Vec::new(),
            copy,
            waiting: Vec::new(),
            cursor: 0,
            no_room: None,
        }
    }

    /// Takes in all that happened, if the process is not just changing its memory; forked children are added to `young`.
    fn listen(&mut self, node: &NodeCgroup, young: &mut Vec<Self>) -> io::Result<Outcome> {
        let many = self.changes.len() + CHANGES_MAX;
        for _ in 0..LOOKS {
            // Whoever was read goes on and does more.
            while self.changes.len() < many && self.hear(node)? {}
            if self.changes.len() >= many {
                break;
            }
            if self.changes.is_empty() {
                return Ok(Outcome::Done);
            }
            if self.uffd.is_changing()? {
                // Its thread was woken and has to go on for that.
                std::thread::yield_now();
                continue;
            }
            match self.settle(young) {
                Err(e) if Errno::from_io_error(&e) == Some(Errno::AGAIN) => {}
                // A child must not lose what it had.
                Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) && self.born.is_empty() => {
                    return Ok(Outcome::Gone);
                }
                other => return other.map(|()| Outcome::Done),
            }
        }
        Ok(Outcome::Later)
    }

    /// Reads the next thing that happened, if anything did.
    fn hear(&mut self, node: &NodeCgroup) -> io::Result<bool> {
        if !poll_readable(self.uffd.as_fd(), Some(Duration::ZERO))? {
            return Ok(false);
        }
        // Found out while its thread waits for being read; one that waits for a page changes nothing.
        let alone = self.uffd.is_changing()? && is_alone(self.pid, node);
        let Some(event) = self.uffd.event()? else {
            return Ok(false);
        };
        let change = match event {
            Event::Fault(address) => {
                self.waiting.push(address & !(PAGE - 1));
                return Ok(true);
            }
            Event::Forked(uffd) => {
                self.born.push(uffd);
                Change::Forked(self.born.len() - 1)
            }
            Event::Moved { from, to, len } => Change::Moved {
                from: from..from.saturating_add(len),
                to,
            },
            Event::Removed(range) => Change::Removed(range),
            Event::Unmapped(range) => Change::Unmapped(range),
        };
        self.changes.push(Heard { change, alone });
        Ok(true)
    }

    /// Brings the table up to what was read.
    fn settle(&mut self, young: &mut Vec<Self>) -> io::Result<()> {
        let eyes = Eyes(&self.uffd, &self.born);
        let settled = settle(&mut self.table, &self.changes, &eyes)?;
        self.changes.clear();
        for (uffd, pending) in self.born.drain(..).zip(settled.children) {
            let copy = Rc::clone(&self.copy);
            young.push(Self::new(uffd, None, pending, Ranges::default(), copy));
        }
        self.release(settled.gone.iter());
        Ok(())
    }

    /// Delivers what is waited for.
    fn answer(&mut self, buffer: &mut [u8]) -> io::Result<Outcome> {
        while let Some(page) = self.waiting.last().copied() {
            let wanted = page..page + PAGE;
            let outcome = match self.table.pending.inside(&wanted).pop() {
                Some(piece) => self.deliver(&piece, buffer)?,
                None => {
                    let filled = self.uffd.zero(wanted.clone());
                    self.judge(filled, page, PAGE)?.1
                }
            };
            if outcome != Outcome::Done {
                return Ok(outcome);
            }
            self.waiting.pop();
            self.cursor = wanted.end;
            // Whether the neighbours come too does not matter.
            let near = wanted.end..(page & !(AROUND - 1)) + AROUND;
            if let Some(piece) = self.table.pending.inside(&near).into_iter().next() {
                self.deliver(&piece, buffer)?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Delivers the next pages that nobody waits for.
    fn go_on(&mut self, buffer: &mut [u8]) -> io::Result<Outcome> {
        if !self.changes.is_empty() {
            return Ok(Outcome::Later);
        }
        let Some(piece) = self.table.pending.next(self.cursor, CHUNK) else {
            return Ok(Outcome::Done);
        };
        let outcome = self.deliver(&piece, buffer)?;
        if outcome == Outcome::Done {
            self.cursor = piece.range.end;
        }
        Ok(outcome)
    }

    fn deliver(&mut self, piece: &Piece, buffer: &mut [u8]) -> io::Result<Outcome> {
        let len = usize::try_from(piece.len()).map_err(io::Error::other)?;
        let bytes = buffer.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        self.copy.read(bytes, piece.offset)?;
        let mut at = piece.range.start;
        let mut rest = &*bytes;
        while !rest.is_empty() {
            let filled = self.uffd.copy(at, rest);
            let (done, outcome) = self.judge(filled, at, rest.len() as u64)?;
            let gone = self.table.pending.remove(&(at..at + done));
            self.release(gone.iter().map(Piece::source));
            at += done;
            rest = usize::try_from(done)
                .ok()
                .and_then(|done| rest.get(done..))
                .unwrap_or_default();
            if outcome != Outcome::Done {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Done)
    }

    /// How many bytes need no further care after an attempt to fill `len` bytes at `at`, and what comes of it.
    fn judge(&mut self, filled: Filled, at: u64, len: u64) -> io::Result<(u64, Outcome)> {
        let Some(error) = filled.error else {
            self.no_room = None;
            return Ok((len, Outcome::Done));
        };
        let done = filled.bytes.min(len);
        if done > 0 {
            // The rest has its own answer.
            return Ok((done, Outcome::Done));
        }
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => Ok((0, Outcome::Later)),
            Some(Errno::SRCH) => Ok((0, Outcome::Gone)),
            // The kernel looks for the area first and for changes then.
            Some(Errno::NOENT) if self.uffd.is_changing()? => Ok((0, Outcome::Later)),
            // It is there already; or nothing is mapped there any more, or something else: whoever waits looks again.
            Some(Errno::EXIST | Errno::NOENT) => {
                self.uffd.wake(at..at + PAGE)?;
                Ok((PAGE, Outcome::Done))
            }
            Some(Errno::NOMEM)
                if self.no_room.get_or_insert_with(Instant::now).elapsed() < NO_ROOM_MAX =>
            {
                Ok((0, Outcome::Later))
            }
            _ => Err(error),
        }
    }

    /// Gives back the room of pages, by their places in the file, that nobody else will ask for.
    fn release(&self, gone: impl Iterator<Item = Range<u64>>) {
        if Rc::strong_count(&self.copy) == 1 {
            gone.for_each(|place| self.copy.release(place.start, place.end - place.start));
        }
    }
}

/// All memory that has to be delivered.
pub(crate) struct Service {
    node: NodeCgroup,
    spaces: Vec<Space>,
    turn: usize,
    buffer: Vec<u8>,
    /// When the background may go on.
    due: Instant,
    hurry: bool,
}

impl Service {
    pub(crate) fn new(node: NodeCgroup, spaces: Vec<Space>) -> Self {
        Self {
            node,
            spaces,
            turn: 0,
            buffer: vec![0; usize::try_from(CHUNK).unwrap_or(0)],
            due: Instant::now() + AT_FIRST,
            hurry: false,
        }
    }

    /// Bytes that have still to come.
    pub(crate) fn left(&self) -> u64 {
        self.spaces
            .iter()
            .map(|space| space.table.pending.bytes())
            .sum()
    }

    /// From now on the background takes all the time there is: somebody waits for all pages.
    pub(crate) fn hurry(&mut self) {
        self.hurry = true;
        self.due = Instant::now();
    }

    /// Takes in what happened.
    fn hear(&mut self) -> io::Result<Vec<Outcome>> {
        let mut young = Vec::new();
        let heard: io::Result<Vec<Outcome>> = self
            .spaces
            .iter_mut()
            .map(|space| space.listen(&self.node, &mut young))
            .collect();
        // Kept whatever happened: a child that is let go too early has zeros.
        self.spaces.append(&mut young);
        let mut outcomes = heard?;
        outcomes.resize(self.spaces.len(), Outcome::Done);
        Ok(outcomes)
    }

    /// Whether a process changes its memory so much that some change is always under way. No page can be filled then, and the more changes
    /// there are the less can their order be known: it should stand until this is [settled](Service::settle).
    pub(crate) fn is_restless(&self) -> bool {
        let many = |space: &Space| space.changes.len() >= CHANGES_MAX;
        self.spaces.iter().any(many)
    }

    /// Takes in what happened, and says whether that is all: false while changes are under way.
    ///
    /// # Errors
    /// When their order cannot be known. Nothing is let go.
    pub(crate) fn settle(&mut self) -> io::Result<bool> {
        self.hear()?;
        Ok(self.spaces.iter().all(|space| space.changes.is_empty()))
    }

    /// What to look at for something to do; and how long until there is something anyway.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.spaces.iter().map(|space| space.uffd.as_fd())
    }

    pub(crate) fn rest(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }

    /// Does what there is to do. False when all pages arrived: nothing is held any more.
    ///
    /// # Errors
    /// When a page cannot be delivered. Nothing is let go: whoever waits for it waits on.
    pub(crate) fn work(&mut self) -> io::Result<bool> {
        let mut outcomes = self.hear()?;
        for (space, outcome) in self.spaces.iter_mut().zip(&mut outcomes) {
            if *outcome == Outcome::Done {
                *outcome = space.answer(&mut self.buffer)?;
            }
        }
        let mut changing = outcomes.contains(&Outcome::Later);
        self.keep(&outcomes);
        if self.rest().is_zero() && !self.spaces.is_empty() {
            let began = Instant::now();
            self.turn = (self.turn + 1) % self.spaces.len();
            let mut outcome = Outcome::Done;
            if let Some(space) = self.spaces.get_mut(self.turn) {
                outcome = space.go_on(&mut self.buffer)?;
            }
            changing |= outcome == Outcome::Later;
            let mut outcomes = vec![Outcome::Done; self.spaces.len()];
            if let Some(place) = outcomes.get_mut(self.turn) {
                *place = outcome;
            }
            self.keep(&outcomes);
            let pause = if self.hurry { 0 } else { REST };
            self.due = Instant::now() + began.elapsed() * pause;
        }
        if changing {
            self.due = self.due.max(Instant::now() + AGAIN);
        }
        Ok(!self.spaces.is_empty())
    }

    /// Lets go of memory that is gone, or complete: no thread waits there for anything but zeros.
    fn keep(&mut self, outcomes: &[Outcome]) {
        let mut outcomes = outcomes.iter();
        self.spaces.retain(|space| {
            outcomes.next() != Some(&Outcome::Gone) && !space.table.pending.is_empty()
        });
    }
}
