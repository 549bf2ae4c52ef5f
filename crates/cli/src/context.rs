//! What every command needs: the API, and how to speak to the person.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use crate::api::Client;
use crate::args::Global;
use crate::failure::Failure;
use crate::term::Paint;

/// How answers are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON document, or one per line for streams.
    Json,
}

/// How much is said on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Talk {
    /// Progress and messages.
    Normal,
    /// Only problems and warnings.
    Quiet,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) config: Option<PathBuf>,
    pub(crate) format: Format,
    pub(crate) talk: Talk,
    /// Colours on standard output.
    pub(crate) out_paint: Paint,
    /// Colours on standard error.
    pub(crate) err_paint: Paint,
}

impl Context {
    /// From the global options and the environment variables that they stand for.
    pub(crate) fn new(global: &Global) -> Self {
        // https://no-color.org: set and not empty.
        let plain = global.no_color
            || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let paint = |terminal: bool| {
            if terminal && !plain {
                Paint::Colour
            } else {
                Paint::Plain
            }
        };
        Self {
            client: Client::new(crate::serve::socket(global)),
            config: global.config.clone(),
            format: global.output,
            talk: if global.quiet {
                Talk::Quiet
            } else {
                Talk::Normal
            },
            out_paint: paint(io::stdout().is_terminal()),
            err_paint: paint(io::stderr().is_terminal()),
        }
    }

    /// Whether only the bare answer is wanted.
    pub(crate) fn is_quiet(&self) -> bool {
        self.talk == Talk::Quiet
    }

    /// Prints an answer: JSON as it is, or what `table` makes of it.
    pub(crate) fn answer<T: Serialize>(
        &self,
        value: &T,
        table: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json(value),
            Format::Table => self.print(&table()),
        }
    }

    /// One JSON document on standard output.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        serde_json::to_writer_pretty(&mut stdout, value).map_err(io::Error::from)?;
        writeln!(stdout)?;
        Ok(stdout.flush()?)
    }

    /// One line of a stream of JSON documents.
    pub(crate) fn json_line<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, value).map_err(io::Error::from)?;
        writeln!(stdout)?;
        Ok(stdout.flush()?)
    }

    /// Text on standard output, with a line end.
    pub(crate) fn print(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        Ok(stdout.flush()?)
    }

    /// A message on standard error, unless `--quiet`.
    pub(crate) fn say(&self, text: &str) {
        if !self.is_quiet() {
            self.warn_plain(text);
        }
    }

    /// A warning on standard error, also with `--quiet`.
    pub(crate) fn warn(&self, text: &str) {
        self.warn_plain(&format!(
            "{} {}",
            self.err_paint.yellow("warning:"),
            crate::term::safe(text)
        ));
    }

    fn warn_plain(&self, text: &str) {
        // Nothing is left to do when standard error cannot be written to.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}
