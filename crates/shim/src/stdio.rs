//! A node's standard streams: pipes, because CRIU can hand back pipes, and owned by the node's user, because programs reopen
//! `/dev/stdout` by name.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use jiff::Timestamp;
use offshoot_runtime::logs::{LineCutter, LogLimits, LogWriter};
use offshoot_runtime::{NodeSpec, Result, RuntimeError, Stream};
use rustix::fs::{Gid, Uid};
use rustix::pipe::{PipeFlags, pipe_with};

/// Bytes read from a pipe at once: what a pipe holds (pipe(7)).
const CHUNK: usize = 64 << 10;

/// The ends a node gets.
pub(crate) struct NodeEnds {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Makes the pipes and starts copying what the node prints into its log. The threads end when the last process that can print ended.
pub(crate) fn open(spec: &NodeSpec) -> Result<(NodeEnds, Vec<JoinHandle<()>>)> {
    let log = Arc::new(Mutex::new(LogWriter::open(
        &spec.log_dir,
        LogLimits::default(),
    )?));
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| RuntimeError::doing("make a pipe", e));
    // Its other end is closed at once: a node's standard input is at its end.
    let (stdin, _) = pipe()?;
    let (from_stdout, stdout) = pipe()?;
    let (from_stderr, stderr) = pipe()?;
    let user = &spec.process.user;
    let (uid, gid) = (
        Uid::from_raw(spec.id_base + user.uid),
        Gid::from_raw(spec.id_base + user.gid),
    );
    for end in [&stdin, &stdout, &stderr] {
        rustix::fs::fchown(end, Some(uid), Some(gid))
            .map_err(|e| RuntimeError::doing("give a pipe to the node", e))?;
    }
    let mut pumps = Vec::new();
    for (end, stream) in [(from_stdout, Stream::Stdout), (from_stderr, Stream::Stderr)] {
        let log = Arc::clone(&log);
        let pump = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || copy(File::from(end), stream, &log));
        pumps.push(pump.map_err(|e| RuntimeError::doing("start a thread", e))?);
    }
    Ok((
        NodeEnds {
            stdin,
            stdout,
            stderr,
        },
        pumps,
    ))
}

fn copy(mut from: File, stream: Stream, log: &Mutex<LogWriter>) {
    let mut cutter = LineCutter::new(stream);
    let mut chunk = vec![0; CHUNK];
    loop {
        let lines = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => cutter.push(chunk.get(..n).unwrap_or_default(), Timestamp::now()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => {
                tracing::error!(error = %e, "reading what the node prints");
                break;
            }
        };
        append(log, &lines);
    }
    append(
        log,
        &cutter
            .finish(Timestamp::now())
            .into_iter()
            .collect::<Vec<_>>(),
    );
}

fn append(log: &Mutex<LogWriter>, lines: &[offshoot_runtime::LogLine]) {
    if lines.is_empty() {
        return;
    }
    // The pipe is read on whatever happens to the log: a full disk must not stop the node.
    if let Err(e) = log
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .append(lines)
    {
        tracing::error!(error = %e, lines = lines.len(), "writing the log; lines are lost");
    }
}
