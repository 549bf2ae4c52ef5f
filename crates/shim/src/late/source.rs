//! `offshoot-shim memory`: the page source of one node, a process of its own beside the node's shim.
//!
//! Missing pages of whoever lets go of a userfaultfd are zeros from then on. So a source that dies must take the node with it before that
//! happens: it shares its table of descriptors with a second process, the guard, which does nothing but wait for the source's end
//! and kill the node then. The source watches the shim in the same way.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::exit;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use offshoot_runtime::cgroup::{Hierarchies, NodeCgroup};
use offshoot_runtime::{NodeSpec, Start};
use offshoot_sys::inject::Caught;
use offshoot_sys::process::{self, Process};
use offshoot_sys::uffd;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::Word;
use super::pages::{self, Copy};
use super::plant::plant;
use super::serve::{Service, Space};
use crate::jobs;

/// How long the node may take to stand after CRIU let it go.
const STAND_MAX: Duration = Duration::from_secs(10);
/// Time between two reports.
const REPORT: Duration = Duration::from_millis(200);

/// Serves the node described by `spec`. Standard input: a word when the node has been restored, more when somebody waits for all pages;
/// its end is the end of the shim. Standard output: a [`Word`] a line.
pub(crate) fn run(spec: &Path) -> Result<()> {
    let spec = NodeSpec::read(spec)?;
    let cgroup = NodeCgroup::new(Hierarchies::of_host()?, &spec.instance, &spec.node);
    let Start::Restore { images } = &spec.start else {
        bail!("the node is not restored from images");
    };
    let copies = pages::open(images)?;
    let device = File::open(uffd::DEVICE)
        .inspect_err(|e| tracing::warn!(error = %e, "no {}", uffd::DEVICE))
        .ok();
    if hear(&mut [0; 64]).context("wait for the restore")? == 0 {
        return Ok(());
    }
    // From here on nobody else answers for the node's memory.
    let jobs = match spec.hold_jobs {
        true => Schedulers::Stand,
        false => Schedulers::GoOn,
    };
    if let Err(error) = serve(&cgroup, copies, device.as_ref(), jobs) {
        let killed = cgroup.kill();
        say(&Word::Failed {
            why: format!("{error:#}"),
        });
        killed?;
        return Err(error);
    }
    say(&Word::Loaded);
    Ok(())
}

/// What schedulers do when the node is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Schedulers {
    GoOn,
    Stand,
}

fn serve(
    cgroup: &NodeCgroup,
    copies: BTreeMap<i32, Copy>,
    device: Option<&File>,
    schedulers: Schedulers,
) -> Result<()> {
    let began = Instant::now();
    let (caught, spaces, written) = hold(cgroup, copies, device)?;
    // Never dropped: what it holds may be let go when all pages are there, or when nobody lives who could see them.
    let mut service = ManuallyDrop::new(Service::new(cgroup.clone(), spaces));
    let guard = guard(cgroup)?;
    if schedulers == Schedulers::Stand {
        jobs::stop(caught.pids());
    }
    caught.release();
    say(&Word::Planted {
        left: service.left(),
        written,
        took_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
    });
    deliver(cgroup, &mut service, guard)
}

/// Delivers until nothing is missing.
fn deliver(cgroup: &NodeCgroup, service: &mut Service, mut guard: Process) -> Result<()> {
    let mut said = Instant::now();
    while service.work().context("deliver a page")? {
        if service.is_restless() {
            calm(cgroup, service)?;
        }
        if said.elapsed() >= REPORT {
            say(&Word::Left {
                bytes: service.left(),
            });
            said = Instant::now();
        }
        let (shim, guarded) = wait(service, &guard)?;
        if shim {
            match hear(&mut [0; 64]).context("hear the shim")? {
                0 => bail!("the shim ended"),
                _ => service.hurry(),
            }
        }
        if guarded {
            let _ = guard.reap();
            guard = self::guard(cgroup)?;
        }
    }
    // Nothing is missing and nothing is held any more.
    let _ = guard.signal(9);
    let _ = guard.reap();
    Ok(())
}

/// Has the node stand until all changes of its memory are known: calls that are under way end, and no others begin.
fn calm(cgroup: &NodeCgroup, service: &mut Service) -> Result<()> {
    let deadline = Instant::now() + STAND_MAX;
    cgroup.begin_freeze()?;
    while !service.settle().context("follow what the node does")? {
        anyhow::ensure!(
            Instant::now() < deadline,
            "the node does not stop changing its memory"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(cgroup.thaw()?)
}

/// Stops all of the node's processes before they go on, and prepares those whose memory comes late.
fn hold(
    cgroup: &NodeCgroup,
    mut copies: BTreeMap<i32, Copy>,
    device: Option<&File>,
) -> Result<(Caught, Vec<Space>, u64)> {
    let deadline = Instant::now() + STAND_MAX;
    while !cgroup.is_frozen() {
        anyhow::ensure!(
            Instant::now() < deadline && !cgroup.processes().is_empty(),
            "the node was not held after its restore; CRIU's log says why"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
    // All of them, since they may look into each other's memory.
    let mut caught = Caught::catch(cgroup.processes()).context("hold the node's processes")?;
    cgroup.thaw()?;
    cgroup.return_guests();
    caught
        .wait(STAND_MAX)
        .context("hold the node's processes")?;
    let (mut spaces, mut written) = (Vec::new(), 0);
    let pids: Vec<i32> = caught.pids().collect();
    for pid in pids {
        let Some(copy) = inner_number(pid).and_then(|number| copies.remove(&number)) else {
            continue;
        };
        let (space, at_once) = plant(&caught, pid, copy, device)
            .with_context(|| format!("prepare the memory of process {pid}"))?;
        spaces.extend(space);
        written += at_once;
    }
    if let Some(number) = copies.keys().next() {
        bail!("the images have memory of a process {number} that was not restored");
    }
    Ok((caught, spaces, written))
}

/// The number of a process inside its PID namespace (proc_pid_status(5)).
fn inner_number(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

/// Starts the guard. It holds what this process holds, whatever becomes of this one.
fn guard(cgroup: &NodeCgroup) -> Result<Process> {
    let source = Process::open(std::process::id().cast_signed()).context("hold myself")?;
    // It stays in the table until the guard has looked.
    let source = ManuallyDrop::new(source);
    if let Some(guard) = process::fork_with_descriptors().context("start a guard")? {
        return Ok(guard);
    }
    let ended = source.wait_end(None);
    let killed = cgroup.kill();
    if let Err(e) = killed {
        tracing::error!(error = %e, "killing the node, whose page source ended");
    }
    exit(i32::from(ended.is_err()));
}

/// Waits until there is something to do: by the shim, by the guard's end, or by the service.
fn wait(service: &Service, guard: &Process) -> Result<(bool, bool)> {
    let stdin = std::io::stdin();
    let mut fds = vec![
        PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(guard.as_fd(), PollFlags::IN),
    ];
    fds.extend(
        service
            .fds()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
    );
    let rest = service.rest();
    let rest = Timespec {
        tv_sec: i64::try_from(rest.as_secs()).unwrap_or(1),
        tv_nsec: i64::from(rest.subsec_nanos()),
    };
    match rustix::event::poll(&mut fds, Some(&rest)) {
        Err(rustix::io::Errno::INTR) => {}
        other => {
            other.context("wait for faults")?;
        }
    }
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    Ok((
        ready.next().unwrap_or_default(),
        ready.next().unwrap_or_default(),
    ))
}

/// Waits for a word of the shim; its length, 0 when there will be none any more. What it says does not matter: the first is that the node
/// was restored, any other that somebody waits.
fn hear(buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match rustix::io::read(std::io::stdin(), &mut *buffer) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Tells the shim; if it is gone, that is seen elsewhere.
fn say(word: &Word) {
    let Ok(mut line) = serde_json::to_vec(word) else {
        return;
    };
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
}
