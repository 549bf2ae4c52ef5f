//! Routers as the daemon sees them: started, found again, asked, removed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use offshoot_model::EnvId;
use offshoot_model::environment::{Node, Placement};
use offshoot_sys::netns::{Holder, readable_within};
use offshoot_sys::process;

use crate::control::{LINE_MAX, Request, Response, RouterStatus};
use crate::error::NetworkError;
use crate::files::{Owner, RunDir, SPEC, START_TIMEOUT};
use crate::netlink::run_here;
use crate::router::Readiness;
use crate::spec::{
    Gate, Isolation, Mail, Names, NodeLink, RouterSpec, check_instance, host_link_name,
};

type Result<T> = std::result::Result<T, NetworkError>;

/// A router answers at once; a busy host may not let it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether [`ensure_router`] found a router or started one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It ran already.
    Before,
    /// It was started now: it has no ports, running nodes must be attached again.
    Now,
}

/// A running router.
#[derive(Debug)]
pub struct Router {
    dir: RunDir,
    holder: Holder,
    started: Started,
}

/// Makes sure that the router runs as `spec` says, in a network namespace of its own that is linked to the calling
/// thread's. One that runs already is kept, with its ports and its gate, and told the names and what becomes of mail; one of other addresses is
/// replaced. `shim` is the program to start, as `SHIM router --spec FILE`. The router goes on when the caller ends.
///
/// # Errors
/// When it does not become ready within 20 s; nothing is left then but its log.
pub fn ensure_router(spec: &RouterSpec, shim: &Path) -> Result<Router> {
    spec.check()?;
    let dir = RunDir::ensure(&spec.run_dir)?;
    let until = Instant::now() + START_TIMEOUT;
    let lock = loop {
        if let Some(lock) = dir.try_lock()? {
            break lock;
        }
        if let Owner::Router(holder) = dir.owner()? {
            let router = Router {
                dir: RunDir::open(&spec.run_dir)?,
                holder,
                started: Started::Before,
            };
            let running = router.status()?.spec;
            if (&running.env, &running.instance, &running.placement)
                == (&spec.env, &spec.instance, &spec.placement)
            {
                router.set_names(&spec.names, Some(&spec.upstream_dns))?;
                if running.mail != spec.mail {
                    router.set_mail(spec.mail)?;
                }
                return Ok(router);
            }
            end(&router.holder)?;
        }
        // The lock was free a moment ago, or is about to be: another one only looked.
        if Instant::now() > until {
            return Err(NetworkError::Timeout {
                what: "taking the router's lock".into(),
                after: START_TIMEOUT,
            });
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    end_strays(&spec.run_dir)?;
    dir.write_spec(spec)?;
    start(&dir, lock, shim)?;
    let holder = dir.router()?;
    Ok(Router {
        dir,
        holder,
        started: Started::Now,
    })
}

/// Starts the process and waits until it says that it is ready.
fn start(dir: &RunDir, lock: File, shim: &Path) -> Result<()> {
    let failed = |e| NetworkError::io(format!("starting {}", shim.display()), e);
    let log = dir.open_log()?;
    let mut child = Command::new(shim)
        .args(["router", "--spec"])
        .arg(dir.spec_path())
        .stdin(lock)
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .map_err(failed)?;
    let said = child
        .stdout
        .take()
        .map(|stdout| wait_until_ready(stdout, START_TIMEOUT));
    match said {
        Some(Ok(Readiness::Ready)) => {
            // It is a child until this process ends, and must not stay a zombie when it ends before.
            let reaper = std::thread::Builder::new().name("router-reaper".into());
            reaper.spawn(move || child.wait()).map_err(failed)?;
            Ok(())
        }
        other => {
            let _ = child.kill();
            let _ = child.wait();
            let why = match other {
                Some(Ok(Readiness::Failed { why })) => why,
                Some(Err(NetworkError::Timeout { .. })) => {
                    format!("not ready in time; its log ends: {}", dir.log_tail())
                }
                _ => format!("it ended; its log ends: {}", dir.log_tail()),
            };
            Err(NetworkError::Start {
                dir: dir.path().to_owned(),
                why,
            })
        }
    }
}

/// Reads lines until one is about readiness (others may be the program's own).
fn wait_until_ready(stdout: impl Read + AsFd, max: Duration) -> Result<Readiness> {
    let until = Instant::now() + max;
    let mut said = Vec::new();
    let mut stdout = stdout.take(LINE_MAX);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let ready = readable_within(stdout.get_ref().as_fd(), left);
        if !ready.map_err(|e| NetworkError::io("waiting for the router", e))? {
            return Err(NetworkError::Timeout {
                what: "the router".into(),
                after: max,
            });
        }
        let mut part = [0; 512];
        let len = stdout
            .read(&mut part)
            .map_err(|e| NetworkError::io("listening to the router", e))?;
        said.extend_from_slice(part.get(..len).unwrap_or_default());
        let mut lines = said
            .split_inclusive(|&b| b == b'\n')
            .filter(|line| line.ends_with(b"\n"));
        if let Some(readiness) = lines.find_map(|line| serde_json::from_slice(line).ok()) {
            return Ok(readiness);
        }
        if len == 0 {
            return Err(NetworkError::Invalid(
                "the router ended without a word".into(),
            ));
        }
    }
}

fn end(holder: &Holder) -> Result<()> {
    let what = || format!("ending router process {}", holder.pid());
    holder.kill().map_err(|e| NetworkError::io(what(), e))?;
    if holder
        .wait(EXIT_TIMEOUT)
        .map_err(|e| NetworkError::io(what(), e))?
    {
        Ok(())
    } else {
        Err(NetworkError::Timeout {
            what: what(),
            after: EXIT_TIMEOUT,
        })
    }
}

/// Ends routers of this run directory that it knows nothing of any more: somebody removed it from under them.
fn end_strays(run_dir: &Path) -> Result<()> {
    let spec = run_dir.join(SPEC);
    let listed = process::all().map_err(|e| NetworkError::io("listing processes", e))?;
    for pid in listed {
        // Opened before it is looked at: what is ended is what was seen.
        let Ok(holder) = Holder::open(pid) else {
            continue;
        };
        let words = process::arguments(pid).unwrap_or_default();
        let is_router = matches!(
            words.as_slice(),
            [_, verb, option, file] if verb.as_slice() == b"router"
                && option.as_slice() == b"--spec"
                && file.as_slice() == spec.as_os_str().as_bytes()
        );
        if is_router {
            end(&holder)?;
        }
    }
    Ok(())
}

/// Makes sure that there is no router, no link of it in the calling thread's network namespace and no run directory.
///
/// # Errors
/// The first of those that were met; it goes on to the end all the same.
pub fn ensure_router_removed(run_dir: &Path, env: &EnvId, instance: &str) -> Result<()> {
    check_instance(instance)?;
    let mut first = Ok(());
    let mut note = |done: Result<()>| {
        if first.is_ok() {
            first = done;
        }
    };
    if run_dir.exists() {
        note(
            RunDir::open(run_dir)
                .and_then(|dir| dir.owner())
                .and_then(|owner| match owner {
                    Owner::Router(holder) => end(&holder),
                    Owner::Nobody => Ok(()),
                }),
        );
    }
    note(end_strays(run_dir));
    // The kernel removes it with the namespace, a little later; then nobody is left who could find it.
    let link = host_link_name(instance, env);
    note(run_here(|links| async move {
        links.ensure_removed(&link).await
    }));
    match std::fs::remove_dir_all(run_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            note(Err(NetworkError::io(
                format!("removing {}", run_dir.display()),
                error,
            )));
        }
        _ => {}
    }
    first
}

/// A router's run directory that was found on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterRecord {
    /// The environment.
    pub env: EnvId,
    /// Its run directory.
    pub run_dir: PathBuf,
    /// Pid of the router; `None` when it does not run.
    pub pid: Option<i32>,
}

/// The routers of an instance below `run_root` (`<run_root>/envs/<env>/router`), running or not: for finding orphans.
///
/// # Errors
/// When a directory cannot be read. What is no router's directory is passed over.
pub fn list_routers(run_root: &Path, instance: &str) -> Result<Vec<RouterRecord>> {
    let envs = run_root.join("envs");
    let entries = match std::fs::read_dir(&envs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(NetworkError::io(
                format!("listing {}", envs.display()),
                error,
            ));
        }
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry =
            entry.map_err(|e| NetworkError::io(format!("listing {}", envs.display()), e))?;
        let Some(env) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<EnvId>().ok())
        else {
            continue;
        };
        let run_dir = entry.path().join("router");
        let Ok(dir) = RunDir::open(&run_dir) else {
            continue;
        };
        match RunDir::read_spec(&dir.spec_path()) {
            Ok(spec) if spec.instance != instance => continue,
            _ => {}
        }
        let pid = match dir.owner()? {
            Owner::Router(holder) => Some(holder.pid()),
            Owner::Nobody => None,
        };
        found.push(RouterRecord { env, run_dir, pid });
    }
    Ok(found)
}

impl Router {
    /// The router that runs at `run_dir`.
    ///
    /// # Errors
    /// [`NetworkError::NoRouter`] when none does.
    pub fn connect(run_dir: &Path) -> Result<Self> {
        let none = |error| match error {
            NetworkError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                NetworkError::NoRouter(run_dir.to_owned())
            }
            other => other,
        };
        let dir = RunDir::open(run_dir).map_err(none)?;
        let holder = dir.router()?;
        Ok(Self {
            dir,
            holder,
            started: Started::Before,
        })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.holder.pid()
    }

    /// Whether [`ensure_router`] had to start it: then running nodes must be attached again.
    #[must_use]
    pub fn started(&self) -> Started {
        self.started
    }

    /// The link of a node to this router.
    #[must_use]
    pub fn link(&self, node: &Node, placement: &Placement, isolation: Isolation) -> NodeLink {
        NodeLink::new(self.dir.path().to_owned(), node, placement, isolation)
    }

    /// How it is.
    ///
    /// # Errors
    /// When it does not answer within 5 s.
    pub fn status(&self) -> Result<RouterStatus> {
        match self.ask("say how it is", &Request::Status)? {
            Response::Status(status) => Ok(*status),
            other => Err(unexpected("say how it is", &other)),
        }
    }

    /// Answers for these names from now on, and asks these servers for others (`None`: as before).
    ///
    /// # Errors
    /// When a name is none, or the router does not answer.
    pub fn set_names(
        &self,
        names: &Names,
        upstream_dns: Option<&[std::net::SocketAddr]>,
    ) -> Result<()> {
        let request = Request::SetNames {
            names: names.clone(),
            upstream_dns: upstream_dns.map(<[_]>::to_vec),
        };
        self.order("take the names", &request)
    }

    /// Opens or closes the way between the nodes and what is outside of the environment, at once for every packet.
    ///
    /// # Errors
    /// When the router does not answer or the kernel refuses.
    pub fn set_gate(&self, gate: Gate) -> Result<()> {
        self.order("set the gate", &Request::SetGate { gate })
    }

    /// Holds mail to the outside or lets it pass, in one step for both protocols.
    ///
    /// # Errors
    /// When the router does not answer or nft refuses.
    pub fn set_mail(&self, mail: Mail) -> Result<()> {
        self.order("hold mail or let it pass", &Request::SetMail { mail })
    }

    /// Cuts the nodes off from each other until the lease is lifted, dropped or `max` (1 ms to 60 s) has passed. They keep
    /// reaching the gateway and what is behind it.
    ///
    /// # Errors
    /// When another lease is held, the router does not answer or the kernel refuses; then nothing is cut off.
    pub fn isolate(&self, max: Duration) -> Result<IsolationLease> {
        self.prepare_isolation()?.isolate(max)
    }

    /// Does all of [`Router::isolate`] that can be done before a freeze, for the nodes that are attached now.
    ///
    /// # Errors
    /// When the router does not answer.
    pub fn prepare_isolation(&self) -> Result<PreparedIsolation> {
        let mut channel = Channel::open(&self.dir)?;
        match channel.ask("prepare isolation", &Request::PrepareIsolation)? {
            Response::Done => Ok(PreparedIsolation { channel }),
            other => Err(unexpected("prepare isolation", &other)),
        }
    }

    /// Lifts the isolation that nodes were attached with ([`Isolation::Yes`]).
    ///
    /// # Errors
    /// When a lease is held, the router does not answer or the kernel refuses.
    pub fn lift(&self) -> Result<()> {
        self.order("lift the isolation", &Request::Lift)
    }

    fn order(&self, what: &str, request: &Request) -> Result<()> {
        match self.ask(what, request)? {
            Response::Done => Ok(()),
            other => Err(unexpected(what, &other)),
        }
    }

    fn ask(&self, what: &str, request: &Request) -> Result<Response> {
        Channel::open(&self.dir)?.ask(what, request)
    }
}

/// A connection that is ready for [`PreparedIsolation::isolate`]. It lasts 10 s.
#[derive(Debug)]
pub struct PreparedIsolation {
    channel: Channel,
}

impl PreparedIsolation {
    /// As [`Router::isolate`].
    ///
    /// # Errors
    /// As [`Router::isolate`].
    pub fn isolate(mut self, max: Duration) -> Result<IsolationLease> {
        let what = "isolate the nodes";
        let max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
        match self.channel.ask(what, &Request::Isolate { max_ms })? {
            Response::Isolated { ports, us } => Ok(IsolationLease {
                channel: self.channel,
                ports,
                took: Duration::from_micros(us),
            }),
            other => Err(unexpected(what, &other)),
        }
    }
}

/// Nodes are cut off from each other while this lives; also the end of this process lifts it.
#[derive(Debug)]
pub struct IsolationLease {
    channel: Channel,
    ports: u32,
    took: Duration,
}

impl IsolationLease {
    /// Number of ports that were cut off.
    #[must_use]
    pub fn ports(&self) -> u32 {
        self.ports
    }

    /// How long the router took to cut them off.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Lifts it and returns how long it was held.
    ///
    /// # Errors
    /// [`NetworkError::IsolationEnded`] when it had ended before: then the cut was not one.
    pub fn lift(mut self) -> Result<Duration> {
        let ended = |why: String| NetworkError::IsolationEnded(why);
        match self.channel.ask("lift the isolation", &Request::Lift) {
            Ok(Response::Lifted { held_us }) => Ok(Duration::from_micros(held_us)),
            Ok(Response::Expired) => Err(ended("its time had passed".into())),
            Ok(other) => Err(unexpected("lift the isolation", &other)),
            Err(error @ NetworkError::Refused { .. }) => Err(error),
            Err(error) => Err(ended(crate::error::chain(&error))),
        }
    }
}

/// A connection to a router's control socket.
#[derive(Debug)]
struct Channel {
    stream: BufReader<UnixStream>,
}

impl Channel {
    fn open(dir: &RunDir) -> Result<Self> {
        let stream = dir.connect()?;
        let set = stream
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_TIMEOUT)));
        set.map_err(|e| NetworkError::io("preparing the control connection", e))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    fn ask(&mut self, what: &str, request: &Request) -> Result<Response> {
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::WouldBlock => NetworkError::Timeout {
                what: format!("the router's answer when asked to {what}"),
                after: ANSWER_TIMEOUT,
            },
            _ => NetworkError::io(format!("asking the router to {what}"), e),
        };
        let mut bytes = serde_json::to_vec(request).map_err(|e| failed(e.into()))?;
        bytes.push(b'\n');
        self.stream.get_mut().write_all(&bytes).map_err(failed)?;
        let mut line = Vec::new();
        (&mut self.stream)
            .take(LINE_MAX)
            .read_until(b'\n', &mut line)
            .map_err(failed)?;
        if line.is_empty() {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line).map_err(|e| failed(e.into()))
    }
}

fn unexpected(what: &str, response: &Response) -> NetworkError {
    let why = match response {
        Response::Refused { why } => why.clone(),
        other => format!("it answered {other:?}"),
    };
    NetworkError::Refused {
        what: what.to_owned(),
        why,
    }
}
