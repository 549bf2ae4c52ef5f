//! Which CRIU there is, and whether it works on the running kernel: found out by trying, because its version does not tell.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::error::CriuError;
use crate::rpc::{CgroupMode, Kind, NetworkLock, Options, Request};
use crate::swrk::{Swrk, Until};

/// How long the trial may take as a whole.
const TRIAL_TIME: Duration = Duration::from_secs(20);
/// How long the process to be tried on may take to start.
const START_TIME: Duration = Duration::from_secs(5);
/// The CRIU that `packaging/setup.sh` brings, looked for after the one in PATH.
const OWN: &str = "/opt/offshoot/criu/bin/criu";
/// What runc is told to hand to CRIU (`offshoot-runtime`, `CRIU_CONFIG_TEXT`): a CRIU that crashes at it is none for us.
const CONFIG: &str = "manage-cgroups=ignore\n";
/// Without what our own caller may have left open: CRIU would have to dump it.
const SLEEP: &str = "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; exec sleep 1000";

/// A CRIU executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    path: PathBuf,
    kernel: Option<PathBuf>,
}

/// What is known about a CRIU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriuInfo {
    /// Its executable; `None` when there is none.
    pub path: Option<PathBuf>,
    /// `4.2.1`, when it says so.
    pub version: Option<String>,
    /// Whether it dumped and restored a process with TCP connections just now.
    pub works: bool,
    /// Why not.
    pub why: Option<String>,
}

impl Criu {
    /// The CRIU at `path`, which must be absolute.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path, kernel: None }
    }

    /// The same one, which keeps in `folder` what it finds out about the kernel, where it would not keep it itself
    /// (`offshoot_sys::preload`). The folder has to be another after a boot.
    #[must_use]
    pub fn keeping(self, folder: Option<PathBuf>) -> Self {
        Self {
            kernel: folder,
            ..self
        }
    }

    /// Where it keeps what it finds out about the kernel, if not in its own place.
    #[must_use]
    pub fn kernel(&self) -> Option<&Path> {
        self.kernel.as_deref()
    }

    /// Its executable.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first CRIU that works: in `folder` when given, else in PATH, else the one that `packaging/setup.sh` brings. With
    /// it, or without one, what was found out. Takes up to a second per CRIU; the answer holds until the next boot.
    #[must_use]
    pub fn find(folder: Option<&Path>) -> (Option<Self>, CriuInfo) {
        let in_path = std::env::var_os("PATH").unwrap_or_default();
        let mut candidates: Vec<PathBuf> = match folder {
            Some(folder) => vec![folder.join("criu")],
            None => std::env::split_paths(&in_path)
                .filter(|folder| folder.is_absolute())
                .map(|folder| folder.join("criu"))
                .chain([PathBuf::from(OWN)])
                .collect(),
        };
        candidates.retain(|path| fs::metadata(path).is_ok_and(|m| m.is_file()));
        let mut first = None;
        for path in candidates {
            let criu = Self::at(path);
            let info = probe(&criu);
            if info.works {
                return (Some(criu), info);
            }
            first.get_or_insert(info);
        }
        let nothing = CriuInfo {
            path: None,
            version: None,
            works: false,
            why: Some("there is no criu; packaging/setup.sh brings one".to_owned()),
        };
        (None, first.unwrap_or(nothing))
    }
}

/// Tries `criu`: a process that holds a listening and two connected TCP sockets is dumped, ended and restored. Bounded in time;
/// leaves nothing behind.
#[must_use]
pub fn probe(criu: &Criu) -> CriuInfo {
    let stop = AtomicBool::new(false);
    let until = Until {
        deadline: Instant::now() + TRIAL_TIME,
        stop: &stop,
    };
    let version = version(criu, until).ok();
    let result = Trial::start().and_then(|trial| trial.run(criu, until));
    CriuInfo {
        path: Some(criu.path.clone()),
        version,
        works: result.is_ok(),
        why: result.err().map(|error| error.chain()),
    }
}

fn version(criu: &Criu, until: Until<'_>) -> Result<String, CriuError> {
    let folder = Folder::create()?;
    let mut swrk = Swrk::start(&criu.path, &folder.0, &folder.0, "version.log", None, None)?;
    swrk.send(&Request {
        kind: Kind::Version as i32,
        opts: None,
        notify_success: None,
    })?;
    let answer = swrk.wait_answer(until)?;
    swrk.finish();
    let version = answer
        .version
        .ok_or_else(|| CriuError::Unexpected("no version".to_owned()))?;
    Ok(match version.sublevel {
        Some(sublevel) => format!("{}.{}.{sublevel}", version.major, version.minor),
        None => format!("{}.{}", version.major, version.minor),
    })
}

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn create() -> Result<Self, CriuError> {
        let stamp = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let path = std::env::temp_dir().join(format!(
            "offshoot-criu-probe-{}-{stamp}",
            std::process::id()
        ));
        match std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700)
            .create(&path)
        {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(CriuError::Image {
                path,
                what: "cannot be created".to_owned(),
                source: Some(source),
            }),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that has nothing but TCP sockets: as its standard input, output and error.
struct Trial {
    process: Child,
    folder: Folder,
    restored: Option<Pid>,
}

impl Trial {
    fn start() -> Result<Self, CriuError> {
        let folder = Folder::create()?;
        let program = PathBuf::from("/usr/bin/setsid");
        let start = |source| CriuError::Start {
            path: program.clone(),
            source,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(start)?;
        let near = TcpStream::connect(listener.local_addr().map_err(start)?).map_err(start)?;
        let (far, _) = listener.accept().map_err(start)?;
        // In a session of its own: ours may begin outside of our pid namespace (a shell in a container, a process that the init
        // of a small system started), which CRIU refuses.
        let process = Command::new(&program)
            .args(["/bin/sh", "-c", SLEEP])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(near)))
            .stdout(Stdio::from(OwnedFd::from(far)))
            .stderr(Stdio::from(OwnedFd::from(listener)))
            .spawn()
            .map_err(start)?;
        let trial = Self {
            process,
            folder,
            restored: None,
        };
        let name = format!("/proc/{}/comm", trial.process.id());
        let deadline = Instant::now() + START_TIME;
        while fs::read_to_string(&name).is_ok_and(|name| name.trim() != "sleep") {
            if Instant::now() > deadline {
                return Err(CriuError::Unexpected("sleep(1) did not start".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(trial)
    }

    fn run(mut self, criu: &Criu, until: Until<'_>) -> Result<(), CriuError> {
        let images = File::open(&self.folder.0).map_err(|source| CriuError::Image {
            path: self.folder.0.clone(),
            what: "cannot be opened".to_owned(),
            source: Some(source),
        })?;
        let options = |log: &str| Options {
            images_dir_fd: images.as_raw_fd(),
            tcp_established: Some(true),
            log_level: Some(2),
            log_file: Some(log.to_owned()),
            manage_cgroups_mode: Some(CgroupMode::Ignore as i32),
            network_lock: Some(NetworkLock::Skip as i32),
            shell_job: Some(true),
            ..Options::default()
        };
        let pid = i32::try_from(self.process.id()).unwrap_or(-1);
        let dump = Options {
            pid: Some(pid),
            ..options("dump.log")
        };
        self.ask(criu, Kind::Dump, dump, "dump.log", until)?;
        // CRIU ended it, and its sockets vanished without a word to each other.
        let _ = self.process.wait();
        let config = self.folder.0.join("criu.conf");
        fs::write(&config, CONFIG).map_err(|source| CriuError::Image {
            path: config.clone(),
            what: "cannot be written".to_owned(),
            source: Some(source),
        })?;
        let restore = Options {
            config_file: Some(config.to_string_lossy().into_owned()),
            ..options("restore.log")
        };
        let answer = self.ask(criu, Kind::Restore, restore, "restore.log", until)?;
        self.restored = answer.restore.and_then(|r| Pid::from_raw(r.pid));
        let sockets = (0..3).filter(|fd| {
            fs::read_link(format!("/proc/{pid}/fd/{fd}"))
                .is_ok_and(|l| l.to_string_lossy().starts_with("socket:"))
        });
        match sockets.count() {
            3 => Ok(()),
            n => Err(CriuError::Unexpected(format!(
                "{n} of 3 TCP sockets came back"
            ))),
        }
    }

    fn ask(
        &self,
        criu: &Criu,
        kind: Kind,
        options: Options,
        log: &str,
        until: Until<'_>,
    ) -> Result<crate::rpc::Answer, CriuError> {
        let mut swrk = Swrk::start(&criu.path, &self.folder.0, &self.folder.0, log, None, None)?;
        swrk.send(&Request {
            kind: kind as i32,
            opts: Some(options),
            notify_success: None,
        })?;
        let answer = swrk.wait_answer(until)?;
        swrk.finish();
        Ok(answer)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(pid) = self.restored {
            // A child of the CRIU that has ended, so init's to reap.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_criu_that_is_none_is_told_apart() {
        let info = probe(&Criu::at(PathBuf::from("/bin/true")));
        assert!(!info.works);
        assert!(info.why.unwrap().contains("without an answer"));
        let (none, info) = Criu::find(Some(Path::new("/nonexistent")));
        assert!(none.is_none() && !info.works && info.path.is_none());
    }

    #[test]
    fn the_one_that_setup_brings_works() {
        let (criu, info) = Criu::find(None);
        if criu.is_none() {
            println!("SKIPPED: no CRIU works here: {:?}", info.why);
            return;
        }
        assert!(info.works && info.version.is_some(), "{info:?}");
        // Also when the one who started us left something open for us that cannot be dumped.
        let open = File::open("/dev/ptmx").unwrap();
        if open.as_raw_fd() < 10 {
            rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
            let info = probe(&criu.unwrap());
            assert!(info.works, "{info:?}");
        }
    }
}
