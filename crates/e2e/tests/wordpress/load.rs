//! Visitors who read the front page and people who comment, at a steady pace, and what each of them saw.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use offshoot_e2e::wait_for;
use offshoot_load::{Client, percentile};

use super::PATIENCE;
use super::site::{HOST, Site, comment, title_of, visitor};

const READERS: usize = 3;
const WRITERS: usize = 2;
/// Between two requests of one visitor: about ten pages and five comments a second in all, which two processors can do
/// with a copy of each.
const PACE: Duration = Duration::from_millis(330);
const PACE_OF_COMMENTS: Duration = Duration::from_millis(440);

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) sent: Instant,
    pub(crate) done: Instant,
    pub(crate) what: What,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// The front page, and its title.
    Page(String),
    /// A comment was taken; its number.
    Comment(usize),
    /// Anything else.
    Failed(String),
}

/// A load that goes on.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    numbers: Arc<AtomicUsize>,
    readers: Vec<JoinHandle<()>>,
    writers: Vec<JoinHandle<Client>>,
}

impl Load {
    /// Begins, and goes on until some were answered.
    pub(crate) fn start(site: &mut Site) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(Mutex::default());
        let numbers = Arc::new(AtomicUsize::new(site.next_comment));
        let people = site.people.drain(..WRITERS).collect::<Vec<_>>();
        // threads are in the namespace of the thread that starts them
        let (readers, writers) = site.daemon.inside(|| {
            let reader = |number| {
                let (stop, samples) = (Arc::clone(&stop), Arc::clone(&samples));
                thread::spawn(move || {
                    let mut client = visitor(HOST);
                    at_pace(PACE, number, READERS, &stop, &samples, || read(&mut client));
                })
            };
            let writer = |(number, mut person): (usize, Client)| {
                let (stop, samples) = (Arc::clone(&stop), Arc::clone(&samples));
                let numbers = Arc::clone(&numbers);
                thread::spawn(move || {
                    // who comments has read before; a connection that the edge ended meanwhile is made anew for that,
                    // as no client may do for a comment
                    sample(&samples, || read(&mut person));
                    at_pace(PACE_OF_COMMENTS, number, WRITERS, &stop, &samples, || {
                        write(&mut person, numbers.fetch_add(1, Ordering::Relaxed))
                    });
                    person
                })
            };
            (
                (0..READERS).map(reader).collect(),
                people.into_iter().enumerate().map(writer).collect(),
            )
        });
        let load = Self {
            stop,
            samples,
            numbers,
            readers,
            writers,
        };
        load.goes_on();
        load
    }

    /// What was seen so far.
    pub(crate) fn so_far(&self) -> Seen {
        let samples = self.samples.lock();
        Seen::of(samples.unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Waits until some more were answered well.
    pub(crate) fn goes_on(&self) {
        let good = || self.so_far().good();
        let goal = good() + 20;
        wait_for("answers", PATIENCE, || (good() >= goal).then_some(()));
    }

    /// Waits until some requests that were sent from now on were answered by this side; gives when the first of them was.
    pub(crate) fn answered_by(&self, side: &str) -> Instant {
        let begun = Instant::now();
        wait_for(&format!("{side} to answer"), PATIENCE, || {
            let seen = self.so_far();
            let pages = seen.pages_of(side).filter(|page| page.sent >= begun);
            let pages: Vec<_> = pages.collect();
            pages.get(9).map(|_| pages[0].done)
        })
    }

    /// A number for a comment of somebody else's.
    pub(crate) fn number(&self) -> usize {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Lets the last requests end.
    pub(crate) fn finish(self, site: &mut Site) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        for reader in self.readers {
            reader.join().expect("a visitor");
        }
        for writer in self.writers {
            site.people.push(writer.join().expect("a person"));
        }
        site.next_comment = self.numbers.load(Ordering::Relaxed);
        let samples = self.samples.lock();
        Seen::of(samples.unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Asks again and again until it is told to stop; turns that were missed are not made up for.
fn at_pace(
    pace: Duration,
    number: usize,
    of: usize,
    stop: &AtomicBool,
    samples: &Mutex<Vec<Sample>>,
    mut ask: impl FnMut() -> What,
) {
    let place = u32::try_from(number).unwrap_or(0);
    let mut due = Instant::now() + pace * place / u32::try_from(of).unwrap_or(1);
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due = (due + pace).max(sample(samples, &mut ask));
    }
}

/// Asks once, and says when that was done.
fn sample(samples: &Mutex<Vec<Sample>>, ask: impl FnOnce() -> What) -> Instant {
    let sent = Instant::now();
    let what = ask();
    let done = Instant::now();
    let mut all = samples.lock().unwrap_or_else(PoisonError::into_inner);
    all.push(Sample { sent, done, what });
    done
}

fn read(client: &mut Client) -> What {
    match client.get("/") {
        Ok(answer) if answer.status == 200 => What::Page(title_of(&answer.text())),
        Ok(answer) => What::Failed(format!("a page: status {}", answer.status)),
        Err(error) => What::Failed(format!("a page: {error}")),
    }
}

fn write(person: &mut Client, number: usize) -> What {
    match comment(person, number) {
        Ok(302) => What::Comment(number),
        Ok(status) => What::Failed(format!("comment {number}: status {status}")),
        Err(error) => What::Failed(format!("comment {number}: {error}")),
    }
}

/// What was seen, by when it was done.
pub(crate) struct Seen {
    samples: Vec<Sample>,
}

impl Seen {
    fn of(mut samples: Vec<Sample>) -> Self {
        samples.sort_by_key(|sample| sample.done);
        Self { samples }
    }

    fn good(&self) -> usize {
        self.samples.len() - self.failed().count()
    }

    /// What failed.
    pub(crate) fn failed(&self) -> impl Iterator<Item = &Sample> {
        let samples = self.samples.iter();
        samples.filter(|sample| matches!(sample.what, What::Failed(_)))
    }

    /// All pages.
    pub(crate) fn pages(&self) -> impl Iterator<Item = &Sample> {
        let samples = self.samples.iter();
        samples.filter(|sample| matches!(sample.what, What::Page(_)))
    }

    /// The pages of one side.
    pub(crate) fn pages_of(&self, side: &str) -> impl Iterator<Item = &Sample> {
        let side = What::Page(side.to_owned());
        self.samples
            .iter()
            .filter(move |sample| sample.what == side)
    }

    /// Comments that were taken.
    pub(crate) fn comments(&self) -> BTreeSet<usize> {
        let number = |sample: &Sample| match sample.what {
            What::Comment(number) => Some(number),
            _ => None,
        };
        self.samples.iter().filter_map(number).collect()
    }

    /// Nothing failed.
    #[track_caller]
    pub(crate) fn all_well(&self) {
        let failed: Vec<_> = self.failed().map(|sample| &sample.what).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    /// All that was asked for and answered between these instants was answered by this side, and some was.
    #[track_caller]
    pub(crate) fn all_by(&self, side: &str, from: Instant, to: Instant) {
        let within = |sample: &&Sample| sample.sent >= from && sample.done <= to;
        let failed: Vec<_> = self.failed().filter(within).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        let all = self.pages().filter(within).count();
        assert_eq!(self.pages_of(side).filter(within).count(), all, "by {side}");
        assert!(all > 0, "nobody asked {side}");
    }

    /// No page that was asked for after the first one of `new` came from `old`.
    #[track_caller]
    pub(crate) fn never_back(&self, old: &str, new: &str) {
        let first = self.pages_of(new).next().expect("a page").done;
        let late = self.pages_of(old).filter(|page| page.sent > first);
        assert_eq!(late.count(), 0, "{old} after the first page of {new}");
    }

    /// How long half of the pages took at most.
    pub(crate) fn median(&self) -> Duration {
        self.took(self.pages(), 50)
    }

    fn took<'a>(&self, samples: impl Iterator<Item = &'a Sample>, percent: usize) -> Duration {
        let mut all: Vec<_> = samples.map(|sample| sample.done - sample.sent).collect();
        all.sort_unstable();
        percentile(&all, percent).unwrap_or_default()
    }

    /// A line of figures; `more` are those of this turn alone.
    pub(crate) fn print(&self, turn: &str, more: &str) {
        let comments = self.samples.iter();
        let comments = comments.filter(|sample| matches!(sample.what, What::Comment(_)));
        let ms = |time: Duration| time.as_millis();
        println!(
            "figures: {turn}: {} requests, {} failed; pages p50 {} ms, p99 {} ms; comments p99 {} ms{}{more}",
            self.samples.len(),
            self.failed().count(),
            ms(self.median()),
            ms(self.took(self.pages(), 99)),
            ms(self.took(comments, 99)),
            if more.is_empty() { "" } else { "; " },
        );
    }
}
