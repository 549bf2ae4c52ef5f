//! A small blocking Redis client (RESP2), and a writer that overwrites bulk data at a steady pace.
//!
//! The protocol: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longest text that is taken in an answer, bytes.
const ANSWER_MAX: usize = 16 << 20;
/// Longest first line of an answer, bytes.
const LINE_MAX: u64 = 64 << 10;
/// Shortest pause between two pipelines: waking up for every single write costs more than the write.
const NAP: Duration = Duration::from_millis(1);
/// What a stall of this length held up is written afterwards, as a queue would; what a longer one held up is not.
const MADE_UP: Duration = Duration::from_millis(100);
/// Most writes of one pipeline.
const PIPELINE_MAX: u32 = 512;
/// Pipelines that are remembered; enough for over fifteen minutes.
const BATCHES_MAX: usize = 1 << 20;

/// A connection to a Redis server.
#[derive(Debug)]
pub struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    /// Connects; connecting and every answer may take `timeout`.
    ///
    /// # Errors
    /// When nobody answers at the address.
    pub fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a command and returns its answer: a status, a number, or a text (empty for none).
    ///
    /// # Errors
    /// When the server refuses it, answers with an array, or does not answer in time.
    pub fn ask(&mut self, command: &[&str]) -> io::Result<String> {
        let mut request = String::new();
        encode(&mut request, command);
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(LINE_MAX).read_line(&mut line)?;
        let Some(line) = line.strip_suffix("\r\n") else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let wrong = || io::Error::other(format!("Redis answered {line:?}"));
        match line.split_at_checked(1) {
            Some(("+" | ":", value)) => Ok(value.to_owned()),
            Some(("$", "-1")) => Ok(String::new()),
            Some(("$", length)) => {
                let length: usize = length.parse().map_err(|_| wrong())?;
                if length > ANSWER_MAX {
                    return Err(wrong());
                }
                let mut text = vec![0; length + 2];
                self.stream.read_exact(&mut text)?;
                text.truncate(length);
                String::from_utf8(text).map_err(io::Error::other)
            }
            _ => Err(wrong()),
        }
    }
}

fn encode(request: &mut String, command: &[&str]) {
    // writing to a string does not fail
    let _ = write!(request, "*{}\r\n", command.len());
    for word in command {
        let _ = write!(request, "${}\r\n{word}\r\n", word.len());
    }
}

/// What a [`Writer`] writes: `SET <prefix><number> <value>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writes {
    /// Writes per second to try for; at least 1.
    pub per_second: u32,
    /// What the keys begin with.
    pub prefix: &'static str,
    /// The keys are numbered from 1 to this, and chosen at random; at least 1.
    pub keys: u64,
    /// Length of the values, bytes; every value is another.
    pub value: usize,
}

/// A thread that writes over one connection, in pipelines, until [`Writer::finish`].
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<(Instant, u32)>>>,
}

impl Writer {
    /// Begins to write.
    ///
    /// # Errors
    /// When nobody answers at the address, or the thread cannot be started.
    pub fn start(address: SocketAddr, timeout: Duration, writes: Writes) -> io::Result<Self> {
        let redis = Redis::connect(address, timeout)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || write(redis, writes, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Lets the last pipeline be answered and says what was written.
    ///
    /// # Errors
    /// The first write that failed, which was the last one.
    pub fn finish(self) -> io::Result<WriteReport> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(batches) => Ok(WriteReport { batches: batches? }),
            Err(_) => Err(io::Error::other("the thread that wrote panicked")),
        }
    }
}

fn write(mut redis: Redis, writes: Writes, stop: &AtomicBool) -> io::Result<Vec<(Instant, u32)>> {
    let interval = Duration::from_secs(1) / writes.per_second.max(1);
    let mut random = Random(0);
    let mut batches = Vec::new();
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) && batches.len() < BATCHES_MAX {
        thread::sleep(due.saturating_duration_since(Instant::now()).max(NAP));
        let now = Instant::now();
        due = now.checked_sub(MADE_UP).map_or(due, |least| due.max(least));
        let mut request = String::new();
        let mut count = 0;
        while due <= now && count < PIPELINE_MAX {
            let key = random.next() % writes.keys.max(1) + 1;
            let mut value = format!("{:016x}", random.next()).repeat(writes.value.div_ceil(16));
            value.truncate(writes.value);
            encode(
                &mut request,
                &["SET", &format!("{}{key}", writes.prefix), &value],
            );
            due += interval;
            count += 1;
        }
        redis.stream.get_mut().write_all(request.as_bytes())?;
        for _ in 0..count {
            redis.answer()?;
        }
        batches.push((Instant::now(), count));
    }
    Ok(batches)
}

/// splitmix64 (Steele, Lea, Flood 2014): every run writes the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// What was written and acknowledged.
#[derive(Debug, Clone)]
pub struct WriteReport {
    /// When each pipeline was answered, and how many writes it had.
    batches: Vec<(Instant, u32)>,
}

impl WriteReport {
    /// Writes acknowledged per second between two instants.
    #[must_use]
    pub fn per_second(&self, from: Instant, to: Instant) -> f64 {
        let span = to.saturating_duration_since(from).as_secs_f64();
        let written: u32 = self
            .batches
            .iter()
            .filter(|(at, _)| (from..=to).contains(at))
            .map(|(_, count)| count)
            .sum();
        if span > 0.0 {
            f64::from(written) / span
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Answers every command with what `answer` says and tells the commands.
    fn server(answer: fn(&[String]) -> &'static str) -> (SocketAddr, mpsc::Receiver<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, told) = mpsc::channel();
        // ends with its client
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            let line = |stream: &mut BufReader<TcpStream>| -> Option<usize> {
                let mut line = String::new();
                stream.read_line(&mut line).ok()?;
                line.get(1..)?.trim_end().parse().ok()
            };
            while let Some(words) = line(&mut stream) {
                let mut command = Vec::new();
                for _ in 0..words {
                    let mut word = vec![0; line(&mut stream).unwrap() + 2];
                    stream.read_exact(&mut word).unwrap();
                    word.truncate(word.len() - 2);
                    command.push(String::from_utf8(word).unwrap());
                }
                let answer = answer(&command);
                if tell.send(command).is_err()
                    || stream.get_mut().write_all(answer.as_bytes()).is_err()
                {
                    return;
                }
            }
        });
        (address, told)
    }

    #[test]
    fn answers_are_read() {
        let (address, told) = server(|command| match command.first().map(String::as_str) {
            Some("PING") => "+PONG\r\n",
            Some("DBSIZE") => ":512\r\n",
            Some("GET") if command.last().is_some_and(|key| key == "there") => "$4\r\na\r\nb\r\n",
            Some("GET") => "$-1\r\n",
            _ => "-ERR unknown command\r\n",
        });
        let mut redis = Redis::connect(address, PATIENCE).unwrap();
        assert_eq!(redis.ask(&["PING"]).unwrap(), "PONG");
        assert_eq!(redis.ask(&["DBSIZE"]).unwrap(), "512");
        assert_eq!(redis.ask(&["GET", "there"]).unwrap(), "a\r\nb");
        assert_eq!(redis.ask(&["GET", "gone"]).unwrap(), "");
        let error = redis.ask(&["NONSENSE", ""]).unwrap_err();
        assert!(error.to_string().contains("unknown command"), "{error}");
        let last = told.iter().take(5).last().unwrap();
        assert_eq!(last, ["NONSENSE", ""]);
    }

    #[test]
    fn a_writer_writes_other_values_to_random_keys_at_its_pace() {
        let (address, told) = server(|_| "+OK\r\n");
        let writes = Writes {
            per_second: 1_000,
            prefix: "bulk:",
            keys: 10,
            value: 40,
        };
        let from = Instant::now();
        let writer = Writer::start(address, PATIENCE, writes).unwrap();
        let mut keys = BTreeSet::new();
        let mut values = BTreeSet::new();
        for _ in 0..300 {
            let command = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!((command[0].as_str(), command[2].len()), ("SET", 40));
            keys.insert(command[1].clone());
            values.insert(command[2].clone());
        }
        assert!(from.elapsed() >= Duration::from_millis(150), "too fast");
        let report = writer.finish().unwrap();
        let per_second = report.per_second(from, Instant::now());
        assert!((1.0..=1_100.0).contains(&per_second), "{per_second}");
        assert_eq!(values.len(), 300);
        let all: BTreeSet<_> = (1..=10).map(|number| format!("bulk:{number}")).collect();
        assert_eq!(keys, all);
    }

    #[test]
    fn rates_count_what_lies_between() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let report = WriteReport {
            batches: vec![(at(0), 5), (at(400), 7), (at(900), 8), (at(1_500), 100)],
        };
        assert_eq!(report.per_second(at(100), at(1_100)), 15.0);
        assert_eq!(report.per_second(at(100), at(100)), 0.0);
    }

    #[test]
    fn a_server_that_is_gone_ends_the_writer() {
        let (address, told) = server(|_| "-OOM no room\r\n");
        let writes = Writes {
            per_second: 1_000,
            prefix: "bulk:",
            keys: 1,
            value: 16,
        };
        let writer = Writer::start(address, PATIENCE, writes).unwrap();
        told.recv_timeout(PATIENCE).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(error.to_string().contains("OOM"), "{error}");
    }
}
