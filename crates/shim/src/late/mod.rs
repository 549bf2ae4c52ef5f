//! Memory that comes while the node already runs.
//!
//! The cut may leave memory out of CRIU's images and beside them ([`pages`]). CRIU restores the processes without it and, told by the node's
//! criu.conf, has the node frozen before it lets go ([`hold`]). Then the page source, a process of its own ([`source`]), holds all
//! processes, prepares those with missing pages ([`plant`]), lets them go, and delivers pages ([`serve`]).

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use offshoot_runtime::cgroup::NodeCgroup;
use offshoot_runtime::{NodeSpec, Result, RuntimeError};
use offshoot_sys::process::poll_readable;
use serde::{Deserialize, Serialize};

use crate::shared::{Memory, Shared};

mod alone;
mod changes;
pub(crate) mod hold;
mod pages;
mod pending;
mod plant;
mod ranges;
mod serve;
pub(crate) mod source;

/// Bound on preparing the restored processes; what cannot come late is written in this time.
const PLANT_MAX: Duration = Duration::from_secs(120);

/// What the page source says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "word")]
enum Word {
    /// The node runs.
    Planted {
        /// Bytes that have still to come.
        left: u64,
        /// Bytes that were written before it ran.
        written: u64,
        /// Microseconds it was held.
        took_us: u64,
    },
    /// This many bytes have still to come.
    Left { bytes: u64 },
    /// All pages are there.
    Loaded,
    /// The node was killed.
    Failed { why: String },
}

/// The page source of a node that is about to be restored.
pub(crate) struct Late {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Late {
    /// Starts the page source, if the images say that memory comes late. CRIU has to hold the node then ([`hold::prepare`]).
    pub(crate) fn prepare(spec: &NodeSpec, images: &Path) -> Result<Option<Self>> {
        let failed = |e| RuntimeError::io("look for late memory in", images, e);
        if !pages::are_there(images).map_err(failed)? {
            return Ok(None);
        }
        let starting = |e| RuntimeError::doing("start the page source", e);
        let mut child = Command::new(&spec.tools.shim)
            .args(["memory", "--spec"])
            .arg(spec.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(starting)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok(Some(Self {
                child,
                stdin,
                stdout: BufReader::new(stdout),
            })),
            _ => Err(starting(std::io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Lets the restored node go; its pages come from now on.
    pub(crate) fn begin(mut self, shared: &Arc<Shared>) -> Result<()> {
        // If it is gone, reading tells.
        let _ = self.stdin.write_all(b"restored\n");
        let left = match self.hear(PLANT_MAX)? {
            Some(Word::Planted {
                left,
                written,
                took_us,
            }) => {
                tracing::info!(
                    left,
                    written,
                    took_us,
                    "the node runs while its memory comes"
                );
                left
            }
            Some(Word::Failed { why }) => return Err(RuntimeError::spec(why)),
            _ => return Err(RuntimeError::spec("the page source ended without a word")),
        };
        shared.memory(Memory::Coming(left));
        shared.source(self.stdin);
        let shared = Arc::clone(shared);
        let (mut child, mut stdout) = (self.child, self.stdout);
        let thread = std::thread::Builder::new().name("memory".into());
        let thread = thread.spawn(move || {
            let outcome = follow(&mut stdout, &shared);
            if let Memory::Lost(why) = &outcome {
                tracing::error!(why, "the node is killed: its memory cannot arrive any more");
                end(&shared.cgroup);
            }
            shared.memory(outcome);
            let _ = child.wait();
        });
        thread
            .map(drop)
            .map_err(|e| RuntimeError::doing("start a thread", e))
    }

    /// The next word, at most after `max`; `None` when there is none any more.
    fn hear(&mut self, max: Duration) -> Result<Option<Word>> {
        let reading = |e| RuntimeError::doing("hear the page source", e);
        let deadline = Instant::now() + max;
        let left = deadline.saturating_duration_since(Instant::now());
        if !poll_readable(self.stdout.get_ref().as_fd(), Some(left)).map_err(reading)? {
            return Err(RuntimeError::Timeout {
                what: "preparing memory that comes late".into(),
                after: max,
            });
        }
        // It writes whole lines.
        let mut line = String::new();
        self.stdout.read_line(&mut line).map_err(reading)?;
        Ok(serde_json::from_str(&line).ok())
    }
}

/// Notes what the page source says, until its end.
fn follow(stdout: &mut BufReader<ChildStdout>, shared: &Shared) -> Memory {
    let mut line = String::new();
    loop {
        line.clear();
        match stdout.read_line(&mut line) {
            Ok(0) | Err(_) => return Memory::Lost("its page source was killed".into()),
            Ok(_) => {}
        }
        match serde_json::from_str(&line) {
            Ok(Word::Left { bytes }) => shared.memory(Memory::Coming(bytes)),
            Ok(Word::Loaded) => return Memory::Whole,
            Ok(Word::Failed { why }) => return Memory::Lost(why),
            Ok(Word::Planted { .. }) | Err(_) => {}
        }
    }
}

fn end(cgroup: &NodeCgroup) {
    if let Err(e) = cgroup.kill() {
        tracing::error!(error = %e, "killing the node");
    }
}
