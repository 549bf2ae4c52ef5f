//! Server-sent events (WHATWG HTML, 9.2): bytes in pieces of any size become messages.

/// Largest message in bytes.
const MESSAGE_MAX: usize = 16 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// The last id seen so far, where a stream can be resumed.
    pub(crate) id: String,
    /// Its kind; `message` when the stream names none.
    pub(crate) kind: String,
    /// What it says.
    pub(crate) data: String,
}

/// A message larger than the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    kind: String,
    id: String,
    after_cr: bool,
    past_start: bool,
}

impl Parser {
    /// Takes bytes as they come and adds the messages that they complete.
    ///
    /// # Errors
    /// When a line or a message grows past the bound.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        messages: &mut Vec<Message>,
    ) -> Result<(), TooLong> {
        for &byte in bytes {
            let ends_crlf = self.after_cr && byte == b'\n';
            self.after_cr = byte == b'\r';
            if ends_crlf {
                continue;
            }
            if byte == b'\n' || byte == b'\r' {
                let line = std::mem::take(&mut self.line);
                self.take_line(&line, messages);
            } else if self.line.len() + self.data.len() >= MESSAGE_MAX {
                return Err(TooLong);
            } else {
                self.line.push(byte);
            }
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], messages: &mut Vec<Message>) {
        let line = if self.past_start {
            line
        } else {
            line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
        };
        self.past_start = true;
        if line.is_empty() {
            let kind = std::mem::take(&mut self.kind);
            let data = std::mem::take(&mut self.data);
            if std::mem::take(&mut self.has_data) {
                let kind = if kind.is_empty() {
                    "message".to_owned()
                } else {
                    kind
                };
                messages.push(Message {
                    id: self.id.clone(),
                    kind,
                    data,
                });
            }
            return;
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = match line.split_once(':') {
            Some((field, value)) => (field, value.strip_prefix(' ').unwrap_or(value)),
            None => (&*line, ""),
        };
        match field {
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            "event" => self.kind = value.to_owned(),
            "id" if !value.contains('\0') => self.id = value.to_owned(),
            // `retry` and comments (an empty field): the wait is ours to choose.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<Message> {
        let mut parser = Parser::default();
        let mut messages = Vec::new();
        for piece in pieces {
            parser.push(piece, &mut messages).unwrap();
        }
        messages
    }

    fn message(id: &str, kind: &str, data: &str) -> Message {
        Message {
            id: id.to_owned(),
            kind: kind.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn the_standard_s_examples() {
        let text = b"\xef\xbb\xbf: comment\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        assert_eq!(
            parse(&[text]),
            [
                message("1", "message", "first event"),
                message("", "message", "second event"),
                message("", "message", " third event")
            ]
        );
        assert_eq!(
            parse(&[b"event: add\rdata: YHOO\r\ndata: +2\ndata\n\r\n"]),
            [message("", "add", "YHOO\n+2\n")]
        );
        assert_eq!(
            parse(&[b"event: nothing\nid: 7\n\ndata: x\n\n"]),
            [message("7", "message", "x")]
        );
        assert_eq!(parse(&[b"data: incomplete\n"]), []);
    }

    #[test]
    fn a_message_is_bounded() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; MESSAGE_MAX];
        assert_eq!(parser.push(&piece, &mut Vec::new()), Ok(()));
        assert_eq!(parser.push(b"x", &mut Vec::new()), Err(TooLong));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(bytes in prop::collection::vec(prop_oneof![
            Just(b'\n'), Just(b'\r'), Just(b':'), Just(b' '), Just(b'd'), any::<u8>()], 0..200),
            cuts in prop::collection::vec(0usize..200, 0..10),
        ) {
            let whole = parse(&[&bytes]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(&pieces), whole);
        }

        #[test]
        fn what_a_server_writes_comes_back(events in prop::collection::vec(
            ("[a-z0-9]{1,8}", "[a-z]{1,8}", "[^\r\n\u{0}]{0,30}(\n[^\r\n\u{0}]{0,30}){0,2}"), 0..8))
        {
            let mut text = String::new();
            for (id, kind, data) in &events {
                text.push_str(&format!(": keep-alive\nid: {id}\nevent: {kind}\n"));
                for line in data.split('\n') {
                    text.push_str(&format!("data: {line}\r\n"));
                }
                text.push('\n');
            }
            let expected: Vec<Message> = events.iter().map(|(id, kind, data)| message(id, kind, data)).collect();
            prop_assert_eq!(parse(&[text.as_bytes()]), expected);
        }
    }
}
