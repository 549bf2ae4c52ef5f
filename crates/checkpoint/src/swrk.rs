//! One CRIU process that serves one request: `criu swrk` with our end of a socket pair.
//!
//! CRIU is started by a few lines of shell, which outlive the daemon: CRIU writes the cgroup back to frozen when it is
//! through, so if the daemon was killed in the meantime, nobody else would thaw the node. The shell waits for a word from the
//! daemon after CRIU ended, and thaws when the daemon is gone.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use offshoot_sys::first::put_first;
use offshoot_sys::process::children;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, Resource, Rlimit, Signal};

use crate::error::CriuError;
use crate::log::errors_in;
use crate::memory::Preload;
use crate::rpc::{Answer, Kind, Options, Request};

/// Arguments: CRIU, the freezer's folder, a process in whose network namespace CRIU runs, or nothing, a shared object that CRIU
/// is started with, or nothing. Descriptors: 0 the request
/// socket, 1 the line to the daemon. SIGXFSZ is ignored, so that a file size limit is an ordinary
/// write error for CRIU (see [`Swrk::abort`]). The kernel shall not choose CRIU when memory runs out, where it lets itself be told.
const KEEPER: &str = r#"
trap '' XFSZ HUP INT TERM PIPE
echo -1000 2>/dev/null >/proc/self/oom_score_adj
exec 3<&0 4<&1 0</dev/null 1>/dev/null
[ -n "$4" ] && export LD_PRELOAD="$4"
if [ -n "$3" ]; then nsenter --net="/proc/$3/ns/net" "$1" swrk 3 4<&- & else "$1" swrk 3 4<&- & fi
unset LD_PRELOAD
echo $! >&4
exec 3<&-
wait $!
word=
read -r word <&4
[ "$word" = done ] && exit
if [ -e "$2/freezer.state" ]; then echo THAWED >"$2/freezer.state"; elif [ -e "$2/cgroup.freeze" ]; then echo 0 >"$2/cgroup.freeze"; fi
"#;

/// How often a wait looks whether it should give up.
const LOOK: Duration = Duration::from_millis(20);
/// CRIU's messages are small; runc's limit.
const MESSAGE_MAX: usize = 40 * 1024;
/// How long CRIU may take to let go of the processes after it was told to stop.
const LET_GO: Duration = Duration::from_secs(3);
/// How long the keeping shell may take to start CRIU and to end.
const KEEPER_TIME: Duration = Duration::from_secs(5);

/// What ends a wait early.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until<'a> {
    /// The latest moment.
    pub(crate) deadline: Instant,
    /// Raised by somebody else: give up at once.
    pub(crate) stop: &'a AtomicBool,
}

/// How far CRIU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    No,
    /// It gave its final answer and is about to exit.
    Answered,
    /// It has exited.
    Ended,
}

/// A CRIU process and the line to it. Dropping it makes CRIU let go of everything and ends it.
#[derive(Debug)]
pub(crate) struct Swrk {
    keeper: Child,
    criu: Option<Pid>,
    rpc: Option<OwnedFd>,
    line: UnixStream,
    log: PathBuf,
    through: Through,
    /// A child of CRIU is at work on the node, and none of its children are helpers.
    forked: bool,
}

impl Swrk {
    /// Starts CRIU, in the network namespace of process `network` and with what `preload` says when given. `work` gets its
    /// log; `freezer` is the cgroup that is thawed if the daemon dies.
    pub(crate) fn start(
        criu: &Path,
        work: &Path,
        freezer: &Path,
        log: &str,
        network: Option<i32>,
        preload: Option<&Preload>,
    ) -> Result<Self, CriuError> {
        let start = |source| CriuError::Start {
            path: criu.to_owned(),
            source,
        };
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| start(e.into()))?;
        let (line, their_line) = UnixStream::pair().map_err(start)?;
        let stderr = work.join("criu.stderr");
        let stderr = File::create(&stderr).map_err(|source| CriuError::Image {
            path: stderr,
            what: "cannot be created".to_owned(),
            source: Some(source),
        })?;
        let mut keeper = Command::new("/bin/sh");
        keeper
            .args(["-c", KEEPER, "offshoot-criu"])
            .arg(criu)
            .arg(freezer)
            .arg(network.map(|pid| pid.to_string()).unwrap_or_default())
            .arg(preload.map_or(Path::new(""), |preload| &preload.object));
        let path =
            std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        // CRIU changes to `work`: see `dump::lay_tar`.
        keeper.env_clear().env("PATH", format!(".:{path}"));
        if let Some(preload) = preload {
            keeper.env("OFFSHOOT_KNOWN", &preload.known);
            if let Some(kernel) = &preload.kernel {
                keeper.env("OFFSHOOT_KERNEL", kernel);
            }
        }
        keeper.current_dir("/").process_group(0);
        keeper
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(OwnedFd::from(their_line)))
            .stderr(stderr);
        let keeper_process = keeper.spawn().map_err(start)?;
        drop(keeper); // and with it our copies of its ends
        let mut swrk = Self {
            keeper: keeper_process,
            criu: None,
            rpc: Some(ours),
            line,
            log: work.join(log),
            through: Through::No,
            forked: false,
        };
        swrk.criu = Some(swrk.read_pid().map_err(start)?);
        Ok(swrk)
    }

    fn read_pid(&self) -> std::io::Result<Pid> {
        let line = self.line.try_clone()?;
        line.set_read_timeout(Some(KEEPER_TIME))?;
        let mut text = String::new();
        BufReader::new(line).read_line(&mut text)?;
        text.trim()
            .parse()
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| std::io::Error::other("it gave no process id"))
    }

    pub(crate) fn send(&self, request: &Request) -> Result<(), CriuError> {
        let talk = |source| CriuError::Talk {
            doing: "sending a request",
            source,
        };
        let rpc = self
            .rpc
            .as_ref()
            .ok_or_else(|| talk(std::io::ErrorKind::NotConnected.into()))?;
        match rustix::net::send(rpc, &request.encode_to_vec(), SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(self.died()),
            Err(error) => Err(talk(error.into())),
        }
    }

    fn died(&self) -> CriuError {
        CriuError::Died {
            errors: self.errors(),
        }
    }

    fn errors(&self) -> Vec<String> {
        let errors = errors_in(&self.log);
        if !errors.is_empty() {
            return errors;
        }
        let stderr = self.log.with_file_name("criu.stderr");
        let text = fs::read(stderr).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .lines()
            .rev()
            .take(3)
            .map(str::to_owned)
            .collect()
    }

    fn receive(&self, until: Until<'_>) -> Result<Answer, CriuError> {
        let talk = |source| CriuError::Talk {
            doing: "waiting for an answer",
            source,
        };
        let rpc = self
            .rpc
            .as_ref()
            .ok_or_else(|| talk(std::io::ErrorKind::NotConnected.into()))?;
        let started = Instant::now();
        loop {
            let left = until.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || until.stop.load(Ordering::Relaxed) {
                return Err(CriuError::TimedOut(started.elapsed()));
            }
            let slice = Timespec {
                tv_sec: 0,
                tv_nsec: left.min(LOOK).as_nanos() as i64,
            };
            match poll(&mut [PollFd::new(rpc, PollFlags::IN)], Some(&slice)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(talk(error.into())),
            }
        }
        let mut buffer = vec![0; MESSAGE_MAX];
        let length = match rustix::net::recv(rpc, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => length,
            Err(rustix::io::Errno::CONNRESET) => return Err(self.died()),
            Err(error) => return Err(talk(error.into())),
        };
        if length == 0 {
            return Err(self.died());
        }
        buffer.truncate(length);
        Answer::decode(&buffer[..]).map_err(|e| CriuError::Unexpected(e.to_string()))
    }

    /// Waits until CRIU stops at `stage`, letting it pass every other stage on the way.
    pub(crate) fn wait_stage(&self, stage: &str, until: Until<'_>) -> Result<(), CriuError> {
        while !self.stops_at(stage, until)? {
            self.go_on()?;
        }
        Ok(())
    }

    /// Waits until CRIU stops; whether that is at `stage`.
    fn stops_at(&self, stage: &str, until: Until<'_>) -> Result<bool, CriuError> {
        let answer = self.receive(until)?;
        if answer.kind != Kind::Notify as i32 {
            return Err(self.judge(&answer).err().unwrap_or_else(|| {
                CriuError::Unexpected(format!("it was through before it came to {stage}"))
            }));
        }
        let script = answer.notify.and_then(|notify| notify.script);
        Ok(script.as_deref() == Some(stage))
    }

    /// Waits until CRIU stops, which has to be at `stage`.
    pub(crate) fn next_stage(&self, stage: &str, until: Until<'_>) -> Result<(), CriuError> {
        if self.stops_at(stage, until)? {
            return Ok(());
        }
        let what = format!("it went on without the stage {stage}");
        Err(CriuError::Unexpected(what))
    }

    /// Lets CRIU have processor time before others of this session (setpriority(2)), as far as that is granted. Not before the
    /// processes that it works on: they have to run to stop for it.
    pub(crate) fn go_first(&self) {
        if let Some(criu) = self.criu {
            put_first(criu);
        }
    }

    /// Lets CRIU leave the stage at which it waits.
    pub(crate) fn go_on(&self) -> Result<(), CriuError> {
        self.send(&Request {
            kind: Kind::Notify as i32,
            opts: None,
            notify_success: Some(true),
        })
    }

    /// Waits for the final answer, letting CRIU pass every stage.
    pub(crate) fn wait_answer(&mut self, until: Until<'_>) -> Result<Answer, CriuError> {
        loop {
            let answer = self.receive(until)?;
            if answer.kind == Kind::Notify as i32 {
                self.go_on()?;
            } else {
                self.through = Through::Answered;
                return self.judge(&answer).map(|()| answer);
            }
        }
    }

    /// Whether it has answered or ended: it holds no process any more.
    pub(crate) fn is_through(&self) -> bool {
        self.through != Through::No
    }

    /// Has CRIU do a pre-dump, for which it makes a child, and waits for its answer. It takes further requests then; after an
    /// error it is of no use any more.
    pub(crate) fn pre_dump(&mut self, options: Options, until: Until<'_>) -> Result<(), CriuError> {
        self.send(&Request {
            kind: Kind::PreDump as i32,
            opts: Some(options),
            notify_success: None,
        })?;
        self.forked = true;
        let answer = self.receive(until)?;
        self.forked = false;
        self.judge(&answer)
    }

    fn judge(&self, answer: &Answer) -> Result<(), CriuError> {
        if answer.success {
            return Ok(());
        }
        let mut errors = self.errors();
        if errors.is_empty() {
            errors.extend(answer.message.clone());
        }
        Err(CriuError::Failed { errors })
    }

    /// Makes CRIU stop and let go of the processes it holds.
    ///
    /// Killing it is the last resort, because a process that is just running CRIU's code on its behalf would be left with it.
    /// CRIU has no request for stopping, but it cleans up after any error: so its next write to an image fails (file size
    /// limit 0), its helpers are killed, and so is the line to it.
    pub(crate) fn abort(&mut self) {
        if self.through == Through::Ended {
            return;
        }
        self.rpc = None;
        let Some(criu) = self.criu else { return };
        if self.through == Through::Answered {
            // What it has for children now may be the processes it restored.
            let deadline = Instant::now() + LET_GO;
            while is_alive(criu) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.through = Through::Ended;
            return;
        }
        let fail_to_write = |criu| {
            let none = Rlimit {
                current: Some(0),
                maximum: Some(0),
            };
            let _ = rustix::process::prlimit(Some(criu), Resource::Fsize, none);
        };
        fail_to_write(criu);
        let deadline = Instant::now() + LET_GO;
        while is_alive(criu) {
            let late = Instant::now() >= deadline;
            let children = children(criu.as_raw_nonzero().get());
            for child in children.into_iter().filter_map(Pid::from_raw) {
                if self.forked && !late {
                    fail_to_write(child);
                } else {
                    let _ = rustix::process::kill_process(child, Signal::KILL);
                }
            }
            if late {
                tracing::warn!(
                    pid = criu.as_raw_nonzero().get(),
                    "CRIU does not let go; killing it"
                );
                let _ = rustix::process::kill_process(criu, Signal::KILL);
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.through = Through::Ended;
    }

    /// Ends the keeping shell, after the node was thawed.
    pub(crate) fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.abort();
        let _ = self.line.write_all(b"done\n");
        let _ = self.line.shutdown(Shutdown::Both);
        let deadline = Instant::now() + KEEPER_TIME;
        loop {
            match self.keeper.try_wait() {
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1))
                }
                Ok(None) => {
                    let _ = self.keeper.kill();
                    let _ = self.keeper.wait();
                    return;
                }
                _ => return,
            }
        }
    }
}

impl Drop for Swrk {
    fn drop(&mut self) {
        if matches!(self.keeper.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

/// Whether `pid` still runs (a zombie does not).
fn is_alive(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
        .ok()
        .and_then(|stat| {
            stat.rsplit_once(") ")
                .map(|(_, rest)| !rest.starts_with(['Z', 'X']))
        })
        .unwrap_or(false)
}
