//! Keeps a twin of a process: `twin PID SOCKET LOCK`, with the line to the daemon as descriptor 0.
//!
//! A twin (`offshoot_sys::inject::Twin`) stands still with the memory that the process had when it was made. The daemon gets its memory as
//! an open file, with the twin's number and the microseconds for which the process was held up; so does whoever connects to SOCKET, the page source of the clone. The twin lives as long as one of them needs it:
//!
//! - until the daemon hangs up, unless it said a word before: then somebody will connect;
//! - from then on until all who connected hung up, or until SOCKET's folder is gone or [`TAKEN_MAX`] passed and nobody came.
//!
//! It is killed with this process, however that ends. LOCK is locked (flock(2), shared) meanwhile: the node must not be stopped, because its
//! end is the twin's.

use std::env::set_current_dir;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use offshoot_runtime::cgroup::Hierarchies;
use offshoot_sys::inject::{Stopped, Twin};
use offshoot_sys::passing;
use offshoot_sys::process::{Process, Side, fork_to_background};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;

/// How long one thread of the process may be held.
const HELD_MAX: Duration = Duration::from_secs(2);
/// How long the clone may take to be there.
const TAKEN_MAX: Duration = Duration::from_secs(120);
/// How often it is looked whether anybody may still come.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Makes the twin and keeps it; says why not on standard error.
pub(crate) fn run(pid: &str, socket: &Path, lock: &Path) -> ExitCode {
    // It outlives the daemon, and nobody has to wait for it.
    let kept = match fork_to_background() {
        Ok(Side::Foreground) => return ExitCode::SUCCESS,
        Ok(Side::Background) => keep(pid, socket, lock),
        Err(error) => Err(error.into()),
    };
    match kept {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Perhaps nobody listens any more.
            let _ = writeln!(io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn keep(pid: &str, socket: &Path, lock: &Path) -> Result<()> {
    let pid = pid.parse().context("that is no process id")?;
    let lock = File::create(lock).context("make the lock")?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared)
        .context("the node is being stopped")?;
    let listener = listen(socket).context("listen for the clone")?;
    let began = Instant::now();
    let twin = Stopped::stop_one(pid, HELD_MAX)?.twin()?;
    let held = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    // Before anybody looks which processes the node has.
    Hierarchies::of_host()?.take_out(twin.pid())?;
    twin.let_go_of_files().context("close its files")?;
    let memory = twin.memory().context("open its memory")?;
    passing::give(rustix::stdio::stdin(), &memory).context("hand it over")?;
    let mut told = [0; 12];
    let (number, micros) = told.split_at_mut(4);
    number.copy_from_slice(&twin.pid().to_le_bytes());
    micros.copy_from_slice(&held.to_le_bytes());
    rustix::io::write(rustix::stdio::stdin(), &told).context("say who it is")?;
    // The socket gets another name there.
    let place = socket.parent().unwrap_or(socket);
    serve(&twin, &memory, &listener, place)
}

/// Listens in a folder whose path may be longer than that of a socket.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    let (dir, name) = socket
        .parent()
        .zip(socket.file_name())
        .ok_or(io::ErrorKind::InvalidInput)?;
    set_current_dir(dir)?;
    let listener = UnixListener::bind(name);
    set_current_dir("/")?;
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn serve(twin: &Twin, memory: &File, listener: &UnixListener, place: &Path) -> Result<()> {
    let life = Process::open(twin.pid()).context("watch the twin")?;
    let mut daemon = Some(io::stdin());
    let mut promised = false;
    let mut takers: Vec<UnixStream> = Vec::new();
    let mut taken = false;
    let mut alone_since = Instant::now();
    loop {
        let mut fds = vec![
            PollFd::from_borrowed_fd(life.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        fds.extend(takers.iter().map(|taker| PollFd::new(taker, PollFlags::IN)));
        fds.extend(daemon.iter().map(|line| PollFd::new(line, PollFlags::IN)));
        match poll(&mut fds, Some(&LOOK)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("wait")?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let [ended, knocked, rest @ ..] = ready.as_slice() else {
            bail!("nothing was looked at");
        };
        if *ended {
            bail!("the twin ended with its node");
        }
        // Whoever connected says nothing: it hangs up.
        let mut heard = rest.iter();
        takers.retain(|_| heard.next() == Some(&false));
        if *knocked && let Ok((taker, _)) = listener.accept() {
            // If it is gone again, that is seen above.
            let _ = passing::give(&taker, memory);
            takers.push(taker);
            taken = true;
        }
        if heard.next() == Some(&true)
            && let Some(line) = &mut daemon
        {
            match line.read(&mut [0]) {
                Ok(1) => promised = true,
                _ => {
                    daemon = None;
                    alone_since = Instant::now();
                }
            }
        }
        let awaited = promised && !taken && alone_since.elapsed() < TAKEN_MAX && place.exists();
        if daemon.is_none() && takers.is_empty() && !awaited {
            return Ok(());
        }
    }
}
