//! What nodes print: JSON lines in `<log_dir>/node.log`, older ones in `node.log.1`, `node.log.2`, ...

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Result, RuntimeError};

/// Longest line kept whole, in bytes; a longer one is continued in further records.
pub const LINE_MAX: usize = 16 << 10;
/// Longest record on disk: a line of [`LINE_MAX`] with every byte escaped, and its frame.
const RECORD_MAX: u64 = 8 * LINE_MAX as u64;
const CURRENT: &str = "node.log";

/// Where a line was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line a node printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When the shim read it.
    pub time: Timestamp,
    /// Where it was printed.
    pub stream: Stream,
    /// The line without its end; what is not UTF-8 is replaced.
    pub line: String,
    /// The line goes on in the stream's next record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes after which a file is set aside.
    pub file_bytes: u64,
    /// Files kept, the current one included; at least 1.
    pub files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            file_bytes: 8 << 20,
            files: 4,
        }
    }
}

/// Appends to a node's log; used by its shim alone.
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    limits: LogLimits,
    file: File,
    size: u64,
}

fn numbered(dir: &Path, number: u32) -> PathBuf {
    if number == 0 {
        dir.join(CURRENT)
    } else {
        dir.join(format!("{CURRENT}.{number}"))
    }
}

impl LogWriter {
    /// Opens the log in `dir` for appending.
    ///
    /// # Errors
    /// Of the file system.
    pub fn open(dir: &Path, limits: LogLimits) -> Result<Self> {
        let open = || -> std::io::Result<(File, u64)> {
            fs::create_dir_all(dir)?;
            let file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(numbered(dir, 0))?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        let (file, size) = open().map_err(|e| RuntimeError::io("open the log in", dir, e))?;
        Ok(Self {
            dir: dir.to_owned(),
            limits,
            file,
            size,
        })
    }

    /// Appends lines.
    ///
    /// # Errors
    /// Of the file system; the log stays readable.
    pub fn append(&mut self, lines: &[LogLine]) -> std::io::Result<()> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        if self.size > 0 && self.size + text.len() as u64 > self.limits.file_bytes {
            self.rotate()?;
        }
        self.file.write_all(&text)?;
        self.size += text.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        let last = self.limits.files.max(1) - 1;
        for number in (0..last).rev() {
            match fs::rename(numbered(&self.dir, number), numbered(&self.dir, number + 1)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        let path = numbered(&self.dir, 0);
        self.file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        if last == 0 {
            self.file.set_len(0)?;
        }
        self.size = self.file.metadata()?.len();
        Ok(())
    }
}

/// Cuts a stream of bytes into lines of at most [`LINE_MAX`] bytes.
#[derive(Debug)]
pub struct LineCutter {
    stream: Stream,
    rest: Vec<u8>,
}

impl LineCutter {
    /// For one stream.
    #[must_use]
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            rest: Vec::new(),
        }
    }

    /// Takes what was read and gives the lines that are complete.
    pub fn push(&mut self, bytes: &[u8], time: Timestamp) -> Vec<LogLine> {
        let mut lines = Vec::new();
        self.rest.extend_from_slice(bytes);
        let mut start = 0;
        loop {
            let open = self.rest.get(start..).unwrap_or_default();
            let end = open.iter().take(LINE_MAX + 1).position(|b| *b == b'\n');
            let (text, used, continues) = match end {
                Some(end) => (open.get(..end), end + 1, false),
                None if open.len() > LINE_MAX => {
                    let cut = char_boundary(open, LINE_MAX);
                    (open.get(..cut), cut, true)
                }
                None => break,
            };
            lines.push(self.line(text.unwrap_or_default(), time, continues));
            start += used;
        }
        self.rest.drain(..start);
        lines
    }

    /// What is left when the stream ended.
    pub fn finish(&mut self, time: Timestamp) -> Option<LogLine> {
        let rest = std::mem::take(&mut self.rest);
        (!rest.is_empty()).then(|| self.line(&rest, time, false))
    }

    fn line(&self, text: &[u8], time: Timestamp, continues: bool) -> LogLine {
        let text = if continues {
            text
        } else {
            text.strip_suffix(b"\r").unwrap_or(text)
        };
        LogLine {
            time,
            stream: self.stream,
            line: String::from_utf8_lossy(text).into_owned(),
            continues,
        }
    }
}

/// The largest cut of at most `max` bytes that does not split a UTF-8 character.
fn char_boundary(bytes: &[u8], max: usize) -> usize {
    let is_start = |at: usize| bytes.get(at).is_none_or(|b| b & 0xC0 != 0x80);
    (max.saturating_sub(3)..=max)
        .rev()
        .find(|at| is_start(*at))
        .unwrap_or(max)
}

/// Which lines to read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// At most this many of the last lines; all that are kept when absent.
    pub tail: Option<usize>,
    /// Not before this.
    pub since: Option<Timestamp>,
}

/// Reads a node's log from the oldest line wanted; an [`Iterator`] ends at what is there now, [`LogReader::follow`] goes on.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    since: Option<Timestamp>,
    skip: usize,
    /// Files still to be read, the next one last.
    files: Vec<File>,
    current: Option<BufReader<File>>,
    partial: Vec<u8>,
    watch: Option<OwnedFd>,
}

/// Opens the log in `log_dir`; one that does not exist yet is empty.
///
/// # Errors
/// Of the file system.
pub fn read_logs(log_dir: &Path, query: LogQuery) -> Result<LogReader> {
    let failed = |e: std::io::Error| RuntimeError::io("read the log in", log_dir, e);
    let mut files = Vec::new();
    let mut skip = 0;
    let mut lines = 0;
    for number in 0.. {
        let file = match File::open(numbered(log_dir, number)) {
            Ok(file) => file,
            // While it is being rotated the current file may be missing for an instant.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && number == 0 => continue,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => break,
            Err(e) => return Err(failed(e)),
        };
        if let Some(tail) = query.tail {
            lines += count_lines(&file).map_err(failed)?;
            files.push(file);
            if lines >= tail {
                skip = lines - tail;
                break;
            }
        } else {
            files.push(file);
        }
    }
    let dir = log_dir.to_owned();
    Ok(LogReader {
        dir,
        since: query.since,
        skip,
        files,
        current: None,
        partial: Vec::new(),
        watch: None,
    })
}

fn count_lines(mut file: &File) -> std::io::Result<usize> {
    use std::io::Seek;
    let mut count = 0;
    let mut buffer = [0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => {
                count += buffer
                    .get(..n)
                    .unwrap_or_default()
                    .iter()
                    .filter(|b| **b == b'\n')
                    .count()
            }
        }
    }
    file.rewind()?;
    Ok(count)
}

impl LogReader {
    /// The next line that is there; a line being written is not there yet.
    fn next_line(&mut self) -> std::io::Result<Option<LogLine>> {
        loop {
            let Some(reader) = &mut self.current else {
                match self.files.pop() {
                    Some(file) => self.current = Some(BufReader::new(file)),
                    None => return Ok(None),
                }
                continue;
            };
            let limit = RECORD_MAX.saturating_sub(self.partial.len() as u64);
            let read = reader
                .by_ref()
                .take(limit)
                .read_until(b'\n', &mut self.partial)?;
            let complete = self.partial.last() == Some(&b'\n');
            if !complete && read == 0 {
                if self.files.is_empty() {
                    return Ok(None);
                }
                // A file set aside ends with a whole record; a torn one (a crash) is dropped.
                self.partial.clear();
                self.current = None;
                continue;
            }
            if !complete && (self.partial.len() as u64) < RECORD_MAX {
                continue;
            }
            let record = std::mem::take(&mut self.partial);
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            // A torn or foreign record must not end the reading.
            let Ok(line) = serde_json::from_slice::<LogLine>(&record) else {
                continue;
            };
            if self.since.is_none_or(|since| line.time >= since) {
                return Ok(Some(line));
            }
        }
    }

    /// Lines that appeared since the last call, waiting for some at most `max`; empty when none came.
    ///
    /// # Errors
    /// Of the file system.
    pub fn follow(&mut self, max: Duration) -> Result<Vec<LogLine>> {
        let dir = self.dir.clone();
        let failed = |e: std::io::Error| RuntimeError::io("follow the log in", &dir, e);
        self.watch().map_err(failed)?;
        let mut waited = false;
        loop {
            let mut lines = Vec::new();
            loop {
                // Opened before the old file is read to its end: nothing is written to it after its successor exists.
                let successors = self.successors().map_err(failed)?;
                while let Some(line) = self.next_line().map_err(failed)? {
                    lines.push(line);
                }
                if successors.is_empty() {
                    break;
                }
                self.files = successors;
            }
            if waited || !lines.is_empty() {
                return Ok(lines);
            }
            waited = true;
            if let Some(watch) = &self.watch {
                let ready = offshoot_sys::process::poll_readable(watch.as_fd(), Some(max))
                    .map_err(failed)?;
                if ready {
                    let mut events = [0u8; 4096];
                    let _ = rustix::io::read(watch, &mut events);
                }
            }
        }
    }

    fn watch(&mut self) -> std::io::Result<()> {
        use rustix::fs::inotify;
        if self.watch.is_none() {
            fs::create_dir_all(&self.dir)?;
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let events = inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO;
            inotify::add_watch(&fd, &self.dir, events)?;
            self.watch = Some(fd);
        }
        Ok(())
    }

    /// Files younger than the one being read, the oldest last.
    fn successors(&self) -> std::io::Result<Vec<File>> {
        if !self.files.is_empty() {
            return Ok(Vec::new());
        }
        let own = match &self.current {
            Some(reader) => {
                let meta = reader.get_ref().metadata()?;
                Some((meta.dev(), meta.ino()))
            }
            None => None,
        };
        let mut younger = Vec::new();
        for number in 0.. {
            match File::open(numbered(&self.dir, number)) {
                Ok(file) => {
                    let meta = file.metadata()?;
                    if own == Some((meta.dev(), meta.ino())) {
                        return Ok(younger);
                    }
                    younger.push(file);
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && number == 0 => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(younger),
                Err(e) => return Err(e),
            }
        }
        Ok(younger)
    }
}

impl Iterator for LogReader {
    type Item = Result<LogLine>;

    fn next(&mut self) -> Option<Self::Item> {
        let dir = self.dir.clone();
        self.next_line()
            .map_err(|e| RuntimeError::io("read the log in", &dir, e))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, second: i64) -> LogLine {
        let time = Timestamp::from_second(second).unwrap();
        LogLine {
            time,
            stream: Stream::Stdout,
            line: text.into(),
            continues: false,
        }
    }

    fn texts(dir: &Path, query: LogQuery) -> Vec<String> {
        read_logs(dir, query)
            .unwrap()
            .map(|l| l.unwrap().line)
            .collect()
    }

    #[test]
    fn the_log_is_rotated_and_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        assert!(texts(dir.path(), LogQuery::default()).is_empty());
        let mut writer = LogWriter::open(
            dir.path(),
            LogLimits {
                file_bytes: 300,
                files: 3,
            },
        )
        .unwrap();
        for i in 0..40 {
            writer.append(&[line(&format!("line {i}"), i)]).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let all = texts(dir.path(), LogQuery::default());
        assert!(all.len() > 5 && all.len() < 20);
        let expected: Vec<String> = (40 - all.len()..40).map(|i| format!("line {i}")).collect();
        assert_eq!(all, expected);
        let tail = texts(
            dir.path(),
            LogQuery {
                tail: Some(7),
                since: None,
            },
        );
        assert_eq!(tail, expected[expected.len() - 7..]);
        let since = LogQuery {
            tail: None,
            since: Some(Timestamp::from_second(38).unwrap()),
        };
        assert_eq!(texts(dir.path(), since), ["line 38", "line 39"]);
        assert_eq!(
            texts(
                dir.path(),
                LogQuery {
                    tail: Some(0),
                    since: None
                }
            ),
            Vec::<String>::new()
        );
        // Reopened, it goes on where it was.
        LogWriter::open(
            dir.path(),
            LogLimits {
                file_bytes: 300,
                files: 3,
            },
        )
        .unwrap()
        .append(&[line("end", 99)])
        .unwrap();
        assert_eq!(
            texts(
                dir.path(),
                LogQuery {
                    tail: Some(1),
                    since: None
                }
            ),
            ["end"]
        );
    }

    #[test]
    fn a_follower_misses_nothing_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = read_logs(dir.path(), LogQuery::default()).unwrap();
        assert!(reader.follow(Duration::ZERO).unwrap().is_empty());
        let mut writer = LogWriter::open(
            dir.path(),
            LogLimits {
                file_bytes: 400,
                files: 10,
            },
        )
        .unwrap();
        let mut seen = Vec::new();
        for i in 0..30 {
            writer.append(&[line(&i.to_string(), i)]).unwrap();
            if i % 4 == 0 {
                seen.extend(reader.follow(Duration::from_secs(5)).unwrap());
            }
        }
        seen.extend(reader.follow(Duration::from_secs(5)).unwrap());
        let seen: Vec<String> = seen.into_iter().map(|l| l.line).collect();
        assert_eq!(seen, (0..30).map(|i| i.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn torn_records_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        LogWriter::open(dir.path(), LogLimits::default())
            .unwrap()
            .append(&[line("a", 1)])
            .unwrap();
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join(CURRENT))
            .unwrap();
        file.write_all(b"{\"time\":\"19\n").unwrap();
        LogWriter::open(dir.path(), LogLimits::default())
            .unwrap()
            .append(&[line("b", 2)])
            .unwrap();
        assert_eq!(texts(dir.path(), LogQuery::default()), ["a", "b"]);
    }

    proptest::proptest! {
        #[test]
        fn cutting_keeps_every_byte(chunks in proptest::collection::vec("[a-zä\n]{0,50}", 0..20), long in 0usize..40_000) {
            let mut cutter = LineCutter::new(Stream::Stderr);
            let mut lines = Vec::new();
            let mut whole = String::new();
            for chunk in chunks.iter().chain([&"ö".repeat(long)]) {
                whole.push_str(chunk);
                lines.extend(cutter.push(chunk.as_bytes(), Timestamp::UNIX_EPOCH));
            }
            lines.extend(cutter.finish(Timestamp::UNIX_EPOCH));
            let mut joined = String::new();
            for line in &lines {
                assert!(line.line.len() <= LINE_MAX);
                joined.push_str(&line.line);
                if !line.continues { joined.push('\n'); }
            }
            assert_eq!(joined.trim_end_matches('\n'), whole.trim_end_matches('\n'));
        }
    }
}
