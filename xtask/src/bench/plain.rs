//! For comparison: the same Redis under plain runc and CRIU, `runc checkpoint --leave-running` and then `runc restore`.
//!
//! The container is made of the node's root file system with what `runc spec` gives by default, except: the host's
//! network (so that a client can ping it), no terminal, a control group that can be removed. CRIU does not lock the
//! network (`network-lock skip`), in its favour.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use offshoot_model::view::EnvironmentView;
use serde_json::json;

use super::report::{Measured, Run};
use crate::commands::output;
use crate::instance::Instance;
use crate::wordpress::Site;

/// Fills Redis: from value number `ARGV[1]` to `ARGV[2]`, `ARGV[3]` bytes each.
pub(super) const FILL: &str = "for i = ARGV[1], ARGV[2] do redis.call('SET', 'bulk:' .. i, string.rep(string.format('%016x', i), ARGV[3] / 16)) end";

const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes per call of [`FILL`], so that none is long.
const BATCH: u64 = 64 << 20;

/// Which values to write, call by call.
pub(super) fn batches(bytes: u64, value: u64) -> impl Iterator<Item = (u64, u64)> {
    let (count, step) = (bytes / value, BATCH / value);
    (0..count.div_ceil(step)).map(move |batch| (batch * step + 1, ((batch + 1) * step).min(count)))
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

/// Measures both, one after the other, `runs` times.
pub(super) fn measure(
    instance: &Instance,
    site: &Site,
    name: &str,
    bytes: u64,
    value: u64,
    runs: u32,
) -> anyhow::Result<Run> {
    let view: EnvironmentView = instance.json(&["show", &site.environment])?;
    let node = view
        .layers
        .iter()
        .find(|layer| layer.name == site.cache)
        .and_then(|layer| layer.nodes.first());
    let node = node.context("no Redis node")?;
    let rootfs = instance
        .state
        .join("pool/envs")
        .join(view.id.as_str())
        .join("nodes")
        .join(&node.name);
    let mut measured = Vec::new();
    for number in 1..=runs {
        let container = Container::start(instance, &rootfs)?;
        for (first, last) in batches(bytes, value) {
            container.redis(&[
                "EVAL",
                FILL,
                "0",
                &first.to_string(),
                &last.to_string(),
                &value.to_string(),
            ])?;
        }
        let one = container.measure()?;
        println!(
            "{name}: {number}/{runs}: freeze {:.1} ms, first answer {:.0} ms",
            one.freeze_ms, one.first_answer_ms
        );
        measured.push(one);
    }
    Ok(Run::of(name, &measured))
}

/// A running container; dropping it removes it and its files.
struct Container {
    id: String,
    directory: PathBuf,
    images: PathBuf,
    address: SocketAddr,
}

impl Container {
    fn start(instance: &Instance, rootfs: &Path) -> anyhow::Result<Self> {
        // taken and given back at once: nothing else on loopback takes it in between, as a rule
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let id = format!("offshoot-bench-{}", address.port());
        let container = Self {
            // in the pool, so that the root file system is shared and not copied
            directory: instance.state.join("pool").join(&id),
            images: instance.run.join(&id),
            address,
            id,
        };
        container.remove();
        fs::create_dir_all(&container.directory)?;
        fs::create_dir_all(&container.images)?;
        output(
            Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .arg(rootfs)
                .arg(container.directory.join("rootfs")),
        )?;
        fs::write(container.directory.join("criu.conf"), "network-lock skip\n")?;
        fs::write(
            container.directory.join("config.json"),
            serde_json::to_vec_pretty(&container.config())?,
        )?;
        output(
            container
                .runc()
                .args(["run", "--detach", "--bundle"])
                .arg(&container.directory)
                .arg(&container.id),
        )?;
        container.wait()?;
        Ok(container)
    }

    fn config(&self) -> serde_json::Value {
        let port = self.address.port().to_string();
        let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true,
                "args": ["/usr/bin/redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no"],
                "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            ],
            "annotations": {"org.criu.config": self.directory.join("criu.conf")},
            "linux": {
                "cgroupsPath": format!("/{}", self.id),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            },
        })
    }

    fn runc(&self) -> Command {
        let mut path = criu_dir().into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut runc = Command::new("runc");
        // its own descriptors would stay open in the container
        runc.env("PATH", path)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        runc.arg("--root")
            .arg(self.images.join("runc"))
            .arg("--log")
            .arg(self.images.join("runc.log"));
        runc
    }

    fn redis(&self, command: &[&str]) -> anyhow::Result<String> {
        let mut stream = BufReader::new(TcpStream::connect(self.address)?);
        stream.get_ref().set_read_timeout(Some(PATIENCE))?;
        ask(&mut stream, command)
    }

    fn wait(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.redis(&["PING"]).is_ok_and(|answer| answer == "+PONG") {
            if Instant::now() > deadline {
                bail!(
                    "Redis did not answer on {} within {PATIENCE:?}",
                    self.address
                );
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn measure(&self) -> anyhow::Result<Measured> {
        let images = self.images.join("checkpoint");
        fs::create_dir_all(&images)?;
        let pings = RedisPinger::start(self.address)?;
        thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        let mut checkpoint = self.runc();
        checkpoint.args(["checkpoint", "--leave-running", "--tcp-established"]);
        checkpoint
            .arg("--image-path")
            .arg(&images)
            .arg("--work-path")
            .arg(&images)
            .arg(&self.id);
        output(&mut checkpoint).with_context(|| self.messages("dump.log"))?;
        let checkpoint_took = began.elapsed();
        thread::sleep(Duration::from_millis(200));
        let freeze = pings.finish()?;
        let copied = fs::read_dir(&images)?
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|file| file.len())
            .sum();
        output(self.runc().args(["delete", "--force", &self.id]))?;
        let restoring = Instant::now();
        let mut restore = self.runc();
        restore.args(["restore", "--detach", "--tcp-established"]);
        restore
            .arg("--image-path")
            .arg(&images)
            .arg("--work-path")
            .arg(&images)
            .arg("--bundle")
            .arg(&self.directory)
            .arg(&self.id);
        output(&mut restore).with_context(|| self.messages("restore.log"))?;
        self.wait()?;
        Ok(Measured {
            freeze_ms: freeze.as_secs_f64() * 1e3,
            first_answer_ms: (checkpoint_took + restoring.elapsed()).as_secs_f64() * 1e3,
            parent_throughput_ratio: None,
            added_memory: None,
            added_disk: None,
            bytes_copied: Some(copied),
        })
    }

    /// What runc and CRIU have to say about a failure.
    fn messages(&self, criu_log: &str) -> String {
        let runc = fs::read_to_string(self.images.join("runc.log")).unwrap_or_default();
        let criu =
            fs::read_to_string(self.images.join("checkpoint").join(criu_log)).unwrap_or_default();
        let errors: Vec<_> = criu
            .lines()
            .filter(|line| line.contains("Error ("))
            .take(5)
            .collect();
        format!(
            "runc: {}; CRIU: {}",
            runc.lines().last().unwrap_or("nothing"),
            errors.join("; ")
        )
    }

    fn remove(&self) {
        // what is not there need not go
        let _ = self
            .runc()
            .args(["delete", "--force", &self.id])
            .stdout(Stdio::null())
            .status();
        for directory in [&self.directory, &self.images] {
            if let Err(error) = fs::remove_dir_all(directory)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                eprintln!("xtask: {} stays: {error}", directory.display());
            }
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Sends a command in Redis' protocol (RESP2) and returns the answer's first line.
fn ask(stream: &mut BufReader<TcpStream>, command: &[&str]) -> anyhow::Result<String> {
    let mut request = format!("*{}\r\n", command.len());
    for word in command {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.get_mut().write_all(request.as_bytes())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end().to_owned();
    if line.is_empty() || line.starts_with('-') {
        bail!("Redis answered {line:?}");
    }
    Ok(line)
}

/// Pings Redis every millisecond.
struct RedisPinger {
    thread: JoinHandle<anyhow::Result<Duration>>,
    stop: Arc<AtomicBool>,
}

impl RedisPinger {
    fn start(address: SocketAddr) -> anyhow::Result<Self> {
        let mut stream = BufReader::new(TcpStream::connect(address)?);
        stream.get_ref().set_nodelay(true)?;
        stream.get_ref().set_read_timeout(Some(PATIENCE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                ask(&mut stream, &["PING"])?;
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
mod tests {
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
        for directory in ["usr/bin", "proc", "dev", "tmp"] {
            fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        fs::copy(program, rootfs.join("usr/bin/redis-server")).unwrap();
    }

    #[test]
    fn redis_is_checkpointed_and_restored() {
        for needed in [
            "/usr/bin/redis-server",
            "/usr/sbin/runc",
            criu_dir().join("criu").to_str().unwrap(),
        ] {
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
        let container = Container::start(&instance, &rootfs).unwrap();
        for (first, last) in batches(32 << 20, 64 << 10) {
            container
                .redis(&[
                    "EVAL",
                    FILL,
                    "0",
                    &first.to_string(),
                    &last.to_string(),
                    "65536",
                ])
                .unwrap();
        }
        assert_eq!(container.redis(&["DBSIZE"]).unwrap(), ":512");
        let measured = container.measure().unwrap();
        println!("{measured:?}");
        assert_eq!(
            container.redis(&["DBSIZE"]).unwrap(),
            ":512",
            "what was in memory came back"
        );
        assert!(measured.bytes_copied.unwrap() > 32 << 20);
        assert!(measured.freeze_ms > 0.0 && measured.first_answer_ms > measured.freeze_ms);
        drop(container);
        assert!(fs::read_dir(&instance.run).unwrap().next().is_none());
    }

    #[test]
    fn batches_cover_everything_once() {
        let all: Vec<_> = batches(200 << 20, 64 << 10).collect();
        assert_eq!(all, [(1, 1024), (1025, 2048), (2049, 3072), (3073, 3200)]);
        assert_eq!(batches(0, 64 << 10).count(), 0);
    }
}
