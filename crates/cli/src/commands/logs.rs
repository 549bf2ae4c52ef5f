//! `logs`.

use std::time::Duration;

use clap::Args;
use offshoot_model::view::LogLine;

use crate::api::{Lines, Route};
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::signals::Interrupts;
use crate::term::{Paint, safe, safe_coloured};

/// Longest wait for more of a log that is not followed.
const WAIT: Duration = Duration::from_secs(60);

/// Show what nodes wrote to their standard output and error.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot logs shop                   all nodes\n  \
    offshoot logs -f --tail 20 shop web  the last lines of web's nodes, and new ones as they come\n  \
    offshoot logs shop db-1 -o json      one JSON document per line")]
pub(crate) struct LogsArgs {
    /// Environment, by name or id
    #[arg(value_name = "ENV")]
    environment: String,

    /// Node (web-1) or layer (web) [default: all nodes]
    #[arg(value_name = "NODE")]
    node: Option<String>,

    /// Go on with lines as they come, until Ctrl-C
    #[arg(short, long)]
    follow: bool,

    /// Only the last lines of each node
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<u64>,

    /// Begin each line with the time it was written
    #[arg(short, long)]
    timestamps: bool,

    /// Do not begin lines with the node's name
    #[arg(long)]
    no_prefix: bool,
}

pub(crate) async fn run(context: &Context, args: LogsArgs) -> Result<(), Failure> {
    let mut route = Route::environment(&args.environment).then("logs");
    if let Some(node) = &args.node {
        route = route.with("node", node);
    }
    if let Some(tail) = args.tail {
        route = route.with("tail", &tail.to_string());
    }
    if args.follow {
        route = route.with("follow", "true");
    }
    let mut interrupts = Interrupts::listen()?;
    let body = context.client.stream(&route, &[]).await?.into_body();
    let mut lines = Lines::new(&context.client, body, (!args.follow).then_some(WAIT));
    let mut writer = Writer {
        args: &args,
        paint: context.out_paint,
        width: 0,
    };
    loop {
        let line: LogLine = tokio::select! {
            line = lines.next() => match line? {
                Some(line) => line,
                None => return Ok(()),
            },
            _ = interrupts.next() => return Ok(()),
        };
        match context.format {
            Format::Json => context.json_line(&line)?,
            Format::Table => context.print(&writer.format(&line))?,
        }
    }
}

/// Lines for people, prefixes under each other.
struct Writer<'a> {
    args: &'a LogsArgs,
    paint: Paint,
    width: usize,
}

impl Writer<'_> {
    fn format(&mut self, line: &LogLine) -> String {
        let mut out = String::new();
        if !self.args.no_prefix {
            let node = safe(&line.node);
            self.width = self.width.max(node.chars().count());
            out.push_str(
                &self
                    .paint
                    .named(&node, &format!("{node:width$} | ", width = self.width)),
            );
        }
        if self.args.timestamps {
            out.push_str(&format!("{:.3} ", line.time));
        }
        match self.paint {
            Paint::Colour => out.push_str(&safe_coloured(&line.line)),
            // Into a file or pipe goes what the program wrote.
            Paint::Plain => out.push_str(&line.line),
        }
        out.push('\n');
        out
    }
}

#[cfg(test)]
mod tests {
    use offshoot_model::view::LogStream;

    use super::*;

    fn line(node: &str, text: &str) -> LogLine {
        LogLine {
            time: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            node: node.to_owned(),
            stream: LogStream::Stdout,
            line: text.to_owned(),
        }
    }

    fn args(timestamps: bool, no_prefix: bool) -> LogsArgs {
        LogsArgs {
            environment: String::new(),
            node: None,
            follow: false,
            tail: None,
            timestamps,
            no_prefix,
        }
    }

    #[test]
    fn prefixes_and_times() {
        let with = args(true, false);
        let mut writer = Writer {
            args: &with,
            paint: Paint::Plain,
            width: 0,
        };
        assert_eq!(
            writer.format(&line("web-1", "a\u{1b}[2J")),
            "web-1 | 2026-01-02T03:04:05.678Z a\u{1b}[2J\n"
        );
        assert_eq!(
            writer.format(&line("db-1", "")),
            "db-1  | 2026-01-02T03:04:05.678Z \n"
        );
        let without = args(false, true);
        let mut writer = Writer {
            args: &without,
            paint: Paint::Plain,
            width: 0,
        };
        assert_eq!(writer.format(&line("web-1", "a")), "a\n");
    }

    #[test]
    fn a_terminal_is_not_steered() {
        let plain = args(false, true);
        let mut writer = Writer {
            args: &plain,
            paint: Paint::Colour,
            width: 0,
        };
        assert_eq!(
            writer.format(&line("web-1", "a\u{1b}[2J\rb")),
            "a?[2J?b\u{1b}[0m\n"
        );
    }
}
