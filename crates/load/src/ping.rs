//! A steady pace of requests, and what became of each.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::http::{Client, Target};

/// Samples kept per connection; enough for over an hour at a request per millisecond over four connections.
const SAMPLES_MAX: usize = 1 << 20;

/// How a pinger asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Between two requests, all connections together. Zero asks again as soon as an answer is there.
    pub interval: Duration,
    /// Connections that take turns. While one waits for its answer the others go on.
    pub connections: u32,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl Rate {
    /// A request per millisecond over eight connections, half a minute of patience: a freeze shows to the millisecond.
    pub const EVERY_MILLISECOND: Self = Self {
        interval: Duration::from_millis(1),
        connections: 8,
        timeout: Duration::from_secs(30),
    };

    /// As many requests as two connections can make: how much work is done.
    pub const CLOSED_LOOP: Self = Self {
        interval: Duration::ZERO,
        connections: 2,
        timeout: Duration::from_secs(30),
    };
}

/// Threads that ask, until [`Pinger::finish`].
#[derive(Debug)]
pub struct Pinger {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Connection>>,
    begin: Instant,
}

/// One request.
#[derive(Debug, Clone, Copy)]
struct Sample {
    sent: Instant,
    done: Instant,
}

#[derive(Debug, Default)]
struct Connection {
    answered: Vec<Sample>,
    failed: Vec<(Instant, String)>,
    reconnects: u64,
}

impl Pinger {
    /// Begins to ask for the target's path. An answer counts when its status is 200.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(target: &Target, rate: Rate) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let begin = Instant::now();
        let threads = (0..rate.connections.max(1))
            .map(|number| {
                let (target, stop) = (target.clone(), Arc::clone(&stop));
                thread::Builder::new()
                    .name(format!("ping-{number}"))
                    .spawn(move || ping(&target, rate, number, begin, &stop))
            })
            .collect::<io::Result<_>>();
        match threads {
            Ok(threads) => Ok(Self {
                stop,
                threads,
                begin,
            }),
            Err(error) => {
                stop.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Lets the last requests end and says what was seen.
    #[must_use]
    pub fn finish(mut self) -> PingReport {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = PingReport {
            begin: self.begin,
            end: self.begin,
            answered: Vec::new(),
            failures: Vec::new(),
            reconnects: 0,
        };
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(connection) => {
                    report.answered.extend(connection.answered);
                    report.failures.extend(connection.failed);
                    report.reconnects += connection.reconnects;
                }
                Err(_) => report
                    .failures
                    .push((Instant::now(), "the client's thread panicked".to_owned())),
            }
        }
        report.end = Instant::now();
        report.answered.sort_unstable_by_key(|sample| sample.done);
        report.failures.sort();
        report
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ping(target: &Target, rate: Rate, number: u32, begin: Instant, stop: &AtomicBool) -> Connection {
    let mut client = Client::new(target, rate.timeout);
    let mut connection = Connection::default();
    let own_interval = rate.interval * rate.connections.max(1);
    let mut due = begin + rate.interval * number;
    while !stop.load(Ordering::Relaxed)
        && connection.answered.len() + connection.failed.len() < SAMPLES_MAX
    {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        match client.get(&target.path) {
            Ok(answer) if answer.status == 200 => connection.answered.push(Sample {
                sent,
                done: Instant::now(),
            }),
            Ok(answer) => connection
                .failed
                .push((Instant::now(), format!("status {}", answer.status))),
            Err(error) => connection.failed.push((Instant::now(), error.to_string())),
        }
        if connection.failed.last().is_some_and(|(at, _)| *at >= sent) {
            // a server that refuses at once is not asked a million times
            thread::sleep(Duration::from_millis(5));
        }
        // turns that were missed while waiting are not made up for
        due = (due + own_interval).max(Instant::now());
    }
    connection.reconnects = client.reconnects;
    connection
}

/// What was seen.
#[derive(Debug, Clone)]
pub struct PingReport {
    begin: Instant,
    end: Instant,
    /// By the time they were done.
    answered: Vec<Sample>,
    /// When and why requests failed: no answer, or another status than 200.
    pub failures: Vec<(Instant, String)>,
    /// Kept connections that the server had closed between two requests; the request was made again, as a browser
    /// does, and did not fail.
    pub reconnects: u64,
}

/// From one instant to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub from: Instant,
    /// Where it ends.
    pub to: Instant,
}

/// A part of a report.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Requests answered in it.
    pub answered: usize,
    /// Requests that failed in it.
    pub failed: usize,
    /// Answers per second.
    pub per_second: f64,
    /// The longest time without any answer.
    pub longest_stall: Duration,
    /// When that was: from one answer to the next.
    pub stall: Span,
    /// The slowest answer.
    pub slowest: Duration,
    /// Half of the answers took at most this long.
    pub median: Duration,
}

impl PingReport {
    /// All of it.
    #[must_use]
    pub fn whole(&self) -> Window {
        self.window(self.begin, self.end)
    }

    /// What was seen between two instants: answers that were complete between them, and stalls that reach into it.
    #[must_use]
    pub fn window(&self, from: Instant, to: Instant) -> Window {
        let (first, after) = self.bounds(from, to);
        let within = self.answered.get(first..after).unwrap_or_default();
        let latencies = sorted_latencies(within.iter());
        // a stall lies between two answers; those just outside count, so that none is cut in two
        let before = first
            .checked_sub(1)
            .and_then(|at| self.answered.get(at))
            .map_or(from, |sample| sample.done);
        let next = self.answered.get(after).map_or(to, |sample| sample.done);
        let mut stall = Span {
            from: before,
            to: before,
        };
        let mut last = before;
        for done in within.iter().map(|sample| sample.done).chain([next]) {
            if done.saturating_duration_since(last) > stall.to - stall.from {
                stall = Span {
                    from: last,
                    to: done,
                };
            }
            last = done;
        }
        let span = to.saturating_duration_since(from).as_secs_f64();
        let answered = within.len();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 answers")]
        let per_second = if span > 0.0 {
            answered as f64 / span
        } else {
            0.0
        };
        Window {
            answered,
            failed: self
                .failures
                .iter()
                .filter(|(at, _)| (from..=to).contains(at))
                .count(),
            per_second,
            longest_stall: stall.to - stall.from,
            stall,
            slowest: latencies.last().copied().unwrap_or_default(),
            median: latencies
                .get(latencies.len() / 2)
                .copied()
                .unwrap_or_default(),
        }
    }

    /// How long each answer took that was complete between two instants, sorted; without the requests that waited in
    /// the stall, for instance because the server was frozen.
    #[must_use]
    pub fn latencies(&self, from: Instant, to: Instant, without: Option<Span>) -> Vec<Duration> {
        let (first, after) = self.bounds(from, to);
        let within = self.answered.get(first..after).unwrap_or_default();
        sorted_latencies(within.iter().filter(|sample| {
            without.is_none_or(|stall| sample.done <= stall.from || sample.sent >= stall.to)
        }))
    }

    /// Which answers were complete between two instants: from the first to before the second.
    fn bounds(&self, from: Instant, to: Instant) -> (usize, usize) {
        let first = self.answered.partition_point(|sample| sample.done < from);
        let after = self.answered.partition_point(|sample| sample.done <= to);
        (first, after.max(first))
    }
}

fn sorted_latencies<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<Duration> {
    let mut latencies: Vec<_> = samples.map(|sample| sample.done - sample.sent).collect();
    latencies.sort_unstable();
    latencies
}

/// What `percent` of the sorted values do not exceed, by nearest rank; `None` of nothing.
#[must_use]
pub fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent.min(100)).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let ms: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        for (percent, expected) in [(0, 1), (50, 100), (99, 198), (100, 200), (400, 200)] {
            assert_eq!(
                percentile(&ms, percent),
                Some(Duration::from_millis(expected))
            );
        }
        assert_eq!(percentile(&ms[..1], 99), Some(Duration::from_millis(1)));
        assert_eq!(percentile(&[], 99), None);
    }

    #[test]
    fn what_waited_in_the_freeze_is_left_out_of_latencies() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let sample = |sent, done| Sample {
            sent: at(sent),
            done: at(done),
        };
        let report = PingReport {
            begin,
            end: at(500),
            // the last before, two that waited, one sent in the freeze and answered later, one after
            answered: vec![
                sample(10, 11),
                sample(98, 100),
                sample(99, 200),
                sample(100, 203),
                sample(199, 204),
                sample(200, 207),
                sample(490, 491),
            ],
            failures: Vec::new(),
            reconnects: 0,
        };
        assert_eq!(report.window(at(90), at(207)).answered, 5);
        let ms = |values: &[u64]| {
            values
                .iter()
                .map(|ms| Duration::from_millis(*ms))
                .collect::<Vec<_>>()
        };
        let freeze = Span {
            from: at(100),
            to: at(200),
        };
        assert_eq!(report.latencies(at(90), at(300), Some(freeze)), ms(&[2, 7]));
        assert_eq!(
            report.latencies(at(90), at(300), None),
            ms(&[2, 5, 7, 101, 103])
        );
        assert_eq!(report.latencies(at(300), at(90), None), ms(&[]));
    }

    #[test]
    fn stalls_and_failures_are_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stalled = Arc::new(AtomicBool::new(false));
        let broken = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        let (stall, fail, count) = (
            Arc::clone(&stalled),
            Arc::clone(&broken),
            Arc::clone(&served),
        );
        // ends with the process, as its clients do
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stall, fail, count) =
                    (Arc::clone(&stall), Arc::clone(&fail), Arc::clone(&count));
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {
                        while stall.load(Ordering::Relaxed) {
                            thread::sleep(Duration::from_millis(1));
                        }
                        let status = if fail.load(Ordering::Relaxed) {
                            "500 No"
                        } else {
                            "200 OK"
                        };
                        count.fetch_add(1, Ordering::Relaxed);
                        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let until = |more: usize| {
            let goal = served.load(Ordering::Relaxed) + more;
            let deadline = Instant::now() + Duration::from_secs(20);
            while served.load(Ordering::Relaxed) < goal {
                assert!(Instant::now() < deadline);
                thread::sleep(Duration::from_millis(1));
            }
        };
        let target = Target {
            address,
            host: "a.localhost".into(),
            path: "/".into(),
        };
        let pinger = Pinger::start(&target, Rate::EVERY_MILLISECOND).unwrap();
        until(100);
        let from = Instant::now();
        stalled.store(true, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(200));
        stalled.store(false, Ordering::Relaxed);
        until(100);
        let to = Instant::now();
        broken.store(true, Ordering::Relaxed);
        until(20);
        let report = pinger.finish();
        let window = report.window(from, to);
        assert!(
            window.longest_stall >= Duration::from_millis(190),
            "{window:?}"
        );
        assert!(window.longest_stall < Duration::from_secs(5), "{window:?}");
        assert!(window.slowest >= Duration::from_millis(190), "{window:?}");
        assert_eq!(window.failed, 0);
        assert!(
            window.answered >= 90 && window.per_second > 0.0,
            "{window:?}"
        );
        assert!(report.failures.len() >= 10);
        assert!(
            report.failures[0].1.contains("500"),
            "{:?}",
            report.failures[0]
        );
        assert!(report.whole().answered >= 190);
    }
}
