//! Getting at the memory of a running process, through a shim that lives for that moment, or as long as a twin.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use offshoot_checkpoint::{Foreign, Plant, Twin};
use offshoot_model::{Code, Fault, Problem};
use offshoot_sys::passing;
use rustix::fs::FlockOperation;

/// The shim's own bound is shorter.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a node waits to be stopped for a clone that still gets memory from it.
const TWINS_MAX: Duration = Duration::from_secs(120);
/// How often it is looked whether it has all.
const LOOK: Duration = Duration::from_millis(20);
/// In the run-time directory of a node: locked while twins of its processes live.
const LOCK: &str = "twins.lock";

/// Runs `offshoot-shim plant` and `offshoot-shim twin`.
pub(crate) struct Planter<'a> {
    pub(crate) shim: &'a Path,
    /// Run-time directory of a node.
    pub(crate) node_dir: &'a (dyn Fn(&str) -> PathBuf + Sync),
}

impl Plant for Planter<'_> {
    fn plant(&self, pid: i32) -> Result<OwnedFd, Foreign> {
        let (shim, line) = self.start(&["plant".as_ref(), pid.to_string().as_ref()])?;
        let answer = passing::take(&line);
        let why = end_of(shim)?;
        answer?.ok_or_else(|| format!("process {pid}: {why}").into())
    }

    fn twin(&self, node: &str, pid: i32, socket: &Path) -> Result<Twin, Foreign> {
        let lock = (self.node_dir)(node).join(LOCK);
        let pid_text = pid.to_string();
        let words = ["twin".as_ref(), pid_text.as_ref(), socket, lock.as_path()];
        let (mut shim, mut line) = self.start(&words)?;
        let Some(memory) = passing::take(&line)? else {
            return Err(format!("process {pid}: {}", end_of(shim)?).into());
        };
        let (mut number, mut micros) = ([0; 4], [0; 8]);
        line.read_exact(&mut number)?;
        line.read_exact(&mut micros)?;
        // The one that keeps the twin is its child, which goes on without us.
        shim.wait()?;
        Ok(Twin {
            pid: i32::from_le_bytes(number),
            memory: File::from(memory),
            line,
            held: Duration::from_micros(u64::from_le_bytes(micros)),
        })
    }
}

impl Planter<'_> {
    fn start(&self, words: &[&Path]) -> std::io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(ANSWER_MAX))?;
        let shim = Command::new(self.shim)
            .args(words)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok((shim, ours))
    }
}

/// What a shim that gave no answer says. It has ended, or ends by itself: it is never killed, see there.
fn end_of(mut shim: Child) -> std::io::Result<String> {
    let mut why = String::new();
    if let Some(stderr) = shim.stderr.take() {
        stderr.take(4096).read_to_string(&mut why)?;
    }
    shim.wait()?;
    Ok(why.trim().to_owned())
}

/// Waits until no clone gets memory from the node whose run-time directory this is any more: it would lose it with the node.
///
/// # Errors
/// [`Code::Busy`] when that takes too long.
pub(crate) fn wait_twins(node_dir: &Path) -> Result<(), Problem> {
    let Ok(lock) = File::open(node_dir.join(LOCK)) else {
        return Ok(()); // there never was one
    };
    let deadline = Instant::now() + TWINS_MAX;
    while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > deadline {
            return Err(Problem::new(
                Code::Busy,
                Fault::Host,
                "a clone still gets memory from this environment",
                "try again when the clone has all of its memory",
            ));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
