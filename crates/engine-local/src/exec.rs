//! Commands in nodes: threads between the runtime's descriptors and the session's channels.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use offshoot_engine::{ExecInput, ExecOutput, ExecSession};
use offshoot_model::view::ExecRequest;
use offshoot_model::{Code, Fault, NodeId, Problem};
use offshoot_runtime::{ExecProcess, ExecSpec, NodeSpec, RuntimeError, TerminalSize, exec};
use tokio::sync::mpsc;

use crate::nodes::signal_number;

/// Messages in flight each way.
const ROOM: usize = 32;
/// How often the end of the process is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// How long output may go on after the process ended: a child of it may hold the pipe.
const LINGER: Duration = Duration::from_secs(1);

/// What the session asks of the process beside its input.
enum Control {
    Resize(TerminalSize),
    Signal(i32),
    /// Nobody is interested any more.
    HangUp,
}

/// Runs a command in the node of `spec`.
pub(crate) fn run(spec: &NodeSpec, request: ExecRequest) -> Result<ExecSession, Problem> {
    let what = ExecSpec {
        args: request.args,
        env: request.env,
        cwd: request.cwd,
        user: request.user,
        terminal: request.tty.map(size),
    };
    let mut process = exec(spec, &what).map_err(|e| problem(&spec.node, &e))?;
    let (input, from_session) = mpsc::channel(ROOM);
    let (to_session, output) = mpsc::channel(ROOM);
    let (control, controls) = channel();
    let streams = std::mem::take(&mut process.streams);
    let mut readers = Vec::new();
    let stdin = match streams.terminal {
        Some(terminal) => {
            let read = terminal.try_clone().map_err(|e| internal(&e))?;
            readers.push(reader(read, to_session.clone(), ExecOutput::Stdout)?);
            Some(terminal)
        }
        None => {
            for (fd, wrap) in [
                (
                    streams.stdout,
                    ExecOutput::Stdout as fn(Bytes) -> ExecOutput,
                ),
                (streams.stderr, ExecOutput::Stderr),
            ] {
                if let Some(fd) = fd {
                    readers.push(reader(fd, to_session.clone(), wrap)?);
                }
            }
            streams.stdin
        }
    };
    let is_terminal = what.terminal.is_some();
    let node = spec.node.clone();
    thread("exec-input", move || {
        feed(stdin, is_terminal, from_session, &control)
    })?;
    thread("exec", move || {
        attend(&node, process, &controls, &to_session, readers)
    })?;
    Ok(ExecSession { input, output })
}

fn size(size: offshoot_model::view::TerminalSize) -> TerminalSize {
    TerminalSize {
        columns: size.cols,
        rows: size.rows,
    }
}

fn problem(node: &NodeId, error: &RuntimeError) -> Problem {
    match error {
        RuntimeError::NotRunning { .. } => Problem::new(
            Code::WrongState,
            Fault::Request,
            format!("node {node} does not run"),
            "start its environment, or see with `offshoot ps` what became of it",
        ),
        error => error.problem_as(Code::ExecFailed),
    }
}

fn internal(error: &std::io::Error) -> Problem {
    Problem::internal("a session could not be attached").caused_by(error)
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Problem> {
    Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|e| internal(&e))
}

fn reader(
    fd: OwnedFd,
    to: mpsc::Sender<ExecOutput>,
    wrap: fn(Bytes) -> ExecOutput,
) -> Result<JoinHandle<()>, Problem> {
    thread("exec-output", move || {
        let mut file = File::from(fd);
        let mut buffer = vec![0; 16 << 10];
        // A terminal whose last writer is gone answers EIO: that is its end of file (pty(7)).
        while let Ok(n @ 1..) = file.read(&mut buffer) {
            let chunk = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
            if to.blocking_send(wrap(chunk)).is_err() {
                return;
            }
        }
    })
}

fn feed(
    stdin: Option<OwnedFd>,
    is_terminal: bool,
    mut from: mpsc::Receiver<ExecInput>,
    control: &Sender<Control>,
) {
    let mut stdin = stdin.map(File::from);
    while let Some(input) = from.blocking_recv() {
        let asked = match input {
            ExecInput::Stdin(bytes) => {
                if stdin
                    .as_mut()
                    .is_some_and(|file| file.write_all(&bytes).is_err())
                {
                    stdin = None;
                }
                continue;
            }
            ExecInput::CloseStdin => {
                match stdin.as_mut() {
                    // End of transmission: what a person types to end the input of a terminal.
                    Some(file) if is_terminal => drop(file.write_all(&[4])),
                    _ => stdin = None,
                }
                continue;
            }
            ExecInput::Resize(to) => Control::Resize(size(to)),
            ExecInput::Signal(name) => Control::Signal(signal_number(&name)),
        };
        if control.send(asked).is_err() {
            return;
        }
    }
    let _ = control.send(Control::HangUp);
}

fn attend(
    node: &NodeId,
    mut process: ExecProcess,
    controls: &Receiver<Control>,
    to: &mpsc::Sender<ExecOutput>,
    readers: Vec<JoinHandle<()>>,
) {
    let status = loop {
        match process.wait(LOOK) {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => {
                let _ = to.blocking_send(ExecOutput::Problem(problem(node, &error)));
                return;
            }
        }
        match controls.try_recv() {
            Ok(Control::Resize(size)) => drop(process.resize(size)),
            Ok(Control::Signal(signal)) => drop(process.signal(signal)),
            // Dropping the process ends it.
            Ok(Control::HangUp) => return,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        if to.is_closed() {
            return;
        }
    };
    let deadline = Instant::now() + LINGER;
    while readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = to.blocking_send(ExecOutput::Exit(status));
}
