//! Which answers go the short way, and where they end.

use std::ops::Range;

use http::header::{HeaderName, HeaderValue};
use pingora_core::protocols::http::date::get_cached_date;
use pingora_http::ResponseHeader;

use super::chunks::{Chunks, Malformed};

/// Fields of a plain answer.
const FIELDS_MAX: usize = 64;
/// Fields that there is room for from the beginning.
const FIELDS_ROOM: usize = 16;

/// The head of a plain answer: HTTP/1.1, final, with a body whose end is known by its length or by chunks.
pub(super) struct Answer<H> {
    pub(super) status: u16,
    /// What the client gets of it.
    pub(super) head: H,
    /// How much of what was read it is, bytes.
    pub(super) length: usize,
    pub(super) body: Body,
    /// What of the rest is the body's.
    pub(super) first: Part,
    /// Whether the connection may be used again after it.
    pub(super) keep: bool,
}

/// A head in the words of the client's protocol.
pub(super) trait Head: Sized {
    /// Begins one of an answer that takes that many bytes as HTTP/1.1. `None`: it cannot be said so, here and below.
    fn begin(status: u16, reason: &str, bytes: usize) -> Option<Self>;
    fn field(&mut self, name: &str, value: &[u8]) -> Option<()>;
    fn end(&mut self);
}

/// Of HTTP/1.1.
impl Head for Vec<u8> {
    fn begin(status: u16, reason: &str, bytes: usize) -> Option<Self> {
        let mut head = Self::with_capacity(bytes + 64);
        head.extend_from_slice(format!("HTTP/1.1 {status} {reason}\r\n").as_bytes());
        Some(head)
    }

    fn field(&mut self, name: &str, value: &[u8]) -> Option<()> {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.extend_from_slice(part);
        }
        Some(())
    }

    fn end(&mut self) {
        self.extend_from_slice(b"Date: ");
        self.extend_from_slice(get_cached_date().as_bytes());
        self.extend_from_slice(b"\r\nConnection: keep-alive\r\n\r\n");
    }
}

/// Of HTTP/2. Date, and what must not be in it, are the library's.
impl Head for Box<ResponseHeader> {
    fn begin(status: u16, _: &str, _: usize) -> Option<Self> {
        ResponseHeader::build_no_case(status, Some(FIELDS_ROOM))
            .ok()
            .map(Self::new)
    }

    fn field(&mut self, name: &str, value: &[u8]) -> Option<()> {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let value = HeaderValue::from_bytes(value).ok()?;
        self.append_header(name, value).ok().map(drop)
    }

    fn end(&mut self) {}
}

impl<H: Head> Answer<H> {
    /// Reads what the first read from a node brought. `None`: it is not plain, or not all of its head.
    pub(super) fn read(raw: &[u8]) -> Option<Self> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut answer = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(length)) = answer.parse(raw) else {
            return None;
        };
        let status = answer.code.filter(|status| *status >= 200)?;
        if answer.version != Some(1) {
            return None;
        }
        let (mut bytes, mut chunked, mut keep) = (None, false, true);
        let mut head = H::begin(status, answer.reason.unwrap_or_default(), length)?;
        for field in answer.headers {
            let is = |other: &str| field.name.eq_ignore_ascii_case(other);
            match field.name.len() {
                // the edge's own, as the library does it
                4 if is("date") => continue,
                10 if is("connection") => {
                    let mut options = field.value.split(|byte| *byte == b',');
                    keep &= !options.any(|it| it.trim_ascii().eq_ignore_ascii_case(b"close"));
                    continue;
                }
                14 if is("content-length") => {
                    let several = bytes.replace(number(field.value)?).is_some();
                    if several {
                        return None;
                    }
                }
                17 if is("transfer-encoding") => {
                    if chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return None;
                    }
                    chunked = true;
                }
                // may last
                12 if is("content-type") && field.value.starts_with(b"text/event-stream") => {
                    return None;
                }
                7 if is("trailer") => return None,
                _ => {}
            }
            head.field(field.name, field.value)?;
        }
        head.end();
        let mut body = match (status, bytes, chunked) {
            (_, Some(_), true) | (204 | 304, _, true) => return None,
            (204 | 304, ..) => Body::Bytes(0),
            (_, Some(bytes), false) => Body::Bytes(bytes),
            (_, None, true) => Body::Chunks(Chunks::default()),
            (_, None, false) => return None,
        };
        let first = body.part(raw.get(length..)?).ok()?;
        Some(Self {
            status,
            head,
            length,
            body,
            first,
            keep,
        })
    }
}

/// Digits only: not what `parse` takes besides.
fn number(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// What is still to come of a body.
pub(super) enum Body {
    /// That many bytes.
    Bytes(u64),
    Chunks(Chunks),
}

/// What of the bytes that were read is the body's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// So many of them.
    pub(super) length: usize,
    /// Which of these are content, and not how chunks are told apart.
    pub(super) content: Vec<Range<usize>>,
    pub(super) end: End,
}

impl Part {
    /// Bytes of content.
    pub(super) fn content_length(&self) -> usize {
        self.content.iter().map(Range::len).sum()
    }
}

/// Whether a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    NotYet,
    Whole,
    /// Trailers come, which go no further: all that is missing of the body is an empty line.
    Trailers,
}

impl Body {
    /// Takes the next bytes from the node.
    pub(super) fn part(&mut self, bytes: &[u8]) -> Result<Part, Malformed> {
        match self {
            Self::Bytes(left) => {
                let length = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left = left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX));
                let end = if *left == 0 { End::Whole } else { End::NotYet };
                Ok(Part {
                    length,
                    content: std::iter::once(0..length).collect(),
                    end,
                })
            }
            Self::Chunks(chunks) => chunks.part(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &str) -> Option<Answer<Vec<u8>>> {
        Answer::read(raw.as_bytes())
    }

    #[test]
    fn a_plain_answer_is_passed_on_and_its_end_is_known() {
        let raw = "HTTP/1.1 404 Not here\r\nServer: x\r\ndate: then\r\nContent-Length: 3\r\nConnection: close\r\n\r\nab";
        let mut answer = read(raw).unwrap();
        assert_eq!((answer.status, answer.keep), (404, false));
        assert_eq!(raw.get(answer.length..), Some("ab"));
        let head = String::from_utf8(answer.head).unwrap();
        let (own, of_edge) = head.split_once("Date: ").unwrap();
        assert_eq!(
            own,
            "HTTP/1.1 404 Not here\r\nServer: x\r\nContent-Length: 3\r\n"
        );
        assert!(of_edge.ends_with(" GMT\r\nConnection: keep-alive\r\n\r\n"));
        assert_eq!((answer.first.length, answer.first.end), (2, End::NotYet));
        let part = answer.body.part(b"cd").unwrap();
        assert_eq!((part.length, part.end), (1, End::Whole));
        let empty = ["204 None\r\n", "304 Same\r\nContent-Length: 7\r\n"];
        for head in empty {
            let answer = read(&format!("HTTP/1.1 {head}\r\n")).unwrap();
            assert_eq!(answer.first.end, End::Whole, "{head}");
        }
        let offers = "Upgrade: h2c\r\nConnection: Upgrade, Keep-Alive\r\nContent-Length: 0\r\n";
        assert!(
            read(&format!("HTTP/1.1 200 OK\r\n{offers}\r\n"))
                .unwrap()
                .keep
        );
        let chunked = read("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n").unwrap();
        assert!(matches!(chunked.body, Body::Chunks(_)) && chunked.keep);
    }

    #[test]
    fn what_is_read_in_two_ways_or_may_last_is_not_plain() {
        for rest in [
            "200 OK\r\n\r\n",
            "200 OK\r\nContent-Length: 1\r\n",
            "200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "200 OK\r\nContent-Length: 1, 1\r\n\r\n",
            "200 OK\r\nContent-Length: +1\r\n\r\n",
            "200 OK\r\nContent-Length: \r\n\r\n",
            "200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello",
            "204 None\r\nTransfer-Encoding: chunked\r\n\r\n",
            "200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n",
            "200 OK\r\nContent-Length: 1\r\nContent-Type: text/event-stream\r\n\r\n",
            "200 OK\r\nContent-Length: 1\r\nX-Own: a\r\n folded\r\n\r\n",
            "200 OK\r\nContent-Length : 1\r\n\r\n",
            "100 Continue\r\n\r\n",
            "103 Early Hints\r\nLink: x\r\n\r\n",
            "101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        ] {
            assert!(read(&format!("HTTP/1.1 {rest}")).is_none(), "{rest}");
        }
        assert!(read("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n").is_none());
        assert!(read("").is_none());
    }
}
