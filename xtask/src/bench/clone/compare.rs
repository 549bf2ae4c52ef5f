//! The same Redis under other programs that checkpoint and restore: what this project is compared with.
//!
//! A container is one Redis alone, made of the node's root file system, on the host's network so that a client can
//! ask it. "Cloning" is: checkpoint and let it go on, end it, restore it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::bulk::{Bulk, connect};
use super::figures::Measured;
use crate::commands::output;
use crate::instance::Instance;
use crate::interrupt::{self, pause};

const PATIENCE: Duration = Duration::from_secs(120);
/// How long it is measured on its own before the checkpoint, and after it.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_millis(200);

/// A running container of another program's.
pub(super) trait Container {
    /// Where its Redis answers.
    fn address(&self) -> SocketAddr;
    /// Writes its memory to files and lets it go on; how many bytes that were.
    fn checkpoint(&self) -> anyhow::Result<u64>;
    /// Ends it; its files stay.
    fn end(&self) -> anyhow::Result<()>;
    /// Lets it go on from the files.
    fn restore(&self) -> anyhow::Result<()>;
}

/// Fills the container's Redis and clones it once under load.
pub(super) fn clone_once(container: &dyn Container, bulk: Bulk) -> anyhow::Result<Measured> {
    let address = container.address();
    wait(address)?;
    bulk.fill(address)?;
    let pings = Pinger::start(address)?;
    let writer = bulk.overwrite(address)?;
    let started = Instant::now();
    pause(BEFORE)?;
    let began = Instant::now();
    let copied = container.checkpoint()?;
    let checkpointed = Instant::now();
    pause(AFTER)?;
    let freeze = pings.finish()?;
    let writes = writer.map(|writer| writer.finish()).transpose()?;
    container.end()?;
    let restoring = Instant::now();
    container.restore()?;
    wait(address)?;
    let first_answer = (checkpointed - began) + restoring.elapsed();
    Ok(Measured {
        freeze_ms: freeze.as_secs_f64() * 1e3,
        first_answer_ms: first_answer.as_secs_f64() * 1e3,
        writes_before: writes.as_ref().map(|all| all.per_second(started, began)),
        writes_during: writes
            .as_ref()
            .map(|all| all.per_second(began, checkpointed)),
        bytes_copied: Some(copied),
        bytes_copied_in_freeze: Some(copied),
        ..Measured::default()
    })
}

/// Until Redis answers.
fn wait(address: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !connect(address).is_ok_and(|mut redis| redis.ask(&["PING"]).is_ok()) {
        interrupt::check()?;
        if Instant::now() > deadline {
            bail!("Redis did not answer on {address} within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Where the parts of a container are. Its name has the port, so that it is its own.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: String,
    /// In the pool, so that the root file system is shared with the node's and not copied.
    pub(super) directory: PathBuf,
    /// In memory, for what is written in the freeze.
    pub(super) run: PathBuf,
    pub(super) address: SocketAddr,
}

impl Place {
    /// A free one.
    pub(super) fn new(instance: &Instance, prefix: &str) -> anyhow::Result<Self> {
        // taken and given back at once: nothing else on loopback takes it in between, as a rule
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let id = format!("{prefix}{}", address.port());
        Ok(Self::of(instance, id, address))
    }

    fn of(instance: &Instance, id: String, address: SocketAddr) -> Self {
        Self {
            directory: instance.state.join("pool").join(&id),
            run: instance.run.join(&id),
            address,
            id,
        }
    }

    /// Those that a benchmark left that was killed.
    pub(super) fn left_behind(instance: &Instance, prefix: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(&instance.run) else {
            return Vec::new();
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        names
            .filter_map(|name| {
                let id = name.into_string().ok()?;
                let port = id.strip_prefix(prefix)?.parse().ok()?;
                Some(Self::of(
                    instance,
                    id,
                    SocketAddr::from(([127, 0, 0, 1], port)),
                ))
            })
            .collect()
    }

    /// Makes the directories, with a copy of the root file system that shares its blocks.
    pub(super) fn make(&self, rootfs: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(&self.directory)?;
        fs::create_dir_all(&self.run)?;
        output(
            Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .arg(rootfs)
                .arg(self.rootfs()),
        )?;
        // in CRIU's favour: connections on loopback need no protection
        fs::write(self.criu_conf(), "network-lock skip\n")?;
        Ok(())
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    pub(super) fn criu_conf(&self) -> PathBuf {
        self.directory.join("criu.conf")
    }

    /// Redis' command line.
    pub(super) fn command(&self) -> Vec<String> {
        let port = self.address.port().to_string();
        let words = [
            "/usr/bin/redis-server",
            "--bind",
            "127.0.0.1",
            "--port",
            &port,
        ];
        let words = words
            .into_iter()
            .chain(["--save", "", "--appendonly", "no"]);
        words.map(str::to_owned).collect()
    }

    /// Removes directories and control groups; says what stays.
    pub(super) fn remove(&self) {
        for directory in [&self.directory, &self.run] {
            if let Err(error) = fs::remove_dir_all(directory)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                eprintln!("xtask: {} stays: {error}", directory.display());
            }
        }
        for group in cgroups(&self.id) {
            if let Err(error) = remove_cgroup(&group) {
                eprintln!("xtask: {} stays: {error}", group.display());
            }
        }
    }
}

/// The control groups of that name, in every hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
    std::iter::once(root.to_owned())
        .chain(hierarchies.map(|entry| entry.path()))
        .map(|hierarchy| hierarchy.join(name))
        .filter(|group| group.is_dir())
        .collect()
}

/// Removes a control group without processes, and those in it.
fn remove_cgroup(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Bytes of the files in a directory.
pub(super) fn bytes_in(directory: &Path) -> anyhow::Result<u64> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|file| file.len())
        .sum())
}

/// Where a working CRIU is.
pub(super) fn criu_dir() -> PathBuf {
    let private = PathBuf::from("/opt/offshoot/criu/bin");
    if private.join("criu").exists() {
        private
    } else {
        PathBuf::from("/usr/sbin")
    }
}

/// A program that finds that CRIU.
pub(super) fn with_criu(program: &str) -> Command {
    let mut path = criu_dir().into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.env("PATH", path);
    command
}

/// The lines of a CRIU log that say what went wrong.
pub(super) fn criu_errors(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let errors: Vec<_> = text
        .lines()
        .filter(|line| line.contains("Error ("))
        .take(5)
        .collect();
    errors.join("; ")
}

/// Pings Redis every millisecond.
struct Pinger {
    thread: JoinHandle<anyhow::Result<Duration>>,
    stop: Arc<AtomicBool>,
}

impl Pinger {
    fn start(address: SocketAddr) -> anyhow::Result<Self> {
        let mut redis = connect(address)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                redis.ask(&["PING"])?;
                longest = longest.max(last.elapsed());
                last = Instant::now();
                thread::sleep(Duration::from_millis(1));
            }
            Ok(longest)
        });
        Ok(Self { thread, stop })
    }

    /// The longest time between two answers.
    fn finish(self) -> anyhow::Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(longest) => longest,
            Err(_) => bail!("the thread that pinged Redis panicked"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A root file system with nothing but Redis and the libraries it is linked with.
    fn redis_only(rootfs: &Path) {
        let program = fs::canonicalize("/usr/bin/redis-server").unwrap();
        let linked = output(Command::new("ldd").arg(&program)).unwrap();
        let files = linked
            .lines()
            .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
        for file in files.map(Path::new) {
            let to = rootfs.join(file.strip_prefix("/").unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(file, to).unwrap();
        }
        for directory in ["usr/bin", "proc", "dev", "tmp", "sys", "etc", "run"] {
            fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        fs::copy(program, rootfs.join("usr/bin/redis-server")).unwrap();
    }

    /// Clones a filled Redis that is written to, and looks for what is left afterwards.
    pub(crate) fn clones_and_leaves_nothing<C: Container>(
        program: &str,
        start: fn(&Instance, &Path) -> anyhow::Result<C>,
        id: fn(&C) -> &str,
    ) {
        let criu = criu_dir().join("criu");
        for needed in ["/usr/bin/redis-server", program, criu.to_str().unwrap()] {
            if !Path::new(needed).exists() {
                println!("SKIPPED: {needed} is not installed (`cargo xtask setup run test`)");
                return;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let instance = Instance {
            label: "xt",
            state: directory.path().join("state"),
            run: directory.path().join("run"),
            port: 0,
            programs: PathBuf::new(),
            number: 0,
        };
        let rootfs = directory.path().join("rootfs");
        redis_only(&rootfs);
        let container = start(&instance, &rootfs).unwrap();
        let bulk = Bulk {
            bytes: 32 << 20,
            value: 64 << 10,
            writes: 500,
        };
        let measured = clone_once(&container, bulk).unwrap();
        println!("{measured:?}");
        let mut redis = connect(container.address()).unwrap();
        assert_eq!(
            redis.ask(&["DBSIZE"]).unwrap(),
            "512",
            "what was in memory came back"
        );
        assert!(measured.bytes_copied.unwrap() > 32 << 20);
        assert!(measured.freeze_ms > 0.0 && measured.first_answer_ms > measured.freeze_ms);
        assert!(measured.writes_before.unwrap() > 0.0);
        let id = id(&container).to_owned();
        drop(container);
        assert!(fs::read_dir(&instance.run).unwrap().next().is_none());
        assert_eq!(cgroups(&id), Vec::<PathBuf>::new());
    }
}
