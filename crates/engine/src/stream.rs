//! Streams into and out of nodes.

use bytes::Bytes;
use offshoot_model::Problem;
use offshoot_model::view::TerminalSize;
use tokio::sync::mpsc;

/// Which log lines are wanted.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Node or layer name; all nodes when absent.
    pub node: Option<String>,
    /// Only this many of the last lines of each node; all when absent.
    pub tail: Option<usize>,
    /// Whether to go on with lines as they come.
    pub follow: bool,
}

/// A running command. Dropping it ends the command.
#[derive(Debug)]
pub struct ExecSession {
    /// To the command; bounded, so that a slow command slows its sender.
    pub input: mpsc::Sender<ExecInput>,
    /// From the command; ends after [`ExecOutput::Exit`] or [`ExecOutput::Problem`].
    pub output: mpsc::Receiver<ExecOutput>,
}

/// To a running command.
#[derive(Debug, Clone)]
pub enum ExecInput {
    /// Bytes for its standard input or terminal.
    Stdin(Bytes),
    /// End of standard input.
    CloseStdin,
    /// The terminal has another size.
    Resize(TerminalSize),
    /// Send a signal, a name such as `SIGINT`.
    Signal(String),
}

/// From a running command.
#[derive(Debug, Clone)]
pub enum ExecOutput {
    /// Standard output, or the terminal.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// It ended: exit status, or 128 + signal.
    Exit(i32),
    /// It could not be run.
    Problem(Problem),
}

/// Chunks of a stream that may break.
pub type ByteStream = mpsc::Receiver<Result<Bytes, Problem>>;
