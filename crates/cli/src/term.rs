//! The terminal: colours, confirmation, raw mode, and text from inside environments made harmless.

use std::borrow::Cow;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::fd::AsFd;

use offshoot_model::view::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Whether text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    /// With colours (ECMA-48 SGR).
    Colour,
    /// Without.
    Plain,
}

impl Paint {
    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Self::Colour => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Self::Plain => text.to_owned(),
        }
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.wrap("36", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// A colour of its own for each of a few names, the same each time.
    pub(crate) fn named(self, name: &str, text: &str) -> String {
        const COLOURS: [&str; 6] = ["36", "33", "32", "35", "34", "96"];
        let sum = name.bytes().fold(0usize, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(usize::from(byte))
        });
        self.wrap(COLOURS[sum % COLOURS.len()], text)
    }
}

/// Text that came from outside, with control characters replaced by `?`, so that it cannot steer the terminal.
/// Tabs stay.
pub(crate) fn safe(text: &str) -> Cow<'_, str> {
    if text.chars().any(|c| c.is_control() && c != '\t') {
        text.chars()
            .map(|c| if c.is_control() && c != '\t' { '?' } else { c })
            .collect::<String>()
            .into()
    } else {
        text.into()
    }
}

/// As [`safe`], but leaves colours (`ESC [ digits and ; m`) in place: programs colour their logs.
pub(crate) fn safe_coloured(text: &str) -> Cow<'_, str> {
    if !text.contains('\u{1b}') {
        return safe(text);
    }
    let mut out = String::with_capacity(text.len() + 4);
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        let (before, from) = rest.split_at(at);
        out.push_str(&safe(before));
        let sgr = from.strip_prefix("\u{1b}[").and_then(|body| {
            let end = body.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
            body[end..].starts_with('m').then_some(2 + end + 1)
        });
        let taken = match sgr {
            Some(length) => {
                out.push_str(&from[..length]);
                length
            }
            None => {
                out.push('?');
                1
            }
        };
        rest = &from[taken..];
    }
    out.push_str(&safe(rest));
    out.push_str("\u{1b}[0m");
    out.into()
}

/// Size of the terminal on standard input or output, when there is one that knows its size.
pub(crate) fn size() -> Option<TerminalSize> {
    let of = |size: rustix::termios::Winsize| TerminalSize {
        rows: size.ws_row,
        cols: size.ws_col,
    };
    let size = tcgetwinsize(io::stdin())
        .or_else(|_| tcgetwinsize(io::stdout()))
        .ok()
        .map(of);
    size.filter(|size| size.rows > 0 && size.cols > 0)
}

/// Asks on standard error and reads an answer from standard input. `None` at its end.
pub(crate) fn ask(question: &str) -> io::Result<Option<String>> {
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question}")?;
    stderr.flush()?;
    let mut answer = String::new();
    if io::stdin().lock().read_line(&mut answer)? == 0 {
        writeln!(stderr)?;
        return Ok(None);
    }
    Ok(Some(answer.trim().to_owned()))
}

/// Whether a person can be asked: standard input and standard error are terminals.
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// The terminal on standard input in raw mode (termios(3), cfmakeraw): every key goes to the command in the node.
/// Dropping it, also while a panic unwinds, brings the old mode back.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Enters raw mode.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Not `Flush`: keys typed ahead are the command's.
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done when the terminal is gone.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_cannot_pass() {
        assert_eq!(safe("plain\ttext"), "plain\ttext");
        assert_eq!(safe("a\u{1b}[2Jb\r\u{9b}31mc"), "a?[2Jb??31mc");
    }

    #[test]
    fn colours_pass_in_logs_and_nothing_else() {
        assert_eq!(
            safe_coloured("\u{1b}[1;31mred\u{1b}[0m"),
            "\u{1b}[1;31mred\u{1b}[0m\u{1b}[0m"
        );
        assert_eq!(
            safe_coloured("\u{1b}]0;title\u{7}x\u{1b}[2J\u{1b}"),
            "?]0;title?x?[2J?\u{1b}[0m"
        );
        assert_eq!(safe_coloured("\u{1b}[12"), "?[12\u{1b}[0m");
    }
}
