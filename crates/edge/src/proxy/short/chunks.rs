//! Where a chunked body ends (RFC 9112, 7.1).

use super::answer::{End, Part};

/// Digits of a chunk's size.
const DIGITS_MAX: u8 = 15;
/// Bytes of one chunk's extensions.
const EXTENSIONS_MAX: u16 = 1_024;

/// It is not chunked as it should be: nobody can say where it ends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a body's chunks are malformed")]
pub(super) struct Malformed;

/// Follows a body, byte by byte where it must.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    /// Content left in this chunk, bytes.
    left: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In a size, after so many digits.
    Size(u8),
    /// In extensions, after so many bytes.
    Extensions(u16),
    /// After the carriage return of a size.
    SizeEnd,
    Content,
    /// After the content.
    ContentReturn,
    ContentEnd,
    /// After the last chunk, which is empty.
    Last,
    LastEnd,
}

impl Default for At {
    fn default() -> Self {
        Self::Size(0)
    }
}

impl Chunks {
    /// Takes the next bytes.
    pub(super) fn part(&mut self, bytes: &[u8]) -> Result<Part, Malformed> {
        let (mut length, mut content) = (0, Vec::new());
        let mut end = End::NotYet;
        while let Some(byte) = bytes.get(length) {
            if self.at == At::Content {
                let there = bytes.len() - length;
                let taken = there.min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= u64::try_from(taken).unwrap_or(self.left);
                content.push(length..length + taken);
                length += taken;
                if self.left == 0 {
                    self.at = At::ContentReturn;
                }
                continue;
            }
            if self.at == At::Last && *byte != b'\r' {
                end = End::Trailers;
                break;
            }
            length += 1;
            if self.at == At::LastEnd && *byte == b'\n' {
                end = End::Whole;
                break;
            }
            self.at = self.after(*byte)?;
        }
        Ok(Part {
            length,
            content,
            end,
        })
    }

    fn after(&mut self, byte: u8) -> Result<At, Malformed> {
        match (self.at, byte) {
            (At::Size(digits), _) if byte.is_ascii_hexdigit() && digits < DIGITS_MAX => {
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                self.left = self.left * 16 + u64::from(digit);
                Ok(At::Size(digits + 1))
            }
            (At::Size(1..), b'\r') | (At::Extensions(_), b'\r') => Ok(At::SizeEnd),
            (At::Size(1..), b';' | b' ' | b'\t') => Ok(At::Extensions(1)),
            (At::Extensions(bytes), b'\t' | b' '..=b'~') if bytes < EXTENSIONS_MAX => {
                Ok(At::Extensions(bytes + 1))
            }
            (At::SizeEnd, b'\n') if self.left == 0 => Ok(At::Last),
            (At::SizeEnd, b'\n') => Ok(At::Content),
            (At::ContentReturn, b'\r') => Ok(At::ContentEnd),
            (At::ContentEnd, b'\n') => Ok(At::Size(0)),
            (At::Last, b'\r') => Ok(At::LastEnd),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds a body in parts of this many bytes; how much of it is the body, how much content it has, and how it ended.
    fn feed(body: &[u8], parts: usize) -> Result<(usize, usize, End), Malformed> {
        let mut chunks = Chunks::default();
        let (mut length, mut content) = (0, 0);
        for part in body.chunks(parts) {
            let taken = chunks.part(part)?;
            length += taken.length;
            content += taken.content_length();
            if taken.end != End::NotYet {
                return Ok((length, content, taken.end));
            }
        }
        Ok((length, content, End::NotYet))
    }

    #[test]
    fn the_end_is_found_however_it_comes() {
        let whole = b"5\r\nhello\r\n00a;name=\"value\"\r\n0123456789\r\n0\r\n\r\n";
        let more = [&whole[..], b"HTTP/1.1 200 OK\r\n"].concat();
        let trailers = b"1\r\nx\r\n0\r\nexpires: never\r\n\r\n";
        for parts in 1..=more.len() {
            assert_eq!(feed(&more, parts), Ok((whole.len(), 15, End::Whole)));
            assert_eq!(feed(trailers, parts), Ok((9, 1, End::Trailers)), "{parts}");
            let cut = &whole[..whole.len() - 1];
            assert_eq!(feed(cut, parts), Ok((cut.len(), 15, End::NotYet)));
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let bad: [&[u8]; 11] = [
            b"\r\n",
            b"5\nhello\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"0x5\r\nhello\r\n",
            b"-5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"5;a\nb\r\nhello\r\n",
            b"fffffffffffffffff\r\n",
            b"0\r\n\rx",
        ];
        for body in bad {
            assert_eq!(feed(body, 1), Err(Malformed), "{}", body.escape_ascii());
        }
        let long = [b"5;".to_vec(), vec![b'x'; 2_000]].concat();
        assert_eq!(feed(&long, 7), Err(Malformed));
    }

    proptest! {
        /// Any bytes, in any parts: it ends at the same place or is refused, and never takes more than there is.
        #[test]
        fn parts_make_no_difference(body in "[0-9a-f\r\n;x]{0,60}", parts in 1usize..60) {
            let at_once = feed(body.as_bytes(), 60);
            prop_assert_eq!(feed(body.as_bytes(), parts), at_once);
        }
    }
}
