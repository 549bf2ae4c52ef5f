//! A router's run directory: spec, pid file, control socket, log.
//!
//! The pid file is locked (flock(2)) by the router for its whole life. The lock is taken by whoever starts the router and
//! handed over as its standard input, so there is no instant at which a router exists and the lock does not say so; and a
//! pid is believed only while the lock is held, so a pid that was given to another process later deceives nobody.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use offshoot_sys::netns::Holder;
use tokio::net::UnixListener;

use crate::error::NetworkError;
use crate::spec::RouterSpec;

type Result<T> = std::result::Result<T, NetworkError>;

pub(crate) const SPEC: &str = "spec.json";
const PID: &str = "router.pid";
const CONTROL: &str = "control.sock";
const LOG: &str = "router.log";
/// Longest spec file, bytes.
const SPEC_MAX: u64 = 1 << 20;
/// What is read of a log's end.
const LOG_TAIL: u64 = 4096;
/// A starting router holds the lock for this long before it has written its pid, at most.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A router's run directory.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    dir: File,
}

/// Who has a run directory's lock.
#[derive(Debug)]
pub(crate) enum Owner {
    /// A router that runs.
    Router(Holder),
    /// Nobody, or a router that is being started or is ending: nobody that can be spoken to.
    Nobody,
}

impl RunDir {
    /// Opens the directory, which must be there.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let dir = File::open(path)
            .map_err(|e| NetworkError::io(format!("opening {}", path.display()), e))?;
        Ok(Self {
            path: path.to_owned(),
            dir,
        })
    }

    /// Opens the directory, made if it is not there, for root alone.
    pub(crate) fn ensure(path: &Path) -> Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|e| NetworkError::io(format!("making {}", path.display()), e))?;
        Self::open(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn spec_path(&self) -> PathBuf {
        self.path.join(SPEC)
    }

    /// Reads and checks a spec.
    pub(crate) fn read_spec(path: &Path) -> Result<RouterSpec> {
        let failed = |e| NetworkError::io(format!("reading {}", path.display()), e);
        let mut text = String::new();
        File::open(path)
            .map_err(failed)?
            .take(SPEC_MAX)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let spec: RouterSpec = serde_json::from_str(&text).map_err(|e| failed(e.into()))?;
        spec.check()?;
        Ok(spec)
    }

    /// Writes the spec, whole or not at all.
    pub(crate) fn write_spec(&self, spec: &RouterSpec) -> Result<()> {
        let path = self.spec_path();
        let temporary = self.path.join("spec.json.new");
        let written = serde_json::to_vec(spec)
            .map_err(io::Error::from)
            .and_then(|bytes| std::fs::write(&temporary, bytes))
            .and_then(|()| std::fs::rename(&temporary, &path));
        written.map_err(|e| NetworkError::io(format!("writing {}", path.display()), e))
    }

    fn open_pid_file(&self) -> Result<File> {
        let path = self.path.join(PID);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        file.map_err(|e| NetworkError::io(format!("opening {}", path.display()), e))
    }

    /// The lock, without a pid, when nobody has it.
    pub(crate) fn try_lock(&self) -> Result<Option<File>> {
        let file = self.open_pid_file()?;
        let failed = |e| NetworkError::io(format!("locking {}", self.path.join(PID).display()), e);
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).map_err(failed)?;
                Ok(Some(file))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The lock as a starting router takes it: from its standard input, where its starter left it, or, when somebody started
    /// it by hand, for itself.
    pub(crate) fn lock_as_router(&self) -> Result<File> {
        let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
        if let Ok(stdin) = stdin
            && is_same_file(&stdin, &self.open_pid_file()?)
        {
            // Succeeds at once when the starter holds it: both are one open file description.
            return match stdin.try_lock() {
                Ok(()) => Ok(stdin),
                Err(_) => Err(self.is_taken()),
            };
        }
        self.try_lock()?.ok_or_else(|| self.is_taken())
    }

    fn is_taken(&self) -> NetworkError {
        NetworkError::Start {
            dir: self.path.clone(),
            why: "another router runs here".into(),
        }
    }

    /// Who has the lock. When it is held without a pid (a router is being started by somebody), waits for one or the
    /// other to change.
    pub(crate) fn owner(&self) -> Result<Owner> {
        let until = Instant::now() + START_TIMEOUT;
        loop {
            if !self.is_locked()? {
                return Ok(Owner::Nobody);
            }
            if let Some(holder) = self.read_pid()? {
                return Ok(Owner::Router(holder));
            }
            if Instant::now() > until {
                return Err(NetworkError::Timeout {
                    what: "a router that is being started".into(),
                    after: START_TIMEOUT,
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Probes with a shared lock, so that those who look do not take each other for a router.
    fn is_locked(&self) -> Result<bool> {
        match self.open_pid_file()?.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => {
                Err(NetworkError::io("probing a router's lock", error))
            }
        }
    }

    /// The process that the pid file names, if it is still the one that wrote it.
    fn read_pid(&self) -> Result<Option<Holder>> {
        let mut text = String::new();
        let read = self.open_pid_file()?.take(64).read_to_string(&mut text);
        read.map_err(|e| NetworkError::io("reading a router's pid file", e))?;
        let Some((pid, started)) = text.trim().split_once(' ') else {
            return Ok(None);
        };
        let Some(holder) = pid.parse().ok().and_then(|pid| Holder::open(pid).ok()) else {
            return Ok(None);
        };
        Ok(
            (start_time(holder.pid()).as_deref() == Some(started) && holder.is_alive())
                .then_some(holder),
        )
    }

    /// Says in the locked pid file that this process is the router.
    pub(crate) fn write_pid(mut lock: &File) -> Result<()> {
        let pid = std::process::id().cast_signed();
        let started = start_time(pid).unwrap_or_default();
        let written = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{pid} {started}"));
        written.map_err(|e| NetworkError::io("writing the router's pid file", e))
    }

    /// The router that runs here.
    pub(crate) fn router(&self) -> Result<Holder> {
        match self.owner()? {
            Owner::Router(holder) => Ok(holder),
            Owner::Nobody => Err(NetworkError::NoRouter(self.path.clone())),
        }
    }

    /// A path to the control socket that is short enough for an address (unix(7): 107 bytes), wherever the directory is.
    fn control_path(&self) -> String {
        format!("/proc/self/fd/{}/{CONTROL}", self.dir.as_raw_fd())
    }

    /// Binds the control socket, in place of one that an earlier router left.
    pub(crate) fn listen(&self) -> Result<UnixListener> {
        let failed = |e| {
            NetworkError::io(
                format!("listening on {}", self.path.join(CONTROL).display()),
                e,
            )
        };
        let path = self.control_path();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(listener)
    }

    /// Connects to the control socket.
    pub(crate) fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(self.control_path()).map_err(|e| {
            NetworkError::io(
                format!("connecting to {}", self.path.join(CONTROL).display()),
                e,
            )
        })
    }

    /// The log, to be appended to.
    pub(crate) fn open_log(&self) -> Result<File> {
        let path = self.path.join(LOG);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path);
        file.map_err(|e| NetworkError::io(format!("opening {}", path.display()), e))
    }

    /// The end of the log.
    pub(crate) fn log_tail(&self) -> String {
        let mut tail = Vec::new();
        if let Ok(mut file) = File::open(self.path.join(LOG)) {
            let len = file.metadata().map_or(0, |m| m.len());
            let _ = file.seek(io::SeekFrom::Start(len.saturating_sub(LOG_TAIL)));
            let _ = file.take(LOG_TAIL).read_to_end(&mut tail);
        }
        String::from_utf8_lossy(&tail).trim().to_owned()
    }
}

/// When a process was started, in the kernel's ticks: field 22 of /proc/PID/stat (proc(5)), after the name in brackets.
fn start_time(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name
        .split_ascii_whitespace()
        .nth(19)
        .map(str::to_owned)
}

fn is_same_file(one: &File, other: &File) -> bool {
    let id = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
    id(one).is_some() && id(one) == id(other)
}
