//! Becoming a process of its own: session, pid file, log file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use offshoot_edge_api::{EdgeConfig, EdgeControl, PidFile};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid, umask};
use tracing_subscriber::EnvFilter;

use crate::rotating::RotatingFile;

const START_TIMEOUT: Duration = Duration::from_secs(15);
/// After how many slow allocations of a thread the allocator (mimalloc) looks for memory that other threads have freed. Its
/// own choice is 10,000, which is a long time for an edge that many clients have left and few ask.
const COLLECTS: (&str, &str) = ("MIMALLOC_GENERIC_COLLECT", "1000");
const LOG_BYTES: u64 = 16 << 20;

/// Starts this program anew in the background and waits until that one answers on its control socket.
pub(crate) fn detach(path: &Path, config: &EdgeConfig) -> anyhow::Result<()> {
    let log_path = config.log_file();
    let mut log = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log_path)
        .with_context(|| format!("cannot open {}", log_path.display()))?;
    let before = log.seek(SeekFrom::End(0))?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--config")
        .arg(path)
        .arg("--background")
        .env(COLLECTS.0, COLLECTS.1)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .current_dir("/")
        .spawn()
        .context("cannot start the process in the background")?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            log.seek(SeekFrom::Start(before))?;
            let mut messages = Vec::new();
            log.take(16 << 10).read_to_end(&mut messages)?;
            let how = status
                .signal()
                .map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
            bail!(
                "ended with {how}: {}",
                String::from_utf8_lossy(&messages).trim()
            );
        }
        let serves = EdgeControl::connect(&config.control).and_then(|mut control| control.status());
        if serves.is_ok_and(|status| status.pid == child.id()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!(
                "did not answer on {} within {START_TIMEOUT:?}",
                config.control.display()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Takes the pid file's lock (held until the process ends), and sets up session, limits and messages.
pub(crate) fn become_the_edge(config: &EdgeConfig, background: bool) -> anyhow::Result<File> {
    if background {
        // fails only for a process group's leader, which a process just started by --detach is not
        setsid().context("cannot begin a session")?;
    }
    // the control socket, logs and the pid file are root's alone
    umask(rustix::fs::Mode::from_raw_mode(0o077));
    let path = config.pid_file();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another edge runs and holds {}", path.display()))?;
    file.set_len(0)?;
    file.write_all(&serde_json::to_vec(&PidFile::myself()?)?)?;

    // one file descriptor for the client and one for the upstream; the hard limit needs no privilege
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );

    // request errors are in the access log; the proxy library's own lines would repeat them
    let filter = EnvFilter::try_from_env("OFFSHOOT_EDGE_LOG").unwrap_or_else(|_| {
        EnvFilter::new("info,pingora_proxy=off,pingora_core=off,pingora_pool=off,h2=off")
    });
    let subscriber = tracing_subscriber::fmt().json().with_env_filter(filter);
    if background {
        let log = config.log_file();
        let log = RotatingFile::open(&log, LOG_BYTES, 1)
            .with_context(|| format!("cannot open {}", log.display()))?;
        subscriber.with_writer(Mutex::new(log)).init();
    } else {
        subscriber.with_writer(std::io::stderr).init();
    }
    Ok(file)
}
