//! The host's apt at work on another directory.
//!
//! It gets a configuration of its own (apt.conf(5)): of the host's only how things are fetched. Lists and packages are
//! kept for a suite and shared by all its images, so that what several need is fetched once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, SystemTime};

use super::command::{Command, MOUNTS, OnLine};
use super::{EXCLUDED, Source};
use crate::ImageError;
use crate::job::{Job, TICK};
use crate::oci::Digest;

const UPDATE_LIMIT: Duration = Duration::from_secs(15 * 60);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(60 * 60);
const INSTALL_LIMIT: Duration = Duration::from_secs(60 * 60);
/// Lists younger than this are not asked for again.
const LISTS_AGE: Duration = Duration::from_secs(15 * 60);
/// Packages that no image needed for this long are removed from the cache.
const PACKAGE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
const CACHE: &str = "apt-cache";
/// Settings of the host that say how to fetch; hooks, pins and the like are its own business.
const FETCHING: &[&str] = &[
    "Acquire::http",
    "Acquire::https",
    "Acquire::ftp",
    "Acquire::tor",
    "Acquire::Retries",
    "Acquire::ForceIPv4",
    "Acquire::ForceIPv6",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Max-FutureTime",
    "Acquire::EnableSrvRecords",
    "Acquire::By-Hash",
];

/// apt for one suite.
pub(crate) struct Apt {
    /// Directory of the suite's lists and packages.
    dir: PathBuf,
    suite: String,
    /// Settings for fetching, in apt.conf's form.
    acquire: String,
    lock: Arc<Mutex<()>>,
}

impl Apt {
    pub(crate) fn new(
        suite: &str,
        sources: &[Source],
        images_dir: &Path,
    ) -> Result<Self, ImageError> {
        // Other sources of the same suite are other lists.
        let lines: Vec<_> = sources.iter().map(Source::identity).collect();
        let identity = Digest::of(lines.join("\n").as_bytes());
        let name = format!("{suite}-{}", identity.hex().get(..8).unwrap_or_default());
        let dir = images_dir.join(CACHE).join(&name);
        for dir in ["lists/partial", "archives/partial", "empty", "keys"] {
            let dir = images_dir.join(CACHE).join(&name).join(dir);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(ImageError::io("create", dir))?;
        }
        let apt = Self {
            acquire: fetching_settings()?,
            suite: suite.to_owned(),
            lock: lock_of(&dir),
            dir,
        };
        let text = apt.sources_text(sources)?;
        write_private(&apt.sources_file(), &text)?;
        Ok(apt)
    }

    /// The suite's sources, one per line.
    pub(crate) fn sources_file(&self) -> PathBuf {
        self.dir.join("sources.list")
    }

    /// The host's settings for fetching as a file.
    pub(crate) fn acquire_file(&self) -> Result<PathBuf, ImageError> {
        let path = self.dir.join("acquire.conf");
        write_private(&path, &self.acquire)?;
        Ok(path)
    }

    fn sources_text(&self, sources: &[Source]) -> Result<String, ImageError> {
        let mut text = String::new();
        for source in sources {
            let signed_by = match &source.signed_by {
                Some(key) if key.starts_with("-----BEGIN") => {
                    let name = format!("{}.asc", Digest::of(key.as_bytes()).hex());
                    let path = self.dir.join("keys").join(name);
                    write_private(&path, key)?;
                    Some(path.display().to_string())
                }
                other => other
                    .as_ref()
                    .map(|paths| paths.split_whitespace().collect::<Vec<_>>().join(",")),
            };
            let mut options = Vec::new();
            options.extend(signed_by.map(|path| format!("signed-by={path}")));
            if source.trusted {
                options.push("trusted=yes".into());
            }
            let options = if options.is_empty() {
                String::new()
            } else {
                format!("[{}] ", options.join(" "))
            };
            let components = source.components.join(" ");
            let _ = writeln!(
                text,
                "deb {options}{} {} {components}",
                source.uri, source.suite
            );
        }
        Ok(text)
    }

    /// Installs packages into the system at `root`, without recommendations.
    pub(crate) fn install(
        &self,
        packages: &[String],
        root: &Path,
        job: &Job,
    ) -> Result<(), ImageError> {
        let what = format!("installing {}", packages.join(", "));
        let config = self.config(root)?;
        // Fetching is done by one at a time: apt's files allow no more, and what two images need is fetched once.
        {
            let _held = self.hold(job)?;
            self.update(&config, job)?;
            job.begin(100, "percent");
            job.note(format!("fetching {}", packages.join(", ")));
            self.command(
                &what,
                &config,
                &["--download-only", "install"],
                packages,
                DOWNLOAD_LIMIT,
            )
            .prepare(&format!("{STATUS}\n{SHARE_PACKAGES}"), root)
            .env("PACKAGES", self.dir.join("archives").display().to_string())
            .run(job, &mut |line| progress(line, "dlstatus:", job))?;
        }
        job.begin(100, "percent");
        job.note(what.clone());
        let result = self
            .command(
                &what,
                &config,
                &["--no-download", "install"],
                packages,
                INSTALL_LIMIT,
            )
            .prepare(&format!("{STATUS}\n{SHARE_PACKAGES}\n{MOUNTS}"), root)
            .env("PACKAGES", self.dir.join("archives").display().to_string())
            .run(job, &mut |line| progress(line, "pmstatus:", job));
        drop(config);
        result
    }

    /// Brings the lists up to date, unless somebody just did.
    fn update(&self, config: &Config, job: &Job) -> Result<(), ImageError> {
        let stamp = self.dir.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| {
                SystemTime::now()
                    .duration_since(time)
                    .is_ok_and(|age| age < LISTS_AGE)
            });
        if fresh {
            return Ok(());
        }
        let what = format!("fetching the lists of {}", self.suite);
        job.begin(0, "steps");
        job.note(what.clone());
        // A list that cannot be had is an error, not a warning that leads to odd ones later.
        self.command(
            &what,
            config,
            &["-o", "APT::Update::Error-Mode=any", "update"],
            &[],
            UPDATE_LIMIT,
        )
        .run(job, &mut |line| progress(line, "dlstatus:", job))?;
        write_private(&stamp, "")
    }

    fn command(
        &self,
        what: &str,
        config: &Config,
        args: &[&str],
        packages: &[String],
        limit: Duration,
    ) -> Command {
        let mut argv: Vec<String> = ["-q", "-y", "-o", "APT::Status-Fd=3"]
            .map(str::to_owned)
            .to_vec();
        argv.extend(args.iter().map(|arg| (*arg).to_owned()));
        argv.extend(packages.iter().cloned());
        Command::new(what.to_owned(), "apt-get", argv, limit)
            .package("apt")
            .prepare(STATUS, Path::new("/"))
            .env("APT_CONFIG", config.0.display().to_string())
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("DEBCONF_NONINTERACTIVE_SEEN", "true")
            .env("DEBCONF_NOWARNINGS", "yes")
    }

    /// apt's configuration for work on `root`.
    fn config(&self, root: &Path) -> Result<Config, ImageError> {
        let (root, dir) = (root.display(), self.dir.display());
        let mut text = format!(
            r#"Dir "{root}";
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "{dir}/empty";
Dir::Etc::SourceList "{dir}/sources.list";
Dir::Etc::SourceParts "{dir}/empty";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "{dir}/empty";
Dir::Etc::Trusted "/etc/apt/trusted.gpg";
Dir::Etc::TrustedParts "/etc/apt/trusted.gpg.d";
Dir::Etc::Netrc "/etc/apt/auth.conf";
Dir::Etc::NetrcParts "/etc/apt/auth.conf.d";
Dir::State::Lists "{dir}/lists";
Dir::State::Status "{root}/var/lib/dpkg/status";
Dir::Cache::Archives "{root}/var/cache/apt/archives";
Dir::Cache::SrcPkgCache "{dir}/srcpkgcache.bin";
Dir::Cache::PkgCache "";
Dir::Bin::Dpkg "/usr/bin/dpkg";
DPkg::Chroot-Directory "{root}";
DPkg::Options:: "--force-unsafe-io";
DPkg::Options:: "--force-confnew";
DPkg::Use-Pty "false";
APT::Install-Recommends "false";
APT::Get::AllowUnauthenticated "false";
APT::Sandbox::User "root";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Debug::NoLocking "true";
"#
        );
        for option in EXCLUDED {
            let _ = writeln!(text, "DPkg::Options:: \"{option}\";");
        }
        text.push_str(&self.acquire);
        let path = self
            .dir
            .join(format!("apt-{}.conf", offshoot_model::EnvId::random()));
        write_private(&path, &text)?;
        Ok(Config(path))
    }

    fn hold(&self, job: &Job) -> Result<MutexGuard<'_, ()>, ImageError> {
        loop {
            match self.lock.try_lock() {
                Ok(held) => return Ok(held),
                Err(TryLockError::Poisoned(held)) => return Ok(held.into_inner()),
                Err(TryLockError::WouldBlock) => {
                    job.check()?;
                    std::thread::sleep(TICK / 4);
                }
            }
        }
    }
}

/// A configuration file that goes when it was used.
struct Config(PathBuf);

impl Drop for Config {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// apt makes the descriptor it writes its progress to non-blocking, for everybody who shares it: maintainer scripts then
/// fail on a full pipe. So it gets one of its own to the same pipe.
const STATUS: &str = "exec 3>/proc/self/fd/1";
/// Makes the suite's packages appear where the system at `$1` keeps them.
const SHARE_PACKAGES: &str =
    r#"mkdir -p "$1/var/cache/apt/archives"; mount --bind "$PACKAGES" "$1/var/cache/apt/archives""#;

/// apt's machine-readable progress: `pmstatus:<package>:<percent>:<words>`.
fn progress(line: &str, kind: &str, job: &Job) -> OnLine {
    let Some(rest) = line.strip_prefix(kind) else {
        let status = ["dlstatus:", "pmstatus:", "pmerror:", "pmconffile:"]
            .iter()
            .any(|k| line.starts_with(k));
        return if status { OnLine::Drop } else { OnLine::Keep };
    };
    let mut parts = rest.splitn(3, ':');
    let (name, percent, words) = (parts.next(), parts.next(), parts.next());
    if let Some(percent) = percent
        .and_then(|text| text.parse::<f64>().ok())
        .filter(|p| (0.0..=100.0).contains(p))
    {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 100"
        )]
        job.set(percent as u64);
    }
    if let Some(words) = words.or(name) {
        job.note(words);
    }
    OnLine::Drop
}

/// The host's settings for fetching: proxies, certificates, retries.
fn fetching_settings() -> Result<String, ImageError> {
    let missing = |e: std::io::Error| ImageError::Host {
        what: format!("apt-config cannot be started: {e}"),
        next: "install the packages apt and mmdebstrap, or use an image from a registry".into(),
    };
    let output = std::process::Command::new("apt-config")
        .arg("dump")
        .env("LC_ALL", "C")
        .output()
        .map_err(missing)?;
    Ok(select_settings(&String::from_utf8_lossy(&output.stdout)))
}

fn select_settings(dump: &str) -> String {
    dump.lines()
        .filter(|line| {
            let key = line.split_once(' ').map_or(*line, |(key, _)| key);
            FETCHING.iter().any(|prefix| {
                key.get(..prefix.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
                    && key
                        .get(prefix.len()..)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            })
        })
        .fold(String::new(), |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        })
}

/// One lock per cache directory in this process. (Two daemons have two directories.)
fn lock_of(dir: &Path) -> Arc<Mutex<()>> {
    static LOCKS: OnceLock<Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>>> = OnceLock::new();
    let mut locks = LOCKS
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    locks.entry(dir.to_path_buf()).or_default().clone()
}

/// Removes old packages and what interrupted runs left.
pub(crate) fn clean_up(images_dir: &Path) {
    let old = |path: &Path| {
        fs::metadata(path)
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| {
                SystemTime::now()
                    .duration_since(time)
                    .is_ok_and(|age| age > PACKAGE_AGE)
            })
    };
    for suite in fs::read_dir(images_dir.join(CACHE))
        .into_iter()
        .flatten()
        .flatten()
    {
        for entry in fs::read_dir(suite.path()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("apt-") && (name.ends_with(".conf") || name.ends_with(".new")) {
                let _ = fs::remove_file(entry.path());
            }
        }
        for entry in fs::read_dir(suite.path().join("archives"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if old(&entry.path()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Writes a file that nobody sees half written. Settings may hold a proxy's password.
fn write_private(path: &Path, text: &str) -> Result<(), ImageError> {
    use std::io::Write as _;
    let new = path.with_file_name(format!("apt-{}.new", offshoot_model::EnvId::random()));
    fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&new, path))
        .map_err(ImageError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_host_s_settings_only_fetching_is_taken() {
        let dump = "APT \"\";\nDPkg::Post-Invoke:: \"rm -f /x\";\nAcquire::http::Proxy \"http://p:1\";\n\
                    Acquire::https::CAInfo \"/ca.pem\";\nAcquire::httpx \"1\";\nAcquire::IndexTargets::deb::x \"1\";\n\
                    Acquire::Check-Valid-Until \"false\";\n";
        assert_eq!(
            select_settings(dump),
            "Acquire::http::Proxy \"http://p:1\";\nAcquire::https::CAInfo \"/ca.pem\";\n\
             Acquire::Check-Valid-Until \"false\";\n"
        );
    }
}
