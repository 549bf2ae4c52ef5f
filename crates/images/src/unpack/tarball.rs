//! Reading tar archives that nobody vouches for: ustar, pax and GNU headers (pax(1), tar(5)).
//!
//! Everything that an archive can make large is bounded before it is read into memory, which is why this is our own
//! loop: a library that joins extension headers by itself takes whatever size they claim.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Longest extension headers of an entry (long name, pax records). Extended attributes travel in them: 64 KiB each.
const EXTENSION_MAX: u64 = 1 << 20;
/// Longest path or link target, as the kernel has it (PATH_MAX).
const PATH_MAX: usize = 4096;
/// Most data segments of a sparse file.
const SEGMENTS_MAX: usize = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("{0}")]
    Malformed(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn malformed<T>(why: impl Into<String>) -> Result<T, TarError> {
    Err(TarError::Malformed(why.into()))
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    HardLink,
    Symlink,
    Char,
    Block,
    Fifo,
}

/// An entry's header, extensions applied. Paths are as in the archive: to be judged by whoever uses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Bytes of the file once written.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data goes, offset and length; one segment unless the file is sparse.
    pub(crate) segments: Vec<(u64, u64)>,
}

/// A stream that can pass over bytes; seekable ones do it without reading them.
pub(crate) trait Skip: Read {
    /// Passes over `bytes`, or fewer where the stream ends; how many.
    fn skip(&mut self, bytes: u64) -> io::Result<u64>;
}

/// A stream that is read to be passed over.
pub(crate) struct Stream<R>(pub(crate) R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Skip for Stream<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.0).take(bytes), &mut io::sink())
    }
}

/// An archive being read. [`Read`] gives the current entry's data.
pub(crate) struct Tarball<R> {
    inner: R,
    /// Data of the current entry not yet read, and the padding after it.
    left: u64,
    padding: u64,
}

/// What extension headers said about the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_version: (u64, u64),
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Vec<u64>,
    sparse: bool,
}

impl<R: Read> Read for Tarball<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self
            .inner
            .read(buffer.get_mut(..most).unwrap_or_default())?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

impl<R: Skip> Tarball<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
        }
    }

    /// The stream itself, for asking where it is.
    pub(crate) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The next entry; `None` at the end. Data of the one before that was not read is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        let mut extended = 0u64;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = number(field(&header, 124, 12))?;
            let kind = byte(&header, 156);
            match kind {
                b'L' | b'K' | b'x' | b'X' | b'g' => {
                    // One entry may have several; together they are bounded, too.
                    extended = extended.saturating_add(size).saturating_add(BLOCK as u64);
                    if extended > EXTENSION_MAX {
                        return malformed(format!("extension headers of {extended} bytes"));
                    }
                    self.set_data(size);
                    let mut data = Vec::new();
                    (&mut *self).take(size).read_to_end(&mut data)?;
                    match kind {
                        b'L' => extensions.path = Some(until_nul(&data)),
                        b'K' => extensions.link = Some(until_nul(&data)),
                        b'x' | b'X' => pax(&data, &mut extensions)?,
                        // A global header names no single file; what it usually has is a comment.
                        _ => {}
                    }
                }
                _ => return self.entry(&header, kind, size, extensions).map(Some),
            }
        }
    }

    /// Reads to the end of the stream, so that whoever checks its digest has seen all of it.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self.inner, &mut io::sink())?;
        Ok(())
    }

    fn set_data(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let skip = self.left + self.padding;
        let skipped = if skip > 0 { self.inner.skip(skip)? } else { 0 };
        // Some writers leave out the last padding.
        if skipped < self.left {
            return malformed("it ends in the middle of a file");
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// A header block; `None` at the end mark or the end of the stream.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(block.get_mut(filled..).unwrap_or_default()) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return malformed("it ends in the middle of a header"),
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let stored = number(field(&block, 148, 8))?;
        let with_blanks = |index: usize, byte: u8| {
            if (148..156).contains(&index) {
                b' '
            } else {
                byte
            }
        };
        let unsigned: u64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| u64::from(with_blanks(i, *b)))
            .sum();
        // Old writers added signed characters.
        let signed: i64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| i64::from(with_blanks(i, *b).cast_signed()))
            .sum();
        if stored != unsigned && i64::try_from(stored) != Ok(signed) {
            return malformed(
                "a header's checksum is wrong: this is no tar archive, or it is damaged",
            );
        }
        Ok(Some(block))
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        kind: u8,
        header_size: u64,
        mut more: Extensions,
    ) -> Result<Entry, TarError> {
        let stored = more.size.unwrap_or(header_size);
        let mut path = match more.sparse_name.take().or(more.path.take()) {
            Some(path) => path,
            None => short_path(header),
        };
        let link = more
            .link
            .take()
            .unwrap_or_else(|| until_nul(field(header, 157, 100)));
        if path.len() > PATH_MAX || link.len() > PATH_MAX {
            return malformed("a path is longer than 4096 bytes");
        }
        let kind = match kind {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => return malformed(format!("an entry of unknown type {:?}", char::from(other))),
        };
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let small = |value: u64, what: &str| {
            u32::try_from(value).or_else(|_| malformed(format!("a {what} of {value}")))
        };
        let mut entry = Entry {
            path,
            kind,
            link,
            size: 0,
            mode: small(number(field(header, 100, 8))? & 0o7777, "mode")?,
            uid: small(
                more.uid.map_or_else(|| number(field(header, 108, 8)), Ok)?,
                "user id",
            )?,
            gid: small(
                more.gid.map_or_else(|| number(field(header, 116, 8)), Ok)?,
                "group id",
            )?,
            mtime: match more.mtime {
                Some(mtime) => mtime,
                None => (
                    i64::try_from(number(field(header, 136, 12))?).unwrap_or(0),
                    0,
                ),
            },
            device: (0, 0),
            xattrs: std::mem::take(&mut more.xattrs),
            segments: Vec::new(),
        };
        if matches!(kind, Kind::Char | Kind::Block) {
            entry.device = (
                small(number(field(header, 329, 8))?, "device number")?,
                small(number(field(header, 337, 8))?, "device number")?,
            );
        }
        if kind != Kind::File {
            // Links, directories and devices have no data, whatever their size says.
            return Ok(entry);
        }
        self.set_data(stored);
        entry.size = stored;
        if byte(header, 156) == b'S' {
            entry.size = number(field(header, 483, 12))?;
            entry.segments = self.old_sparse_map(header)?;
            // The map's own blocks are not part of the data.
            self.set_data(stored);
        } else if more.sparse {
            let map = if more.sparse_version == (1, 0) {
                self.sparse_map_in_data()?
            } else {
                more.sparse_map
            };
            entry.size = match more.sparse_size {
                Some(size) => size,
                None => return malformed("a sparse file without its size"),
            };
            entry.segments = pairs(&map)?;
        } else if stored > 0 {
            entry.segments = vec![(0, stored)];
        }
        self.check_segments(&entry)?;
        Ok(entry)
    }

    fn check_segments(&self, entry: &Entry) -> Result<(), TarError> {
        let mut at = 0u64;
        let mut data = 0u64;
        for (offset, length) in &entry.segments {
            let end = offset
                .checked_add(*length)
                .filter(|end| *end <= entry.size && *offset >= at);
            let Some(end) = end else {
                return malformed("a sparse file's map makes no sense");
            };
            at = end;
            data += length;
        }
        if data != self.left || i64::try_from(entry.size).is_err() {
            return malformed("a file's size and its data do not fit");
        }
        Ok(())
    }

    /// The map of GNU's old sparse format: in the header, and in blocks after it.
    fn old_sparse_map(&mut self, header: &[u8; BLOCK]) -> Result<Vec<(u64, u64)>, TarError> {
        let mut map = Vec::new();
        let mut read = |block: &[u8], at: usize, count: usize| -> Result<(), TarError> {
            for index in 0..count {
                let offset = field(block, at + index * 24, 12);
                if byte(offset, 0) == 0 {
                    break;
                }
                map.push((
                    number(offset)?,
                    number(field(block, at + index * 24 + 12, 12))?,
                ));
            }
            if map.len() > SEGMENTS_MAX {
                malformed("a sparse file in too many pieces")
            } else {
                Ok(())
            }
        };
        read(header, 386, 4)?;
        let mut more = byte(header, 482) != 0;
        while more {
            let mut block = [0u8; BLOCK];
            self.inner.read_exact(&mut block)?;
            read(&block, 0, 21)?;
            more = byte(&block, 504) != 0;
        }
        Ok(map)
    }

    /// The map of GNU's sparse format 1.0: decimal lines at the start of the data, padded to a block.
    fn sparse_map_in_data(&mut self) -> Result<Vec<u64>, TarError> {
        let mut numbers = Vec::new();
        let mut wanted = 1usize;
        let mut digits = String::new();
        while numbers.len() < wanted {
            let mut block = [0u8; BLOCK];
            self.read_exact(&mut block)?;
            for byte in block {
                if numbers.len() == wanted {
                    break;
                }
                if byte != b'\n' {
                    digits.push(char::from(byte));
                    if digits.len() > 20 {
                        return malformed("a sparse file's map makes no sense");
                    }
                    continue;
                }
                let Ok(value) = digits.parse::<u64>() else {
                    return malformed("a sparse file's map makes no sense");
                };
                digits.clear();
                numbers.push(value);
                if numbers.len() == 1 {
                    let count = usize::try_from(value).unwrap_or(usize::MAX);
                    if count > SEGMENTS_MAX {
                        return malformed("a sparse file in too many pieces");
                    }
                    wanted = 1 + 2 * count;
                }
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }
}

fn pairs(map: &[u64]) -> Result<Vec<(u64, u64)>, TarError> {
    if !map.len().is_multiple_of(2) || map.len() / 2 > SEGMENTS_MAX {
        return malformed("a sparse file's map makes no sense");
    }
    Ok(map
        .chunks_exact(2)
        .filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)))
        .collect())
}

fn field(block: &[u8], at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

fn byte(block: &[u8], at: usize) -> u8 {
    block.get(at).copied().unwrap_or(0)
}

fn until_nul(data: &[u8]) -> Vec<u8> {
    data.split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .to_vec()
}

fn short_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(field(header, 0, 100));
    let prefix = until_nul(field(header, 345, 155));
    // GNU's own format keeps other things where ustar keeps the prefix.
    if field(header, 257, 6) == b"ustar\0" && !prefix.is_empty() {
        [prefix.as_slice(), b"/", name.as_slice()].concat()
    } else {
        name
    }
}

/// A number of a header: octal text, or big-endian binary marked by the first bit (GNU). Negative is not accepted.
fn number(field: &[u8]) -> Result<u64, TarError> {
    if byte(field, 0) == 0x80 {
        let (high, low) = field.split_at(field.len().saturating_sub(8));
        if high.iter().skip(1).any(|byte| *byte != 0) {
            return malformed("a number is too large");
        }
        // The mark lies in the first byte, also when the field has just eight.
        let low = if high.is_empty() {
            low.get(1..).unwrap_or_default()
        } else {
            low
        };
        return Ok(low
            .iter()
            .fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte)));
    }
    let digits = field
        .iter()
        .skip_while(|byte| **byte == b' ')
        .take_while(|byte| !matches!(byte, 0 | b' '));
    let mut value = 0u64;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return malformed("a number in a header is no number");
        }
        value = match value.checked_mul(8) {
            Some(value) => value | u64::from(digit - b'0'),
            None => return malformed("a number is too large"),
        };
    }
    Ok(value)
}

/// Records of a pax header: `<length> <key>=<value>\n`, the length counting the whole record.
fn pax(mut data: &[u8], more: &mut Extensions) -> Result<(), TarError> {
    let broken = || TarError::Malformed("a pax header is damaged".into());
    while !data.is_empty() {
        let blank = data
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or_else(broken)?;
        let length: usize = std::str::from_utf8(data.get(..blank).unwrap_or_default())
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(broken)?;
        let record = data.get(blank + 1..length).ok_or_else(broken)?;
        let record = record.strip_suffix(b"\n").ok_or_else(broken)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(broken)?;
        let (key, value) = (
            record.get(..equals).unwrap_or_default(),
            record.get(equals + 1..).unwrap_or_default(),
        );
        data = data.get(length..).ok_or_else(broken)?;
        let text = || std::str::from_utf8(value).map_err(|_| broken());
        let integer = || text()?.parse::<u64>().map_err(|_| broken());
        match key {
            b"path" => more.path = Some(value.to_vec()),
            b"linkpath" => more.link = Some(value.to_vec()),
            b"size" => more.size = Some(integer()?),
            b"uid" => more.uid = Some(integer()?),
            b"gid" => more.gid = Some(integer()?),
            b"mtime" => more.mtime = Some(time(text()?).ok_or_else(broken)?),
            b"GNU.sparse.major" => (more.sparse, more.sparse_version.0) = (true, integer()?),
            b"GNU.sparse.minor" => (more.sparse, more.sparse_version.1) = (true, integer()?),
            b"GNU.sparse.name" => more.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                (more.sparse, more.sparse_size) = (true, Some(integer()?));
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => more.sparse_map.push(integer()?),
            b"GNU.sparse.map" => {
                more.sparse_map = text()?
                    .split(',')
                    .map(|number| number.parse::<u64>().map_err(|_| broken()))
                    .collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    more.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

/// Seconds with an optional fraction, as pax writes times.
fn time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let nanos = format!("{:0<9}", fraction.get(..fraction.len().min(9))?)
        .parse::<u32>()
        .ok()?;
    Some((seconds, nanos))
}

#[cfg(test)]
#[path = "tarball_tests.rs"]
mod tests;
